"""What the user was about to ask, and where. It outlives the server."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

from convert.support.strict_json import load_json
from runtime.inputs.prompt import PromptError, check_text
from runtime.web.files import write_json

log = logging.getLogger(__name__)


class Draft:
    """The open chat, and the next question with its picture. From any thread."""

    def __init__(self, path: Path) -> None:
        """Reads the saved draft. Args: path: where it is kept."""
        self._path = path
        self._lock = threading.Lock()
        self._chat: str | None = None
        self._text = ""
        self._picture: dict[str, Any] | None = None
        try:
            if path.exists():
                self._read(load_json(path))
        except (OSError, ValueError, PromptError) as error:
            log.warning("the draft cannot be read: %s", error)

    @property
    def chat(self) -> str | None:
        """The id of the open chat; None: a new one."""
        return self._chat

    @property
    def text(self) -> str:
        """The question."""
        return self._text

    @property
    def picture(self) -> dict[str, Any] | None:
        """The picture that it is about: `id`, `width`, `height`."""
        return self._picture

    def set_chat(self, name: str | None) -> None:
        """Opens a chat."""
        with self._lock:
            self._chat = name
            self._save()

    def set_text(self, text: str) -> None:
        """Keeps the question."""
        with self._lock:
            self._text = text
            self._save()

    def set_picture(self, picture: dict[str, Any] | None) -> None:
        """Chooses a picture, or none."""
        with self._lock:
            self._picture = picture
            self._save()

    def asked(self, name: str) -> None:
        """The question was asked, in this chat."""
        with self._lock:
            self._chat, self._text, self._picture = name, "", None
            self._save()

    def _read(self, raw: Any) -> None:
        if not isinstance(raw, dict):
            raise ValueError("no object")
        chat, text, picture = raw.get("chat"), raw.get("text"), raw.get("picture")
        self._chat = chat if isinstance(chat, str) else None
        if isinstance(text, str):
            check_text(text)
            self._text = text
        is_picture = isinstance(picture, dict) and isinstance(picture.get("id"), str)
        self._picture = picture if is_picture else None

    def _save(self) -> None:
        """Saves it if possible: a full disk must not keep the user from asking."""
        kept = {"chat": self._chat, "text": self._text, "picture": self._picture}
        try:
            write_json(self._path, {key: value for key, value in kept.items() if value})
        except OSError as error:
            log.warning("the draft could not be saved: %s", error)
