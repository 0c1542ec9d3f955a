"""Where a model runs, as a user says it: the same arguments for every command."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from quantize.errors import ConfigError

LOCAL, QEMU, ADB, HDC, REFERENCE = "local", "qemu", "adb", "hdc", "reference"
ENGINES = (LOCAL, QEMU, ADB, HDC, REFERENCE)
_PHONES = (ADB, HDC)
MLC = "mlc"  # a package for MLC-LLM, which only verify runs
_MEANING = {
    LOCAL: "on this PC",
    QEMU: "the phone's engine, emulated on this PC",
    ADB: "on a connected phone",
    HDC: "on a connected OpenHarmony board or PC",
    REFERENCE: "the full-precision model in PyTorch",
    MLC: "an MLC package's library for this PC, in TVM's virtual machine",
}


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Where a model runs, and with how many threads."""

    engine: str | None = None  # one of `ENGINES`; None: what fits the model
    threads: int | None = None  # None: what the engine finds best
    serial: str | None = None  # of the phone; None: the only one, for adb $ANDROID_SERIAL
    cpu: str | None = None  # that qemu emulates, in its words; None: the newest that it knows

    def __post_init__(self) -> None:
        """Checks every value.

        Raises:
            ConfigError: an unknown engine, no threads, or a setting that means nothing here.
        """
        if self.engine not in (None, *ENGINES, MLC):
            raise ConfigError(f"engine is {self.engine!r}; expected one of {', '.join(ENGINES)}")
        if self.threads is not None and (type(self.threads) is not int or self.threads < 1):
            raise ConfigError(f"threads is {self.threads!r}; expected an integer of at least 1")
        if self.serial is not None and self.engine not in _PHONES:
            engines = " or ".join(_PHONES)
            raise ConfigError(
                f"serial {self.serial!r} names a phone, which is for --engine {engines}"
            )
        if self.cpu is not None and self.engine != QEMU:
            raise ConfigError(f"cpu {self.cpu!r} names a processor, which is for --engine qemu")


def add_engine_arguments(
    parser: argparse.ArgumentParser, engines: tuple[str, ...] = ENGINES, default: str | None = None
) -> None:
    """Declares `--engine`, `--threads`, `--serial` and `--cpu`, in a group of their own.

    Args:
        parser: a command's.
        engines: those that the command can use.
        default: the engine where none is named; None: what fits the model.
    """
    add = parser.add_argument_group("engine").add_argument
    meaning = "; ".join(f"{engine}: {_MEANING[engine]}" for engine in engines)
    add(
        "--engine",
        choices=engines,
        default=default,
        help=f"where the model runs. {meaning} "
        f"(default: {default or f'{LOCAL} for a bundle, {REFERENCE} for a checkpoint'})",
    )
    add("--threads", metavar="N", type=int, help="number of threads (default: the engine's choice)")
    add(
        "--serial",
        metavar="SERIAL",
        help="serial number of the phone, for --engine adb (default: $ANDROID_SERIAL, or the only "
        "phone), or connect key of the device, for --engine hdc (default: the only one)",
    )
    add(
        "--cpu",
        metavar="NAME",
        help="processor that --engine qemu emulates, as `qemu-aarch64 -cpu` takes it, for example "
        "cortex-a53 or max,sme=off (default: max, which has everything)",
    )


def engine_options(args: argparse.Namespace) -> EngineOptions:
    """Reads the arguments that `add_engine_arguments` declared."""
    return EngineOptions(engine=args.engine, threads=args.threads, serial=args.serial, cpu=args.cpu)
