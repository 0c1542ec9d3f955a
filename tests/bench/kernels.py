"""Every kernel of the blocks at full-size shapes, alone: `python -m tests.bench.kernels`.

Beside each stands what the machine could do in the same moment: memory read plainly, and a loop
that only multiplies registers with the same instruction. `limit` is the share of the nearer of the
two that the kernel reaches; above 100 % its data came from a cache. Weights of the decoder at
one token lie in more memory than caches hold. `launch` is what starting a kernel on all threads
costs. Threads are TVM's own; the engine's may differ.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.bench.convert import commit, machine, spread
from tests.bench.rounds import LEAST_ROUNDS

LENGTHS = (1, 96)  # tokens of the decoder's kernels
_SAMPLE_SECONDS = 0.02  # a sample takes at least so long
_MOST_COPIES = 64  # of weights, so that no cache holds them


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config", default="minicpm-v-1.0", help="the model (default: %(default)s)"
    )
    parser.add_argument("--quant", default="q4f16_1", help="the recipe (default: %(default)s)")
    parser.add_argument("--variant", help="only these blocks: avx512, avx2 or sse")
    parser.add_argument("--only", default="", metavar="TEXT", help="kernels whose name has TEXT")
    parser.add_argument("--rounds", type=int, default=LEAST_ROUNDS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print one line of JSON on stdout")
    args = parser.parse_args()
    os.environ["TVM_NUM_THREADS"] = str(args.threads)  # before TVM starts them
    measured = measure(args)
    if not measured:
        print("error: no kernel's name has that text, or no blocks that name", file=sys.stderr)
        return 2
    if args.json:
        figures = [one.to_json() for one in measured]
        about = {"bench": "kernels", "threads": args.threads, "rounds": args.rounds}
        about |= {"commit": commit(), "machine": machine(), "load_average": os.getloadavg()[0]}
        print(json.dumps(about | {"kernels": figures}))
    else:
        _print(measured)
    return 0


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the machine could do in one round."""

    bytes_s: float
    multiply_adds_s: float

    def share(self, nbytes: int, multiply_adds: int, seconds: float) -> tuple[float, str]:
        """Returns how near a kernel is to the nearer limit, and which one that is."""
        memory, arithmetic = nbytes / self.bytes_s, multiply_adds / self.multiply_adds_s
        nearer = "multiply" if arithmetic > memory else "memory"
        return max(memory, arithmetic) / seconds, nearer


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A kernel's figures: a value per round."""

    variant: str
    name: str
    caller: str
    shape: str
    rows: int
    nbytes: int
    multiply_adds: int
    seconds: list[float]
    limits: list[Limits]

    @property
    def shares(self) -> list[float]:
        """How near to the limit, by round."""
        return [
            limits.share(self.nbytes, self.multiply_adds, seconds)[0]
            for limits, seconds in zip(self.limits, self.seconds, strict=True)
        ]

    @property
    def limited_by(self) -> str:
        """Which limit is the nearer one in most rounds."""
        return statistics.mode(
            limits.share(self.nbytes, self.multiply_adds, 1)[1] for limits in self.limits
        )

    def to_json(self) -> dict[str, Any]:
        """Returns all of it."""
        names = ("variant", "name", "caller", "shape", "rows", "nbytes", "multiply_adds")
        described = {name: getattr(self, name) for name in names}
        return described | {
            "us": spread([seconds * 1e6 for seconds in self.seconds]),
            "gb_s": spread([self.nbytes / seconds / 1e9 for seconds in self.seconds]),
            "gmac_s": spread([self.multiply_adds / seconds / 1e9 for seconds in self.seconds]),
            "read_gb_s": spread([limits.bytes_s / 1e9 for limits in self.limits]),
            "peak_gmac_s": spread([limits.multiply_adds_s / 1e9 for limits in self.limits]),
            "share_of_limit": spread(self.shares),
            "limited_by": self.limited_by,
        }


def measure(args: argparse.Namespace) -> list[Measured]:
    """Measures all kernels of all variants that the processor can run."""
    from convert.bundle.plan import Recipe, make_plan
    from convert.checkpoint.synth import load_config
    from convert.support.console import Bars
    from tests.bench import machine_limits
    from tests.bench.kernel_cases import cases, compiled, host_variants
    from tests.support.processor import processor_features

    config = load_config(args.config)
    plan = make_plan(config, False, Recipe.load(args.quant))
    measured = []
    with Bars() as bars:
        for variant in host_variants(processor_features()):
            if args.variant not in (None, variant.name):
                continue
            read = _Rate(*machine_limits.reader(variant))
            peaks = {
                work: _Rate(*machine_limits.multiplier(instruction, variant, args.threads))
                for work, instruction in machine_limits.PEAKS[variant.products].items()
            }
            launch = machine_limits.launcher(variant, args.threads)
            if args.only in "launch":
                measured.append(_launch(variant.name, launch, read, args.rounds))
            chosen = [c for c in cases(config, plan, variant, LENGTHS) if args.only in c.kind]
            for i, case in enumerate(chosen):
                bars(variant.name, i, len(chosen))
                sample = Sample(compiled(case, variant)["main"], case)
                seconds, limits = [], []
                for _ in range(args.rounds):
                    limits.append(
                        Limits(bytes_s=read.measure(), multiply_adds_s=peaks[case.work].measure())
                    )
                    seconds.append(sample.seconds())
                measured.append(
                    Measured(
                        variant=variant.name,
                        name=" ".join((case.kind, case.format)).strip(),
                        caller=case.caller,
                        shape=_shape(case),
                        rows=case.rows,
                        nbytes=case.nbytes,
                        multiply_adds=case.multiply_adds,
                        seconds=seconds,
                        limits=limits,
                    )
                )
            bars(variant.name, len(chosen), len(chosen))
    return measured


