"""The table: published figures, and the two columns measured here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from convert.checkpoint.config import CONFIGS
from runtime.eval.items import BenchmarkScore, Questions
from runtime.eval.run import Column

if TYPE_CHECKING:
    from rich.console import Console

PUBLISHED = CONFIGS / "published.json"
_SHOWN = 20  # bad rows that are printed; all are in the JSON


def report(
    benchmark: str,
    questions: Questions,
    columns: Mapping[str, Column],
    about: Mapping[str, Any],
    *,
    slices: bool = False,
) -> dict[str, Any]:
    """Returns the report as a JSON object.

    Args:
        benchmark: its name.
        questions: of it.
        columns: by model, in order.
        about: further fields of the report.
        slices: whether the model cuts pictures into slices: then it is published as another one.
    """
    published = json.loads(PUBLISHED.read_text("utf-8"))
    bad = [{"row": row.row, "problem": row.problem} for row in questions.bad]
    found = {
        "benchmark": benchmark,
        "figure": questions.name,
        "title": published["benchmarks"][questions.name],
        **about,
        "questions": len(questions.items),
        "scored_as_one": len(questions.units()),
        "bad_rows": bad,
        "published": {
            "source": published["source"],
            "model": published["model_with_slices" if slices else "model"],
            "figures": {
                one["name"]: {"size": one["size"], "figure": one[questions.name]}
                for one in published["models"]
                if questions.name in one
            },
        },
        "columns": {name: _column(column) for name, column in columns.items()},
    }
    if len(columns) == 2:
        first, second = (column.answers for column in columns.values())
        both = first.keys() & second.keys()
        found["same_answers"] = {"of": len(both), "same": sum(first[k] == second[k] for k in both)}
    return found


def print_report(found: Mapping[str, Any], console: Console) -> None:
    """Prints a report for people."""
    from convert.support.console import print_table

    def say(text: str = "") -> None:
        console.print(text, markup=False, soft_wrap=True)

    columns = found["columns"]
    rows = [
        [name, one["size"], f"{one['figure']:,}", "published"]
        for name, one in found["published"]["figures"].items()
    ]
    rows += [[name, "", _figure(c["figure"]), _scored(c, found)] for name, c in columns.items()]
    width = max(len(text) for text in (found["title"], *(row[2] for row in rows)))
    rows = [[name, size, figure.rjust(width), note] for name, size, figure, note in rows]
    print_table(console, ["model", "size", found["title"], ""], rows)
    say(f"published: {found['published']['source']}")
    say()
    names = list(dict.fromkeys(part for c in columns.values() for part in c["parts"]))
    print_table(
        console,
        ["", *columns],
        [
            [n, *(_figure(c["parts"].get(n)).rjust(len(name)) for name, c in columns.items())]
            for n in names
        ],
    )
    say()
    for name, column in columns.items():
        for note in _notes(column):
            say(f"{name}: {note}")
    same = found.get("same_answers")
    if same is not None:
        say(f"identical answers: {same['same']:,} of {same['of']:,}")
    bad = [*found["bad_rows"], *(row for c in columns.values() for row in c["left_out"])]
    for row in bad[:_SHOWN]:
        say(f"left out: {row['row']}: {row['problem']}")
    if len(bad) > _SHOWN:
        say(f"left out: {len(bad) - _SHOWN:,} more; --json lists all")


def _column(column: Column) -> dict[str, Any]:
    score: BenchmarkScore = column.score
    found: dict[str, Any] = {
        "figure": round(score.figure, 2),
        "parts": {name: round(value, 2) for name, value in score.parts.items()},
        "scored": score.scored,
        "rows": dict(column.rows),
        "unread": score.unread,
        "left_out": [{"row": row.row, "problem": row.problem} for row in column.left_out],
    }
    if score.several is not None:
        found["several_pictures"] = {
            "questions": score.several[0],
            "figure": round(score.several[1], 2),
        }
    return found


def _notes(column: Mapping[str, Any]) -> list[str]:
    rows = column["rows"]
    beyond = f" + {rows['beyond_limit']:,} beyond --limit" if rows["beyond_limit"] else ""
    notes = [
        f"rows: {rows['read']:,} read = {rows['scored']:,} scored + {rows['left_out']:,} left out"
        + beyond
    ]
    if column["unread"]:
        notes.append(f"{column['unread']:,} answers hold no choice that the rules can read")
    if "several_pictures" in column:
        several = column["several_pictures"]
        notes.append(
            f"{several['questions']:,} questions have several pictures, of which the model sees "
            f"the first: {_figure(several['figure'])} of them"
        )
    return notes


def _scored(column: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    left_out = column["rows"]["left_out"]
    bad = f", {left_out:,} rows left out" if left_out else ""
    part = "" if found["limit"] is None else f" (--limit {found['limit']})"
    return f"measured here, {column['scored']:,} scored{part}{bad}"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"
