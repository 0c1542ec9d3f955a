"""What the logits say at image, text and answer positions."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from runtime.prompt import Prompt
from runtime.verify import metrics
from runtime.verify.report import Check


class Logits:
    """Collects what the logits say at image, text and answer positions."""

    def __init__(self) -> None:
        self._kl: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self._top1: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def add(
        self, prompt: Prompt, queries: int, reference: Tensor, arithmetic: Tensor, bundle: Tensor
    ) -> None:
        """Adds a prompt and its answer.

        Args:
            prompt: the question.
            queries: image tokens of its picture.
            reference: logits (L, V) over the prompt and the reference's answer.
            arithmetic: those of the arithmetic's model.
            bundle: those of the bundle.
        """
        kinds = ["text"] * len(prompt.ids)
        if prompt.image_start is not None:
            kinds[prompt.image_start : prompt.image_start + queries] = ["image"] * queries
        # The last id of the prompt is where the answer's first token is chosen.
        kinds[-1] = "answer"
        kinds += ["answer"] * (reference.shape[0] - len(prompt.ids))
        for kind in dict.fromkeys(kinds):
            at = torch.tensor([k == kind for k in kinds])
            rows = [t[at] for t in (reference, arithmetic, bundle)]
            pairs = self._kl.setdefault(kind, [])
            pairs.append(
                (metrics.kl_divergence(rows[0], rows[1]), metrics.kl_divergence(rows[0], rows[2]))
            )
            self._top1.setdefault(kind, []).append(
                (metrics.same_top1(rows[0], rows[1]), metrics.same_top1(rows[0], rows[2]))
            )

    def checks(self, thresholds: Mapping[str, float]) -> list[Check]:
        """Returns the figures of each kind of position."""
        checks = []
        for kind in ("image", "text", "answer"):
            if kind not in self._kl:
                continue
            expected, value = (
                metrics.mean(torch.cat(column)) for column in zip(*self._kl[kind], strict=True)
            )
            limit = expected * thresholds["kl_factor"] + thresholds["kl_floor_nats"]
            name = f"at {kind} tokens"
            checks.append(
                Check("logits", name, "KL divergence", "nats", value, expected, limit, False)
            )
            expected, value = (
                metrics.mean(torch.cat(column)) for column in zip(*self._top1[kind], strict=True)
            )
            limit = expected - thresholds["top1_margin"]
            checks.append(Check("logits", name, "same top-1", "", value, expected, limit, True))
        return checks
