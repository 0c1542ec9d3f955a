"""`minicpmv bench`: measures a bundle's speed, and the speed that memory allows."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convert.support.streams import print_json
from convert.support.versions import VERSION
from quantize.errors import ConfigError
from runtime.commands.chat_options import add_max_slices
from runtime.engine_client.options import (
    LOCAL,
    REFERENCE,
    EngineOptions,
    add_engine_arguments,
    engine_options,
)

if TYPE_CHECKING:
    from rich.console import Console

    from convert.bundle.manifest import Bundle
    from convert.checkpoint.config import ModelConfig
    from convert.support.progress import Progress
    from runtime.bench.measure import Measurements
    from runtime.bench.profile import ProfiledPhase
    from runtime.bench.runners import Runner
    from runtime.inputs.prompt import Tokenizer
    from runtime.inputs.slices import Size

_LEAST_SHARE = 0.002  # of a phase's time; kernels below it are not shown
NAME = "bench"
HELP = "measure a bundle's speed, and the speed that memory bandwidth allows"
EXAMPLES = (
    ("measure the demo's bundle", "minicpmv bench build/demo --rounds 5"),
    ("see which kernels take the time", "minicpmv bench build/demo --profile"),
)


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """What the user asked for."""

    bundle: Path
    engine: EngineOptions
    rounds: int
    window: int | None  # tokens; None: the bundle's default
    max_slices: int | None = None  # of a picture; None: the model's limit
    profile: bool = False

    def __post_init__(self) -> None:
        """Checks ranges."""
        for name in ("rounds", "window"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name} is {value}; expected a positive number")
        if self.profile and self.engine.engine == REFERENCE:
            raise ConfigError("--profile measures the engine's kernels; the reference has none")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("bundle", type=Path, metavar="DIR", help="a bundle, made by convert")
    add_engine_arguments(parser, default=LOCAL)
    add = parser.add_argument_group("measurement").add_argument
    add("--rounds", type=int, default=3, metavar="N", help="repetitions (default: %(default)s)")
    add("--window", type=int, metavar="N", help="context window in tokens (default: the bundle's)")
    add_max_slices(add)
    add("--profile", action="store_true", help="also show the time that each kernel takes")
    add = parser.add_argument_group("output").add_argument
    add("--json", action="store_true", help="print one line of JSON on stdout")


def run(args: argparse.Namespace) -> int:
    """Measures and returns the exit code."""
    from convert.support.console import results

    config = BenchConfig(
        bundle=args.bundle,
        engine=engine_options(args),
        rounds=args.rounds,
        window=args.window,
        max_slices=args.max_slices,
        profile=args.profile,
    )
    report = bench(config)
    if args.json:
        print_json(report)
    else:
        _print(report, results())
    return 0


def bench(config: BenchConfig) -> dict[str, Any]:
    """Measures a bundle; returns what `--json` prints.

    Raises:
        ToolkitError: no bundle, or an engine that cannot run it.
    """
    from convert.bundle.kv_cache import describe_kv
    from convert.bundle.manifest import Bundle
    from convert.support.console import Bars
    from runtime.bench.measure import DecodeReads, Workload, measure
    from runtime.inputs.defaults import GenerationDefaults
    from runtime.inputs.prompt import Tokenizer
    from runtime.inputs.slices import limit_slices

    started = time.monotonic()
    bundle = Bundle.open(config.bundle)
    limit_slices(bundle.config.vision, config.max_slices)
    defaults = GenerationDefaults.load(bundle.generation).for_model(bundle.config)
    window = config.window or defaults.window
    tokenizer = None
    if bundle.tokenizer is not None:
        tokenizer = Tokenizer(bundle.tokenizer, bundle.config)
    pictures = _pictures(bundle.config, tokenizer, window, config.max_slices)
    is_reference = config.engine.engine == REFERENCE
    reads = None if is_reference else DecodeReads.of(bundle.plan, bundle.config.decoder)
    with Bars() as bars, _runner(bundle, config, window, bars) as (runner, about):
        measured = measure(
            runner,
            Workload(
                pictures=pictures,
                tokenizer=tokenizer,
                reads=reads,
                window=window,
                rounds=config.rounds,
            ),
            bars,
        )
        phases = _profile(runner, tokenizer, pictures) if config.profile else None
        device = about()
    return {
        "version": VERSION,
        "bundle": str(config.bundle),
        "quantization": "none" if is_reference else bundle.plan.recipe.scheme.name,
        "kv_cache": None if is_reference else describe_kv(bundle.plan.kv, bundle.config.decoder),
        "engine": config.engine.engine,
        "device": device,
        "window": window,
        "rounds": config.rounds,
        "images": sorted(pictures),
        "weights_bytes": None if is_reference else bundle.plan.nbytes,
        "decode_reads": None if reads is None else asdict(reads),
        **_measured(measured),
        **({} if phases is None else {"profile": [asdict(phase) for phase in phases]}),
        "seconds": round(time.monotonic() - started, 1),
    }


def _pictures(
    config: ModelConfig, tokenizer: Tokenizer | None, window: int, max_slices: int | None
) -> dict[int, Size]:
    """Returns the sizes of pictures by their number of images; those beyond a window not."""
    from runtime.bench.inputs import fits, picture_sizes
    from runtime.inputs.slices import limit_slices

    vision = limit_slices(config.vision, max_slices)
    if vision is None:
        return {}
    return {
        images: size
        for images, size in picture_sizes(vision).items()
        if images == 1 or tokenizer is None or fits(tokenizer, size, config, window)
    }


def _profile(
    runner: Runner, tokenizer: Tokenizer | None, pictures: Mapping[int, Size]
) -> tuple[ProfiledPhase, ...]:
    from runtime.bench.profile import profile
    from runtime.bench.runners import EngineRunner

    assert isinstance(runner, EngineRunner)
    return profile(runner.client, tokenizer, pictures.get(1))


def _measured(measured: Measurements) -> dict[str, Any]:
    figures = {name: figure.to_json() for name, figure in measured.figures.items()}
    for name, tokens in measured.tokens.items():
        figures[name]["tokens"] = tokens
    return {"figures": figures, "peak_rss_bytes": measured.peak_rss_bytes}


@contextmanager
def _runner(
    bundle: Bundle, config: BenchConfig, window: int, progress: Progress
) -> Iterator[tuple[Runner, Callable[[], dict[str, Any]]]]:
    """Yields the model to measure, and what describes where it runs, once it has run."""
    from runtime.bench.runners import EngineRunner
    from runtime.engine_client.places import open_place
    from runtime.engine_client.protocol import Field

    if config.engine.engine == REFERENCE:
        reference, described = _reference(bundle, config, window)
        yield reference, lambda: described
        return
    place = open_place(bundle, config.engine)
    place.prepare(progress)
    with place.start() as client:
        keys = (
            Field.TARGET, Field.PROGRAM_ID, Field.CPU, Field.CPU_FEATURES, Field.KINDS,
            Field.THREADS, Field.MEMORY_BYTES,
        )  # fmt: skip
        runner = EngineRunner(client, place.bundle, window=window, max_slices=config.max_slices)
        yield runner, lambda: {key: client.about[key] for key in keys}


def _reference(bundle: Bundle, config: BenchConfig, window: int) -> tuple[Runner, dict[str, Any]]:
    import torch

    from quantize.errors import CheckpointError
    from runtime.bench.runners import ReferenceRunner
    from runtime.inputs.prompt import Tokenizer
    from runtime.reference.load import load_reference
    from runtime.sessions.backend import ReferenceBackend
    from runtime.sessions.devices import choose_device, choose_dtype
    from runtime.sessions.loader import open_source
    from runtime.sessions.reference_session import ReferenceSession

    if config.engine.threads is not None:
        torch.set_num_threads(config.engine.threads)
    checkpoint = open_source(bundle)
    if checkpoint.tokenizer is None:
        raise CheckpointError(
            f"{checkpoint.path}: has no tokenizer.model, so it cannot answer questions"
        )
    tokenizer = Tokenizer(checkpoint.tokenizer, checkpoint.config)
    device = choose_device(None)
    dtype = choose_dtype(None, device)

    def load() -> ReferenceSession:
        model = load_reference(checkpoint, device=device, dtype=dtype)
        return ReferenceSession(ReferenceBackend(model), tokenizer, window=window)

    return ReferenceRunner(load, max_slices=config.max_slices), {
        "torch": torch.__version__,
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }


def _print(report: dict[str, Any], console: Console) -> None:
    from convert.support.console import Size, print_table

    device = report["device"]
    where = device.get("cpu") or device.get("target") or f"PyTorch, {device['dtype']}"
    weights = "" if report["weights_bytes"] is None else f", {Size(report['weights_bytes'])}"
    lines = {
        "bundle": f"{report['bundle']} ({report['quantization']}{weights})",
        "engine": f"{report['engine']}: {where}; threads: {device['threads']}",
        "rounds": f"{report['rounds']}, in {report['seconds']:,.0f} s; window {report['window']}",
    }
    if report["kv_cache"] is not None:
        kv = report["kv_cache"]
        lines["KV cache"] = f"{kv['format']}, {kv['bytes_per_token']:,} bytes per token"
    for key, text in lines.items():
        console.print(f"{key:10}{text}", markup=False, soft_wrap=True)
    console.print()
    rows = [["", "median", "min", "max", "", ""]]
    for name, (title, unit, scale, note) in _rows(report).items():
        figure = report["figures"].get(name)
        values = ["-"] * 3
        if figure is not None:
            values = [f"{figure[key] * scale:,.1f}" for key in ("median", "min", "max")]
            note = note.format(tokens=figure.get("tokens"))
        rows.append([title, *values, unit, note if figure is not None else ""])
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    aligned = [[row[0], *(row[i].rjust(widths[i]) for i in (1, 2, 3)), *row[4:]] for row in rows]
    print_table(console, aligned[0], aligned[1:])
    peak = report["peak_rss_bytes"]
    console.print()
    shown = "-" if peak is None else f"{Size(peak)} at most, mapped weights included"
    console.print(f"{'memory':10}{shown}", markup=False, soft_wrap=True)
    for phase in report.get("profile", ()):
        _print_phase(phase, console)


def _print_phase(phase: dict[str, Any], console: Console) -> None:
    from convert.support.console import print_table

    console.print(f"\none {phase['name']}: {phase['ms']:,.1f} ms", markup=False, soft_wrap=True)
    rows = []
    for kernel in phase["kernels"]:
        if kernel["share"] < _LEAST_SHARE:
            continue
        rates = (kernel["multiply_adds_s"], kernel["weight_bytes_s"])
        rows.append(
            [
                kernel["name"],
                f"{kernel['calls']:,.0f}" if kernel["calls"] else "",
                f"{kernel['ms']:,.2f}",
                f"{kernel['share']:.1%}",
                *("" if rate is None else f"{rate / 1e9:,.1f}" for rate in rates),
            ]
        )
    print_table(console, ["kernel", "calls", "ms", "share", "GMAC/s", "GB/s of weights"], rows)


def _rows(report: dict[str, Any]) -> dict[str, tuple[str, str, float, str]]:
    """Returns the rows of the table: figure to title, unit, factor, note."""
    from convert.support.console import Size
    from runtime.bench.measure import PREFILL_LENGTHS

    reads, per_token = report["decode_reads"], ""
    if reads is not None:
        per_token = f"{Size(reads['weights_bytes'])} of weights and {{tokens}} tokens of cache"
    return {
        "load_ms": ("load", "ms", 1, ""),
        **_encode_rows(report),
        "ttft_first_ms": (
            "first token, first question",
            "ms",
            1,
            "a new picture; {tokens} tokens with it",
        ),
        "ttft_second_ms": (
            "first token, second question",
            "ms",
            1,
            "the same picture; {tokens} new tokens",
        ),
        **{
            f"prefill_{n}_tok_s": (f"prefill {n}", "tok/s", 1, "{tokens} tokens")
            for n in PREFILL_LENGTHS
        },
        "decode_tok_s": ("decode", "tok/s", 1, "{tokens} tokens"),
        "launch_us": ("launch", "µs", 1, "of a kernel on all threads; included above"),
        "read_bytes_s": ("memory read", "GB/s", 1e-9, "right before and after decoding"),
        "decode_limit_tok_s": ("decode at this bandwidth", "tok/s", 1, per_token),
        "decode_share_of_limit": ("decode, of that", "%", 100, ""),
    }


def _encode_rows(report: dict[str, Any]) -> dict[str, tuple[str, str, float, str]]:
    """Returns a row for each number of images that a picture becomes."""
    from runtime.bench.measure import encode_figure

    counts, rows = report["images"] or [1], {}
    for count in counts:
        title, note, name = "encode a picture", "", encode_figure(count)
        if len(counts) > 1:
            title += f": {count} image{'s' if count > 1 else ''}"
            if count > 1 and name in report["figures"]:
                note = f"{report['figures'][name]['median'] / count:,.1f} ms for each image"
        rows[name] = title, "ms", 1.0, note
    return rows
