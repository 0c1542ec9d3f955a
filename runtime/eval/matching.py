"""What the rules of MMMU and CMMMU share: both read free-form answers in the same way."""

from __future__ import annotations

from collections.abc import Sequence

_ENDS = (",", ".", "!", "?", ";", ":", "'")
_TRIVIAL = (":", ",", ".", "!", "?", ";", "'")


def strip_ends(answer: str) -> str:
    """Returns an answer without surrounding punctuation, stripped one mark at a time in order."""
    for mark in _ENDS:
        answer = answer.strip(mark)
    return answer


def key_parts(sentences: Sequence[str], signs: tuple[str, ...], last: str | None) -> list[str]:
    """Returns the text after the last sign of each sentence, unless empty or punctuation only.

    Args:
        sentences: an answer's.
        signs: words that may introduce the actual answer.
        last: one more sign, for the last sentence only.
    """
    found = []
    for i, sentence in enumerate(sentences):
        known = (*signs, last) if last is not None and i == len(sentences) - 1 else signs
        part = _shortest(sentence, known)
        if part and part not in _TRIVIAL:
            found.append(part)
    return found


def one_is_right(given: Sequence[str | float], right: Sequence[str | float]) -> bool:
    """Returns whether a given number equals a right one, or a given text contains one."""
    texts = [value for value in right if isinstance(value, str)]
    return any(
        any(text in value for text in texts) if isinstance(value, str) else value in right
        for value in given
    )


def rounded(text: str) -> float | None:
    """Returns a text as a number rounded to two places; None if it is not a number."""
    try:
        return round(float(text.replace(",", "")), 2)
    except ValueError:
        return None


def _shortest(sentence: str, signs: tuple[str, ...]) -> str:
    """Returns the shortest tail; any later tail replaces an empty one, as in the rules."""
    shortest = ""
    for sign in signs:
        if sign in sentence:
            tail = sentence.split(sign)[-1].strip()
            if not shortest or len(tail) < len(shortest):
                shortest = tail
    return shortest
