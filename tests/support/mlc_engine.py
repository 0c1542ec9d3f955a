"""A compiled MLC package in TVM's own virtual machine: what MLC-LLM's engine calls, called here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tvm
from torch import Tensor
from tvm import relax
from tvm.runtime import ShapeTuple

from tests.support.mlc_package import read_params

_PAGE = 16  # tokens of the KV cache that are kept together, as MLC-LLM's engine has it
_SEQUENCE = 0  # the id of the one conversation


class MlcEngine:
    """One conversation at a time, from its first token on."""

    def __init__(self, library: Path, package: Path, device: Any = None) -> None:
        """Loads a package.

        Args:
            library: compiled for this machine.
            package: the folder with the parameters.
            device: TVM's; None: the processor.
        """
        self._device = device or tvm.cpu()
        self._vm = relax.VirtualMachine(tvm.runtime.load_module(str(library)), self._device)
        metadata = json.loads(self._vm["_metadata"]())
        values = read_params(package)
        self._parameters = [
            self._put(values.pop(one["name"]).astype(one["dtype"], copy=False))
            for one in metadata["params"]
        ]
        assert not values, f"the library takes no {sorted(values)}"
        self._window: int = metadata["context_window_size"]
        self._chunk: int = metadata["prefill_chunk_size"]
        self._cache: Any = None

    def image_tokens(self, picture: np.ndarray[Any, Any]) -> Tensor:
        """Maps a picture (S, S, 3) uint8 to image tokens (Q, D) float32."""
        sizes = [ShapeTuple([n]) for n in (0, 0, 0, 0)]  # for other models
        tokens = self._vm["image_embed"](self._put(picture[None]), *sizes, self._parameters)
        return torch.from_numpy(tokens.numpy()).float()

    def embed(self, ids: Sequence[int]) -> Tensor:
        """Maps token ids to scaled embeddings (L, D) float32."""
        out = self._vm["embed"](self._put(np.array(ids, np.int32)), self._parameters)
        return torch.from_numpy(out.numpy()).float()

    def begin(self) -> None:
        """Forgets the conversation."""
        one = [ShapeTuple([n]) for n in (1, self._window, self._chunk, _PAGE, 0)]
        self._cache = self._vm["create_tir_paged_kv_cache"](*one)
        _builtin("add_sequence")(self._cache, _SEQUENCE)

    def logits(self, embeddings: Tensor) -> Tensor:
        """Goes on with embeddings (L, D); returns the logits (V) behind the last."""
        last: Any = None
        for part in torch.split(embeddings, self._chunk):
            values = self._put(part.half().numpy()[None])
            _builtin("begin_forward")(self._cache, ShapeTuple([_SEQUENCE]), ShapeTuple([len(part)]))
            function = "decode" if len(part) == 1 else "prefill"
            last, self._cache = self._vm[function](values, self._cache, self._parameters)
            _builtin("end_forward")(self._cache)
        return torch.from_numpy(last.numpy()).float().flatten()

    def answer(self, embeddings: Tensor, end: int, limit: int) -> list[int]:
        """Answers a prompt (L, D) greedily, up to the end token."""
        ids: list[int] = []
        logits = self.logits(embeddings)
        while len(ids) < limit and int(logits.argmax()) != end:
            ids.append(int(logits.argmax()))
            logits = self.logits(self.embed(ids[-1:]))
        return ids

    def _put(self, values: np.ndarray[Any, Any]) -> Any:
        return tvm.runtime.tensor(np.ascontiguousarray(values), self._device)


def _builtin(name: str) -> Any:
    return tvm.get_global_func(f"vm.builtin.kv_state_{name}")
