"""Where a bundle's engine runs: on this PC, under qemu, on a phone, or on a board."""

from __future__ import annotations

from convert.bundle.manifest import Bundle
from convert.bundle.targets import HOST, HOST_MACHINE, PHONE, is_host, this_machine
from convert.support.cache import CacheError, cache_folder, kept_entry
from convert.support.progress import Progress
from quantize.errors import ConfigError
from runtime.engine_client.client import (
    CANCEL_SECONDS,
    NEWEST_CPU,
    SLOW_CANCEL_SECONDS,
    EngineClient,
    engine_command,
)
from runtime.engine_client.options import ADB, HDC, LOCAL, QEMU, EngineOptions
from runtime.engine_client.place import Device, may_name_a_file, threads_environment

_KINDS_BYTES = 1 << 20  # of all files about kinds of blocks in the cache


class ThisMachine:
    """The PC itself, or qemu on it."""

    def __init__(
        self, bundle: Bundle, engine: str, threads: int | None, cpu: str | None = None
    ) -> None:
        """Args: see `open_place`."""
        self.engine, self.bundle = engine, bundle.path
        self.description = "local engine" if engine == LOCAL else "phone's engine under qemu"
        self.target = HOST if engine == LOCAL else PHONE
        self._command = engine_command(engine, bundle.program(self.target), cpu=cpu or NEWEST_CPU)
        self._environment = threads_environment(threads)
        self._program_id = bundle.manifest.targets[self.target].program_id

    def prepare(self, progress: Progress) -> None:
        """See `Device`; all is here."""

    def brought(self, progress: Progress) -> dict[str, bool]:
        """See `Device`; none was."""
        return {}

    def await_return(self, reason: str) -> None:
        """See `Device`; it never goes away."""

    def start(self) -> EngineClient:
        """See `Device`."""
        patience = CANCEL_SECONDS if self.engine == LOCAL else SLOW_CANCEL_SECONDS
        return EngineClient(
            self._command,
            environment=self._environment,
            kinds_file=self._kinds_file(),
            cancel_seconds=patience,
        )

    def _kinds_file(self) -> str | None:
        """Returns the cache's file for this program; None for qemu, whose times mean nothing."""
        if self.engine != LOCAL or not may_name_a_file(self._program_id):
            return None
        try:
            return str(kept_entry(cache_folder() / "kinds", self._program_id, _KINDS_BYTES))
        except CacheError:
            return None


def open_place(bundle: Bundle, options: EngineOptions) -> Device:
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
    if engine == HDC:
        from runtime.engine_client.hdc import connect as connect_hdc
        from runtime.engine_client.phone import Phone

        return Phone(bundle, connect_hdc(options.serial), options.threads)
    if engine not in (LOCAL, QEMU):
        raise ConfigError(
            f"engine {engine} does not run a bundle; try {LOCAL}, {QEMU}, {ADB} or {HDC}"
        )
    if engine == LOCAL and not is_host():
        needed, here = (" on ".join(names) for names in (HOST_MACHINE, this_machine()))
        raise ConfigError(
            f"engine local is for {needed}, this is {here}: try --engine reference, or --engine "
            "adb with a phone"
        )
    return ThisMachine(bundle, engine, options.threads, options.cpu)
