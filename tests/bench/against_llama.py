"""Our decoder beside llama.cpp's, Q4_0, the same shape: `python -m tests.bench.against_llama DIR`.

llama.cpp runs in a process and an environment of its own, kept in the toolkit's cache; the first
run makes both the environment, with

    {command}

and a GGUF file of random weights of the bundle's shape, 1.5 GB at full size. On a processor with
AMX a second one is built without it; each does the work of a round first, one that crashes is told
of, and ours is compared with the fastest that works, which the table names. The two take turns,
never at once: load, prefill of 96 and 256 tokens, decode of 64 tokens after 192 (a window of 256);
and the memory's read bandwidth is measured just before and after our decode. Theirs is the time
of `llama_decode`; ours samples, too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from convert.bundle.manifest import Bundle
from convert.checkpoint.config import DecoderConfig
from convert.support.cache import kept_entry
from convert.support.console import messages, results
from quantize.errors import ToolkitError
from runtime.bench.inputs import text_of_length
from runtime.bench.measure import DecodeReads
from runtime.bench.runners import Asked, EngineRunner
from runtime.engine_client.options import EngineOptions
from runtime.engine_client.places import open_place
from runtime.inputs.prompt import Tokenizer
from tests.bench import llama_build, llama_gguf, llama_variants
from tests.bench.child import Child
from tests.bench.convert import ROOT
from tests.bench.llama_build import Variant
from tests.bench.llama_variants import AFTER, PREFILL, STEPS
from tests.bench.processor_time import Stopwatch
from tests.bench.rounds import (
    Row,
    add_arguments,
    alternate,
    exit_code,
    features,
    print_rows,
    report,
)

WINDOW = 256  # tokens
SEEN = AFTER + STEPS / 2  # by a decoded token, in the mean
DECODE_TARGET, LIMIT_TARGET, PREFILL_TARGET = 1.05, 0.9, 1.5
MEMORY_LIMIT = "decode, of the memory's limit"  # the row whose other side is no program
_CACHE_BYTES = 8 * 2**30  # of all files; one of the real size has 1.4 GiB
_MOST_ANSWERS = 64  # random weights may end an answer early


def main() -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").format(command=llama_build.NATIVE.command),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, metavar="DIR", help="a bundle with a host engine")
    add_arguments(parser)
    args = parser.parse_args()
    try:
        rows, more = compare(Bundle.open(args.bundle), args)
    except ToolkitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps(report("against_llama", rows, args.rounds, **more)))
    else:
        print_rows(results(), rows, "ours", f"llama.cpp, {more['llama_variant']}")
        gb_s = statistics.median(more["read_bytes_s"]) / 1e9
        weights, cache = (more[f"decode_{part}_bytes"] / 1e9 for part in ("weights", "cache"))
        shares = f"a token reads {weights:.3f} GB of weights and {cache:.3f} GB of cache, "
        shares += f"llama.cpp's {more['llama_decode_bytes'] / 1e9:.3f} GB of weights; "
        shares += f"memory read {gb_s:.1f} GB/s"
        results().print(shares, soft_wrap=True)
    return 0 if args.processor_time else exit_code(rows)


def compare(bundle: Bundle, args: argparse.Namespace) -> tuple[list[Row], dict[str, Any]]:
    """Measures both; returns the rows, and what else there is to say.

    Raises:
        ToolkitError: the bundle cannot run here, or llama.cpp cannot be built or run.
    """
    if bundle.tokenizer is None:
        raise ToolkitError(f"{bundle.path}: has no tokenizer, so it cannot be asked")
    shape = geometry(bundle.config.decoder)
    threads = 1 if args.processor_time else args.threads
    place = open_place(bundle, EngineOptions(threads=threads))
    told = messages().print

    def start(variant: Variant) -> Child:
        return start_llama(variant, shape, threads)

    clock = "processor_ms" if args.processor_time else "ms"
    tried = llama_variants.try_all(llama_build.variants(features()), start, clock, told)
    chosen = llama_variants.fastest(tried)
    with place.start() as client, start(chosen) as llama:
        runner = EngineRunner(client, place.bundle, window=WINDOW)
        watch = Stopwatch(client) if args.processor_time else None
        ours = Ours(runner, Tokenizer(bundle.tokenizer), watch)
        reads = DecodeReads.of(bundle.plan, bundle.config.decoder)
        sides = _Sides(ours, llama, reads, clock)
        sides.load()
        alternate(args.rounds, *sides.loads(), on_round=lambda i: told(f"load {i}"))
        sides.warm_up()
        alternate(
            args.rounds, *sides.steps(), on_round=lambda i: told(f"round {i} of {args.rounds}")
        )
        more = {
            "threads": threads,
            "clock": "processor" if args.processor_time else "wall",
            "llama_cpp_python": llama_build.VERSION,
            "llama_variant": chosen.name,
            "llama_variants": [each.to_json() for each in tried],
            "cpu": client.hello["cpu"],
            "kinds": client.about["kinds"],
            "decode_weights_bytes": reads.weights_bytes,
            "decode_cache_bytes": round(SEEN * reads.cache_token_bytes),
            "llama_decode_bytes": llama_gguf.decode_bytes(shape),
            "read_bytes_s": sides.bandwidths,
        }
    return sides.rows(), more


def geometry(c: DecoderConfig) -> dict[str, Any]:
    """Returns what a GGUF file of the decoder's shape needs to know."""
    names = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta",
        "scale_emb", "residual_scale",
    )  # fmt: skip
    shape = {name: getattr(c, name) for name in names}
    return shape | {"logit_scale": 1 / c.logits_divisor}


