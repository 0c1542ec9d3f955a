"""Measures the conversion of a checkpoint: `python -m tests.bench.convert [CHECKPOINT]`.

Every run is a process of its own, as a user's is. One JSON line: seconds from start to end, those
of each phase and of processors, and the peak of resident memory, median with least and most; and
on what machine, at which commit. What is compiled is in the cache after the first run, which does
not count.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("checkpoint", nargs="?", help="default: the demo checkpoint")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--target", default="host")
    args = parser.parse_args()
    arguments = [*([args.checkpoint] if args.checkpoint else []), "--target", args.target]
    convert(arguments)  # warms the file cache, and the toolkit's
    runs = [convert(arguments) for _ in range(args.runs)]
    first = runs[0]
    print(
        json.dumps(
            {
                "bench": "convert",
                "checkpoint": args.checkpoint or "demo",
                "target": args.target,
                "parameters": first["parameters"],
                "weights_bytes": first["weights_bytes"],
                "seconds": spread([run["wall_s"] for run in runs]),
                "processor_seconds": spread([run["processor_seconds"] for run in runs]),
                "phases": {
                    name: spread([run["phases"][name]["seconds"] for run in runs])
                    for name in first["phases"]
                },
                "peak_rss_bytes": spread([run["peak_rss_bytes"] for run in runs]),
                "runs": args.runs,
                "commit": commit(),
                "machine": machine(),
            }
        )
    )


def convert(arguments: list[str]) -> dict[str, Any]:
    """Converts in a fresh process; returns its summary and the seconds that it took."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "convert.cli", "convert", "--json", "-o", f"{folder}/out"]
        command += ["--quant", "q4f16_1"]  # the work without calibration
        start = time.monotonic()
        done = subprocess.run([*command, *arguments], cwd=ROOT, stdout=subprocess.PIPE, check=True)
        summary: dict[str, Any] = json.loads(done.stdout)
        return summary | {"wall_s": round(time.monotonic() - start, 2)}


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def machine() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{names[0] if names else platform.processor() or platform.machine()}, {cores} cores"


if __name__ == "__main__":
    main()
