"""The tokenizer of a tiny MiniCPM-V, and wrong ones."""

from __future__ import annotations

import io
from functools import cache

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from tests.support.tiny_config import VOCAB_SIZE

IMAGE_ID = 101  # the other tags follow it, as in the real tokenizer
TAGS = ("<image>", "</image>", "<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>")
_CORPUS = (
    "<用户>What colour is the shape?<AI>The shape is red.",
    "<用户>这个图形是什么颜色？<AI>这个图形是红色的。",
    "<用户>How many circles are there in the picture?<AI>There are three circles.",
    "<用户>图片里有几个圆形？<AI>有三个圆形。",
)


@cache
def tokenizer_model() -> bytes:
    """Trains a small SentencePiece model with the settings of the real one; returns its file."""
    fillers = [f"<reserved_{i}>" for i in range(IMAGE_ID - 3)]  # after <unk>, <s>, </s>
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_CORPUS * 4),
        model_writer=out,
        model_type="bpe",
        vocab_size=VOCAB_SIZE,
        hard_vocab_limit=False,
        user_defined_symbols=[*fillers, *TAGS],
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=2,
    )
    return out.getvalue()


def wrong_tokenizers() -> dict[str, tuple[bytes, str]]:
    """Returns tokenizer files that a tiny model cannot use, with the message about each.

    Keys: what is wrong.
    """
    whole = tokenizer_model()

    def changed(**normalizer: bool) -> bytes:
        proto = sentencepiece_model_pb2.ModelProto.FromString(whole)
        for name, value in normalizer.items():
            setattr(proto.normalizer_spec, name, value)
        content: bytes = proto.SerializeToString()
        return content

    cut = sentencepiece_model_pb2.ModelProto.FromString(whole)
    for name in ("trainer_spec", "normalizer_spec", "denormalizer_spec"):
        cut.ClearField(name)
    larger = sentencepiece_model_pb2.ModelProto.FromString(whole)
    larger.pieces.add(piece="another", type=1)
    as_it_is = "does not round-trip text"
    return {
        "empty": (b"", "is empty|not a SentencePiece model"),
        "no model": (b"no model", "not a SentencePiece model"),
        "truncated": (whole[:-100], "not a SentencePiece model"),
        "half": (whole[: len(whole) // 2], "not a SentencePiece model"),
        "cut behind the pieces": (cut.SerializeToString(), "not a SentencePiece model"),
        "other control pieces": (renamed_piece(whole, 2, "<end>"), "ids 0, 1, 2 are"),
        "a space before text": (changed(add_dummy_prefix=True), as_it_is),
        "fewer spaces": (changed(remove_extra_whitespaces=True), as_it_is),
        "no tags": (renamed_piece(whole, IMAGE_ID + 1, "<picture>"), "lacks the piece"),
        "more pieces": (larger.SerializeToString(), f"has {VOCAB_SIZE + 1} pieces"),
    }


def renamed_piece(model: bytes, id: int, name: str) -> bytes:
    """Returns a `tokenizer.model` in which one piece has another name."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    proto.pieces[id].piece = name
    renamed: bytes = proto.SerializeToString()
    return renamed
