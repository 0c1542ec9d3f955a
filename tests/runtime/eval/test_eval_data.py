"""The benchmarks' published formats: what is read, what is asked, which rows are left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runtime.eval import cmmmu, mmbench, mme, mmmu
from runtime.eval.items import EvalDataError
from runtime.eval.run import read_questions
from tests.support.eval_data import (
    COLUMNS,
    SAMPLE,
    base64_of,
    cmmmu_row,
    mmbench_row,
    mmmu_row,
    picture,
    write_cmmmu_json,
    write_mmbench,
    write_mme,
    write_parquet,
)

TAB = "\t"


def test_mmbench_asks_as_the_original_evaluation(tmp_path: Path) -> None:
    rows = [mmbench_row(7, hint="Look closely."), mmbench_row(8, C="", D="")]
    questions = mmbench.read(write_mmbench(tmp_path / "dev.tsv", rows))
    assert questions.name == "mmbench-en"
    first = questions.items[0]
    assert first.prompt == (
        "Hint: Look closely.\nQuestion: What colour is the shape?\nOptions:\nA. red\nB. green\n"
        "C. blue\nD. yellow\nPlease select the correct answer from the options above. \n"
    )
    assert (first.max_new_tokens, first.category) == (20, "coarse_perception")
    assert first.picture == SAMPLE.read_bytes()
    assert questions.items[4].prompt.startswith("Question: What colour")
    assert list(questions.items[4].options) == ["A", "B"]
    assert not questions.bad


def test_mmbench_turns_options_where_the_file_does_not(tmp_path: Path) -> None:
    questions = mmbench.read(write_mmbench(tmp_path / "dev.tsv", [mmbench_row(7, answer="C")]))
    assert [item.key for item in questions.items] == ["7", "1000007", "2000007", "3000007"]
    assert [item.answer for item in questions.items] == ["C", "D", "A", "B"]
    assert all(item.options[item.answer] == "blue" for item in questions.items)
    assert len(questions.units()) == 1


def test_mmbench_takes_the_files_own_rotations(tmp_path: Path) -> None:
    """Their pictures are given by the index of the row that has it."""
    options = {"A": "x", "B": "y", "C": "", "D": ""}
    turned = {"A": "y", "B": "x", "C": "", "D": ""}
    rows = [
        mmbench_row(3, **options),
        mmbench_row(1_000_003, image="3", answer="B", **turned),
        mmbench_row(4, image="3", **options),
    ]
    questions = mmbench.read(write_mmbench(tmp_path / "dev.tsv", rows))
    assert [item.key for item in questions.items] == ["3", "1000003"]
    assert questions.items[1].picture == SAMPLE.read_bytes()
    assert [row.problem for row in questions.bad] == ["the question is left out: 1 of 2 rotations"]


def test_mmbench_in_chinese(tmp_path: Path) -> None:
    rows = [mmbench_row(1, question="这个图形是什么颜色？")]
    assert mmbench.read(write_mmbench(tmp_path / "cn.tsv", rows)).name == "mmbench-zh"


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"answer": "E"}, "its answer is 'E'"),
        ({"answer": ""}, "its answer is ''"),
        ({"answer": "C", "C": ""}, "options are A, B, D"),
        ({"B": "", "C": "", "D": ""}, "options are A;"),
        ({"question": " "}, "no question"),
        ({"image": "A" * 101}, "no base64"),
        ({"image": "§" * 200}, "no base64"),
        ({"image": ""}, "no picture"),
        ({"image": "99"}, "names the row '99'"),
        ({"index": "two"}, "index is no number"),
        ({"index": "1"}, "an index comes twice"),
    ],
    ids=str,
)
def test_bad_rows_of_mmbench_are_named(
    tmp_path: Path, fields: dict[str, Any], problem: str
) -> None:
    rows = [mmbench_row(1), mmbench_row(2, **fields), mmbench_row(3)]
    questions = mmbench.read(write_mmbench(tmp_path / "dev.tsv", rows))
    (bad,) = questions.bad
    assert problem in bad.problem
    twice = "twice" in problem  # neither can be trusted
    assert bad.row.startswith(f"dev.tsv row {2 if twice else 3} ")
    assert {item.unit for item in questions.items} == ({"3"} if twice else {"1", "3"})


def test_files_that_are_no_mmbench(tmp_path: Path) -> None:
    path = tmp_path / "dev.tsv"
    write_mmbench(path, [mmbench_row(1)], [name for name in COLUMNS if name != "answer"])
    with pytest.raises(EvalDataError, match="row 1: no column answer"):
        mmbench.read(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(EvalDataError, match=r"dev\.tsv"):
        mmbench.read(path)
    path.write_text(TAB.join(COLUMNS) + "\n", "utf-8")
    with pytest.raises(EvalDataError, match="no question of mmbench"):
        read_questions("mmbench", path, None)
    with pytest.raises(EvalDataError, match="no such file"):
        read_questions("mmbench", tmp_path / "none", None)


def test_mme_reads_both_kinds_of_folders(tmp_path: Path) -> None:
    questions = mme.read(write_mme(tmp_path))
    assert [item.key for item in questions.items] == [
        "count/0001#1", "count/0001#2", "count/0002#1", "count/0002#2", "artwork/9#1",
        "artwork/9#2",
    ]  # fmt: skip
    first = questions.items[0]
    assert first.prompt == "Is there a star? Please answer yes or no."
    assert (first.answer, first.max_new_tokens) == ("yes", 100)
    assert first.open().size == questions.items[-1].open().size
    assert not questions.bad


def test_bad_rows_of_mme_are_named(tmp_path: Path) -> None:
    write_mme(tmp_path)
    (tmp_path / "count/0001.txt").write_text("Is there a star?\tYes\n", "utf-8")
    (tmp_path / "artwork/images/9.png").unlink()
    (tmp_path / "scene").mkdir()
    questions = mme.read(tmp_path)
    assert {(bad.row, bad.problem) for bad in questions.bad} == {
        ("count/0001.txt", "has 1 questions; expected 2"),
        ("artwork/9.txt", "there is no picture 9.jpg or .png"),
        ("scene", "there are no questions"),
    }
    assert {item.unit for item in questions.items} == {"count/0002"}
    (tmp_path / "count/0002.txt").write_text("Is there a star?\tYes\nA circle?\tMaybe", "utf-8")
    with pytest.raises(EvalDataError, match="no question of mme"):
        read_questions("mme", tmp_path, None)
    with pytest.raises(EvalDataError, match="no folder of a task"):
        mme.read(tmp_path / "scene")


def test_mmmu_asks_as_the_original_evaluation(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    second = {"bytes": picture("blue"), "path": "2.jpg"}
    rows = [
        mmmu_row(1),
        mmmu_row(2, question_type="open", options="[]", answer="['24', 'twenty-four']"),
        mmmu_row(3, image_2=second),
    ]
    path = write_parquet(tmp_path / "Art_Theory" / "validation-00000-of-00001.parquet", rows)
    write_parquet(path.with_name("test-00000-of-00001.parquet"), [mmmu_row(1, answer="?")])
    questions = mmmu.read(tmp_path)
    choice, open_, several = questions.items
    assert choice.prompt == (
        "Study the image carefully and pick the option associated with the correct answer.  "
        "               Focus solely on selecting the option and avoid including any other "
        "content.\nWhat colour is the shape in <image 1>?\nOptions:\nA. red\nB. green\nC. blue\n"
        "D. yellow\n"
    )
    assert (choice.category, choice.pictures, several.pictures) == ("Art_Theory", 1, 2)
    assert open_.prompt == "What colour is the shape in <image 1>?\n"
    assert open_.answer == ["24", "twenty-four"]
    assert choice.picture == SAMPLE.read_bytes() == several.picture
    assert not questions.bad


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_mmmu_in_json(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "1.png").write_bytes(SAMPLE.read_bytes())
    rows = [
        mmmu_row(1, image_1="1.png", options=["red", "green"]),
        mmmu_row(2, image_1={"bytes": base64_of(SAMPLE.read_bytes()), "path": None}),
        mmmu_row(3, image_1="../1.png"),
        mmmu_row(4, image_1={"bytes": None, "path": "none.png"}),
    ]
    path = tmp_path / f"val{suffix}"
    lines = [json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) if suffix == ".jsonl" else f"[{','.join(lines)}]", "utf-8")
    questions = mmmu.read(path)
    assert [item.open().size for item in questions.items] == [questions.items[0].open().size] * 2
    assert [("is not in" in bad.problem) for bad in questions.bad] == [True, True]


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"answer": "E"}, "its answer is 'E'"),
        ({"answer": "?"}, "its answer is '?'"),
        ({"question_type": "open", "answer": "?"}, "the test split has no answers"),
        ({"options": "nonsense"}, "options is no list"),
        ({"options": "__import__('os')"}, "options is no list"),
        ({"options": "['one']"}, "has 1 options"),
        ({"options": "['one', ' ']"}, "an option is empty"),
        ({"question_type": "essay"}, "question_type is 'essay'"),
        ({"question": ""}, "no question"),
        ({"image_1": None}, "no picture"),
        ({"id": "validation_Art_Theory_1"}, "has the id"),
    ],
    ids=str,
)
def test_bad_rows_of_mmmu_are_named(tmp_path: Path, fields: dict[str, Any], problem: str) -> None:
    (tmp_path / "1.png").write_bytes(SAMPLE.read_bytes())
    rows = [mmmu_row(i, **({"image_1": "1.png"} | more)) for i, more in ((1, {}), (2, fields))]
    path = tmp_path / "val.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    questions = mmmu.read(path)
    (bad,) = questions.bad
    assert problem in bad.problem
    assert bad.row.startswith("val.jsonl row 2 ")
    assert len(questions.items) == 1


def test_cmmmu_in_both_formats(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    rows = [
        cmmmu_row(1, answer="AC"),
        cmmmu_row(2, type="判断", question="图形是红色。", answer="对", **_no_options()),
        cmmmu_row(3, type="填空", question="图形是__色。", answer="红", **_no_options()),
    ]
    write_parquet(tmp_path / "hub/art_and_design/val-00000-of-00001.parquet", rows)
    hub = cmmmu.read(tmp_path / "hub")
    own = cmmmu.read(write_cmmmu_json(tmp_path / "own", rows))
    for questions in (hub, own):
        assert not questions.bad
        choice, truth, blank = questions.items
        assert choice.prompt == (
            "问题: 这个图形<图片 1>是什么颜色？\nOptions:\nA. 红色\nB. 绿色\nC. 蓝色\nD. 黄色\n"
            "请回答上述多项选择题，并选出正确选项。这些题目可能包括单选和多选题型。如果所提供的"
            "信息不足以确定一个明确的答案，那么请根据可用的数据和你的判断来选择最可能正确的选项。"
        )
        assert truth.prompt.startswith("图形是红色。\n请回答上述判断题，")
        assert blank.prompt.startswith("图形是__色。\n请回答上述填空题，")
        assert [item.max_new_tokens for item in questions.items] == [20, 100, 1024]
        assert {item.category for item in questions.items} == {"艺术与设计"}
    assert [a.prompt for a in hub.items] == [b.prompt for b in own.items]


def _no_options() -> dict[str, None]:
    return dict.fromkeys(("option1", "option2", "option3", "option4"))


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"answer": "E"}, "its answer is 'E'"),
        ({"answer": "CA"}, "its answer is 'CA'"),
        ({"answer": ""}, "its answer is ''"),
        ({"answer": None}, "its answer is None"),
        ({"option3": None}, "no option C"),
        ({"type": "问答"}, "type is '问答'"),
        ({"type": "判断", "answer": "是"}, "its answer is '是'"),
        ({"type": "填空", "answer": " "}, "its answer is ' '"),
    ],
    ids=str,
)
def test_bad_rows_of_cmmmu_are_named(tmp_path: Path, fields: dict[str, Any], problem: str) -> None:
    path = write_cmmmu_json(tmp_path / "own", [cmmmu_row(1), cmmmu_row(2, **fields)])
    questions = cmmmu.read(path)
    (bad,) = questions.bad
    assert problem in bad.problem
    assert "row 2 (id 2)" in bad.row
    assert len(questions.items) == 1


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"{", "line 1: no JSON"),
        (b"[]", "expected a JSON object"),
        (b'{"id": 1}', "row 1: no type, question, answer"),
        (b"\xff", "line 1: no JSON"),
        (b"[" * 100_000, "line 1: no JSON"),
    ],
)
def test_files_that_are_no_cmmmu(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "val.jsonl"
    path.write_bytes(content)
    with pytest.raises(EvalDataError, match=problem):
        cmmmu.read(path)
    with pytest.raises(EvalDataError, match=r"no \.parquet"):
        cmmmu.read(path.with_name("nothing here").parent / "x")


def test_parquet_that_is_none(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    path = tmp_path / "val.parquet"
    path.write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(EvalDataError, match="cannot be read as parquet"):
        mmmu.read(path)
    write_parquet(path, [{"id": "1", "question": "?"}])
    with pytest.raises(EvalDataError, match="no column options, answer"):
        mmmu.read(path)


def test_a_limit_is_spread_evenly(tmp_path: Path) -> None:
    rows = [mmbench_row(i) for i in range(10)]
    path = write_mmbench(tmp_path / "dev.tsv", rows)
    questions = read_questions("mmbench", path, 3)
    assert list(questions.units()) == ["0", "3", "6"]
    assert len(questions.items) == 12, "questions stay whole"
    assert len(read_questions("mmbench", path, 99).units()) == 10
