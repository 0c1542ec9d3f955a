"""A SentencePiece model of a given size, for checkpoints that have no real one.

Pieces stand where MiniCPM-V's rules need them; the rest are characters and strings of letters.
"""

from __future__ import annotations

import itertools
import string
from collections.abc import Iterator

# Its messages need protobuf, which onnx brings.
from sentencepiece import sentencepiece_model_pb2 as messages

from quantize.errors import ConfigError

_IMAGE_ID = 101  # of the first tag; the others follow it, as in the real model
_TAGS = ("<image>", "</image>", "<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>")
_CHINESE = (0x4E00, 0xA000)  # code points of the common characters


def generate_tokenizer(vocab_size: int) -> bytes:
    """Returns a `tokenizer.model`: BPE with byte fallback, settings as the real one's.

    Raises:
        ConfigError: the vocabulary has no room for the pieces that must be there.
    """
    types = messages.ModelProto.SentencePiece
    pieces = [("<unk>", types.UNKNOWN), ("<s>", types.CONTROL), ("</s>", types.CONTROL)]
    fillers = (f"<reserved_{i}>" for i in range(_IMAGE_ID - len(pieces)))
    pieces += [(piece, types.USER_DEFINED) for piece in (*fillers, *_TAGS)]
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
