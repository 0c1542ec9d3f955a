"""Our picture encoding beside ONNX Runtime's: `python -m tests.bench.against_onnx DIR MODEL`.

From pixels to image tokens: 26 layers and the resampler at full size. ONNX Runtime runs the
toolkit's own ONNX export in float32, and what its `quantize_dynamic` makes of that (int8 weights,
kept in the toolkit's cache). All three take turns, never at once; ours also resizes the picture.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnxruntime

from convert.bundle.manifest import Bundle
from convert.onnx.export import MODEL
from convert.support.cache import cache_folder, kept_entry
from convert.support.console import messages, results
from quantize.errors import ToolkitError
from runtime.bench.inputs import FIRST_QUESTION, random_picture
from runtime.bench.runners import EngineRunner
from runtime.engine_client.options import EngineOptions
from runtime.engine_client.places import open_place
from tests.bench.child import Child
from tests.bench.convert import ROOT
from tests.bench.processor_time import Stopwatch
from tests.bench.rounds import Row, add_arguments, alternate, exit_code, print_rows, report

TARGETS = {"float32": 3.0, "int8": 1.2}
WINDOW = 256  # tokens; a picture and a question fit
_CACHE_BYTES = 8 * 2**30  # of all models; an export of the real size has 1.7 GiB
_QUANTIZE = (
    "import sys; from onnxruntime.quantization import QuantType, quantize_dynamic; "
    "quantize_dynamic(*sys.argv[1:], weight_type=QuantType.QInt8, use_external_data_format=True)"
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path, metavar="DIR", help="a bundle with a host engine")
    parser.add_argument(
        "model",
        type=Path,
        metavar="MODEL",
        help=f"{MODEL}, a folder with it, or a checkpoint, which is exported into the cache",
    )
    add_arguments(parser)
    args = parser.parse_args()
    try:
        model = onnx_model(args.model)
        rows, more = compare(Bundle.open(args.bundle), model, args)
    except ToolkitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps(report("against_onnx", rows, args.rounds, **more)))
    else:
        print_rows(results(), rows, "ours", "ONNX Runtime")
    return 0 if args.processor_time else exit_code(rows)


def onnx_model(path: Path) -> Path:
    """Returns the float32 model; exports a checkpoint first, unless that was done before.

    Raises:
        ToolkitError: neither a model nor a checkpoint.
    """
    if path.is_file():
        return path.resolve()
    if (path / MODEL).is_file():
        return (path / MODEL).resolve()
    config = path / "config.json"
    if not config.is_file():
        raise ToolkitError(f"{path}: expected {MODEL}, a folder with it, or a checkpoint")
    about = f"{path.resolve()} {config.stat().st_mtime_ns}"
    exported = _cached("export", about)
    if not (exported / MODEL).is_file():
        messages().print(f"exports {path}", soft_wrap=True)
        command = [sys.executable, "-m", "convert.cli", "convert", str(path), "-o", str(exported)]
        command += ["--target", "onnx", "--json"]
        done = subprocess.run(command, cwd=ROOT, stdout=sys.stderr, check=False)
        if done.returncode:
            raise ToolkitError(f"{path}: cannot be exported; see above")
    return exported / MODEL


def int8_model(model: Path) -> Path:
    """Returns ONNX Runtime's int8 version of a model; the first call makes it."""
    graph = hashlib.sha256(model.read_bytes()).hexdigest()
    data = model.with_name(model.name + ".data").stat()
    about = f"{graph} {data.st_size} {data.st_mtime_ns} {onnxruntime.__version__}"
    home = _cached("int8", about)
    if not (home / "complete").exists():
        messages().print("quantize_dynamic")
        home.mkdir(parents=True, exist_ok=True)
        # A process of its own: its gigabytes are gone when the rounds begin.
        command = [sys.executable, "-c", _QUANTIZE, str(model), str(home / MODEL)]
        subprocess.run(command, stdout=sys.stderr, check=True)
        (home / "complete").touch()
    return home / MODEL


def compare(
    bundle: Bundle, model: Path, args: argparse.Namespace
) -> tuple[list[Row], dict[str, Any]]:
    """Measures all three; returns the rows, and what else there is to say.

    Raises:
        ToolkitError: the bundle cannot run here, or ONNX Runtime cannot run the model.
    """
    models = {"float32": model, "int8": int8_model(model)}
    threads = 1 if args.processor_time else args.threads
    place = open_place(bundle, EngineOptions(threads=threads))
    seeds = itertools.count()
    peaks: dict[str, float] = {}
    found: dict[str, list[float]] = {"ours": [], **{name: [] for name in models}}
    with place.start() as client, _start(models["float32"], threads) as float32:
        with _start(models["int8"], threads) as int8:
            others = {"float32": float32, "int8": int8}
            load_ms = {name: other.receive()["load_ms"] for name, other in others.items()}
            runner = EngineRunner(client, place.bundle, window=WINDOW)
            load_ms["ours"] = runner.load()
            runner.ask(FIRST_QUESTION, random_picture(next(seeds)), 1)
            peaks["ours"] = (runner.peak_rss_bytes() or 0) / 2**20
            for name, other in others.items():
                peaks[name] = other.ask("encode")["peak_rss_bytes"] / 2**20

            def ours() -> None:
                picture = random_picture(next(seeds))
                if args.processor_time:
                    seconds = Stopwatch(client).seconds(lambda: client.image(picture))
                    found["ours"].append(seconds * 1000)
                else:
                    found["ours"].append(float(client.image(picture)["encode_ms"]))

            def theirs(name: str) -> None:
                key = "processor_ms" if args.processor_time else "ms"
                found[name].append(others[name].ask("encode")[key])

            alternate(
                args.rounds,
                ours,
                lambda: theirs("float32"),
                lambda: theirs("int8"),
                on_round=lambda i: messages().print(f"round {i} of {args.rounds}"),
            )
            more = {
                "threads": threads,
                "clock": "processor" if args.processor_time else "wall",
                "onnxruntime": onnxruntime.__version__,
                "cpu": client.hello["cpu"],
                "kinds": client.about["kinds"],
            }
    rows = [
        Row(f"encode, {name}", "ms", target, True, found["ours"], found[name])
        for name, target in TARGETS.items()
    ]
    for title, unit, values in (("load", "ms", load_ms), ("peak memory", "MiB", peaks)):
        rows += [
            Row(f"{title}, {name}", unit, None, True, [values["ours"]], [values[name]])
            for name in models
        ]
    return rows, more


def _start(model: Path, threads: int) -> Child:
    command = [sys.executable, "-m", "tests.bench.onnx_child", str(model), str(threads)]
    return Child("ONNX Runtime", command, ROOT)


def _cached(kind: str, about: str) -> Path:
    name = f"{kind}-{hashlib.sha256(about.encode()).hexdigest()[:16]}"
    return kept_entry(cache_folder() / "onnx", name, _CACHE_BYTES)


if __name__ == "__main__":
    sys.exit(main())
