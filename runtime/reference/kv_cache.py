"""The decoder's KV cache with attention sinks and a sliding window.

A conversation has any length; a token sees at most `window` of its tokens, itself included: the
first `pinned` (attention sinks, and the picture), and the newest of the rest. Positions are
relative to what is kept, as in StreamingLLM (arXiv 2309.17453). Among the newest, distances are
what they were in the conversation. The pinned stand right before the newest, so their distance
stops growing when the window is full: a query at index t sees them as from index
min(t, window - 1). Keys are therefore stored rotated to their index in the conversation, once,
and only the query needs two rotations.
"""

from __future__ import annotations

import torch
from torch import Tensor

from runtime.inputs.prompt import PromptError

ATTENTION_SINKS = 4


def pinned_tokens(picture_end: int | None) -> int:
    """Returns how many first tokens are pinned.

    Args:
        picture_end: index of the picture's closing tag, which stays too; None without a picture.
    """
    return ATTENTION_SINKS if picture_end is None else max(ATTENTION_SINKS, picture_end + 1)


class KVCache:
    """Keys and values of all layers, for one conversation (or for B beams of one)."""

    def __init__(self, num_layers: int, *, window: int, pinned: int = ATTENTION_SINKS) -> None:
        """Args: window: tokens that a token may see. pinned: tokens that are never evicted."""
        if not 0 < pinned < window:
            raise PromptError(
                f"context window {window} leaves no room beside {pinned} pinned tokens; "
                "try a larger --window"
            )
        self.window, self.pinned = window, pinned
        self.length = 0  # tokens seen, evicted ones included
        self.positions = torch.empty(0, dtype=torch.long)  # (T,) index of each kept token
        self._layers: list[tuple[Tensor, Tensor] | None] = [None] * num_layers

    def extend(self, positions: Tensor) -> None:
        """Announces the new tokens (L,) that every layer is going to append."""
        self.positions = torch.cat((self.positions.to(positions.device), positions))
        self.length = int(positions[-1]) + 1

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Adds (B, H, L, head_dim) to a layer; returns all that it keeps (B, H, T, head_dim)."""
        kept = self._layers[layer]
        if kept is not None:
            k, v = torch.cat((kept[0], k), dim=2), torch.cat((kept[1], v), dim=2)
        self._layers[layer] = (k, v)
        return k, v

    def visible(self, queries: Tensor) -> Tensor:
        """Returns which kept tokens the queries (L,) see: (L, T) booleans."""
        q, k = queries.unsqueeze(1), self.positions.unsqueeze(0)
        recent = k > q - (self.window - self.pinned)
        return (k <= q) & (recent | (k < self.pinned))

    def slides(self, queries: Tensor) -> bool:
        """Says whether any of the queries has lost sight of a token."""
        return int(queries[-1]) >= self.window

    def evict(self) -> None:
        """Drops the tokens that no later query can see."""
        newest = self.length - (self.window - self.pinned)
        keep = (self.positions < self.pinned) | (self.positions > newest)
        if bool(keep.all()):
            return
        self._select(keep)

    def truncate(self, length: int) -> bool:
        """Goes back to the first `length` tokens.

        Returns:
            False if tokens that would be visible again are gone; the cache is then unchanged.
        """
        assert 0 <= length <= self.length, f"{length} of {self.length} tokens"
        lost = max(self.pinned, self.length - (self.window - self.pinned) + 1)
        needed = max(self.pinned, length - (self.window - self.pinned) + 1)
        if length > self.pinned and lost > needed:
            return False
        self._select(self.positions < length)
        self.length = length
        return True

    def reorder(self, beams: Tensor) -> None:
        """Makes row i of the batch what row beams[i] was; used by beam search."""
        beams = beams.to(self.positions.device)
        self._layers = [
            kv if kv is None else (kv[0].index_select(0, beams), kv[1].index_select(0, beams))
            for kv in self._layers
        ]

    def _select(self, keep: Tensor) -> None:
        self.positions = self.positions[keep]
        self._layers = [
            kv if kv is None else (kv[0][:, :, keep], kv[1][:, :, keep]) for kv in self._layers
        ]
