"""The request of `minicpmv chat`, in the terminal and in the browser, and its model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from convert.support.console import Size, messages
from quantize.errors import ConfigError
from runtime.engine_client.options import EngineOptions

if TYPE_CHECKING:
    from runtime.sessions.loader import Loaded

SETTINGS = "OmniLMMChat"  # samples; the other class of the original searches, and cannot stream

_LAST_PORT = 65535


@dataclass(frozen=True, kw_only=True)
class ChatConfig:
    """What the user asked for."""

    source: str | None  # None: the demo checkpoint
    image: Path | None
    prompt: str | None  # None: a conversation
    greedy: bool
    engine: EngineOptions
    device: str | None
    dtype: str | None
    max_new_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    seed: int | None
    window: int | None
    max_slices: int | None
    as_original: bool
    json: bool
    web: bool
    port: int | None
    no_open: bool

    def __post_init__(self) -> None:
        """Refuses arguments that have no effect beside others."""
        names = ("temperature", "top_p", "top_k", "seed")
        given = [f"--{n.replace('_', '-')}" for n in names if getattr(self, n) is not None]
        if self.greedy and given:
            raise ConfigError(f"--greedy does not sample; leave out {', '.join(given)}")
        if self.web and (self.prompt is not None or self.json):
            raise ConfigError("--prompt and --json do not work with --web")
        if not self.web and (self.port is not None or self.no_open):
            raise ConfigError("--port and --no-open need --web")
        if self.port is not None and not 0 <= self.port <= _LAST_PORT:
            raise ConfigError(f"--port is {self.port}; expected 0 (any) to {_LAST_PORT}")


def add_max_slices(add: Callable[..., object]) -> None:
    """Declares `--max-slices`; add: an argument group's `add_argument`."""
    add(
        "--max-slices",
        metavar="N",
        type=int,
        help="most slices that a picture is cut into (MiniCPM-V 2.0): 1 takes the overview only; "
        "fewer take less time and memory but show less detail (default: the model's limit)",
    )


def load_model(config: ChatConfig, engine: EngineOptions) -> Loaded:
    """Loads the model that the user named, and shows the progress."""
    from runtime.sessions.loader import load

    with messages().status("loading the model") as status:

        def progress(stage: str, done: int, total: int) -> None:
            status.update(f"{stage}: {Size(done)} of {Size(total)}")

        return load(
            config.source, engine, device=config.device, dtype=config.dtype, progress=progress
        )
