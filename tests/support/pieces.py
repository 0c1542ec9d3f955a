"""SentencePiece models that are written down piece by piece."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sentencepiece import sentencepiece_model_pb2 as messages


def model_of(
    normal: Sequence[str],
    *,
    fixed: Sequence[str] = (),
    scores: Mapping[str, float] | None = None,
    types: Mapping[str, int] | None = None,
    trainer: Mapping[str, Any] | None = None,
    normalizer: Mapping[str, Any] | None = None,
) -> bytes:
    """Returns a BPE model with byte fallback, as MiniCPM-V's, in which a space is a piece.

    Args:
        normal: ordinary pieces, the one that is merged first first.
        fixed: user-defined pieces.
        scores: of pieces whose place does not say it.
        types: of pieces that are neither.
        trainer: other settings of the model.
        normalizer: other settings of how it treats text.
    """
    kinds = messages.ModelProto.SentencePiece
    pieces = [("<unk>", kinds.UNKNOWN), ("<s>", kinds.CONTROL), ("</s>", kinds.CONTROL)]
    pieces += [(piece, kinds.USER_DEFINED) for piece in fixed]
    pieces += [(f"<0x{byte:02X}>", kinds.BYTE) for byte in range(256)]
    pieces += [(piece, kinds.NORMAL) for piece in (*normal, "▁")]
    model = messages.ModelProto()
    for i, (piece, kind) in enumerate(pieces):
        score = (scores or {}).get(piece, -i if kind == kinds.NORMAL else 0)
        model.pieces.add(piece=piece, type=(types or {}).get(piece, kind), score=score)
    settings = {"model_type": messages.TrainerSpec.BPE, "byte_fallback": True}
    for name, value in {**settings, "vocab_size": len(pieces), **(trainer or {})}.items():
        setattr(model.trainer_spec, name, value)
    settings = {"name": "identity", "add_dummy_prefix": False, "remove_extra_whitespaces": False}
    for name, value in {**settings, **(normalizer or {})}.items():
        setattr(model.normalizer_spec, name, value)
    content: bytes = model.SerializeToString()
    return content
