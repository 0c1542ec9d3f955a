"""`tokenizer.json` for MLC-LLM: the ids of `tokenizer.model` without SentencePiece.

MLC-LLM prefers this file, and a build of its Android app may lack SentencePiece. The file describes
the same BPE for Hugging Face's `tokenizers`: a merge for each way in which two pieces make a third,
in the order of the third's score. It is written only if the ids are the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convert.bundle.errors import BundleError
from convert.checkpoint.tokenizer_file import SPACE, open_tokenizer
from convert.mlc.bare_characters import BarePairs, find_bare_pairs
from convert.mlc.same_ids import first_difference
from convert.support.json_text import json_text
from quantize.errors import ToolkitError

if TYPE_CHECKING:
    import sentencepiece
    from tokenizers import Tokenizer

_SPECIAL = 3  # ids 0, 1, 2: never the id of a text
# Characters. The real model's longest piece has 16; each piece is split at every character.
_LONGEST = 64


class TokenizerJsonError(ToolkitError):
    """No `tokenizer.json` gives the ids of this `tokenizer.model`; the text is the reason."""


@dataclass(frozen=True)
class Vocabulary:
    """The pieces of a SentencePiece BPE model."""

    ids: dict[str, int]  # of all pieces
    scores: dict[str, float]  # of the ordinary ones, which merges make; a higher one comes first
    fixed: list[str]  # user-defined ones: found in a text before anything is merged


def make_tokenizer_json(path: Path) -> str:
    """Returns the `tokenizer.json` of a `tokenizer.model`.

    Raises:
        CheckpointError: the file cannot be read.
        TokenizerJsonError: it uses what the format lacks, or some text would have other ids.
    """
    from tokenizers import Tokenizer

    pieces = open_tokenizer(path)
    text = json_text(_describe(_read(pieces)))
    try:
        written = Tokenizer.from_str(text)
    except Exception as error:  # the library has no class of its own
        raise TokenizerJsonError(f"the library tokenizers refuses it: {error}") from error
    difference = first_difference(pieces, written)
    if difference is not None:
        raise TokenizerJsonError(difference)
    return text


def open_tokenizer_json(path: Path) -> Tokenizer:
    """Loads a package's `tokenizer.json`.

    Raises:
        BundleError: it is damaged.
    """
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(path.read_text("utf-8"))
    except Exception as error:  # the library has no class of its own
        raise BundleError(f"{path}: not a tokenizer of Hugging Face: {error}") from error


def _read(pieces: sentencepiece.SentencePieceProcessor) -> Vocabulary:
    # Its messages need protobuf, which onnx brings.
    from sentencepiece import sentencepiece_model_pb2 as messages

    model = messages.ModelProto.FromString(pieces.serialized_model_proto())
    kinds = messages.ModelProto.SentencePiece
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    if trainer.model_type != messages.TrainerSpec.BPE:
        name = messages.TrainerSpec.ModelType.Name(trainer.model_type)
        raise TokenizerJsonError(f"its model is of the type {name}, not BPE")
    if (
        normalizer.precompiled_charsmap
        or normalizer.add_dummy_prefix
        or normalizer.remove_extra_whitespaces
        or not normalizer.escape_whitespaces
        or trainer.treat_whitespace_as_suffix
        or model.denormalizer_spec.precompiled_charsmap
    ):
        raise TokenizerJsonError("it changes text before or after its pieces are found")
    usual = (kinds.NORMAL, kinds.USER_DEFINED, kinds.BYTE)
    for i, piece in enumerate(model.pieces):
        if not isinstance(piece.piece, str):
            raise TokenizerJsonError(f"id {i} is no valid UTF-8")
        if i >= _SPECIAL and piece.type not in usual:
            name = kinds.Type.Name(piece.type)
            raise TokenizerJsonError(f"id {i} ({piece.piece!r:.40}) is of the type {name}")
        if len(piece.piece) > _LONGEST:
            raise TokenizerJsonError(f"id {i} has {len(piece.piece)} characters; limit {_LONGEST}")
    scores = {one.piece: one.score for one in model.pieces if one.type == kinds.NORMAL}
    made = [score for piece, score in scores.items() if len(piece) > 1]
    if len(set(made)) < len(made) or not all(map(math.isfinite, made)):
        raise TokenizerJsonError("two pieces have the same score, or one has none")
    return Vocabulary(
        ids={one.piece: i for i, one in enumerate(model.pieces)},
        scores=scores,
        fixed=[one.piece for one in model.pieces if one.type == kinds.USER_DEFINED],
    )


def _describe(vocabulary: Vocabulary) -> dict[str, Any]:
    try:
        pairs = find_bare_pairs(vocabulary.scores, vocabulary.fixed)
    except ValueError as error:
        raise TokenizerJsonError(str(error)) from error
    return {
        "version": "1.0",  # of the format
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(vocabulary, one) for one in (*vocabulary.fixed, *pairs.pieces)],
        "normalizer": _normalizer(pairs),
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": _decoder(),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocabulary.ids,
            "merges": _merges(vocabulary.scores),
        },
    }


def _merges(scores: dict[str, float]) -> list[tuple[str, str]]:
    """Returns all pairs of pieces that make a piece, in the order in which BPE merges them.

    SentencePiece takes pairs that make the same piece from left to right; here each pair has a rank
    of its own. The longer left part comes first: of `aba`, the text `ab a ba` must merge `ab a`.
    """
    made = sorted((piece for piece in scores if len(piece) > 1), key=lambda one: -scores[one])
    splits = ((one[:at], one[at:]) for one in made for at in range(len(one) - 1, 0, -1))
    return [(left, right) for left, right in splits if left in scores and right in scores]


def _normalizer(pairs: BarePairs) -> dict[str, Any]:
    steps = [_replace({"String": " "}, SPACE)]
    # Spaces are gone after the first step, so they can mark what the later ones found. A token's
    # own text passes through them, too, and then has the marks that it is found by.
    steps += [_replace({"Regex": pattern}, f" {piece} ") for pattern, piece in pairs.contested]
    return {"type": "Sequence", "normalizers": steps}


def _decoder() -> dict[str, Any]:
    # The marks come back in a token's text from some versions of the library.
    steps = [_replace({"String": " "}, ""), _replace({"String": SPACE}, " ")]
    return {"type": "Sequence", "decoders": [*steps, {"type": "ByteFallback"}, {"type": "Fuse"}]}


def _replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _added(vocabulary: Vocabulary, piece: str) -> dict[str, Any]:
    return {
        "id": vocabulary.ids[piece],
        "content": piece,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": True,
        "special": False,
    }
