"""What the logits say at image, text and answer positions, as sums over cases."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Annotated, Any

import torch
from msgspec import Meta
from torch import Tensor

from runtime.inputs.prompt import Prompt
from runtime.reference import metrics
from runtime.verify.check import Check

KINDS = ("image", "text", "answer")  # of positions
TOP = 5
# KL divergence, nats: the edges of the histogram, four to a decade; what is below or above counts.
EDGES = tuple(10 ** (i / 4) for i in range(-28, 5))
# As results on disk are checked when they are read back.
Count = Annotated[int, Meta(ge=0)]
Histogram = Annotated[tuple[Count, ...], Meta(min_length=len(EDGES) + 1, max_length=len(EDGES) + 1)]


@dataclass(frozen=True)
class Sums:
    """What one model's logits say beside the reference's, summed over positions."""

    kl_nats: float
    histogram: Histogram  # positions by KL divergence, one count more than `EDGES`
    top1: Count  # positions whose likeliest token is the reference's
    top5: Count  # of the reference's five likeliest tokens, how many are among the model's
    nll_nats: float  # of the next tokens, where they are known

    @property
    def half_below_nats(self) -> float:
        """KL divergence that at least half of the positions do not exceed, as the bins have it."""
        sums = list(accumulate(self.histogram))
        middle = bisect_left(sums, sums[-1] / 2)
        return EDGES[middle] if middle < len(EDGES) else math.inf

    def __add__(self, other: Sums) -> Sums:
        """Returns the sums over both."""
        both = zip(self.histogram, other.histogram, strict=True)
        return Sums(
            self.kl_nats + other.kl_nats,
            tuple(a + b for a, b in both),
            self.top1 + other.top1,
            self.top5 + other.top5,
            self.nll_nats + other.nll_nats,
        )


@dataclass(frozen=True)
class Positions:
    """All positions of one kind."""

    count: Count
    predicted: Count  # positions whose next token is known, and no picture's
    reference_nll_nats: float  # of those tokens
    arithmetic: Sums
    bundle: Sums
    half: Sums | None = None  # of the reference in 16 bits; None where it was not measured

    def __add__(self, other: Positions) -> Positions:
        """Returns the counts and sums of both."""
        return Positions(
            self.count + other.count,
            self.predicted + other.predicted,
            self.reference_nll_nats + other.reference_nll_nats,
            self.arithmetic + other.arithmetic,
            self.bundle + other.bundle,
            None if self.half is None or other.half is None else self.half + other.half,
        )

    @property
    def models(self) -> dict[str, Sums]:
        """The models that are compared with the reference."""
        both = {"arithmetic": self.arithmetic, "bundle": self.bundle}
        return both if self.half is None else {**both, "noise_floor": self.half}

    def to_json(self) -> dict[str, Any]:
        """Returns means, and the histogram with its edges."""
        return {
            "count": self.count,
            "predicted": self.predicted,
            "edges_nats": list(EDGES),
            **{
                name: {
                    "kl_nats": sums.kl_nats / self.count,
                    "same_top1": sums.top1 / self.count,
                    "same_top5": sums.top5 / self.count / TOP,
                    "histogram": list(sums.histogram),
                }
                for name, sums in self.models.items()
            },
        }


class Logits:
    """Collects what the logits say."""

    def __init__(self) -> None:
        self.positions: dict[str, Positions] = {}  # by kind

    def add(
        self,
        prompt: Prompt,
        ids: Sequence[int],
        queries: int,
        reference: Tensor,
        arithmetic: Tensor,
        bundle: Tensor,
        half: Tensor | None = None,
    ) -> None:
        """Adds a prompt and its answer.

        Args:
            prompt: the question.
            ids: of the prompt and of the reference's answer to it, L.
            queries: image tokens of its picture.
            reference: logits (L, V).
            arithmetic: those of the arithmetic's model.
            bundle: those of the bundle.
            half: those of the reference in 16 bits, if it runs.
        """
        models = [reference, arithmetic, bundle, *([] if half is None else [half])]
        kinds = ["text"] * len(prompt.ids)
        if prompt.image_start is not None:
            kinds[prompt.image_start : prompt.image_start + queries] = ["image"] * queries
        # The last id of the prompt is where the answer's first token is chosen.
        kinds[-1] = "answer"
        kinds += ["answer"] * (len(ids) - len(prompt.ids))
        before_picture = -1 if prompt.image_start is None else prompt.image_start - 1
        following = torch.tensor([*ids[1:], 0])
        for kind in dict.fromkeys(kinds):
            at = [i for i, k in enumerate(kinds) if k == kind]
            rows = [logits[at] for logits in models]
            known = [
                j
                for j, i in enumerate(at)
                if kind != "image" and i != before_picture and i + 1 < len(ids)
            ]
            self._add(kind, rows, known, following[at][known])

    def add_answer(
        self, ids: Sequence[int], reference: Tensor, arithmetic: Tensor, bundle: Tensor
    ) -> None:
        """Adds the positions that choose an answer's tokens, where only those are known.

        Args:
            ids: of the reference's answer, A.
            reference: logits (A + 1, V).
            arithmetic: those of the arithmetic's model.
            bundle: those of the artifact.
        """
        rows = [reference, arithmetic, bundle]
        self._add("answer", rows, list(range(len(ids))), torch.tensor(list(ids), dtype=torch.int64))

    def _add(self, kind: str, rows: Sequence[Tensor], known: Sequence[int], tokens: Tensor) -> None:
        """Adds logits (L, V) of the models; the tokens follow at the positions `known`."""
        found = Positions(
            len(rows[0]),
            len(known),
            metrics.negative_log_likelihood(rows[0][known], tokens),
            *(_sums(rows[0], logits, known, tokens) for logits in rows[1:]),
        )
        self.merge({kind: found})

    def merge(self, positions: Mapping[str, Positions]) -> None:
        """Adds what another case gave."""
        for kind, found in positions.items():
            old = self.positions.get(kind)
            self.positions[kind] = found if old is None else old + found

    def checks(self, thresholds: Mapping[str, float]) -> list[Check]:
        """Returns the figures of each kind of position."""
        checks = []
        for kind in KINDS:
            if kind not in self.positions:
                continue
            found = self.positions[kind]
            name = f"at {kind} tokens"
            expected, value, *half = (s.kl_nats / found.count for s in found.models.values())
            limit = expected * thresholds["kl_factor"] + thresholds["kl_floor_nats"]
            floor = half[0] if half else None
            check = Check("logits", name, "KL divergence", "nats", value, expected, limit, False)
            checks.append(replace(check, noise_floor=floor))
            expected, value, *half = (s.top1 / found.count for s in found.models.values())
            # Of few positions a share is off by chance: near ties fall to either side.
            error = math.sqrt(expected * (1 - expected) / found.count)
            chance = thresholds["top1_standard_errors"] * error
            limit = expected - max(thresholds["top1_margin"], chance)
            floor = half[0] if half else None
            check = Check("logits", name, "same top-1", "", value, expected, limit, True)
            checks.append(replace(check, noise_floor=floor))
        return checks


def _sums(reference: Tensor, value: Tensor, known: Sequence[int], tokens: Tensor) -> Sums:
    """Compares logits (L, V); the tokens are those that follow at the positions `known`."""
    kl = metrics.kl_divergence(reference, value)
    bins = torch.bucketize(kl.double(), torch.tensor(EDGES, dtype=torch.float64))
    best, mine = (logits.topk(min(TOP, logits.shape[-1])).indices for logits in (reference, value))
    return Sums(
        float(kl.double().sum()),
        tuple(torch.bincount(bins, minlength=len(EDGES) + 1).tolist()),
        int(metrics.same_top1(reference, value).sum()),
        int((best.unsqueeze(-1) == mine.unsqueeze(-2)).any(-1).sum()),
        metrics.negative_log_likelihood(value[list(known)], tokens),
    )
