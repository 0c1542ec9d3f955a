"""No row of a benchmark is lost: rows read = scored + left out, whatever the files hold."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from convert.calibrate.samples import CalibrationError, read_samples
from runtime.eval import cmmmu, mmbench, mme, mmmu
from runtime.eval.items import BadRow, EvalDataError, EvalItem, Questions, cell
from runtime.eval.report import report
from runtime.eval.results import Results
from runtime.eval.run import answer_all, read_questions
from tests.runtime.eval.test_eval import ABOUT, Knowing, options
from tests.support.eval_data import (
    COLUMNS,
    SAMPLE,
    cmmmu_row,
    mmbench_row,
    mmmu_row,
    write_cmmmu_json,
    write_mmbench,
    write_mme,
    write_parquet,
)

SEPARATORS = "\u2028\u2029\u0085"


def _left_out(questions: Questions) -> int:
    return sum(bad.rows for bad in questions.bad)


def _plain(path: Path, rows: list[dict[str, str]]) -> Path:
    """Writes rows as one does by hand: no cell is quoted."""
    lines = ["\t".join(COLUMNS), *("\t".join(row.get(c, "") for c in COLUMNS) for row in rows)]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def test_a_quote_that_is_never_closed_is_an_error(tmp_path: Path) -> None:
    """It takes in all rows behind it; the line in which it stands is named."""
    question = {5: {"question": '"What colour is the shape?'}}
    path = _plain(tmp_path / "dev.tsv", [mmbench_row(i, **question.get(i, {})) for i in range(10)])
    with pytest.raises(EvalDataError, match=r"dev\.tsv: the row that begins in line 7 cannot be"):
        mmbench.read(path)
    inside = {5: {"question": '"Stop" says what?'}}
    path = _plain(tmp_path / "dev.tsv", [mmbench_row(i, **inside.get(i, {})) for i in range(10)])
    with pytest.raises(EvalDataError, match="line 7 cannot be read"):
        mmbench.read(path)


@pytest.mark.parametrize("last", ["question", "hint", "A"])
def test_a_quote_that_another_row_closes_costs_its_rows(tmp_path: Path, last: str) -> None:
    cells = {2: {"question": '"Which of these?'}, 5: {last: 'How wide is 5"'}}
    path = _plain(tmp_path / "dev.tsv", [mmbench_row(i, **cells.get(i, {})) for i in range(8)])
    questions = mmbench.read(path)
    assert sorted(questions.units()) == ["0", "1", "6", "7"]
    (bad,) = questions.bad
    assert bad == BadRow(
        "dev.tsv row 4 (index 2)", "a quote in it takes in the next 3 rows: close it, or double it",
        4,
    )  # fmt: skip
    assert questions.rows == 8


def test_cells_of_several_lines_are_cells(tmp_path: Path) -> None:
    """As pandas writes them: quoted, with line ends of every kind, tabs, quotes, long."""
    hint = f'Look:\n1\t2\r\n"3"\t4\n{SEPARATORS}\v\f end' + "x" * 200_000
    path = write_mmbench(tmp_path / "dev.tsv", [mmbench_row(i, hint=hint) for i in (1, 2)])
    questions = mmbench.read(path)
    assert (questions.rows, questions.bad) == (2, [])
    assert questions.items[0].prompt.startswith(f"Hint: {hint}\nQuestion: ")


def test_rows_that_are_cut_or_too_long(tmp_path: Path) -> None:
    path = _plain(tmp_path / "dev.tsv", [mmbench_row(i) for i in (1, 2, 3, 4)])
    lines = path.read_text("utf-8").splitlines()
    lines[2] = lines[2][:60]
    lines[3] += "\tmore"
    lines[4] = "\t".join(lines[4].split("\t")[:10])  # all that is needed
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*lines, "", ""]).encode())
    questions = mmbench.read(path)
    assert list(questions.units()) == ["1", "4"]
    assert [bad.row for bad in questions.bad] == [
        f"dev.tsv row {i} (index {i - 1})" for i in (3, 4)
    ]
    assert "has 15 cells; expected 14" in questions.bad[1].problem
    assert questions.rows == 4


def test_nan_is_an_empty_cell(tmp_path: Path) -> None:
    """`None` and `NA` may be answers."""
    empty = {"hint": "nan", "C": "nan", "D": "NaN", "l2-category": "nan"}
    rows = [
        mmbench_row(1, **empty),
        mmbench_row(2, **{"C": "None", "D": "NA"}),
        mmbench_row(3, question="nan"),
        mmbench_row(4, D="nan", answer="D"),
        mmbench_row(5, image="nan"),
    ]
    questions = mmbench.read(write_mmbench(tmp_path / "dev.tsv", rows))
    first = questions.items[0]
    assert (list(first.options), first.category) == (["A", "B"], "attribute_recognition")
    assert first.prompt.startswith("Question: ")
    assert list(questions.units()["2"][0].options.values()) == ["red", "green", "None", "NA"]
    problems = [bad.problem for bad in questions.bad]
    assert [problem.partition(";")[0] for problem in problems] == [
        "there is no question", "its answer is 'D'", "there is no picture",
    ]  # fmt: skip
    assert [cell(value) for value in (None, float("nan"), "nan", " NaN", 2, 1.5, "")] == [
        "", "", "", "", "2", "1.5", "",
    ]  # fmt: skip


def test_an_index_that_comes_twice_is_no_ones_picture(tmp_path: Path) -> None:
    rows = [mmbench_row(1), mmbench_row(1), mmbench_row(2, image="1"), mmbench_row(3)]
    questions = mmbench.read(write_mmbench(tmp_path / "dev.tsv", rows))
    assert list(questions.units()) == ["3"]
    assert [(bad.rows, bad.problem) for bad in questions.bad] == [
        (1, "its picture is that of the row 1, whose index comes twice"),
        (2, "the question is left out: an index comes twice"),
    ]
    with pytest.raises(EvalDataError, match="no column image, or several"):
        mmbench.read(write_mmbench(tmp_path / "two.tsv", rows, (*COLUMNS, "image")))


def test_mme_in_whatever_case(tmp_path: Path) -> None:
    """As copied from a camera, or by macOS with its `._` files."""
    write_mme(tmp_path)
    (tmp_path / "count").rename(tmp_path / "Count")
    count = tmp_path / "Count"
    (count / "0001.png").rename(count / "0001.JPG")
    (count / "0002.txt").rename(count / "0002.TXT")
    for name in ("._0001.txt", "._0001.JPG", ".DS_Store"):
        (count / name).write_bytes(b"\0\5\26\7")
    (tmp_path / "artwork/images").rename(tmp_path / "artwork/Images")
    questions = mme.read(tmp_path)
    assert (questions.bad, questions.rows) == ([], 3)
    assert list(questions.units()) == ["count/0001", "count/0002", "artwork/9"]
    assert {item.category for item in questions.items} == {"count", "artwork"}


def test_mme_counts_every_text_and_picture(tmp_path: Path) -> None:
    write_mme(tmp_path)
    count = tmp_path / "count"
    (count / "0001.TXT").write_bytes((count / "0001.txt").read_bytes())
    (count / "0003.jpg").write_bytes(SAMPLE.read_bytes())
    (count / "0004.txt").write_text("A star?\tYes\nA circle?\tNo\n", "utf-8")
    (tmp_path / "scene").mkdir()
    questions = mme.read(tmp_path)
    assert {(bad.row, bad.problem, bad.rows) for bad in questions.bad} == {
        ("count/0001.txt", "is about the picture of 0001.TXT, which has its questions", 1),
        ("count/0003.jpg", "there are no questions in 0003.txt", 1),
        ("count/0004.txt", "there is no picture 0004.jpg or .png", 1),
        ("scene", "there are no questions", 0),
    }
    assert (questions.rows, len(questions.units())) == (6, 3)


def test_mme_ends_lines_at_line_ends_only(tmp_path: Path) -> None:
    write_mme(tmp_path)
    lines = [f"Is there{SEPARATORS}\v\f a star?\tYes", "A circle?\tNo"]
    for end in ("\n", "\r\n", "\r"):
        (tmp_path / "count/0001.txt").write_bytes(f"\ufeff{end.join(lines)}{end}".encode())
        questions = mme.read(tmp_path)
        assert not questions.bad
        assert questions.items[0].prompt == f"Is there{SEPARATORS}\v\f a star?"


def test_json_lines_end_at_line_feeds_only(tmp_path: Path) -> None:
    (tmp_path / "1.PNG").write_bytes(SAMPLE.read_bytes())
    rows = [mmmu_row(i, image_1="1.png", question=f"What is{SEPARATORS}{i}?") for i in range(2)]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path = tmp_path / "Val.JSONL"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*lines, " ", ""]).encode())
    for ignored in ("._val.jsonl", ".cache/val.jsonl"):
        (tmp_path / ignored).parent.mkdir(exist_ok=True)
        (tmp_path / ignored).write_bytes(b"\0")
    questions = mmmu.read(tmp_path)
    assert (questions.rows, questions.bad) == (2, [])
    assert [f"What is{SEPARATORS}{i}?" in item.prompt for i, item in enumerate(questions.items)]
    assert questions.items[0].open().size


def test_calibrations_lines_end_at_line_feeds_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "own.jsonl"
    line = json.dumps({"question": f"What{SEPARATORS}?"}, ensure_ascii=False)
    path.write_bytes(f"\ufeff{line}\r\n{{\n\n{line}\n".encode())
    samples = read_samples(path, pictures=False, skip_bad=True)
    assert [sample.where for sample in samples] == [f"{path}, line {i}" for i in (1, 4)]
    assert samples[0].messages[0]["content"] == f"What{SEPARATORS}?"
    assert "1 of 3 lines left out" in caplog.text
    for nothing in (tmp_path, Path("/dev/null"), tmp_path / "none"):
        with pytest.raises(CalibrationError, match=str(nothing)):
            read_samples(nothing, pictures=False, skip_bad=True)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"id": None}, "its id is None"),
        ({"id": "a\ud800"}, "lone surrogate"),
        ({"question": "What\udfff?"}, "lone surrogate"),
        ({"question": float("nan")}, "no question"),
        ({"options": ["red", float("nan")]}, "an option is empty"),
        ({"options": float("nan")}, "its options is nan"),
        ({"answer": ["A"]}, "its answer is ['A']"),
        ({"question_type": "open", "options": None, "answer": float("nan")}, "its answer is nan"),
        ({"image_1": ""}, "there is no picture"),
        ({"image_1": "a\0b"}, "is not in"),
        ({"image_1": "\ud800.png"}, "is not in"),
        ({"image_1": "a/" * 120}, "is not in"),
    ],
    ids=str,
)
def test_mmmu_names_what_it_cannot_ask(
    tmp_path: Path, fields: dict[str, Any], problem: str
) -> None:
    (tmp_path / "1.png").write_bytes(SAMPLE.read_bytes())
    rows = [mmmu_row(i, **({"image_1": "1.png"} | more)) for i, more in ((1, {}), (2, fields))]
    path = tmp_path / "val.json"
    path.write_text(json.dumps(rows), "utf-8")
    questions = mmmu.read(path)
    (bad,) = questions.bad
    assert problem in bad.problem
    assert (questions.rows, len(questions.items)) == (2, 1)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"type": ["选择"]}, "its type is ['选择']"),
        ({"option4": "nan"}, "no option D"),
        ({"answer": ["A"]}, "its answer is ['A']"),
        ({"type": "填空", "answer": "nan"}, "its answer is 'nan'"),
    ],
    ids=str,
)
def test_cmmmu_names_what_it_cannot_ask(
    tmp_path: Path, fields: dict[str, Any], problem: str
) -> None:
    rows = [cmmmu_row(1, option1=5, category=float("nan")), cmmmu_row(2, **fields)]
    questions = cmmmu.read(write_cmmmu_json(tmp_path / "own", rows))
    (bad,) = questions.bad
    assert problem in bad.problem
    (item,) = questions.items
    assert (item.options["A"], item.category) == ("5", "all")


def test_rows_of_one_name_in_several_files(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    long = "validation_" + "x" * 40
    for subject in ("Art", "Biology"):
        file = tmp_path / subject / "validation-00000-of-00001.PARQUET"
        write_parquet(file, [mmmu_row(1, id=f"{long}_{subject}"), mmmu_row(2)])
    questions = mmmu.read(tmp_path)
    assert (questions.rows, len(questions.items), _left_out(questions)) == (4, 3, 1)
    assert "Biology/validation-00000-of-00001.PARQUET row 2" in questions.bad[0].row


def test_a_row_that_is_lost_is_our_mistake() -> None:
    item = EvalItem(
        key="1", row="row 1", unit="1", category="", prompt="?", picture=b"", max_new_tokens=1,
        answer="A",
    )  # fmt: skip
    with pytest.raises(AssertionError, match="3 rows were read; 1 are asked, 1 left out and 0"):
        Questions([item], [BadRow("row 2", "bad")], "mmmu", 3)


def test_every_row_is_accounted_for_in_the_report(tmp_path: Path) -> None:
    turns = [
        mmbench_row(1_000_000 * turn + i, A="x", B="y" if i < 9 else "", C="", D="")
        for i in range(10)
        for turn in (0, 1)
    ]
    data = write_mmbench(tmp_path / "dev.tsv", [*turns, mmbench_row(20, answer="")])
    questions = read_questions("mmbench", data, 4)
    knowing = Knowing("A", "A", "A", "A", "A", RuntimeError())
    with Results(tmp_path / "1", ABOUT) as results, pytest.raises(RuntimeError):
        answer_all("mmbench", questions, knowing, options, results, lambda *_: None)
    broken = [item for item in questions.items if item.unit == questions.items[0].unit]
    for item in broken[1:]:
        object.__setattr__(item, "picture", b"no picture")
    said = Knowing(*"AAAAAAA")
    with Results(tmp_path / "2", ABOUT) as results:
        column = answer_all("mmbench", questions, said, options, results, lambda *_: None)
    assert column.rows == {"read": 21, "scored": 6, "left_out": 3 + 2, "beyond_limit": 10}
    found = report("mmbench", questions, {"this bundle": column}, {"limit": 4})
    assert found["columns"]["this bundle"]["rows"] == column.rows


def test_one_very_long_cell(tmp_path: Path) -> None:
    """No limit of the csv module that another part may have set stands in the way."""
    csv.field_size_limit(1000)
    questions = mmbench.read(write_mmbench(tmp_path / "dev.tsv", [mmbench_row(1)]))
    assert not questions.bad
