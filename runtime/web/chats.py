"""Conversations that outlive the server: one file each."""

from __future__ import annotations

import json
import logging
import re
import threading
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runtime.prompt import Message
from runtime.web.files import write_json

USER, ASSISTANT = "user", "assistant"
_TITLE = 60  # characters
_NAME = re.compile(r"[0-9a-f-]{36}\.json")

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A question or an answer, as the page shows it."""

    role: str
    text: str
    picture: str | None = None  # of a question: its id
    stop: str | None = None  # of an answer: why it ended
    speed: Mapping[str, Any] | None = None  # of an answer: what it took

    @property
    def is_question(self) -> bool:
        """Whether a user said it."""
        return self.role == USER

    def to_json(self) -> dict[str, Any]:
        """Returns what is there of it."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @staticmethod
    def from_json(raw: Any) -> Turn | None:
        """Reads what `to_json` returned; None for what is no turn."""
        if not isinstance(raw, dict) or raw.get("role") not in (USER, ASSISTANT):
            return None
        text, speed = raw.get("text"), raw.get("speed")
        if not isinstance(text, str):
            return None
        picture, stop = raw.get("picture"), raw.get("stop")
        return Turn(
            role=raw["role"],
            text=text,
            picture=picture if isinstance(picture, str) else None,
            stop=stop if isinstance(stop, str) else None,
            speed=speed if isinstance(speed, dict) else None,
        )


class Chat:
    """A conversation: questions and answers, pictures among them. From any thread."""

    def __init__(self, name: str, turns: list[Turn], changed: int) -> None:
        """Args: name: its id. changed: when, in milliseconds since 1970."""
        self.name = name
        self._turns, self._changed = turns, changed
        self._lock = threading.Lock()

    @property
    def turns(self) -> list[Turn]:
        """All turns."""
        with self._lock:
            return list(self._turns)

    @property
    def changed(self) -> int:
        """When it last did, in milliseconds since 1970."""
        return self._changed

    @property
    def title(self) -> str:
        """The first question, or as much of it as a list shows."""
        turns = self.turns
        text = " ".join(turns[0].text.split()) if turns else ""
        return text if len(text) <= _TITLE else text[:_TITLE] + "…"

    def ask(self, place: int, question: Turn, now: int) -> None:
        """Asks: at the end, or in place of an earlier question and all that follows it.

        Args:
            place: index of the question that goes; the number of turns adds one.
            question: the new one.
            now: milliseconds since 1970.

        Raises:
            ValueError: there is no question.
        """
        with self._lock:
            count = len(self._turns)
            if not 0 <= place <= count or (place < count and not self._turns[place].is_question):
                raise ValueError(f"no question at {place}")
            self._turns[place:] = [question]
            self._changed = now

    def answer(self, answer: Turn, now: int) -> None:
        """Adds an answer."""
        with self._lock:
            self._turns.append(answer)
            self._changed = now

    def messages(self) -> list[Message]:
        """Returns what the model hears.

        It sees one picture, before the first question, so its conversation begins with the
        question that brought the latest. Questions without an answer are left out, but the last.
        """
        turns = self.turns
        heard = turns[_picture_index(turns) :]
        said: list[Turn] = []
        for turn, following in zip(heard, [*heard[1:], None], strict=True):
            if following is None:
                said += [turn] if turn.is_question else []
            elif turn.is_question and not following.is_question and following.text:
                said += [turn, following]
        return [{"role": turn.role, "content": turn.text} for turn in said]

    def picture(self) -> str | None:
        """Returns the id of the picture that `messages` are about."""
        turns = self.turns
        return turns[_picture_index(turns)].picture if turns else None

    def to_json(self) -> dict[str, Any]:
        """Returns all of it."""
        turns = [turn.to_json() for turn in self.turns]
        return {"id": self.name, "title": self.title, "changed": self.changed, "turns": turns}


class ChatStore:
    """All chats, in a folder. From any thread."""

    def __init__(self, folder: Path) -> None:
        """Reads what is there; what cannot be read is left as it is."""
        folder.mkdir(mode=0o700, exist_ok=True)
        self._folder = folder
        self._lock = threading.RLock()
        self._chats: dict[str, Chat] = {}
        for path in sorted(folder.iterdir()):
            if _NAME.fullmatch(path.name):
                self._read(path)

    def create(self, now: int) -> Chat:
        """Begins a chat; it is kept once it is saved."""
        chat = Chat(str(uuid.uuid4()), [], now)
        with self._lock:
            self._chats[chat.name] = chat
        return chat

    def get(self, name: str | None) -> Chat | None:
        """Returns a chat, if there is one of that id."""
        with self._lock:
            return None if name is None else self._chats.get(name)

    def save(self, chat: Chat) -> None:
        """Writes a chat, unless it was deleted meanwhile."""
        with self._lock:
            if chat.name in self._chats:
                write_json(self._path(chat.name), chat.to_json())

    def delete(self, name: str) -> None:
        """Removes a chat for good."""
        with self._lock:
            if self._chats.pop(name, None) is not None:
                self._path(name).unlink(missing_ok=True)

    def list(self) -> list[dict[str, Any]]:
        """Returns what a list of chats shows, the latest first."""
        with self._lock:
            chats = sorted(self._chats.values(), key=lambda chat: chat.changed, reverse=True)
        return [{"id": c.name, "title": c.title, "changed": c.changed} for c in chats]

    def pictures(self) -> set[str]:
        """Returns the ids of the pictures that some chat shows."""
        with self._lock:
            turns = [turn for chat in self._chats.values() for turn in chat.turns]
        return {turn.picture for turn in turns if turn.picture is not None}

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.json"

    def _read(self, path: Path) -> None:
        try:
            raw = json.loads(path.read_text("utf-8"))
            turns = [turn for turn in map(Turn.from_json, raw["turns"]) if turn is not None]
            self._chats[path.stem] = Chat(path.stem, turns, int(raw["changed"]))
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            log.warning("%s cannot be read and is left as it is: %s", path.name, error)


def _picture_index(turns: list[Turn]) -> int:
    """Returns the index of the turn that brought the latest picture; 0 if none did."""
    return max((i for i, turn in enumerate(turns) if turn.picture is not None), default=0)
