"""`minicpmv compare`: prints size, loss, accuracy and speed of bundles of one model."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convert.bundle.kv_cache import FP16
from convert.support.streams import print_json
from quantize.errors import ConfigError
from runtime.commands.eval import BENCHMARKS
from runtime.engine_client.options import (
    ADB,
    HDC,
    LOCAL,
    QEMU,
    EngineOptions,
    add_engine_arguments,
    engine_options,
)

if TYPE_CHECKING:
    from rich.console import Console

    from convert.bundle.manifest import Bundle
    from runtime.verify.report.report import Report

NAME = "compare"
HELP = "compare bundles of one model: size, loss, accuracy, speed"
EXAMPLES = (
    ("compare two recipes", "minicpmv compare build/small build/best"),
    ("also draw size against loss", "minicpmv compare build/small build/best --plot loss.svg"),
)
_KINDS = ("image", "text", "answer")  # kinds of positions
_SPEEDS = ("image_encode_ms", "ttft_first_ms", "decode_tok_s")


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """What the user asked for."""

    bundles: tuple[Path, ...]
    engine: EngineOptions
    reference: str | None  # None: the checkpoint that the bundles name
    window: int
    rounds: int  # of speed measurements
    benchmark: str | None
    data: Path | None
    limit: int | None
    plot: Path | None

    def __post_init__(self) -> None:
        """Checks values and combinations."""
        if len({path.resolve() for path in self.bundles}) < max(2, len(self.bundles)):
            raise ConfigError("expected two or more different bundles to compare")
        for name in ("window", "rounds", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name} is {value}; expected a positive number")
        if (self.benchmark is None) != (self.data is None):
            raise ConfigError("--benchmark and --data need each other")
        if self.limit is not None and self.benchmark is None:
            raise ConfigError("--limit needs --benchmark")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "bundles",
        metavar="DIR",
        type=Path,
        nargs="+",
        help="two or more bundles, made from one checkpoint",
    )
    add_engine_arguments(parser, (LOCAL, QEMU, ADB, HDC), default=LOCAL)
    add = parser.add_argument_group("measurement").add_argument
    add(
        "--reference",
        metavar="CHECKPOINT",
        help="the full-precision model (default: the checkpoint that the bundles were made from)",
    )
    add(
        "--window",
        metavar="N",
        type=int,
        default=1024,
        help="context window in tokens (default: %(default)s)",
    )
    add(
        "--rounds",
        metavar="N",
        type=int,
        default=3,
        help="repetitions of the speed measurement (default: %(default)s)",
    )
    add = parser.add_argument_group("benchmark").add_argument
    add("--benchmark", choices=BENCHMARKS, help="also score each bundle, as eval does")
    add("--data", metavar="PATH", type=Path, help="the benchmark's file or folder, as published")
    add("--limit", metavar="N", type=int, help="ask only N questions, spread evenly")
    add = parser.add_argument_group("output").add_argument
    add(
        "--plot",
        metavar="FILE",
        type=Path,
        help="draw size against loss; the suffix (.svg, .png, .pdf) sets the format",
    )
    add("--json", action="store_true", help="print one line of JSON on stdout")


def run(args: argparse.Namespace) -> int:
    """Compares and prints."""
    from convert.support.console import results
    from runtime.commands.compare_plot import check_plot, draw

    names = CompareConfig.__dataclass_fields__.keys() - {"engine", "bundles"}
    config = CompareConfig(
        bundles=tuple(args.bundles),
        engine=engine_options(args),
        **{name: getattr(args, name) for name in names},
    )
    if config.plot is not None:
        check_plot(config.plot)
    rows = compare(config)
    if config.plot is not None:
        draw(config.plot, rows)
    if args.json:
        print_json({"engine": config.engine.engine, "bundles": rows})
    else:
        _print(rows, config, results())
    return 0


def compare(config: CompareConfig) -> list[dict[str, Any]]:
    """Measures all bundles; returns a row for each, as `--json` prints it.

    Raises:
        ConfigError: the bundles were made from different checkpoints.
        ToolkitError: one of them cannot be measured.
    """
    from convert.bundle.manifest import Bundle

    bundles = [Bundle.open(path) for path in config.bundles]
    first = bundles[0].manifest.source.sha256
    for bundle in bundles[1:]:
        if bundle.manifest.source.sha256 != first:
            raise ConfigError(
                f"{bundle.path}: made from another checkpoint than {bundles[0].path}; only bundles "
                "of one can be compared"
            )
    return [_row(config, path, b) for path, b in zip(config.bundles, bundles, strict=True)]


def _row(config: CompareConfig, path: Path, bundle: Bundle) -> dict[str, Any]:
    from convert.support.console import Bars
    from runtime.commands.bench import BenchConfig, bench
    from runtime.verify.verify import verify

    with Bars() as bars:
        report = verify(
            path,
            reference=config.reference,
            engine=config.engine.engine,
            threads=config.engine.threads,
            serial=config.engine.serial,
            cpu=config.engine.cpu,
            window=config.window,
            progress=lambda stage, done, total: bars(f"{path.name}: {stage}", done, total),
        )
    speed = bench(
        BenchConfig(bundle=path, engine=config.engine, rounds=config.rounds, window=config.window)
    )
    figures = {
        name: speed["figures"][name]["median"] for name in _SPEEDS if name in speed["figures"]
    }
    return {
        "name": path.name,
        "bundle": str(path),
        "quantization": bundle.plan.recipe.scheme.name,
        "method": bundle.plan.recipe.method,
        "kv_cache": bundle.plan.kv,
        "weights_bytes": bundle.plan.nbytes,
        "bits_per_weight": round(8 * bundle.plan.nbytes / bundle.plan.parameters, 3),
        "verified": report.passed,
        **_losses(report),
        **figures,
        "peak_rss_bytes": speed["peak_rss_bytes"],
        **_benchmark(config, path),
    }


def _losses(report: Report) -> dict[str, Any]:
    """Returns the results of verify: KL divergence and top-1 by position, answers."""
    found = {(c.stage, c.name, c.metric): c.value for c in report.checks}
    kl, top1 = (
        {
            kind: round(found["logits", f"at {kind} tokens", metric], 6)
            for kind in _KINDS
            if ("logits", f"at {kind} tokens", metric) in found
        }
        for metric in ("KL divergence", "same top-1")
    )
    same = sum(answer.same for answer in report.answers) / len(report.answers)
    return {"kl_nats": kl, "same_top1": top1, "same_answers": round(same, 4)}


def _benchmark(config: CompareConfig, path: Path) -> dict[str, Any]:
    """Returns a bundle's score in the benchmark, if one was asked for."""
    from runtime.commands.eval import BUNDLE, EvalConfig, evaluate

    if config.benchmark is None or config.data is None:
        return {}
    found = evaluate(
        EvalConfig(
            bundle=path,
            benchmark=config.benchmark,
            data=config.data,
            engine=config.engine,
            reference=None,
            no_reference=True,
            limit=config.limit,
            beams=1,
            window=None,
            max_slices=None,
            output=None,
        )
    )
    column = found["columns"][BUNDLE]
    return {
        "benchmark": {
            "title": found["title"],
            "figure": column["figure"],
            "scored": column["scored"],
            "left_out": column["rows"]["left_out"],
        }
    }


