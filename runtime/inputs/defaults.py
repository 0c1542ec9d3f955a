"""The original's generation settings, read from data: `configs/generation.json`, or a bundle's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from convert.checkpoint.config import CONFIGS, ModelConfig
from convert.support.strict_json import load_json
from quantize.errors import ConfigError
from runtime.inputs.generation_options import GenerationOptions
from runtime.inputs.prompt import ORIGINAL_PROMPT_LIMIT

CHAT_CLASS = "OmniLMMChat"  # the set of the original's other class, which samples
DEFAULTS = CONFIGS / "generation.json"
# Least and most that a file may say; GenerationOptions has the rules for what a caller chooses.
RANGES: Mapping[str, tuple[float, float]] = {
    "window": (1, 2**20),
    "max_new_tokens": (1, 2**20),
    "num_beams": (1, 64),
    "temperature": (1e-3, 100),
    "top_k": (1, 2**24),
    "repetition_penalty": (0.01, 100),
}


@dataclass(frozen=True, kw_only=True)
class GenerationSet:
    """How one of the original's functions generates unless told otherwise."""

    sampling: bool  # whether `sample` is taken, or `beam`
    max_new_tokens: int
    sample: Mapping[str, Any]
    beam: Mapping[str, Any]

    def choose(self, sampling: bool | None, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the settings; overrides change only those that the chosen set has."""
        chosen = dict(
            self.sample if (self.sampling if sampling is None else sampling) else self.beam
        )
        return chosen | {key: overrides[key] for key in chosen.keys() & overrides.keys()}


@dataclass(frozen=True, kw_only=True)
class SliceDefaults:
    """The defaults of models that cut pictures into slices, which take more tokens."""

    window: int  # tokens
    settings: str  # a set's name


@dataclass(frozen=True, kw_only=True)
class GenerationDefaults:
    """All sets by name, and the context window."""

    window: int  # tokens
    sets: Mapping[str, GenerationSet]
    settings: str = "minicpm-v-1.0"  # the set of the original's `model.chat`
    slices: SliceDefaults | None = None  # None in bundles of 0.1.0

    def for_model(self, config: ModelConfig) -> GenerationDefaults:
        """Returns the defaults of a model: whether it cuts pictures decides some of them."""
        if self.slices is None or config.vision is None or config.vision.slices is None:
            return self
        window, settings = self.slices.window, self.slices.settings
        # The original's class calls its `model.chat`, with sampling.
        sets = {**self.sets, CHAT_CLASS: self.named(settings)}
        return replace(self, window=window, settings=settings, sets=sets)

    @staticmethod
    def load(path: Path = DEFAULTS) -> GenerationDefaults:
        """Reads a `generation.json`.

        Raises:
            ConfigError: not JSON, keys missing or unknown, values out of range.
        """
        try:
            raw = load_json(path)
            sets = {name: GenerationSet(**values) for name, values in raw.pop("sets").items()}
            slices = raw.pop("slices", None)
            defaults = GenerationDefaults(
                sets=sets, slices=None if slices is None else SliceDefaults(**slices), **raw
            )
            layouts = [(defaults.window, defaults.settings)]
            if defaults.slices is not None:
                layouts.append((defaults.slices.window, defaults.slices.settings))
            for window, name in layouts:
                _check_ranges({"window": window})
                defaults.named(name)
            for one in sets.values():
                for settings in (one.sample, one.beam):
                    GenerationOptions(max_new_tokens=one.max_new_tokens, **settings)
                    _check_ranges({"max_new_tokens": one.max_new_tokens, **settings})
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
        except ValueError as error:
            raise ConfigError(f"{path}: cannot be read as JSON: {error}") from error
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{path}: {error}; expected the keys of configs/generation.json"
            ) from error
        return defaults

    def named(self, name: str) -> GenerationSet:
        """Returns a set, or raises ConfigError with the names that there are."""
        if name not in self.sets:
            raise ConfigError(f"no generation settings {name!r}; known: {', '.join(self.sets)}")
        return self.sets[name]

    def window_for(self, window: int | None, *, as_original: bool, max_new_tokens: int) -> int:
        """Returns the window to use: the asked one; else the default.

        The original has no window, so for it the default is as long as it can ever get.
        """
        if window is not None:
            return window
        return ORIGINAL_PROMPT_LIMIT + max_new_tokens if as_original else self.window


def _check_ranges(settings: Mapping[str, Any]) -> None:
    for name in settings.keys() & RANGES.keys():
        value, (least, most) = settings[name], RANGES[name]
        if name == "window" and type(value) is not int:
            raise ConfigError(f"window is {value!r:.80}; expected a whole number")
        if value is not None and not least <= value <= most:
            raise ConfigError(f"{name} is {value!r:.80}; expected a number from {least} to {most}")
