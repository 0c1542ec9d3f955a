"""Asks a model all questions of a benchmark and scores the answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from convert.support.progress import Progress
from runtime.engine_client.process import EngineDiedError
from runtime.eval import cmmmu, mmbench, mme, mmmu
from runtime.eval.items import BadRow, BenchmarkScore, EvalDataError, EvalItem, Questions, rows_of
from runtime.eval.results import Results
from runtime.inputs.generation_options import GenerationOptions
from runtime.inputs.picture_format import PictureError
from runtime.inputs.prompt import Message, PromptError
from runtime.sessions.session import Session

BENCHMARKS: Mapping[str, ModuleType] = {
    "mmbench": mmbench,
    "mme": mme,
    "mmmu": mmmu,
    "cmmmu": cmmmu,
}
_ANSWER, _PROBLEM = "answer", "problem"


@dataclass(frozen=True)
class Column:
    """The result of one model on a benchmark."""

    score: BenchmarkScore
    answers: Mapping[str, str]  # by key
    left_out: list[BadRow]  # that could not be asked
    rows: Mapping[str, int]  # read = scored + left_out + beyond_limit


def read_questions(benchmark: str, path: Path, limit: int | None) -> Questions:
    """Reads a benchmark, or some of it.

    Args:
        benchmark: a key of `BENCHMARKS`.
        path: its files.
        limit: how many scored units to keep, spread evenly; None: all.

    Raises:
        EvalDataError: the files differ from the published format, or no question is left.
    """
    if not path.exists():
        raise EvalDataError(f"{path}: no such file or folder")
    questions: Questions = BENCHMARKS[benchmark].read(path)
    if not questions.items:
        first = f": {questions.bad[0].row}: {questions.bad[0].problem}" if questions.bad else ""
        raise EvalDataError(f"{path}: no question of {benchmark} can be asked{first}")
    return questions if limit is None else questions.limited(limit)


def answer_all(
    benchmark: str,
    questions: Questions,
    session: Session,
    options: Callable[[int], GenerationOptions],
    results: Results,
    progress: Progress,
    *,
    max_slices: int | None = None,
) -> Column:
    """Asks the questions not answered yet, and scores all answers.

    Args:
        benchmark: a key of `BENCHMARKS`.
        questions: of it.
        session: the model.
        options: returns the options for a number of new tokens.
        results: earlier answers; new ones are added.
        progress: receives the questions answered.
        max_slices: most slices that a picture is cut into; None: the model's limit.

    Raises:
        EngineDiedError: the engine ended twice at the same question.
    """
    answers: dict[str, str] = {}
    problems: dict[str, str] = {}  # by row
    dropped: set[str] = set()
    for number, item in enumerate(questions.items, 1):
        try:
            digest = item.digest()
            found = results.get(item.key, digest)
            if found is None:
                found = _ask(item, session, options(item.max_new_tokens), max_slices)
                results.add(item.key, digest, found)
        except PictureError as error:  # the file is gone
            found = {_PROBLEM: str(error)}
        if _ANSWER in found:
            answers[item.key] = found[_ANSWER]
        else:
            problems.setdefault(item.row, found[_PROBLEM])
            dropped.add(item.unit)
        progress(benchmark, number, len(questions.items))
    asked = [item for item in questions.items if item.unit not in dropped]
    left_out = [BadRow(row, problem) for row, problem in problems.items()]
    if not asked:
        raise EvalDataError(f"no question could be asked: {left_out[0].row}: {left_out[0].problem}")
    score = BENCHMARKS[benchmark].score(asked, answers)
    return Column(score, answers, left_out, _rows(questions, dropped))


def _rows(questions: Questions, dropped: set[str]) -> dict[str, int]:
    """Returns what became of the rows; a row that cannot be asked drops its whole unit."""
    without = [item for item in questions.items if item.unit in dropped]
    scored = rows_of(item for item in questions.items if item.unit not in dropped)
    rows = {
        "read": questions.rows,
        "scored": scored,
        "left_out": sum(row.rows for row in questions.bad) + rows_of(without),
        "beyond_limit": questions.beyond_limit,
    }
    if rows["read"] != rows["scored"] + rows["left_out"] + rows["beyond_limit"]:
        raise AssertionError(f"rows are lost or counted twice: {rows}")
    return rows


def _ask(
    item: EvalItem, session: Session, options: GenerationOptions, max_slices: int | None
) -> dict[str, Any]:
    """Returns an answer, or the problem with the question."""
    messages: list[Message] = [{"role": "user", "content": item.prompt}]
    try:
        picture = item.open()
        try:
            reply = session.reply(messages, picture, options, max_slices=max_slices)
        except EngineDiedError:  # a long run survives one accident
            reply = session.reply(messages, picture, options, max_slices=max_slices)
    except (PictureError, PromptError) as error:
        return {_PROBLEM: str(error)}
    return {_ANSWER: reply.text, "tokens": reply.statistics.generated_tokens}