def _recipe(row: dict[str, Any]) -> str:
    """Names a recipe, and settings that are not the default."""
    method = [row["method"]] if row["method"] != "rtn" else []
    cache = [f"{row['kv_cache']} KV cache"] if row["kv_cache"] != FP16 else []
    return ", ".join([row["quantization"], *method, *cache])


def _print(rows: list[dict[str, Any]], config: CompareConfig, console: Console) -> None:
    from convert.support.console import Size, print_table

    kinds = [kind for kind in _KINDS if all(kind in row["kl_nats"] for row in rows)]
    title = rows[0].get("benchmark", {}).get("title")
    header = [
        "bundle", "quantization", "weights", "bits", *(f"KL {kind}" for kind in kinds),
        "same answers", "picture, ms", "first token, ms", "tok/s", "verify",
    ]  # fmt: skip
    table = [
        [
            row["name"],
            _recipe(row),
            Size(row["weights_bytes"]),
            row["bits_per_weight"],
            *(f"{row['kl_nats'][kind]:.3g}" for kind in kinds),
            f"{100 * row['same_answers']:.1f} %",
            *(f"{row[name]:,.1f}" if name in row else "-" for name in _SPEEDS),
            "passed" if row["verified"] else "FAILED",
            *([f"{row['benchmark']['figure']:,.1f}"] if title else []),
        ]
        for row in rows
    ]
    print_table(console, [*header, title] if title else header, table)
    if config.plot is not None:
        console.print(f"plot: {config.plot}", markup=False, soft_wrap=True)
