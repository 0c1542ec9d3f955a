"""Where a bundle's engine runs: on this PC, under qemu, or on a phone."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from convert.bundle.manifest import Bundle
from quantize.errors import ConfigError
from runtime.engine_client.client import (
    CANCEL_SECONDS,
    SLOW_CANCEL_SECONDS,
    EngineClient,
    engine_command,
)
from runtime.engine_client.options import ADB, LOCAL, EngineOptions

HOST, PHONE = "host", "android-arm64"  # targets
THREADS_VARIABLE = "TVM_NUM_THREADS"
_HOST_MACHINE = ("Linux", "x86_64")

Progress = Callable[[str, int, int], None]  # stage, done, in all


class Place(Protocol):
    """A machine that can run a bundle's engine."""

    engine: str  # a value of `--engine`
    description: str
    target: str  # whose program runs there
    bundle: Path  # the bundle's folder, as the engine sees it

    def prepare(self, progress: Progress) -> None:
        """Brings what is needed there, unless it is there already."""

    def brought(self, progress: Progress) -> dict[str, bool]:
        """Returns whether the files that were brought there are still what the manifest names."""

    def start(self) -> EngineClient:
        """Starts an engine, if its program is the bundle's own; the caller closes it."""


class ThisMachine:
    """The PC itself, or qemu on it."""

    def __init__(self, bundle: Bundle, engine: str, threads: int | None) -> None:
        """Args: see `open_place`."""
        self.engine, self.bundle = engine, bundle.path
        self.description = "local engine" if engine == LOCAL else "phone's engine under qemu"
        self.target = HOST if engine == LOCAL else PHONE
        self._command = engine_command(engine, bundle.program(self.target))
        self._environment = threads_environment(threads)

    def prepare(self, progress: Progress) -> None:
        """See `Place`; all is here."""

    def brought(self, progress: Progress) -> dict[str, bool]:
        """See `Place`; none was."""
        return {}

    def start(self) -> EngineClient:
        """See `Place`."""
        patience = CANCEL_SECONDS if self.engine == LOCAL else SLOW_CANCEL_SECONDS
        return EngineClient(self._command, environment=self._environment, cancel_seconds=patience)


def open_place(bundle: Bundle, options: EngineOptions) -> Place:
    """Finds where a bundle's engine is to run; nothing is started or copied yet.

    Args:
        bundle: holds the engine.
        options: where; by default on this PC.

    Raises:
        BundleError: the bundle has no engine for that place.
        ToolkitError: the place cannot be used; says what to do.
    """
    engine = options.engine or LOCAL
    if engine == ADB:
        from runtime.engine_client.adb import connect
        from runtime.engine_client.phone import Phone

        return Phone(bundle, connect(options.serial), options.threads)
    here = (platform.system(), platform.machine())
    if engine == LOCAL and here != _HOST_MACHINE:
        raise ConfigError(
            f"engine local is for {' on '.join(_HOST_MACHINE)}, this is {' on '.join(here)}: try "
            "--engine reference, or --engine adb with a phone"
        )
    return ThisMachine(bundle, engine, options.threads)


def threads_environment(threads: int | None) -> dict[str, str]:
    """Returns the variables that set an engine's number of threads."""
    return {} if threads is None else {THREADS_VARIABLE: str(threads)}
