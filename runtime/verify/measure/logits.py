"""What the logits say at image, text and answer positions, as sums over cases."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from quantize.schemes import Array
from runtime.inputs.prompt import Prompt
from runtime.reference import metrics
from runtime.verify.check import Check
from runtime.verify.measure.bootstrap import Bootstrap

KINDS = ("image", "text", "answer")  # of positions
TOP = 5
# KL divergence, nats: the edges of the histogram, four to a decade; what is below or above counts.
EDGES = tuple(10 ** (i / 4) for i in range(-28, 5))
PER_MILLE = (500, 950, 990, 999)  # percentiles of KL divergence; in integers ranks are exact
Count = Annotated[int, Meta(ge=0)]  # results on disk are checked when they are read back


@dataclass(frozen=True)
class Sums:
    """What one model's logits say beside the reference's, at a number of positions."""

    kl: tuple[float, ...]  # divergence of each position, nats
    top1: Count  # positions whose likeliest token is the reference's
    top5: Count  # of the reference's five likeliest tokens, how many are among the model's
    nll_nats: float  # of the next tokens, where they are known

    @property
    def kl_nats(self) -> float:
        """KL divergence, summed over positions."""
        return math.fsum(self.kl)

    @property
    def histogram(self) -> list[int]:
        """Positions by KL divergence, one count more than `EDGES`; no number is in the last."""
        bins = np.searchsorted(EDGES, self._sorted())
        return [int(n) for n in np.bincount(bins, minlength=len(EDGES) + 1)]

    @property
    def percentiles(self) -> dict[str, float]:
        """KL divergence that so many per cent of the positions do not exceed."""
        ordered = self._sorted()
        ranks = {share: max(1, -(-len(ordered) * share // 1000)) for share in PER_MILLE}
        return {f"{share / 10:g}": float(ordered[rank - 1]) for share, rank in ranks.items()}

    def _sorted(self) -> Array:
        values = np.array(self.kl)
        return np.sort(np.where(np.isnan(values), np.inf, values))

    def __add__(self, other: Sums) -> Sums:
        """Returns the sums over both."""
        return Sums(
            self.kl + other.kl,
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

    def __post_init__(self) -> None:
        """Checks results that are read back."""
        for name, sums in self.models.items():
            if len(sums.kl) != self.count:
                raise ValueError(f"{name} has {len(sums.kl)} of {self.count} positions")

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
                    "kl_percentiles_nats": sums.percentiles,
                    "histogram": sums.histogram,
                }
                for name, sums in self.models.items()
            },
        }


class Logits:
    """Collects what the logits say."""

    def __init__(self) -> None:
        self.positions: dict[str, Positions] = {}  # by kind
        self._questions: dict[str, list[Positions]] = {}  # by kind, as they were merged

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
            queries: image tokens of each image of its picture.
            reference: logits (L, V).
            arithmetic: those of the arithmetic's model.
            bundle: those of the bundle.
            half: those of the reference in 16 bits, if it runs.
        """
        models = [reference, arithmetic, bundle, *([] if half is None else [half])]
        kinds = ["text"] * len(prompt.ids)
        for start in prompt.image_starts:
            kinds[start : start + queries] = ["image"] * queries
        # The last id of the prompt is where the answer's first token is chosen.
        kinds[-1] = "answer"
        kinds += ["answer"] * (len(ids) - len(prompt.ids))
        before_images = {start - 1 for start in prompt.image_starts}
        following = torch.tensor([*ids[1:], 0])
        for kind in dict.fromkeys(kinds):
            at = [i for i, k in enumerate(kinds) if k == kind]
            rows = [logits[at] for logits in models]
            known = [
                j
                for j, i in enumerate(at)
                if kind != "image" and i not in before_images and i + 1 < len(ids)
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
            self._questions.setdefault(kind, []).append(found)

    def checks(self, thresholds: Mapping[str, float]) -> list[Check]:
        """Returns the figures of each kind of position.

        A loss counts that is larger than its margin and outside of its error bar.
        """
        checks = []
        for kind in (kind for kind in KINDS if kind in self.positions):
            found, each = self.positions[kind], self._questions[kind]
            bars, name = Bootstrap([one.count for one in each]), f"at {kind} tokens"
            expected, value, *half = (s.kl_nats / found.count for s in found.models.values())
            sums = [[s.kl_nats for s in one.models.values()] for one in each]
            lost, model = [s[1] for s in sums], [s[0] for s in sums]
            margin = expected * (thresholds["kl_factor"] - 1) + thresholds["kl_floor_nats"]
            limit = expected + max(margin, bars.margin(lost, model))
            check = Check("logits", name, "KL divergence", "nats", value, expected, limit, False)
            floor = half[0] if half else None
            checks.append(replace(check, noise_floor=floor, error_bar=bars.interval(lost)))

            expected, value, *half = (s.top1 / found.count for s in found.models.values())
            same, model = [one.bundle.top1 for one in each], [one.arithmetic.top1 for one in each]
            # Of few positions a share is off by chance: near ties fall to either side.
            error = math.sqrt(expected * (1 - expected) / found.count)
            chance = thresholds["top1_standard_errors"] * error
            margin = max(thresholds["top1_margin"], chance, bars.margin(model, same))
            limit = expected - margin
            check = Check("logits", name, "same top-1", "", value, expected, limit, True)
            floor = half[0] if half else None
            checks.append(replace(check, noise_floor=floor, error_bar=bars.interval(same)))
        return checks


def _sums(reference: Tensor, value: Tensor, known: Sequence[int], tokens: Tensor) -> Sums:
    """Compares logits (L, V); the tokens are those that follow at the positions `known`."""
    kl = metrics.kl_divergence(reference, value)
    best, mine = (logits.topk(min(TOP, logits.shape[-1])).indices for logits in (reference, value))
    return Sums(
        tuple(kl.double().tolist()),
        int(metrics.same_top1(reference, value).sum()),
        int((best.unsqueeze(-1) == mine.unsqueeze(-2)).any(-1).sum()),
        metrics.negative_log_likelihood(value[list(known)], tokens),
    )
