"""Pieces with a character that is itself no piece, such as a flag, which is two letters.

SentencePiece merges them like any others. In a `tokenizer.json` both parts of a merge must be
pieces. So these pieces are found in the text before merging. That is the same, unless another merge
would take one of their two characters first: then a pattern says where that does not happen.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class BarePairs:
    """Pieces of two characters to find before merging."""

    pieces: list[str]
    # Those that compete for a character, best score first: a regular expression and the piece.
    contested: list[tuple[str, str]]


def find_bare_pairs(scores: Mapping[str, float], fixed: Sequence[str]) -> BarePairs:
    """Finds the pieces that are merged from a character which is no piece.

    Args:
        scores: of the ordinary pieces; the better one is merged first.
        fixed: pieces that are found before any merge; their characters take part in none.

    Raises:
        ValueError: such a piece, or a better merge of its character, is longer than two characters.
    """
    singles = {one for one in fixed if len(one) == 1}
    bare = {character for piece in scores for character in piece} - scores.keys() - singles
    if not bare:
        return BarePairs([], [])
    if any(bare.intersection(one) for one in fixed):
        raise ValueError("a character that is no piece is in a user-defined piece and in a merge")
    made = _made(scores, bare | {one for one in scores if len(one) == 1})
    pairs = [one for one in made if bare.intersection(one)]
    if longer := next((one for one in pairs if len(one) > 2), None):
        raise ValueError(f"the piece {longer!r} has a character that is no piece")
    merges = _Merges(scores, made)
    patterns = {one: merges.pattern(one, set(pairs)) for one in pairs}
    contested = [(pattern, one) for one, pattern in patterns.items() if pattern is not None]
    return BarePairs(pairs, sorted(contested, key=lambda two: -scores[two[1]]))


def _made(scores: Mapping[str, float], characters: set[str]) -> dict[str, list[int]]:
    """Returns the pieces that merges make of characters, with the places where two parts meet."""
    made: dict[str, list[int]] = {}
    for piece in sorted(scores, key=len):
        meet = [
            at
            for at in range(1, len(piece))
            if (piece[:at] in made or piece[:at] in characters)
            and (piece[at:] in made or piece[at:] in characters)
        ]
        if meet:
            made[piece] = meet
    return made


class _Merges:
    """Merges by a single character that they take."""

    def __init__(self, scores: Mapping[str, float], made: Mapping[str, list[int]]) -> None:
        self._scores = scores
        self._first: dict[str, list[str]] = defaultdict(list)  # pieces by their left part
        self._last: dict[str, list[str]] = defaultdict(list)  # by their right part
        for piece, meet in made.items():
            if 1 in meet:
                self._first[piece[0]].append(piece)
            if len(piece) - 1 in meet:
                self._last[piece[-1]].append(piece)

    def pattern(self, pair: str, pairs: set[str]) -> str | None:
        """Returns what finds a pair where no better merge takes a part; None: none ever does."""
        left, right = pair[0], pair[1]
        before, after = self._last[left], self._first[right]
        rivals = {one for one in (*before, *after) if one != pair}
        better = self._better(rivals - pairs, pair)
        if not better and not rivals & pairs:
            return None
        if longer := next((one for one in better if len(one) > 2), None):
            raise ValueError(f"the piece {longer!r} competes with {pair!r}")
        found = _literal(left) + _literal(right)
        for rival in better:
            # A rival's other character may be taken, in turn, by a still better merge.
            if rival in before:
                takers = [one[0] for one in self._better(self._last[rival[0]], rival, 2)]
                other = _literal(rival[0])
                found = f"(?<!{_class('[^', takers)}{other})(?<!\\A{other}){found}"
            else:
                takers = [one[1] for one in self._better(self._first[rival[1]], rival, 2)]
                free = f"(?!{_class('[', takers)})" if takers else ""
                found = f"{found}(?!{_literal(rival[1])}{free})"
        return found

    def _better(self, merges: Iterable[str], than: str, length: int | None = None) -> list[str]:
        """Returns the merges that come before one, of any length or of the given one."""
        least = self._scores[than]
        better = (one for one in merges if self._scores[one] > least)
        return sorted(one for one in better if length in (None, len(one)))


def _literal(character: str) -> str:
    return f"\\x{{{ord(character):X}}}"


def _class(begin: str, characters: Sequence[str]) -> str:
    return f"{begin}{''.join(map(_literal, characters))}]" if characters else ""
