"""What drafted tokens cost and save: `python -m tests.bench.lookup DIR`.

One engine answers the same question with and without `lookup` in turn. Both answers have the same
tokens, since the seed is the same. Three kinds of answers can be had from any model: one in which
nothing matches (a high temperature), one that repeats itself (a repetition penalty far below 1),
and one that consists of a few tokens in random order (both), so that the newest ones stood before,
but mostly went on otherwise. The prompt is in the cache before.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convert.bundle.manifest import Bundle
from convert.support.console import messages, results
from quantize.errors import ToolkitError
from runtime.bench.inputs import ask, text_of_length
from runtime.engine_client.client import EngineClient
from runtime.engine_client.options import EngineOptions
from runtime.engine_client.places import open_place
from runtime.engine_client.protocol import Field
from runtime.inputs.prompt import Tokenizer
from tests.bench.processor_time import Stopwatch
from tests.bench.rounds import Row, add_arguments, exit_code, print_rows, report

TARGET = 0.99  # of the speed without drafts, where nothing matches
NOTHING_MATCHES = "nothing matches"
PROMPT = 96  # tokens
_AT_RANDOM = {"do_sample": True, "temperature": 1e4}
_REPEATING = {"repetition_penalty": 0.01}
KINDS: Mapping[str, Mapping[str, Any]] = {
    NOTHING_MATCHES: _AT_RANDOM,
    "repeats itself": _REPEATING,
    "goes on otherwise": {**_AT_RANDOM, **_REPEATING, "top_k": 3},
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path, metavar="DIR", help="a bundle with a host engine")
    parser.add_argument("--tokens", type=int, default=128, help="of an answer (default: 128)")
    add_arguments(parser)
    args = parser.parse_args()
    try:
        rows, more = compare(Bundle.open(args.bundle), args)
    except ToolkitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps(report("lookup", rows, args.rounds, **more)))
    else:
        print_rows(results(), rows, "with", "without")
        for kind, count in more["tokens"].items():
            drafted, accepted = count[Field.DRAFTED_TOKENS], count[Field.ACCEPTED_TOKENS]
            told = f"{kind}: {drafted} drafted, {accepted} accepted, "
            results().print(told + f"{count[Field.DECODE_STEPS]} decoded", soft_wrap=True)
    return 0 if args.processor_time else exit_code(rows)


def compare(bundle: Bundle, args: argparse.Namespace) -> tuple[list[Row], dict[str, Any]]:
    """Measures all kinds; returns the rows, and what else there is to say.

    Raises:
        ToolkitError: the bundle cannot run here, has no tokenizer, or an answer ends at once.
    """
    if bundle.tokenizer is None:
        raise ToolkitError(f"{bundle.path}: has no tokenizer, so it cannot be asked")
    threads = 1 if args.processor_time else args.threads
    place = open_place(bundle, EngineOptions(threads=threads))
    with place.start() as client:
        client.load(place.bundle, window=PROMPT + args.tokens)
        text = text_of_length(Tokenizer(bundle.tokenizer), PROMPT)
        watch = Stopwatch(client) if args.processor_time else None
        sides = [Side(client, text, args.tokens, watch, on) for on in (True, False)]
        rows = [
            Row(kind, "tok/s", TARGET if kind == NOTHING_MATCHES and watch is None else None)
            for kind in KINDS
        ]
        for row in rows:  # maps the weights, and prefills the prompt
            sides[0].tok_s(row.name, seed=0)
        sides[0].counts.clear()
        for i in range(1, args.rounds + 1):
            for row in rows:
                speeds = {side.lookup: side.tok_s(row.name, seed=i) for side in turns(sides, i)}
                row.add(speeds[True], speeds[False])
            messages().print(f"round {i} of {args.rounds}")
        more = {
            "threads": threads,
            "clock": "processor" if args.processor_time else "wall",
            "cpu": client.hello[Field.CPU],
            "kinds": client.about[Field.KINDS],
            "tokens": sides[0].counts,
        }
    return rows, more


@dataclass
class Side:
    """The engine, asked with drafts or without; counts the tokens of its answers by their kind."""

    client: EngineClient
    text: str
    most: int  # tokens of an answer
    watch: Stopwatch | None  # None for the time that passes
    lookup: bool
    counts: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    def tok_s(self, kind: str, seed: int) -> float:
        """Answers once; returns the speed.

        Raises:
            ToolkitError: the answer ends at once.
        """
        statistics: dict[str, Any] = {}

        def answer() -> None:
            options = {"seed": seed, **KINDS[kind], Field.LOOKUP: self.lookup}
            answer = self.client.chat(ask(self.text), max_new_tokens=self.most, options=options)
            statistics.update(answer.statistics)

        seconds = None if self.watch is None else self.watch.seconds(answer)
        if self.watch is None:
            answer()
        steps = statistics[Field.DECODE_STEPS]
        if not steps:
            raise ToolkitError("the answer ends at once, so nothing can be decoded")
        for name in (Field.DECODE_STEPS, Field.DRAFTED_TOKENS, Field.ACCEPTED_TOKENS):
            self.counts[kind][name] += statistics[name]
        return float(steps / (seconds or statistics[Field.DECODE_MS] / 1000))


def turns(sides: list[Side], number: int) -> list[Side]:
    """Returns the sides in their order in a round: neither is always the first."""
    return sides if number % 2 else sides[::-1]


if __name__ == "__main__":
    sys.exit(main())
