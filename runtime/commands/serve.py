"""`minicpmv serve`: serves a model through OpenAI's chat completions interface."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from convert.support.console import results
from convert.support.regular_file import read_regular
from quantize.errors import ConfigError
from runtime.commands.chat_options import add_max_slices
from runtime.engine_client.options import (
    REFERENCE,
    EngineOptions,
    add_engine_arguments,
    engine_options,
)
from runtime.sessions.conversation import say

NAME = "serve"
HELP = "serve a model to programs that use OpenAI's chat completions"
EXAMPLES = (
    ("serve the demo's bundle on this PC", "minicpmv serve build/demo"),
    (
        "serve it to a network, with an API key",
        "minicpmv serve build/demo --host 0.0.0.0 --api-key-file key.txt",
    ),
)
KEY_VARIABLE = "MINICPMV_API_KEY"
_LAST_PORT = 65535
_PORT = 8080
_WAITING = 8
_KEY_LIMIT = 4096  # bytes of its file


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """What the user asked for."""

    source: Path
    engine: EngineOptions
    host: str
    port: int
    key: str | None
    origins: tuple[str, ...]
    window: int | None  # tokens; None: the bundle's default
    max_slices: int | None  # of a picture; None: the model's limit
    waiting: int
    name: str | None  # of the model; None: the folder's

    def __post_init__(self) -> None:
        """Checks ranges."""
        if not 0 <= self.port <= _LAST_PORT:
            raise ConfigError(f"--port is {self.port}; expected 0 (any) to {_LAST_PORT}")
        if self.waiting < 0:
            raise ConfigError(f"--queue is {self.waiting}; expected 0 or more")
        key = self.key
        if key is not None and not (key.isascii() and key.isprintable() and key.strip()):
            raise ConfigError(
                "the API key is empty, not ASCII, or has several lines; expected one line"
            )


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "source", metavar="DIR", type=Path, help="a bundle, or a checkpoint's folder"
    )
    _add_access(parser)
    add = parser.add_argument_group("service").add_argument
    add("--name", metavar="NAME", help="the model's name for clients (default: the folder's)")
    add(
        "--window",
        metavar="N",
        type=int,
        help="context window in tokens (default: 1024; 2048 with slices)",
    )
    add_max_slices(add)
    add(
        "--queue",
        metavar="N",
        type=int,
        default=_WAITING,
        help="number of requests that may wait; more are refused (default: %(default)s)",
    )
    add_engine_arguments(parser)


def _add_access(parser: argparse.ArgumentParser) -> None:
    """Declares the address, and who may use it."""
    group = parser.add_argument_group("access")
    add = group.add_argument
    add(
        "--host",
        metavar="ADDRESS",
        default="127.0.0.1",
        help="address to listen on (default: %(default)s, for programs on this PC only)",
    )
    add(
        "--port",
        metavar="N",
        type=int,
        default=_PORT,
        help="port to listen on; 0: any free port (default: %(default)s)",
    )
    key = group.add_mutually_exclusive_group()
    key.add_argument(
        "--api-key-file",
        metavar="FILE",
        type=Path,
        help=f"file with the key that clients must send (default: ${KEY_VARIABLE})",
    )
    key.add_argument(
        "--api-key",
        metavar="KEY",
        help="the key itself, which other users of this PC can see in the process list",
    )
    add(
        "--cors",
        metavar="ORIGIN",
        action="append",
        default=[],
        help="a web page's origin that may send requests, such as http://localhost:3000; "
        "repeatable (default: none)",
    )


def run(args: argparse.Namespace) -> int:
    """Serves until Ctrl-C."""
    serve_source(
        ServeConfig(
            source=args.source,
            engine=engine_options(args),
            host=args.host,
            port=args.port,
            key=_key(args),
            origins=tuple(args.cors),
            window=args.window,
            max_slices=args.max_slices,
            waiting=args.queue,
            name=args.name,
        )
    )
    return 0


def _key(args: argparse.Namespace) -> str | None:
    """Returns the API key from the option, the file or the environment.

    Raises:
        ConfigError: the file cannot be read.
    """
    if args.api_key is not None:
        return str(args.api_key)
    path: Path | None = args.api_key_file
    if path is None:
        return os.environ.get(KEY_VARIABLE) or None
    try:
        return read_regular(path, _KEY_LIMIT).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"--api-key-file {path}: cannot be read: {reason}") from error


def serve_source(config: ServeConfig) -> None:
    """Loads the model and serves it."""
    from convert.bundle.manifest import Bundle
    from runtime.commands.chat_options import SETTINGS
    from runtime.inputs.slices import limit_slices
    from runtime.serve.app import Served
    from runtime.serve.cors import Cors
    from runtime.serve.run import check_address, serve
    from runtime.sessions.loader import is_bundle, load
    from runtime.web.model import LoadedModel

    check_address(config.host, config.key)
    Cors(config.origins)  # checks them before the model is loaded
    is_reference = config.engine.engine == REFERENCE or not is_bundle(config.source)
    model = LoadedModel(
        lambda threads: load(config.source, config.engine),
        bundle=None if is_reference else Bundle.open(config.source),
        source=str(config.source),
    )
    limit_slices(model.loaded.config.vision, config.max_slices)
    defaults = model.loaded.defaults
    settings = defaults.named(SETTINGS)
    window = defaults.window_for(
        config.window, as_original=False, max_new_tokens=settings.max_new_tokens
    )
    served = Served(
        name=config.name or config.source.resolve().name,
        created=int(config.source.stat().st_mtime),
        settings=settings,
        tokenizer=model.loaded.tokenizer,
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
        origins=config.origins,
        window=window,
        max_slices=config.max_slices,
        waiting=config.waiting,
        on_start=begin,
    )