class _Rate:
    """Something that does a known amount of work."""

    def __init__(self, run: Callable[[], None], amount: int) -> None:
        self._run, self._amount = run, amount
        run()

    def measure(self) -> float:
        """Returns the amount per second."""
        start = time.perf_counter()
        self._run()
        return self._amount / (time.perf_counter() - start)


class Sample:
    """A kernel with its arguments; calls in a row read other weights each time."""

    def __init__(self, run: Any, case: Any) -> None:
        import tvm

        rng = np.random.default_rng(0)
        self._run, self._next = run, 0
        values = [random_argument(case, i, rng) for i in range(len(case.arguments))]
        tensors = [
            value if isinstance(value, int) else tvm.runtime.tensor(value) for value in values
        ]
        self._calls = [tensors]
        if case.weight is not None and case.rows == 1:
            nbytes = case.arguments[case.weight].nbytes
            from tests.bench.machine_limits import READ_BYTES

            for _ in range(min(-(-READ_BYTES // nbytes), _MOST_COPIES) - 1):
                other = list(tensors)
                other[case.weight] = tvm.runtime.tensor(values[case.weight])
                self._calls.append(other)
        start = time.perf_counter()
        self._call()
        first = time.perf_counter() - start
        self._repeat = max(1, math.ceil(_SAMPLE_SECONDS / max(first, 1e-7)))
        self._repeat = min(self._repeat, 20_000)

    def _call(self) -> None:
        self._run(*self._calls[self._next])
        self._next = (self._next + 1) % len(self._calls)

    def seconds(self) -> float:
        """Returns the time of a call."""
        start = time.perf_counter()
        for _ in range(self._repeat):
            self._call()
        return (time.perf_counter() - start) / self._repeat


def random_argument(case: Any, index: int, rng: np.random.Generator) -> Any:
    """Returns an integer, or a tensor of values such as the kernel gets."""
    argument = case.arguments[index]
    if argument.value is not None:
        return argument.value
    if argument.dtype == "int32":
        embedding = case.kind == "embedding"
        high = case.matrix[0] - 16 if embedding else 100
        return rng.integers(0, high, argument.shape, dtype=np.int32)
    if argument.dtype in ("int8", "uint8"):
        raw = np.frombuffer(rng.bytes(argument.nbytes), argument.dtype).reshape(argument.shape)
        return np.maximum(raw, -127) if argument.dtype == "int8" else raw
    values = rng.random(argument.shape, dtype=np.float32) - np.float32(0.5)
    return values.astype(argument.dtype)


def _launch(variant: str, run: Callable[[], None], read: _Rate, rounds: int) -> Measured:
    calls = 2000
    seconds, limits = [], []
    for _ in range(rounds):
        limits.append(Limits(bytes_s=read.measure(), multiply_adds_s=math.inf))
        start = time.perf_counter()
        for _ in range(calls):
            run()
        seconds.append((time.perf_counter() - start) / calls)
    return Measured(
        variant=variant, name="launch", caller="", shape="", rows=0, nbytes=0, multiply_adds=0,
        seconds=seconds, limits=limits,
    )  # fmt: skip


def _shape(case: Any) -> str:
    """Returns the shape of the matrix, or a row of the result."""
    return " x ".join(map(str, case.matrix or case.arguments[-1].shape[1:]))


def _print(measured: list[Measured]) -> None:
    from convert.support.console import print_table, results

    header = ["blocks", "kernel", "of", "shape", "rows", "us", "GB/s", "GMAC/s", "limit", "by"]
    lines = []
    for one in measured:
        middle = statistics.median(one.seconds)
        lines.append([one.variant, one.name, one.caller, one.shape, one.rows, middle * 1e6])
        lines[-1] += [one.nbytes / middle / 1e9, one.multiply_adds / middle / 1e9]
        share = "" if one.name == "launch" else f"{statistics.median(one.shares):.0%}"
        lines[-1] += [share.rjust(5), one.limited_by if share else ""]
    print_table(results(), header, lines)
    memory = [limits.bytes_s / 1e9 for one in measured for limits in one.limits]
    results().print(f"memory read: {_middle(memory)} GB/s")


def _middle(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


if __name__ == "__main__":
    sys.exit(main())
