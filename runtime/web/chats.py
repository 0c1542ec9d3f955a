"""Conversations that outlive the server: one file each."""

from __future__ import annotations

import builtins
import logging
import re
import threading
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from convert.support.strict_json import load_json
from convert.support.whole_file import is_partial
from runtime.inputs.prompt import Message, PromptError, check_text
from runtime.web.files import write_json

USER, ASSISTANT = "user", "assistant"
_TITLE = 60  # characters
_NAME = re.compile(r"[0-9a-f-]{36}\.json")
_KINDS = {"text": str, "picture": str, "stop": str, "speed": dict}  # of a turn's fields
_LATEST = 2**53  # milliseconds since 1970: what every reader of JSON can count

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
        """Whether the user wrote it."""
        return self.role == USER

    def to_json(self) -> dict[str, Any]:
        """Returns it as JSON values, without empty fields."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @staticmethod
    def from_json(raw: Any) -> Turn:
        """Reads what `to_json` returned.

        Raises:
            ValueError: it is no turn, or not as it was written.
        """
        if not isinstance(raw, dict) or raw.get("role") not in (USER, ASSISTANT):
            raise ValueError("a turn is neither a question nor an answer")
        found: dict[str, Any] = {"text": raw.get("text")}
        found |= {name: raw[name] for name in _KINDS if raw.get(name) is not None}
        for name, value in found.items():
            if not isinstance(value, _KINDS[name]):
                raise ValueError(f"{name} of a turn is {value!r:.40}")
            if isinstance(value, str):
                check_text(value)
        return Turn(role=raw["role"], **found)


class Chat:
    """A conversation: questions and answers, pictures among them. From any thread."""

    def __init__(self, name: str, turns: list[Turn], changed: int, named: str = "") -> None:
        """Args: name: its id. changed: when, in milliseconds since 1970. named: see `rename`."""
        self.name = name
        self._named = _shortened(named)
        self._turns, self._changed = turns, changed
        self._lock = threading.Lock()

    @property
    def turns(self) -> list[Turn]:
        """All turns."""
        with self._lock:
            return list(self._turns)

    @property
    def changed(self) -> int:
        """When it last changed, in milliseconds since 1970."""
        return self._changed

    @property
    def title(self) -> str:
        """The title that the user gave it, or else the first question; shortened for lists."""
        turns = self.turns
        return self._named or (_shortened(turns[0].text) if turns else "")

    def rename(self, title: str) -> None:
        """Gives it a title; an empty one restores the first question."""
        self._named = _shortened(title)

    def contains(self, text: str) -> bool:
        """Tells whether the title or a turn contains a text in lower case."""
        return any(text in part.lower() for part in (self.title, *(t.text for t in self.turns)))

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
        """Returns the messages for the model.

        It sees one picture, before the first question, so its conversation begins with the
        question that brought the latest. Questions without an answer are left out, but the last.
        """
        turns = self.turns
        shown_turns = turns[_picture_index(turns) :]
        said: list[Turn] = []
        for turn, following in zip(shown_turns, [*shown_turns[1:], None], strict=True):
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
        whole = {"id": self.name, "title": self.title, "changed": self.changed, "turns": turns}
        return whole | ({"named": self._named} if self._named else {})


class ChatStore:
    """All chats, in a folder. From any thread."""

    def __init__(self, folder: Path) -> None:
        """Reads what is there; what cannot be read is left as it is.

        Attributes:
            unread: files that are no chat, or a damaged one: they may refer to any picture.
        """
        folder.mkdir(mode=0o700, exist_ok=True)
        self._folder = folder
        self._lock = threading.RLock()
        self._chats: dict[str, Chat] = {}
        self.unread: list[Path] = []
        for path in sorted(folder.iterdir()):
            if is_partial(path):  # of a server that was killed as it wrote; what was there is whole
                path.unlink()
            else:
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
        return [_entry(chat) for chat in chats]

    def search(self, text: str) -> builtins.list[str]:
        """Returns the ids of the chats that contain a text, in any case."""
        with self._lock:
            return [name for name, chat in self._chats.items() if chat.contains(text.lower())]

    def pictures(self) -> set[str]:
        """Returns the ids of the pictures that some chat shows, of those that can be read."""
        with self._lock:
            turns = [turn for chat in self._chats.values() for turn in chat.turns]
        return {turn.picture for turn in turns if turn.picture is not None}

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.json"

    def _read(self, path: Path) -> None:
        try:
            if not _NAME.fullmatch(path.name):
                raise ValueError("not the name of a chat")
            self._chats[path.stem] = _chat(path.stem, load_json(path))
        except (OSError, ValueError, PromptError) as error:
            log.warning("%s cannot be read and is left as it is: %s", path.name, error)
            self.unread.append(path)


def _chat(name: str, raw: Any) -> Chat:
    """Reads what `Chat.to_json` returned.

    Raises:
        ValueError: it is no chat, or not as it was written.
        PromptError: a text in it is none.
    """
    if not isinstance(raw, dict) or not isinstance(raw.get("turns"), list):
        raise ValueError("it has no turns")
    changed = raw.get("changed")
    if type(changed) is not int or not 0 <= changed <= _LATEST:
        raise ValueError(f"changed is {changed!r:.40}; expected milliseconds since 1970")
    named = raw.get("named") or ""
    if not isinstance(named, str):
        raise ValueError(f"the title is {named!r:.40}")
    check_text(named)
    return Chat(name, [Turn.from_json(turn) for turn in raw["turns"]], changed, named)


def _entry(chat: Chat) -> dict[str, Any]:
    """Returns what the list of chats shows of one: also its first picture, if it has any."""
    entry = {"id": chat.name, "title": chat.title, "changed": chat.changed}
    pictures = [turn.picture for turn in chat.turns if turn.picture is not None]
    return entry | ({"picture": pictures[0]} if pictures else {})


def _shortened(text: str) -> str:
    """Returns a text on one line, or as much of it as a list shows."""
    text = " ".join(text.split())
    return text if len(text) <= _TITLE else text[:_TITLE] + "…"


def _picture_index(turns: list[Turn]) -> int:
    """Returns the index of the turn that brought the latest picture; 0 if none did."""
    return max((i for i, turn in enumerate(turns) if turn.picture is not None), default=0)
