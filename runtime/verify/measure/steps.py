"""How far the comparison of all cases is, in steps that take about as long as each other."""

from __future__ import annotations

from collections.abc import Sequence

from convert.support.progress import Progress
from runtime.verify.cases import Case

_STEPS = 5  # of a question: asked, answered, run by the others, layer by layer, logits
_BLOCKS = 4  # vision blocks, through which a new picture goes, that take as long as one of these


class Steps:
    """Counts the steps of all cases, each a few seconds of a full-size model."""

    def __init__(
        self, cases: Sequence[Case], depth: int, progress: Progress, patterns: int = 0
    ) -> None:
        """Args: depth: vision blocks. patterns: pictures after all cases, without a question."""
        self._progress, self._depth = progress, depth
        self._starts, total, before = [0], 0, ""
        for case in cases:
            seen, before = case.picture_digest in ("", before), case.picture_digest
            total += _STEPS * _BLOCKS + (0 if seen else depth)
            self._starts.append(total)
        self._total = total + patterns * depth
        self._done, self._share = 0.0, 1.0

    def start(self, index: int) -> None:
        """Says that all cases before one are done, wherever their results are from."""
        self._done, self._share = self._starts[index], 1.0
        self._add(0)

    def of_images(self, count: int) -> None:
        """Says that the picture which is next has so many images."""
        self._share = 1 / count

    def block(self) -> None:
        """Says that a vision block is done, of one image."""
        self._add(self._share)

    def step(self) -> None:
        """Says that another step of a question is done."""
        self._add(_BLOCKS)

    def _add(self, count: float) -> None:
        self._done += count
        self._progress("compare stages", round(self._done), self._total)