def gguf_file(shape: dict[str, Any], python: Path) -> Path:
    """Returns the GGUF file of a shape; the first call writes it with llama.cpp's Python.

    Raises:
        ToolkitError: it cannot be written.
    """
    text = json.dumps(shape, sort_keys=True)
    name = f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.gguf"
    path = kept_entry(llama_build.folder() / "gguf", name, _CACHE_BYTES)
    if not path.exists():
        messages().print(f"writes {path.name}")
        done = subprocess.run([python, llama_gguf.__file__, str(path), text], check=False)
        if done.returncode:
            raise ToolkitError(f"{path}: cannot be written; see above")
    return path


def start_llama(variant: Variant, shape: dict[str, Any], threads: int) -> Child:
    """Starts a build of llama.cpp, made if there is none; nothing is loaded yet.

    Raises:
        ToolkitError: it cannot be built.
    """
    python = llama_build.python(variant)
    script = Path(llama_gguf.__file__).with_name("llama_child.py")
    command = [str(python), str(script), str(gguf_file(shape, python)), str(threads)]
    return Child("llama.cpp", command, ROOT)


class Ours:
    """Our engine, with texts whose prompts have the wished lengths."""

    def __init__(self, runner: EngineRunner, tokenizer: Tokenizer, watch: Stopwatch | None) -> None:
        """Args: watch: None for the time that passes."""
        self.runner, self.watch = runner, watch
        self._texts = {n: text_of_length(tokenizer, n) for n in (*PREFILL, AFTER)}

    def prefill_tok_s(self, tokens: int) -> float:
        """Prefills a prompt."""
        self.runner.forget()
        asked, seconds = self._ask(tokens, 1)
        return asked.prefilled_tokens / (seconds or asked.prefill_ms / 1000)

    def decode_tok_s(self) -> float:
        """Decodes after a prompt, in several answers if they end early.

        Raises:
            ToolkitError: every answer ends at once.
        """
        self.runner.forget()
        self._ask(AFTER, 1)  # what follows finds the prompt in the cache
        steps, seconds = 0, 0.0
        for _ in range(_MOST_ANSWERS):
            asked, computed = self._ask(AFTER, STEPS - steps + 1)
            steps += asked.decode_steps
            # What was computed includes the prompt's tokens that had to be.
            share = asked.decode_steps / (asked.decode_steps + asked.prefilled_tokens)
            seconds += asked.decode_ms / 1000 if computed is None else computed * share
            if steps >= STEPS:
                break
        if not steps:
            raise ToolkitError("every answer ends at once, so nothing can be decoded")
        return steps / seconds

    def _ask(self, tokens: int, most: int) -> tuple[Asked, float | None]:
        """Asks; returns also the seconds that were computed, if they are measured."""
        answers: list[Asked] = []

        def ask() -> None:
            answers.append(self.runner.ask(self._texts[tokens], None, most))

        seconds = None
        if self.watch is None:
            ask()
        else:
            seconds = self.watch.seconds(ask)
        return answers[0], seconds


