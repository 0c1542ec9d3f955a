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
        self._done, self._total = 0, total + patterns * depth

    def start(self, index: int) -> None:
        """Says that all cases before one are done, wherever their results are from."""
        self._done = self._starts[index]
        self._progress("compare stages", self._done, self._total)

    def block(self) -> None:
        """Says that a vision block is done."""
        self._add(1)

    def step(self) -> None:
        """Says that another step of a question is done."""
        self._add(_BLOCKS)

    def _add(self, count: int) -> None:
        self._done += count
        self._progress("compare stages", self._done, self._total)
