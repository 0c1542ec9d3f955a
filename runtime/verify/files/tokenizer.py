"""A bundle's tokenizer: its file against the checkpoint's, and what the engine makes of it.

All that an engine is asked and all that it says goes through that one file, and no other stage
sees it: the others are fed ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

# Its messages need protobuf, which onnx brings.
from sentencepiece import sentencepiece_model_pb2 as messages

from convert.bundle.manifest import TOKENIZER
from runtime.inputs.prompt import Prompt, Tokenizer
from runtime.verify.check import Cause, Check

STAGE = "tokenizer"
_BYTES, _IDS, _TEXT = (
    "bytes as the checkpoint's",
    "ids as the reference's",
    "text as the reference's",
)
_FIRST = "first difference"  # a detail: an index
_SHOWN = 3  # pieces that a reader wants to see


def file_check(own: Path, original: Path) -> Check:
    """Compares a bundle's file with the checkpoint's, byte by byte."""
    return _same(TOKENIZER, _BYTES, own.read_bytes() == original.read_bytes())


def prompt_check(name: str, asked: Prompt, expected: Prompt) -> Check:
    """Compares what the engine makes of a conversation with what the reference does."""
    pairs = zip(asked.ids, expected.ids, strict=False)
    shorter = min(len(asked.ids), len(expected.ids))
    first = next((i for i, (a, b) in enumerate(pairs) if a != b), shorter)
    detail = {} if asked.ids == expected.ids else {_FIRST: float(first)}
    return _same(name, _IDS, asked == expected, detail)


def text_check(name: str, text: str, expected: str) -> Check:
    """Compares what the engine makes of an answer's ids with what the reference does."""
    return _same(name, _TEXT, text.strip() == expected.strip())


def vocabulary_check(text: str, tokenizer: Tokenizer) -> Check:
    """Compares what the engine makes of all ids in a row with what the reference does."""
    return _same("every piece", _TEXT, text == tokenizer.decode(range(tokenizer.vocab_size)))


def tokenizer_causes(failed: Sequence[Check], own: Path, original: Path) -> list[Cause]:
    """Says what is wrong with a tokenizer, or with what the engine makes of a right one.

    Args:
        failed: checks that did not pass; those of other stages do not count.
        own: the bundle's file.
        original: the checkpoint's.
    """
    checks = {check.metric: check for check in failed if check.stage == STAGE}
    if _BYTES in checks:
        return [Cause(TOKENIZER, _difference(own, original))]
    right = f"though {TOKENIZER} is the checkpoint's: the engine reads it otherwise; convert again"
    if _IDS in checks:
        at = checks[_IDS].detail.get(_FIRST)
        what = "the picture is in another place" if at is None else f"token {int(at)} is another"
        return [Cause("prompt", f"{checks[_IDS].name}: {what} than the reference's, {right}")]
    if checks:
        return [Cause("detokenizer", f"the same ids give another text, {right}")]
    return []


def _same(name: str, metric: str, same: bool, detail: Mapping[str, float] | None = None) -> Check:
    return Check(STAGE, name, metric, "", float(same), 1, 1, True, detail or {})


def _difference(own: Path, original: Path) -> str:
    """Says how a tokenizer's file differs from the one that it was copied from."""
    mine, theirs = (messages.ModelProto.FromString(p.read_bytes()) for p in (own, original))
    found, right = ([piece.piece for piece in model.pieces] for model in (mine, theirs))
    differ = [i for i, pair in enumerate(zip(found, right, strict=False)) if pair[0] != pair[1]]
    if differ:
        parts = list(_exchanged(differ, found, right))
        more = len(parts) - _SHOWN
        return "; ".join(parts[:_SHOWN]) + (f"; and {more} more pieces" if more > 0 else "")
    if len(found) != len(right):
        return f"has {len(found):,} pieces, the checkpoint's has {len(right):,}"
    for i, (one, other) in enumerate(zip(mine.pieces, theirs.pieces, strict=True)):
        for name in ("score", "type"):
            value, expected = getattr(one, name), getattr(other, name)
            if value != expected:
                return (
                    f"piece {one.piece!r} (id {i}) has the {name} {value:g}, in the checkpoint's "
                    f"{expected:g}"
                )
    for spec in ("normalizer_spec", "denormalizer_spec", "trainer_spec"):
        for field in getattr(theirs, spec).DESCRIPTOR.fields:
            value, expected = (getattr(getattr(m, spec), field.name) for m in (mine, theirs))
            if value != expected:
                pair = f"{value!r:.40}, in the checkpoint's {expected!r:.40}"
                return f"its {spec}.{field.name} is {pair}"
    return "says the same as the checkpoint's in other bytes"


def _exchanged(differ: Sequence[int], found: Sequence[str], right: Sequence[str]) -> Iterator[str]:
    """Yields what is wrong with each id; two that stand in each other's place are one mistake."""
    own_id = {piece: i for i, piece in enumerate(right)}
    told: set[int] = set()
    for i in differ:
        piece = found[i]
        other = own_id.get(piece)
        if i in told:
            continue
        if other is None:
            yield f"id {i} is the piece {piece!r}, in the checkpoint's {right[i]!r}"
        elif other < len(found) and found[other] == right[i]:
            told.add(other)
            yield (
                f"piece {right[i]!r} has the id of {piece!r} ({other}), and {piece!r} that of "
                f"{right[i]!r} ({i})"
            )
        else:
            yield f"piece {piece!r} has the id of {right[i]!r} ({i}), its own is {other}"
