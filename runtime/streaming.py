"""An answer's text as it grows, never cut inside a character."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from runtime.prompt import Tokenizer

_INCOMPLETE = "�"  # what bytes decode to until their character is whole


class TextStream:
    """Passes text on as ids arrive; what it passed on is always the start of the answer.

    Characters outside the vocabulary come as bytes, one token each: they are held until the
    character is complete. White space is held until something follows, because an answer is
    stripped.
    """

    def __init__(self, tokenizer: Tokenizer, on_text: Callable[[str], None]) -> None:
        self._tokenizer, self._on_text = tokenizer, on_text
        self._ids: list[int] = []
        self._sent = 0  # characters

    def add(self, token: int) -> None:
        """Takes the next id."""
        self._ids.append(token)
        self._send(self._tokenizer.decode(self._ids).rstrip(_INCOMPLETE))

    def finish(self, ids: Sequence[int]) -> str:
        """Passes on the rest of the answer `ids` and returns all of its text."""
        self._send(self._tokenizer.decode(ids))
        return self._tokenizer.decode(ids).strip()

    def _send(self, text: str) -> None:
        text = text.strip()
        if len(text) > self._sent:
            self._on_text(text[self._sent :])
            self._sent = len(text)
