"""An answer's text as it grows, never cut inside a character."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from runtime.inputs.prompt import Tokenizer

_INCOMPLETE = "�"  # what bytes decode to until their character is whole


class TextStream:
    """Passes text on as ids arrive; what it passed on is always the start of the answer.

    Characters outside the vocabulary come as bytes, one token each: they are held until the
    character is complete. White space is held until something follows, because an answer is
    stripped; and so is what may be the beginning of a stop text.
    """

    def __init__(
        self, tokenizer: Tokenizer, on_text: Callable[[str], None], stops: Sequence[str] = ()
    ) -> None:
        """Args: stops: texts that end an answer; it ends before the first of them."""
        self._tokenizer, self._on_text, self._stops = tokenizer, on_text, tuple(stops)
        self.stopped = False  # whether a stop text has come
        self._ids: list[int] = []
        self._sent = 0  # characters

    def add(self, token: int) -> None:
        """Takes the next id."""
        self._ids.append(token)
        text = self._cut(self._tokenizer.decode(self._ids).rstrip(_INCOMPLETE))
        self._send(text if self.stopped else text[: self._possible_stop(text)])

    def finish(self, ids: Sequence[int]) -> str:
        """Passes on the rest of the answer `ids` and returns all of its text."""
        text = self._cut(self._tokenizer.decode(ids))
        self._send(text)
        return text.strip()

    def _cut(self, text: str) -> str:
        """Returns a text up to its first stop text."""
        found = [text.find(stop) for stop in self._stops if stop in text]
        self.stopped = self.stopped or bool(found)
        return text[: min(found)] if found else text

    def _possible_stop(self, text: str) -> int:
        """Returns where at the end of a text a stop text may have begun; its length if nowhere."""
        starts = [
            len(text) - size
            for stop in self._stops
            for size in range(1, min(len(stop), len(text)) + 1)
            if text.endswith(stop[:size])
        ]
        return min(starts, default=len(text))

    def _send(self, text: str) -> None:
        text = text.strip()
        if len(text) > self._sent:
            self._on_text(text[self._sent :])
            self._sent = len(text)
