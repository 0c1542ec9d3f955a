"""Runs the server until Ctrl-C."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection
from contextlib import closing

from quantize.errors import ConfigError
from runtime.http.guard import NAMES
from runtime.http.listen import listening, run_server
from runtime.serve.app import Served, serve_app
from runtime.serve.cors import Cors
from runtime.serve.guard import KeyGuard
from runtime.serve.work import AnswerQueue
from runtime.web.model import LoadedModel


def check_address(host: str, key: str | None) -> None:
    """Checks where a server may listen.

    Raises:
        ConfigError: not an address, or one that other machines can reach without a key.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError as error:
        raise ConfigError(f"--host is {host!r}; expected an address such as {NAMES[0]}") from error
    if not address.is_loopback and key is None:
        raise ConfigError(
            f"--host {host} can be reached from other machines: set an API key (--api-key-file)"
        )


def serve(
    model: LoadedModel,
    served: Served,
    *,
    host: str,
    port: int,
    key: str | None,
    origins: Collection[str],
    window: int,
    max_slices: int | None,
    waiting: int,
    on_start: Callable[[str], None],
) -> None:
    """Serves a model until the user interrupts it; the model is closed then.

    Args:
        model: loaded.
        served: its name and settings.
        host: an address of this machine; see `check_address`.
        port: on which to listen; 0 picks a free one.
        key: API key that clients must send; None: no key.
        origins: of other sites' pages that may send requests.
        window: context window in tokens.
        max_slices: most slices that a picture is cut into; None: the model's limit.
        waiting: how many requests may wait besides the one in progress.
        on_start: receives the address once requests are answered.

    Raises:
        ConfigError: the address or port cannot be bound, or an origin is invalid.
        ToolkitError: the model cannot be opened.
    """
    check_address(host, key)
    cors = Cors(origins)
    with (
        closing(AnswerQueue(model, window=window, max_slices=max_slices, waiting=waiting)) as work,
        listening(host, port) as listener,
    ):
        work.prepare()
        bound = listener.getsockname()[1]
        own = f"[{host}]" if ":" in host else host
        # Other machines may use names for this one that are unknown here; the key keeps pages out.
        own_address = ipaddress.ip_address(host)
        names = {str(own_address), *NAMES} if own_address.is_loopback else None
        app = KeyGuard(serve_app(served, work), names=names, key=key, cors=cors)
        address = f"http://{own}:{bound}/v1"
        run_server(app, listener, on_start=lambda: on_start(address), on_end=work.end)
