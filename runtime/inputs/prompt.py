"""From a conversation to token ids, exactly as the original model's code does.

The whole conversation is one text, cut only at the picture; pieces merge across the borders of
turns, so it is never tokenized turn by turn.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from convert.checkpoint.tokenizer_file import check_tokenizer, open_tokenizer
from quantize.errors import ToolkitError

if TYPE_CHECKING:
    from convert.checkpoint.config import ModelConfig

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

    def cut(self, length: int) -> Prompt:
        """Keeps the first `length` ids, as the original does with long prompts."""
        return Prompt(self.ids[:length], self.image_start)


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
        tags = (IMAGE_START, IMAGE_END, _SLICE_START, _SLICE_END)
        pieces = [tag for tag in tags if self._sp.piece_to_id(tag) != UNKNOWN_ID]
        self._picture_tags = re.compile("|".join(pieces)) if pieces else None

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
        runs = itertools.groupby(kept, (BOS_ID, EOS_ID).__contains__)
        return "".join(self._spell(list(run), control) for control, run in runs)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Returns the tokenizer's own spelling of ids, `▁` for a space; a number where it has none.

        A character that it lacks is several pieces, one for each byte: `<0xE4>`.
        """
        known = range(self.vocab_size)
        return [self._sp.id_to_piece(i) if i in known else f"<{i}>" for i in ids]

    def _spell(self, ids: list[int], control: bool) -> str:
        """Decodes ids that are all `<s>` and `</s>`, which the library leaves out, or no such."""
        return "".join(map(self._sp.id_to_piece, ids)) if control else str(self._sp.decode(ids))

    def prompt(
        self, messages: Sequence[Message], image_tokens: int, *, as_original: bool = False
    ) -> Prompt:
        """Builds the ids of a conversation that the assistant is to continue.

        Args:
            messages: turns of user and assistant in turn, a user's first and last.
            image_tokens: placeholders for the picture in the first turn; 0 without a picture.
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
        ids += [*self.encode(before), self.image_start_id]
        start = len(ids)
        ids += [UNKNOWN_ID] * image_tokens + [self.image_end_id]
        return Prompt(ids + self.encode("\n" + after), start)


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
