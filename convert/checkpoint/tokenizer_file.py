"""Reads `tokenizer.model`, and checks that it behaves as MiniCPM-V's tokenizer does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import sentencepiece

from convert.support.regular_file import read_regular
from quantize.errors import CheckpointError

if TYPE_CHECKING:
    from convert.checkpoint.config import ModelConfig

SPACE = "\u2581"  # how SentencePiece writes one
_MOST_BYTES = 64 << 20  # as the engine; the real one has 2 MB
_CONTROL = ["<unk>", "<s>", "</s>"]  # ids 0, 1, 2
_PICTURE_TAGS = ("<image>", "</image>")
# Rows that an embedding may have beside its pieces: it is made a multiple of a power of two.
_MOST_PADDING = 255
# Comes back as it was, spaces and a character of no vocabulary included.
_KEPT_TEXT = "  a  \n\U0010fffe"


def open_tokenizer(path: Path) -> sentencepiece.SentencePieceProcessor:
    """Loads a `tokenizer.model`.

    Raises:
        CheckpointError: the file is missing, empty, damaged, or another family's.
    """
    try:
        content = read_regular(path, _MOST_BYTES)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    # An empty one would leave the library as if nothing had been asked.
    if not content:
        raise CheckpointError(f"{path}: is empty; copy or fetch it again")
    try:
        pieces = sentencepiece.SentencePieceProcessor(model_proto=content)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: not a SentencePiece model: {error}") from error
    size: int = pieces.vocab_size()
    control = [pieces.id_to_piece(i) for i in range(min(size, len(_CONTROL)))]
    if control != _CONTROL:
        raise CheckpointError(f"{path}: ids 0, 1, 2 are {control}; expected <unk>, <s>, </s>")
    # Settings follow the pieces: a file that was cut between two pieces lacks only the settings.
    starts_as_is = not "".join(pieces.encode("a", out_type=str)).startswith(SPACE)
    if not starts_as_is or pieces.decode(pieces.encode(_KEPT_TEXT)) != _KEPT_TEXT:
        raise CheckpointError(
            f"{path}: does not round-trip text as MiniCPM-V's does (no space added or removed, "
            "unknown characters as bytes); it belongs to another model, or is truncated"
        )
    return pieces


def check_tokenizer(
    path: Path, pieces: sentencepiece.SentencePieceProcessor, config: ModelConfig
) -> None:
    """Raises CheckpointError unless a tokenizer belongs to a model of this configuration."""
    size, rows = pieces.vocab_size(), config.decoder.vocab_size
    if not rows - _MOST_PADDING <= size <= rows:
        than = "more" if size > rows else "fewer"
        raise CheckpointError(
            f"{path}: has {size} pieces, {than} than the {rows} rows of the embedding "
            "(vocab_size in config.json); do both belong to the same model?"
        )
    for tag in _PICTURE_TAGS if config.vision is not None else ():
        if pieces.piece_to_id(tag) == pieces.unk_id():
            raise CheckpointError(f"{path}: lacks the piece {tag}; is it MiniCPM-V's?")
    slices = None if config.vision is None else config.vision.slices
    if slices is not None:
        for name in ("slice_start_token_id", "slice_end_token_id"):
            _check_reserved(path, pieces, name, getattr(slices, name))


def _check_reserved(
    path: Path, pieces: sentencepiece.SentencePieceProcessor, name: str, id: int
) -> None:
    """Raises CheckpointError unless an id's piece is one that no ordinary text becomes.

    The file may still call it `<reserved_22>`.
    """
    piece = pieces.id_to_piece(id) if id < pieces.vocab_size() else "no piece"
    is_tag = piece.startswith("<") and piece.endswith(">") and piece not in _PICTURE_TAGS
    if not is_tag or pieces.encode(piece) != [id]:
        raise CheckpointError(
            f"{path}: {name} is {id}, which is {piece!r} here; expected a piece reserved for it, "
            "such as <slice> or <reserved_22>; do both belong to the same model?"
        )
