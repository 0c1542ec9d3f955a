"""`eval`: what is asked and kept, how a run goes on, what is left out, and the command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from convert import cli
from convert.bundle.results_file import ResultsError
from convert.checkpoint.config import ModelConfig
from runtime.engine_client.process import EngineDiedError
from runtime.eval.items import EvalDataError
from runtime.eval.report import PUBLISHED, print_report, report
from runtime.eval.results import Results
from runtime.eval.run import Column, answer_all, read_questions
from runtime.inputs.generation_options import GenerationOptions
from runtime.inputs.prompt import Message, PromptError
from runtime.sessions.session import Reply, Statistics
from tests.support.eval_data import (
    base64_of,
    cmmmu_row,
    mmbench_row,
    mmmu_row,
    write_cmmmu_json,
    write_mmbench,
    write_mme,
)
from tests.support.tiny_config import tiny_config

ABOUT = {"model": "one", "window": 100}


class Knowing:
    """A session that chooses the option `red`, unless told otherwise."""

    def __init__(self, *events: str | Exception, max_slices: int | None = None) -> None:
        self._max_slices = max_slices
        self.config = ModelConfig.from_json(tiny_config())
        self.asked: list[str] = []
        self._events = list(events)

    def reply(
        self,
        messages: Sequence[Message],
        picture: Image.Image | None,
        options: GenerationOptions,
        *,
        max_slices: int | None = None,
        **hooks: Any,
    ) -> Reply:
        assert picture is not None
        assert max_slices == self._max_slices
        prompt = messages[-1]["content"]
        self.asked.append(prompt)
        event = self._events.pop(0) if self._events else None
        if isinstance(event, Exception):
            raise event
        said = event or next(line[0] for line in prompt.splitlines() if line[1:] == ". red")
        statistics = Statistics(
            encode_ms=0, prefill_ms=0, decode_ms=0, prompt_tokens=1, reused_tokens=0,
            generated_tokens=1, decode_steps=0, stop="eos",
        )  # fmt: skip
        return Reply(said, [], statistics)

    def reset(self) -> None:
        """Has nothing to forget."""

    def close(self) -> None:
        """Has nothing to end."""


def options(tokens: int) -> GenerationOptions:
    return GenerationOptions(max_new_tokens=tokens)


def run(data: Path, answers: Path, session: Knowing, benchmark: str = "mmbench") -> Column:
    questions = read_questions(benchmark, data, None)
    with Results(answers, ABOUT) as results:
        return answer_all(benchmark, questions, session, options, results, lambda *_: None)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_mmbench(tmp_path / "dev.tsv", [mmbench_row(i) for i in (1, 2, 3)])


def test_all_rotations_are_asked_and_scored(data: Path, tmp_path: Path) -> None:
    session = Knowing()
    column = run(data, tmp_path / "answers.jsonl", session)
    assert len(session.asked) == 12
    assert (column.score.figure, column.score.scored) == (100.0, 3)
    first, *lines = (tmp_path / "answers.jsonl").read_text("utf-8").splitlines()
    assert json.loads(first) == {"format": "minicpmv-eval", "version": 1, **ABOUT}
    assert [json.loads(line)["answer"] for line in lines] == list("ABCD") * 3


def test_a_run_goes_on_where_it_ended(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    stopped = Knowing("A", "B", RuntimeError("the lights went out"))
    with pytest.raises(RuntimeError):
        run(data, path, stopped)
    before = path.read_bytes()
    path.write_bytes(before + b'{"key": "20000')  # killed within a line
    session = Knowing()
    column = run(data, path, session)
    assert len(session.asked) == 10
    assert column.score.figure == 100.0
    assert path.read_bytes().startswith(before), "what is there is only added to"
    again = Knowing()
    assert run(data, path, again).score == column.score
    assert not again.asked


def test_only_what_changed_is_asked_again(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    run(data, path, Knowing())
    write_mmbench(data, [mmbench_row(1), mmbench_row(2, question="And now?"), mmbench_row(3)])
    session = Knowing()
    run(data, path, session)
    assert len(session.asked) == 4
    assert all("And now?" in prompt for prompt in session.asked)


def test_a_picture_that_cannot_be_decoded_is_left_out(tmp_path: Path) -> None:
    broken = base64_of(b"no picture at all" * 10)
    data = write_mmbench(tmp_path / "dev.tsv", [mmbench_row(1), mmbench_row(2, image=broken)])
    column = run(data, tmp_path / "answers.jsonl", Knowing())
    assert (column.score.figure, column.score.scored) == (100.0, 1)
    assert {row.row for row in column.left_out} == {"dev.tsv row 3 (index 2)"}
    assert "not a picture that can be decoded" in column.left_out[0].problem
    only = write_mmbench(tmp_path / "only.tsv", [mmbench_row(2, image=broken)])
    with pytest.raises(EvalDataError, match=r"no question could be asked: only\.tsv row 2"):
        run(only, tmp_path / "others.jsonl", Knowing())


@pytest.mark.parametrize("limit", [None, 1, 4])
def test_the_limit_of_slices_reaches_the_model(
    data: Path, tmp_path: Path, limit: int | None
) -> None:
    """Also when the engine died, and is asked again."""
    session = Knowing(EngineDiedError("gone"), max_slices=limit)
    questions = read_questions("mmbench", data, None)
    with Results(tmp_path / "answers.jsonl", ABOUT) as results:
        column = answer_all(
            "mmbench", questions, session, options, results, lambda *_: None, max_slices=limit
        )
    assert column.score.figure == 100.0 and len(session.asked) == 13


def test_a_prompt_that_does_not_fit_is_left_out(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    column = run(data, path, Knowing(PromptError("too long for the window")))
    assert (column.score.figure, column.score.scored) == (100.0, 2), "its rotations with it"
    assert [row.problem for row in column.left_out] == ["too long for the window"]
    assert run(data, path, Knowing()).left_out == column.left_out, "it is remembered"


def test_an_engine_may_die_once(data: Path, tmp_path: Path) -> None:
    died = EngineDiedError("host: has ended")
    assert run(data, tmp_path / "a.jsonl", Knowing(died)).score.figure == 100.0
    with pytest.raises(EngineDiedError):
        run(data, tmp_path / "b.jsonl", Knowing("A", died, died))
    assert len((tmp_path / "b.jsonl").read_text("utf-8").splitlines()) == 2


def test_files_of_answers_that_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with Results(path, ABOUT), pytest.raises(ResultsError, match="another run is writing it"):
        Results(path, ABOUT)
    with pytest.raises(ResultsError, match="results of another run: model differ"):
        Results(path, ABOUT | {"model": "two"})
    for content in (
        b"nothing\n",
        b"[]\n",
        b'{"format": "other"}\n',
        b'{"a": 1}\n{"key": "x"}\n',
        b"x",
    ):
        path.write_bytes(content)
        with pytest.raises(ResultsError, match=r"answers\.jsonl"):
            Results(path, ABOUT)
        assert path.read_bytes() == content, "it is left as it is"


def test_the_other_benchmarks(tmp_path: Path) -> None:
    mme = run(write_mme(tmp_path / "mme"), tmp_path / "1", Knowing(*["Yes", "No"] * 3), "mme")
    assert mme.score.figure == 400.0
    (tmp_path / "1.png").write_bytes((tmp_path / "mme/count/0001.png").read_bytes())
    path = tmp_path / "val.json"
    path.write_text(json.dumps([mmmu_row(i, image_1="1.png") for i in range(4)]), "utf-8")
    assert run(path, tmp_path / "2", Knowing("A", "(A)", "B", "A"), "mmmu").score.figure == 75.0
    own = write_cmmmu_json(tmp_path / "own", [cmmmu_row(1), cmmmu_row(2)])
    assert run(own, tmp_path / "3", Knowing("答案是A", "选B"), "cmmmu").score.figure == 50.0


def test_published_figures_are_whole() -> None:
    published = json.loads(PUBLISHED.read_text("utf-8"))
    (model,) = [one for one in published["models"] if one["name"] == published["model"]]
    figures = {name: model[name] for name in published["benchmarks"]}
    assert figures == {
        "mme": 1452, "mmbench-en": 67.9, "mmbench-zh": 65.3, "mmmu": 37.2, "cmmmu": 32.1,
    }  # fmt: skip
    name = published["model_with_slices"]
    (other,) = [one for one in published["models"] if one["name"] == name]
    assert other == {
        "name": "MiniCPM-V 2.0", "size": "2.8B",
        "mme": 1808.6, "mmbench-en": 69.6, "mmbench-zh": 68.1, "mmmu": 38.2,
    }  # fmt: skip


def test_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    rows = [*(mmbench_row(i) for i in range(1, 26)), *(mmbench_row(i, answer="") for i in (30, 31))]
    data = write_mmbench(tmp_path / "dev.tsv", rows)
    full = run(data, tmp_path / "1", Knowing())
    bundle = run(data, tmp_path / "2", Knowing("none of them"))
    found = report(
        "mmbench",
        read_questions("mmbench", data, None),
        {"full precision": full, "this bundle": bundle},
        {"limit": None},
    )
    assert found["columns"]["full precision"]["figure"] == 100.0
    assert found["columns"]["this bundle"]["figure"] == 96.0
    assert found["same_answers"] == {"of": 100, "same": 99}
    assert found["published"]["model"] == "MiniCPM-V 1.0"
    cut = report("mmbench", read_questions("mmbench", data, None), {}, {}, slices=True)
    assert cut["published"]["model"] == "MiniCPM-V 2.0"
    assert [bad["row"] for bad in found["bad_rows"]] == [
        "dev.tsv row 27 (index 30)", "dev.tsv row 28 (index 31)",
    ]  # fmt: skip
    print_report(found, Console(width=200))
    said = capsys.readouterr().out
    for part in (
        "MiniCPM-V 1.0", "67.9", "96.0", "25 scored, 2 rows left out",
        "this bundle: rows: 27 read = 25 scored + 2 left out",
        "99 of 100", "dev.tsv row 27 (index 30): its answer is ''", "minicpm_v1.md",
        "this bundle: 1 answers hold no choice",
    ):  # fmt: skip
        assert part in said


def test_the_command(
    bundle: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both columns of a tiny model; a second run asks nothing; beams get a file of their own."""
    data = write_mmbench(tmp_path / "dev.tsv", [mmbench_row(1), mmbench_row(2), mmbench_row(3)])
    output = tmp_path / "answers"
    command = ["eval", str(bundle), "--benchmark", "mmbench", "--data", str(data), "--threads", "1"]
    command += ["--limit", "1", "--output", str(output), "--json"]
    assert cli.main(command) == 0
    first = json.loads(capsys.readouterr().out)
    assert list(first["columns"]) == ["full precision", "this bundle"]
    assert first["same_answers"]["of"] == 4
    files = {path.name: path.read_bytes() for path in output.iterdir()}
    assert set(files) == {"mmbench-en-local.jsonl", "mmbench-en-reference.jsonl"}
    assert cli.main(command) == 0
    second = json.loads(capsys.readouterr().out)
    assert second | {"seconds": 0} == first | {"seconds": 0}
    assert {path.name: path.read_bytes() for path in output.iterdir()} == files
    beams = [*command[:-1], "--engine", "reference", "--beams", "3", "--reference", str(checkpoint)]
    del beams[beams.index("--threads") : beams.index("--threads") + 2]
    assert cli.main(beams) == 0
    assert "full precision, 3 beams" in capsys.readouterr().out
    assert (output / "mmbench-en-reference-3-beams.jsonl").is_file()
    assert cli.main([*command, "--max-slices", "3"]) == 2
    assert "this one resizes every picture to one square" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--limit", "0"], "--limit is 0"),
        (["--beams", "0"], "--beams is 0"),
        (["--window", "-1"], "--window is -1"),
        (["--no-reference", "--beams", "3"], "do not work with --no-reference"),
        (["--no-reference", "--engine", "reference"], "leave no model to score"),
        ([], "nothing"),
    ],
)
def test_errors_of_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    command = ["eval", str(tmp_path / "nothing"), "--benchmark", "mme", "--data", str(tmp_path)]
    assert cli.main([*command, *arguments]) == 2
    said = capsys.readouterr().err.strip()
    assert expected in said and "\n" not in said
