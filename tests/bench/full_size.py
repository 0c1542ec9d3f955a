"""The README's table at full size: `python -m tests.bench.full_size DIR CHECKPOINT`.

One run of what else is measured apart, in this order: the conversion of the checkpoint
(`tests.bench.convert`), the bundle's comparison with it (`minicpmv verify`, which must pass), the
bundle by itself (`minicpmv bench`), its decoder beside llama.cpp's (`tests.bench.against_llama`),
its picture encoding beside ONNX Runtime's (`tests.bench.against_onnx`) and the decoder's conversion
beside llama.cpp's (`tests.bench.against_gguf`), the last three in interleaved rounds. Medians; in
brackets, how many times better we are, the median over the rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from convert.bundle.manifest import Bundle
from convert.checkpoint.reader import Checkpoint
from convert.support.console import messages, print_table, results
from quantize.errors import ToolkitError
from runtime.commands.bench import BenchConfig, bench
from runtime.engine_client.options import LOCAL, EngineOptions
from tests.bench import against_gguf, against_llama, against_onnx
from tests.bench.against_gguf import Used
from tests.bench.convert import convert
from tests.bench.rounds import LEAST_ROUNDS, Row, report

LLAMA, FLOAT32, INT8 = "llama.cpp", "ONNX Runtime, float32", "ONNX Runtime, int8"
OTHERS = (LLAMA, FLOAT32, INT8)

# The figures of `minicpmv bench` that nothing else here measures: their titles, unit and factor.
_BENCH = {
    "load_ms": ("load to ready", "ms", 1.0),
    "ttft_first_ms": ("first token, first question", "s", 1e-3),
    "ttft_second_ms": ("first token, second question", "s", 1e-3),
    "prefill_1024_tok_s": ("prefill 1024", "tok/s", 1.0),
    "decode_share_of_limit": ("decode, of the memory's limit", "%", 100.0),
}


@dataclass(frozen=True, kw_only=True)
class Other:
    """What another program reaches."""

    value: float  # a median
    ratio: float  # how many times better we are; the median of the rounds' ratios


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of the table."""

    name: str
    unit: str
    ours: float  # a median
    command: str
    others: Mapping[str, Other] = field(default_factory=dict)  # by a name of `OTHERS`


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path, metavar="DIR", help="a bundle with a host engine")
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="what it was made from")
    parser.add_argument("--rounds", type=int, default=LEAST_ROUNDS, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="of each side (default: 2)")
    parser.add_argument("--target", default="host", help="of the conversion (default: host)")
    parser.add_argument(
        "--folder", type=Path, help="for files that are not kept, three times the decoder's size"
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON on stdout")
    args = parser.parse_args()
    try:
        lines, more = measure(args)
    except ToolkitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.json:
        shown = [asdict(line) for line in lines]
        print(json.dumps(report("full_size", [], args.rounds, lines=shown, **more)))
    else:
        print_lines(lines)
    return 0


def measure(args: argparse.Namespace) -> tuple[list[Line], dict[str, Any]]:
    """Measures everything; returns the table, and what it was made of.

    Raises:
        ToolkitError: an engine cannot run the bundle here, or the others cannot be had.
    """
    bundle = Bundle.open(args.bundle)
    # What the others' first run makes takes minutes: before anything is measured.
    stage("prepares llama.cpp and ONNX Runtime")
    model = against_onnx.onnx_model(args.checkpoint)
    against_onnx.int8_model(model)
    against_llama.gguf_file(against_llama.geometry(bundle.config.decoder))
    stage(f"converts {args.checkpoint}")
    converted = convert([str(args.checkpoint), "--target", args.target])
    stage(f"verifies {args.bundle}")
    verified = verify(args.bundle, args.checkpoint, args.threads)
    stage(f"measures {args.bundle}")
    measured = bench(
        BenchConfig(
            bundle=args.bundle,
            engine=EngineOptions(engine=LOCAL, threads=args.threads),
            rounds=args.rounds,
            window=None,
        )
    )
    sides = argparse.Namespace(rounds=args.rounds, threads=args.threads, processor_time=False)
    stage("beside llama.cpp")
    llama, llama_more = against_llama.compare(bundle, sides)
    stage("beside ONNX Runtime")
    onnx, onnx_more = against_onnx.compare(bundle, model, sides)
    stage("converts beside llama.cpp")
    sides = argparse.Namespace(checkpoint=args.checkpoint, rounds=args.rounds, threads=args.threads)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        checkpoint = Checkpoint.open(args.checkpoint)
        gguf, gguf_more = against_gguf.compare(checkpoint, Path(folder), sides)
    more = {
        "convert": converted,
        "verify": {name: value for name, value in asdict(verified).items() if name != "output"},
        "bench_report": measured,
        "against_llama": report("against_llama", llama, args.rounds, **llama_more),
        "against_onnx": report("against_onnx", onnx, args.rounds, **onnx_more),
        "against_gguf": report("against_gguf", gguf, args.rounds, **gguf_more),
    }
    return make_table(converted, verified, measured, llama, onnx, gguf), more


def verify(bundle: Path, checkpoint: Path, threads: int) -> Used:
    """Verifies in a fresh process; returns what that and its engine took.

    Raises:
        ToolkitError: it does not pass.
    """
    command = [sys.executable, "-m", "convert.cli", "verify", str(bundle.resolve()), "--json"]
    command += ["--reference", str(checkpoint.resolve())]
    return against_gguf.run("minicpmv verify", command, threads)


def stage(text: str) -> None:
    """Says what comes now."""
    messages().print(text, markup=False, soft_wrap=True)


def make_table(
    converted: Mapping[str, Any],
    verified: Used,
    measured: Mapping[str, Any],
    llama: Sequence[Row],
    onnx: Sequence[Row],
    gguf: Sequence[Row],
) -> list[Line]:
    """Puts the parts' figures into lines.

    Args:
        converted: a conversion's summary.
        verified: what `minicpmv verify` took.
        measured: the report of `minicpmv bench`.
        llama: the rows beside llama.cpp.
        onnx: the rows beside ONNX Runtime, two of a name that end with the model's kind.
        gguf: the rows of conversion beside llama.cpp.
    """
    bench_command = "minicpmv bench DIR"
    whole = {
        "convert": (converted["wall_s"], converted["peak_rss_bytes"]),
        "verify": (verified.seconds, verified.peak_rss_bytes),
    }
    lines = [
        line
        for name, (seconds, peak_rss_bytes) in whole.items()
        for line in (
            Line(name=name, unit="s", ours=seconds, command=f"minicpmv {name}"),
            Line(
                name=f"{name}, peak memory",
                unit="MiB",
                ours=peak_rss_bytes / 2**20,
                command=f"minicpmv {name}",
            ),
        )
    ]
    for key, (name, unit, factor) in _BENCH.items():
        if key in measured["figures"]:
            value = measured["figures"][key]["median"] * factor
            lines.append(Line(name=name, unit=unit, ours=value, command=bench_command))
    if measured["peak_rss_bytes"] is not None:
        lines.append(
            Line(
                name=f"peak memory, window {measured['window']}",
                unit="MiB",
                ours=measured["peak_rss_bytes"] / 2**20,
                command=bench_command,
            )
        )
    lines += [
        _beside(f"decoder: {row.name}", {LLAMA: row}, "against_llama")
        for row in llama
        if row.name != against_llama.MEMORY_LIMIT
    ]
    pairs: dict[str, dict[str, Row]] = {}
    for row in onnx:
        name, _, kind = row.name.rpartition(", ")
        pairs.setdefault(name, {})[{"float32": FLOAT32, "int8": INT8}[kind]] = row
    lines += [_beside(f"picture: {name}", rows, "against_onnx") for name, rows in pairs.items()]
    lines += [_beside(f"conversion: {row.name}", {LLAMA: row}, "against_gguf") for row in gguf]
    return lines


def _beside(name: str, rows: Mapping[str, Row], module: str) -> Line:
    """Makes a line of rows that share our side, one for each other program."""
    first = next(iter(rows.values()))
    return Line(
        name=name,
        unit=first.unit,
        ours=statistics.median(first.ours),
        command=f"python -m tests.bench.{module}",
        others={
            other: Other(value=statistics.median(row.theirs), ratio=statistics.median(row.ratios))
            for other, row in rows.items()
        },
    )


def print_lines(lines: Sequence[Line]) -> None:
    """Prints the table."""
    rows = [
        [
            line.name,
            line.unit,
            _figure(line.ours),
            *(_cell(line.others.get(other)) for other in OTHERS),
            line.command,
        ]
        for line in lines
    ]
    print_table(results(), ["", "unit", "ours", *OTHERS, "measured by"], rows)


def _cell(found: Other | None) -> str:
    return "–" if found is None else f"{_figure(found.value)} ({found.ratio:.2f}x)"


def _figure(value: float) -> str:
    """Shows three digits, or all of a whole number's."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main())
