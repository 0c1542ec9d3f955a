"""A SentencePiece model of a given size, for checkpoints that have no real one.

Pieces stand where MiniCPM-V's rules need them; the rest are characters and strings of letters.
"""

from __future__ import annotations

import itertools
import string
from collections.abc import Iterator

# Its messages need protobuf, which onnx brings.
from sentencepiece import sentencepiece_model_pb2 as messages

from convert.checkpoint.config import SliceConfig
from quantize.errors import ConfigError

_IMAGE_ID = 101  # of the first tag; the others follow it, as in the real model
_TAGS = ("<image>", "</image>", "<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>")
_CHINESE = (0x4E00, 0xA000)  # code points of the common characters


def generate_tokenizer(vocab_size: int, *, slices: SliceConfig | None = None) -> bytes:
    """Returns a `tokenizer.model`: BPE with byte fallback, settings as the real one's.

    Args:
        vocab_size: of the model.
        slices: of a model that cuts pictures into slices.

    Raises:
        ConfigError: the vocabulary has no room for the pieces that must be there.
    """
    types = messages.ModelProto.SentencePiece
    pieces = [("<unk>", types.UNKNOWN), ("<s>", types.CONTROL), ("</s>", types.CONTROL)]
    fillers = (f"<reserved_{i}>" for i in itertools.count())
    reserved = [*itertools.islice(fillers, _IMAGE_ID - len(pieces)), *_TAGS]
    # Tags of slices have ids, but no pieces of their own names, as in the real tokenizer.
    if slices is not None:
        count = max(slices.slice_start_token_id, slices.slice_end_token_id) + 1
        reserved += itertools.islice(fillers, max(0, count - len(pieces) - len(reserved)))
    pieces += [(piece, types.USER_DEFINED) for piece in reserved]
    pieces += [(f"<0x{byte:02X}>", types.BYTE) for byte in range(256)]
    needed = len(pieces) + 1  # SentencePiece refuses a model without an ordinary piece
    if vocab_size < needed:
        raise ConfigError(
            f"vocab_size is {vocab_size}; a generated tokenizer needs {needed}: "
            "give one with --tokenizer"
        )
    normal = itertools.islice(_normal_pieces(), vocab_size - len(pieces))
    pieces += [(piece, types.NORMAL) for piece in normal]
    model = messages.ModelProto()
    for i, (piece, kind) in enumerate(pieces):
        model.pieces.add(piece=piece, type=kind, score=-i if kind == types.NORMAL else 0)
    model.trainer_spec.model_type = messages.TrainerSpec.BPE
    model.trainer_spec.vocab_size = vocab_size
    model.trainer_spec.byte_fallback = True
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.remove_extra_whitespaces = False
    data: bytes = model.SerializeToString()
    return data


def _normal_pieces() -> Iterator[str]:
    """Yields ordinary pieces without end, each made of two earlier ones, as BPE needs."""
    yield "\u2581"  # SentencePiece's space
    yield from string.digits + string.ascii_letters + string.punctuation
    yield from map("".join, itertools.product(string.ascii_lowercase, repeat=2))
    yield from map(chr, range(*_CHINESE))
    for length in itertools.count(3):
        yield from map("".join, itertools.product(string.ascii_lowercase, repeat=length))
