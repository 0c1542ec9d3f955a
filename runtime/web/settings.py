"""The user's settings; the model's defaults where the user chose nothing."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.checkpoint.config import CONFIGS
from convert.support.strict_json import load_json
from runtime.inputs.defaults import GenerationDefaults
from runtime.inputs.generation_options import GenerationOptions
from runtime.web.files import write_json

SET = "OmniLMMChat"  # of generation.json
MAX_SLICES = 4  # by default, of models that cut pictures; more take longer
_SWITCHES = ("do_sample", "show_speed")
_WORDS = {"language": ("system", "en", "zh"), "theme": ("system", "light", "dark")}
# What each number may be: its `min`, `max` and `step`; a step of 1 means whole numbers.
RANGES: Mapping[str, Mapping[str, float]] = load_json(CONFIGS / "setting_ranges.json")

log = logging.getLogger(__name__)


class Settings:
    """Choices in a file. From any thread."""

    def __init__(self, path: Path, defaults: GenerationDefaults, window: int) -> None:
        """Reads the choices; what is out of its range is left out.

        Args:
            path: where they are kept.
            defaults: the model's.
            window: where none is chosen, in tokens.
        """
        self._path = path
        self._lock = threading.Lock()
        settings = defaults.named(SET)
        self._defaults: dict[str, Any] = {
            "do_sample": True,
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": 0,
            "repetition_penalty": 1.0,
            **settings.choose(True, {}),
            "max_new_tokens": settings.max_new_tokens,
            "window": window,
            "max_slices": MAX_SLICES,
            "threads": 0,
            "show_speed": False,
            "theme": "system",
            "language": "system",
        }
        self._chosen: dict[str, Any] = {}
        try:
            if path.exists():
                self._chosen = _valid(load_json(path))
        except (OSError, ValueError) as error:
            log.warning("settings cannot be read, so all are as at first: %s", error)

    def choose(self, choices: Any) -> None:
        """Takes choices over those before; what is out of its range is left out."""
        with self._lock:
            self._chosen |= _valid(choices)
            write_json(self._path, self._chosen)

    def reset(self) -> None:
        """Forgets all choices."""
        with self._lock:
            self._chosen = {}
            write_json(self._path, self._chosen)

    def all(self) -> dict[str, Any]:
        """Returns all settings."""
        with self._lock:
            return self._defaults | self._chosen

    def options(self, seed: int | None) -> GenerationOptions:
        """Returns how to generate."""
        settings = self.all()
        names = ("max_new_tokens", "repetition_penalty", "do_sample")
        chosen = {name: settings[name] for name in names}
        if settings["do_sample"]:
            chosen |= {name: settings[name] for name in ("temperature", "top_p")}
            chosen |= {"top_k": settings["top_k"], "seed": seed}
        return GenerationOptions(**chosen)


def _valid(choices: Any) -> dict[str, Any]:
    """Returns those choices that mean something."""
    valid: dict[str, Any] = {}
    if not isinstance(choices, dict):
        return valid
    for name, value in choices.items():
        is_switch = name in _SWITCHES and isinstance(value, bool)
        if is_switch or (name in _WORDS and value in _WORDS[name]):
            valid[name] = value
        elif name in RANGES and type(value) in (int, float):
            given, is_whole = RANGES[name], RANGES[name]["step"] == 1
            if given["min"] <= value <= given["max"] and (not is_whole or value == int(value)):
                valid[name] = int(value) if is_whole else float(value)
    return valid
