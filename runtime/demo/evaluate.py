"""Measures a demo's answers: `python -m runtime.demo.evaluate CHECKPOINT_OR_BUNDLE`.

Questions that training never saw (their pictures come from another seed), greedily, by exact
match, as many in each language.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.demo.questions import LANGUAGES
from runtime.demo.task import TASKS, Task
from runtime.engine_client.options import add_engine_arguments, engine_options
from runtime.inputs.generation_options import GenerationOptions
from runtime.sessions.session import Session

SEED = 20_250_101
WINDOW = 1024
_MAX_NEW_TOKENS = 80  # the longest description has fewer


@dataclass(frozen=True)
class DemoScore:
    """How many questions of one kind were answered exactly."""

    right: int
    asked: int

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return self.right / self.asked


def evaluate(
    session: Session,
    task: Task,
    questions: int,
    *,
    max_slices: int | None = None,
    on_answer: Callable[[str, str, str, str], None] = lambda *texts: None,
) -> dict[str, dict[str, DemoScore]]:
    """Asks `questions` in each language; one picture, one question.

    Args:
        session: the model.
        task: what it was trained on.
        questions: how many in each language.
        max_slices: of a picture; None: the model's own limit.
        on_answer: called with language, meaning, right answer and given answer.

    Returns:
        Scores by language and meaning; the meaning `all` sums up.
    """
    options = GenerationOptions(max_new_tokens=_MAX_NEW_TOKENS)
    scores = {}
    for language in LANGUAGES:
        right: Counter[str] = Counter()
        asked: Counter[str] = Counter()
        for i in range(questions):
            rng = np.random.default_rng([SEED, i])
            subject = task.subject(rng, False)
            example = subject.ask(language, rng)
            text = session.reply(
                example.messages, subject.picture, options, max_slices=max_slices
            ).text
            on_answer(language, example.meaning, example.answer, text)
            for meaning in (example.meaning, "all"):
                asked[meaning] += 1
                right[meaning] += text == example.answer
        scores[language] = {m: DemoScore(right[m], asked[m]) for m in sorted(asked)}
    return scores


def main() -> None:
    """Reads the command line, evaluates, and prints one line of JSON per language."""
    from runtime.sessions.loader import load

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="a checkpoint's or a bundle's folder")
    parser.add_argument("--task", choices=TASKS, default="demo", help="which demo it is")
    parser.add_argument(
        "--max-slices", type=int, nargs="+", help="limits to measure (default: the model's own)"
    )
    parser.add_argument("--questions", type=int, default=500, help="in each language")
    parser.add_argument("--errors", action="store_true", help="print wrong answers")
    add_engine_arguments(parser)
    parser.add_argument("-o", "--output", type=Path, help="a JSON file to write the scores to")
    args = parser.parse_args()

    def show(language: str, meaning: str, right: str, given: str) -> None:
        if args.errors and given != right:
            print(f"{language} {meaning}: {right!r}, answered {given!r}")

    session = load(args.model, engine_options(args)).open_session(window=WINDOW)

    def measure(limit: int | None) -> dict[str, Any]:
        task = TASKS[args.task]
        return _record(evaluate(session, task, args.questions, max_slices=limit, on_answer=show))

    with closing(session):
        if args.max_slices is None:
            record = measure(None)
        else:
            record = {"max_slices": {str(limit): measure(limit) for limit in args.max_slices}}
    text = json.dumps({"seed": SEED, "questions": args.questions, **record}, indent=1)
    print(text)
    if args.output is not None:
        args.output.write_text(text + "\n")


def _record(scores: dict[str, dict[str, DemoScore]]) -> dict[str, Any]:
    return {
        language: {
            "accuracy": by_meaning["all"].accuracy,
            "right of asked": {m: f"{s.right} of {s.asked}" for m, s in by_meaning.items()},
        }
        for language, by_meaning in scores.items()
    }


if __name__ == "__main__":
    main()
