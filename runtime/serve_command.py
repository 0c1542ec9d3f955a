"""`minicpmv serve`: a bundle behind the interface of OpenAI's chat completions."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from convert.console import results
from quantize.errors import ConfigError
from runtime.conversation import say
from runtime.engine_options import (
    REFERENCE,
    EngineOptions,
    add_engine_arguments,
    engine_options,
)

NAME = "serve"
HELP = "answer requests as OpenAI's chat completions do, from a bundle"
KEY_VARIABLE = "MINICPMV_API_KEY"
_LAST_PORT = 65535
_PORT = 8080
_WAITING = 8


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """What the command line says."""

    source: Path
    engine: EngineOptions
    host: str
    port: int
    key: str | None
    window: int | None  # tokens; None: the bundle's default
    waiting: int
    name: str | None  # of the model; None: the folder's

    def __post_init__(self) -> None:
        """Checks ranges."""
        if not 0 <= self.port <= _LAST_PORT:
            raise ConfigError(f"--port is {self.port}; expected 0 (any) to {_LAST_PORT}")
        if self.waiting < 0:
            raise ConfigError(f"--queue is {self.waiting}; expected 0 or more")
        if self.key is not None and (not self.key.isascii() or not self.key.strip()):
            raise ConfigError("--api-key is empty or not ASCII")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    add = parser.add_argument
    add("source", metavar="DIR", type=Path, help="a bundle, or a checkpoint's folder")
    add("--host", default="127.0.0.1", help="address to listen on (default: this PC only)")
    add("--port", metavar="N", type=int, default=_PORT, help=f"0: a free one (default: {_PORT})")
    add("--api-key", metavar="KEY", help=f"that clients must send (default: ${KEY_VARIABLE})")
    add("--name", help="the model's name for clients (default: the folder's)")
    add("--window", metavar="N", type=int, help="context window in tokens (default: 1024)")
    add(
        "--queue",
        metavar="N",
        type=int,
        default=_WAITING,
        help=f"requests that may wait; more are refused (default: {_WAITING})",
    )
    add_engine_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Serves until Ctrl-C."""
    serve_source(
        ServeConfig(
            source=args.source,
            engine=engine_options(args),
            host=args.host,
            port=args.port,
            key=args.api_key or os.environ.get(KEY_VARIABLE) or None,
            window=args.window,
            waiting=args.queue,
            name=args.name,
        )
    )
    return 0


def serve_source(config: ServeConfig) -> None:
    """Loads what the command line names and serves it."""
    from convert.bundle import Bundle
    from runtime.chat_command import SETTINGS
    from runtime.loader import is_bundle, load
    from runtime.serve.app import Served
    from runtime.serve.run import check_address, serve
    from runtime.web.model import Model

    check_address(config.host, config.key)
    is_reference = config.engine.engine == REFERENCE or not is_bundle(config.source)
    model = Model(
        lambda threads: load(config.source, config.engine),
        bundle=None if is_reference else Bundle.open(config.source),
        source=str(config.source),
    )
    defaults = model.loaded.defaults
    settings = defaults.named(SETTINGS)
    window = defaults.window_for(
        config.window, as_original=False, max_new_tokens=settings.max_new_tokens
    )
    served = Served(
        name=config.name or config.source.resolve().name,
        created=int(config.source.stat().st_mtime),
        settings=settings,
    )

    def begin(address: str) -> None:
        key = "with the API key" if config.key is not None else "without an API key"
        say(f"{model.loaded.description}; window {window}; model {served.name!r}; {key}")
        say("Ctrl-C ends")
        results().print(address, markup=False, soft_wrap=True)

    serve(
        model,
        served,
        host=config.host,
        port=config.port,
        key=config.key,
        window=window,
        waiting=config.waiting,
        on_start=begin,
    )
