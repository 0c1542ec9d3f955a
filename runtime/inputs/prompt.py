"""From a conversation to token ids, exactly as the original model's code does.

The whole conversation is one text, cut only at the picture; pieces merge across the borders of
turns, so it is never tokenized turn by turn.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from convert.checkpoint.tokenizer_file import check_tokenizer, open_tokenizer
from quantize.errors import ToolkitError

if TYPE_CHECKING:
    from convert.checkpoint.config import ModelConfig, SliceConfig

USER, ASSISTANT = "<用户>", "<AI>"
IMAGE_START, IMAGE_END = "<image>", "</image>"
_SLICE_START, _SLICE_END = "<slice>", "</slice>"
UNKNOWN_ID, BOS_ID, EOS_ID = 0, 1, 2
ORIGINAL_PROMPT_LIMIT = 2048  # ids; the original silently drops what follows


class PromptError(ToolkitError):
    """A conversation is malformed or does not fit into the context window."""


class Message(TypedDict):
    """One turn: role is `user` or `assistant`."""

    role: str
    content: str


@dataclass(frozen=True)
class Prompt:
    """A tokenized conversation."""

    ids: list[int]
    image_start: int | None  # index of the first placeholder; None without a picture
    slice_starts: tuple[int, ...] = ()  # index of the first placeholder of each slice

    @property
    def image_starts(self) -> tuple[int, ...]:
        """Where each image's placeholders begin: the overview's, then the slices'."""
        return () if self.image_start is None else (self.image_start, *self.slice_starts)

    def picture_end(self, image_tokens: int) -> int | None:
        """Returns the index of the picture's last tag; None without a picture.

        Args:
            image_tokens: of one image.
        """
        if self.image_start is None:
            return None
        return self.image_starts[-1] + image_tokens + (1 if self.slice_starts else 0)

    def cut(self, length: int) -> Prompt:
        """Keeps the first `length` ids, as the original does with long prompts."""
        return replace(self, ids=self.ids[:length])


