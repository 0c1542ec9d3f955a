"""What the rules of MMMU and CMMMU share: they read answers of many forms in the same way."""

from __future__ import annotations

from collections.abc import Sequence

_ENDS = (",", ".", "!", "?", ";", ":", "'")
_TRIVIAL = (":", ",", ".", "!", "?", ";", "'")


def strip_ends(answer: str) -> str:
    """Returns an answer without the marks around it, one kind of mark after the other."""
    for mark in _ENDS:
        answer = answer.strip(mark)
    return answer


def key_parts(sentences: Sequence[str], signs: tuple[str, ...], last: str | None) -> list[str]:
    """Returns, for every sentence, the text behind its last sign, if there is any.

    Args:
        sentences: an answer's.
        signs: words after which the answer proper may come.
        last: one more, for the last sentence.
    """
    found = []
    for i, sentence in enumerate(sentences):
        known = (*signs, last) if last is not None and i == len(sentences) - 1 else signs
        part = _shortest(sentence, known)
        if part and part not in _TRIVIAL:
            found.append(part)
    return found


def one_is_right(said: Sequence[str | float], right: Sequence[str | float]) -> bool:
    """Returns whether a given number is correct, or a given text contains a correct text."""
    texts = [value for value in right if isinstance(value, str)]
    return any(
        any(text in value for text in texts) if isinstance(value, str) else value in right
        for value in said
    )


def rounded(text: str) -> float | None:
    """Returns a text's number, to two places; None if it is not a number."""
    try:
        return round(float(text.replace(",", "")), 2)
    except ValueError:
        return None


def _shortest(sentence: str, signs: tuple[str, ...]) -> str:
    """Returns the shortest tail; an empty one is replaced by the next, as in the rules."""
    shortest = ""
    for sign in signs:
        if sign in sentence:
            tail = sentence.split(sign)[-1].strip()
            if not shortest or len(tail) < len(shortest):
                shortest = tail
    return shortest