class _Sides:
    """What each side does in a round, and the rows that come of it."""

    def __init__(self, ours: Ours, llama: Child, reads: DecodeReads, clock: str) -> None:
        self._ours, self._llama, self._reads, self._clock = ours, llama, reads, clock
        self._peak: int | None = None
        self.bandwidths: list[float] = []
        self._found: dict[str, tuple[list[float], list[float]]] = {}

    def load(self) -> None:
        """Loads both once, and reads their peak memory, before bandwidth takes its own."""
        self._ours.runner.load()
        self._llama.ask("load")
        self.warm_up()
        peaks = (self._ours.runner.peak_rss_bytes(), self._peak)
        for side, peak in enumerate(peaks):
            assert peak is not None
            self._add("peak memory", side, peak / 2**20)

    def warm_up(self) -> None:
        """Does once what is measured: what was mapped is read then."""
        for n in PREFILL:
            self._ours.prefill_tok_s(n)
            self._their_prefill_tok_s(n)

    def loads(self) -> list[Any]:
        """Returns a round of loading."""
        return [
            lambda: self._add("load", 0, self._ours.runner.load()),
            lambda: self._add("load", 1, self._llama.ask("load")["ms"]),
        ]

    def steps(self) -> list[Any]:
        """Returns a round of the rest, one side after the other."""
        steps: list[Any] = []
        for n in PREFILL:
            name = f"prefill {n}"
            steps += [
                lambda n=n, name=name: self._add(name, 0, self._ours.prefill_tok_s(n)),
                lambda n=n, name=name: self._add(name, 1, self._their_prefill_tok_s(n)),
            ]
        return [*steps, self._decode, self._their_decode]

    def _their_prefill_tok_s(self, tokens: int) -> float:
        answer = self._llama.ask("prefill", tokens=tokens)
        self._peak = answer["peak_rss_bytes"]
        return float(tokens / answer[self._clock] * 1000)

    def _decode(self) -> None:
        before = self._ours.runner.machine()
        rate = self._ours.decode_tok_s()
        after = self._ours.runner.machine()
        self.bandwidths.append((before.read_bytes_s + after.read_bytes_s) / 2)
        self._add("decode", 0, rate)
        if self._ours.watch is None:
            limit = self.bandwidths[-1] / self._reads.bytes_after(SEEN)
            self._add(MEMORY_LIMIT, 0, rate)
            self._add(MEMORY_LIMIT, 1, limit)

    def _their_decode(self) -> None:
        ms = self._llama.ask("decode", after=AFTER, steps=STEPS)[self._clock]
        self._add("decode", 1, STEPS / ms * 1000)

    def _add(self, name: str, side: int, value: float) -> None:
        self._found.setdefault(name, ([], []))[side].append(value)

    def rows(self) -> list[Row]:
        """Returns what was measured, with the targets."""
        known = {
            "decode": ("tok/s", DECODE_TARGET, False),
            MEMORY_LIMIT: ("tok/s", LIMIT_TARGET, False),
            **{f"prefill {n}": ("tok/s", PREFILL_TARGET, False) for n in PREFILL},
            "load": ("ms", None, True),
            "peak memory": ("MiB", None, True),
        }
        return [
            Row(name, unit, target, less, *self._found[name])
            for name, (unit, target, less) in known.items()
            if name in self._found
        ]


if __name__ == "__main__":
    sys.exit(main())