class Tokenizer:
    """SentencePiece with MiniCPM-V's rules for text that spells special pieces.

    Grounding tags (`<ref>`, `<box>`, `<quad>`, `<point>` and their ends) are pieces that people and
    the model write. Where a picture stands is ours to say: its tags and a slice's stay text, and so
    do the names of the control pieces, `<unk>`, `<s>` and `</s>`.
    """

    def __init__(self, path: Path, config: ModelConfig | None = None) -> None:
        """Loads a `tokenizer.model`.

        Args:
            path: the file.
            config: of the model that it is to belong to; None where that is known.

        Raises:
            CheckpointError: the file is missing, damaged, or another model's.
        """
        self._sp = open_tokenizer(path)
        if config is not None:
            check_tokenizer(path, self._sp, config)
        self.vocab_size: int = self._sp.vocab_size()
        self.image_start_id: int = self._sp.piece_to_id(IMAGE_START)
        self.image_end_id: int = self._sp.piece_to_id(IMAGE_END)
        vision = None if config is None else config.vision
        self._slices: SliceConfig | None = None if vision is None else vision.slices
        tags = (IMAGE_START, IMAGE_END, _SLICE_START, _SLICE_END)
        pieces = [tag for tag in tags if self._sp.piece_to_id(tag) != UNKNOWN_ID]
        # What `decode` spells itself, and how.
        self._spellings = {id: self._sp.id_to_piece(id) for id in (BOS_ID, EOS_ID)}
        if self._slices is not None:
            # Their ids are the configuration's; tokenizer.model may have other names for them.
            ids = (self._slices.slice_start_token_id, self._slices.slice_end_token_id)
            pieces += [self._sp.id_to_piece(id) for id in ids]
            self._spellings |= zip(ids, (_SLICE_START, _SLICE_END), strict=True)
        self._picture_tags = re.compile("|".join(map(re.escape, pieces))) if pieces else None

    def encode(self, text: str) -> list[int]:
        """Encodes text; a spelled tag of pictures becomes its first character and the rest apart.

        Raises:
            PromptError: the text is no valid Unicode.
        """
        check_text(text)
        ids: list[int] = []
        start = 0
        for tag in self._picture_tags.finditer(text) if self._picture_tags else ():
            split = tag.start() + 1
            ids += self._sp.encode(text[start:split])
            start = split
        ids += self._sp.encode(text[start:])
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Decodes an answer as the original does, white space at its ends included.

        Id 0 vanishes, and `</s>` where it is the last; `<s>` and any other `</s>` are spelled. Ids
        that are no piece's vanish too: a model's embedding may have more rows than its tokenizer
        has pieces.
        """
        kept = [i for i in ids if i != UNKNOWN_ID and i < self.vocab_size]
        kept = kept[:-1] if kept[-1:] == [EOS_ID] else kept
        runs = itertools.groupby(kept, self._spellings.__contains__)
        return "".join(self._spell(list(run), special) for special, run in runs)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Returns the tokenizer's own spelling of ids, `▁` for a space; a number where it has none.

        A character that it lacks is several pieces, one for each byte: `<0xE4>`.
        """
        known = range(self.vocab_size)
        return [
            self._spellings.get(i) or (self._sp.id_to_piece(i) if i in known else f"<{i}>")
            for i in ids
        ]

    def _spell(self, ids: list[int], special: bool) -> str:
        """Decodes ids that all have spellings of their own, or none of them."""
        if special:  # the library leaves out `<s>` and `</s>`
            return "".join(self._spellings[id] for id in ids)
        return str(self._sp.decode(ids))

    def prompt(
        self,
        messages: Sequence[Message],
        image_tokens: int,
        *,
        grid: tuple[int, int] | None = None,
        as_original: bool = False,
    ) -> Prompt:
        """Builds the ids of a conversation that the assistant is to continue.

        Args:
            messages: turns of user and assistant in turn, a user's first and last.
            image_tokens: placeholders for each image of the picture in the first turn; 0 without a
                picture.
            grid: columns and rows of the picture's slices; None: it is one image.
            as_original: take turns in any order; see `check_messages`.

        Raises:
            PromptError: no turns, or roles out of order.
        """
        check_messages(messages, as_original=as_original)
        before, after = USER, ""
        for i, message in enumerate(messages):
            if i > 0:
                after += USER if message["role"] == "user" else ASSISTANT
            after += message["content"]
        after += ASSISTANT
        ids = [BOS_ID]
        if not image_tokens:
            return Prompt(ids + self.encode(before + after), None)
        ids += self.encode(before)
        image = [self.image_start_id, *[UNKNOWN_ID] * image_tokens, self.image_end_id]
        start = len(ids) + 1
        ids += image
        slice_starts = [] if grid is None else self._add_slices(ids, image, grid)
        return Prompt(ids + self.encode("\n" + after), start, tuple(slice_starts))

    def _add_slices(self, ids: list[int], image: list[int], grid: tuple[int, int]) -> list[int]:
        """Appends slices to a prompt, row by row; returns where each one's placeholders begin."""
        assert self._slices is not None, "slices for a model without"
        columns, rows = grid
        starts: list[int] = []
        ids.append(self._slices.slice_start_token_id)
        for row in range(rows):
            ids += self.encode("\n") if row else []
            starts += [len(ids) + 1 + i * len(image) for i in range(columns)]
            ids += image * columns
        ids.append(self._slices.slice_end_token_id)
        return starts


def check_messages(messages: Sequence[Message], *, as_original: bool = False) -> None:
    """Raises PromptError unless user and assistant take turns, a user first and last.

    The original asks for a user first, and takes what follows in any order: so does `as_original`.
    """
    if not messages:
        raise PromptError("the conversation is empty; expected at least one user turn")
    for i, message in enumerate(messages):
        expected = ["assistant" if i % 2 else "user"]
        if as_original and i:
            expected = ["user", "assistant"]
        if not isinstance(message, dict) or message.get("role") not in expected:
            raise PromptError(
                f"message {i} is {message!r:.80}; expected a turn of role {' or '.join(expected)}"
            )
        if not isinstance(message.get("content"), str):
            raise PromptError(f"message {i} has no text in 'content'")
    if len(messages) % 2 == 0 and not as_original:
        raise PromptError("the last message is the assistant's; expected a user's")


def check_question(messages: Sequence[Message], *, as_original: bool = False) -> None:
    """Raises PromptError unless a conversation is one, and its last turn asks something.

    The original answers an empty turn, too: so does `as_original`.
    """
    check_messages(messages, as_original=as_original)
    for message in messages:
        check_text(message["content"])
    if not messages[-1]["content"].strip() and not as_original:
        raise PromptError("the prompt is empty; expected a question")


def check_text(text: str) -> None:
    """Raises PromptError where a text is no valid Unicode."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON may hold half of a UTF-16 pair
        raise PromptError(
            f"the text is no valid Unicode: character {error.start} is the lone surrogate "
            f"{text[error.start]!a}; remove it"
        ) from error
