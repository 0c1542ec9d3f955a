"""verify's cases: the user's own, kept one by one, put together, gone on with."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from convert.bundle.results_file import ResultsError, ResultsFile
from convert.checkpoint.config import CONFIGS, ModelConfig
from convert.cli import INTERRUPTED, main
from runtime.inputs.prompt import Prompt
from runtime.verify.cases import Case, DataError, built_in_cases, read_cases
from runtime.verify.check import Check
from runtime.verify.measure import run
from runtime.verify.measure.answers import AnswerComparison
from runtime.verify.measure.logits import EDGES, Logits, Positions, Sums
from runtime.verify.measure.results import CaseResult, FileResultCache, merge
from runtime.verify.report.folder import CASES, DATA, PAGE
from tests.support.tiny import write_checkpoint

Verify = Callable[..., tuple[int, dict[str, Any] | str]]
ABOUT = {"format": "x", "bundle": "1"}


def case(name: str = "one", question: str = "?") -> Case:
    return Case(name, ({"role": "user", "content": question},))


def result(seed: int, value: float = 20.0) -> CaseResult:
    """What a case gave, with logits of their own."""
    torch.manual_seed(seed)
    logits = Logits()
    prompt = Prompt([1, 5, 0, 0, 6, 7], 2)
    ids = [*prompt.ids, 3, 2]
    reference = torch.randn(len(ids), 9)
    others = (reference + noise * torch.randn(len(ids), 9) for noise in (0.1, 0.3))
    logits.add(prompt, ids, 2, reference, *others)
    checks = [
        Check("decoder layers", "layer 0", "SQNR", "dB", value, 21.0, 15.0, True, {"cosine": 0.5}),
        Check("decoder layers", "layer 1", "SQNR", "dB", math.inf, math.inf, 89.0, True),
    ]
    same = "a" if seed % 2 else "b"
    answer = AnswerComparison("one", "问?", "a", same, "a", ["▁a"], [f"▁{same}"], "given")
    return CaseResult(checks, answer, logits.positions, len(ids))


def test_sums_over_positions() -> None:
    prompt, ids = Prompt([1, 5, 0, 0, 6, 7], 2), [1, 5, 0, 0, 6, 7, 3, 2]
    reference = torch.zeros(8, 9)
    reference[torch.arange(7), ids[1:]] = 5.0  # every next token is the likeliest
    worse = reference.clone()
    worse[7] = math.nan
    worse[6, 8] = 6.0
    logits = Logits()
    logits.add(prompt, ids, 2, reference, reference, worse)
    found = logits.positions
    # The position before the picture has no token to foretell, the last one no token behind it.
    assert {kind: (p.count, p.predicted) for kind, p in found.items()} == {
        "text": (3, 2), "image": (2, 0), "answer": (3, 2),
    }  # fmt: skip
    sure = math.log(math.exp(5) + 8) - 5
    assert found["text"].reference_nll_nats == pytest.approx(2 * sure, rel=1e-5)
    assert found["text"].bundle.kl_nats == 0
    assert found["text"].bundle.histogram == [3, *[0] * len(EDGES)]
    assert (found["text"].bundle.top1, found["text"].bundle.top5) == (3, 15)
    assert math.isnan(found["answer"].bundle.kl_nats)
    assert found["answer"].bundle.histogram[-1] == 1, "no number is no small one"
    assert sum(found["answer"].bundle.histogram) == 3
    assert found["answer"].arithmetic.kl_nats == 0
    assert set(found["text"].bundle.percentiles.values()) == {0.0}
    worst = found["answer"].bundle.percentiles
    assert 0.1 < worst["50"] < math.inf, "one of three is less, one no number"
    assert worst["95"] == worst["99.9"] == math.inf
    unsure = math.log(math.exp(5) + math.exp(6) + 7) - 5
    assert found["answer"].bundle.nll_nats == pytest.approx(sure + unsure, rel=1e-5)
    thresholds = run.load_settings()["thresholds"]
    failed = [c for c in logits.checks(thresholds) if not c.passed]
    assert {c.name for c in failed} == {"at answer tokens"}


@pytest.mark.parametrize(
    ("same", "count", "limit"), [(40, 40, 0.97), (9, 36, 0.25 - 2 / 36 * 2.598), (900, 1000, 0.87)]
)
def test_a_share_of_few_positions_may_be_off_by_chance(same: int, count: int, limit: float) -> None:
    sums = Sums((0.0,) * count, same, same, 0.0)
    logits = Logits()
    logits.merge({"text": Positions(count, 0, 0.0, sums, sums)})
    share = logits.checks(run.load_settings()["thresholds"])[1]
    assert share.threshold == pytest.approx(limit, rel=1e-3)


def test_cases_are_put_together() -> None:
    thresholds = {
        "kl_factor": 9.0, "kl_floor_nats": 9.0, "top1_margin": 1.0, "top1_standard_errors": 0.0,
        "answers_margin": 0.1,
    }  # fmt: skip
    outcome = merge([result(1, 20.0), result(2, 16.0), result(3, math.nan)], thresholds)
    found = {(c.stage, c.name): c for c in outcome.checks}
    assert math.isnan(found["decoder layers", "layer 0"].value), "the worst is kept"
    assert found["answers", "greedy"].value == pytest.approx(2 / 3)
    assert (found["answers", "greedy"].expected, found["answers", "greedy"].passed) == (1, False)
    assert list(outcome.positions) == ["image", "text", "answer"]
    parts = [result(i).positions["text"] for i in (1, 2, 3)]
    assert outcome.positions["text"].count == 9
    mean = sum(part.bundle.kl_nats for part in parts) / 9
    assert found["logits", "at text tokens"].name == "at text tokens"
    kl = next(c for c in outcome.checks if c.metric == "KL divergence" and "text" in c.name)
    assert kl.value == pytest.approx(mean)
    assert outcome.longest_prompt == 8


def test_what_a_case_gave_is_read_back_exactly(tmp_path: Path) -> None:
    path = tmp_path / "cases.jsonl"
    given = [result(1), result(2, math.nan), result(3, -math.inf)]
    with ResultsFile(path, ABOUT, "--report") as file:
        known = FileResultCache(file)
        for i, one in enumerate(given):
            known.add(case(f"{i}"), one)
    for line in path.read_text("utf-8").splitlines():
        json.loads(line, parse_constant=pytest.fail)  # no JSON of Python alone
    with ResultsFile(path, ABOUT, "--report") as file:
        known = FileResultCache(file)
        assert [repr(known.get(case(f"{i}"))) for i in range(3)] == [repr(one) for one in given]
        assert known.reused == 3
        assert known.get(case("0", "another question")) is None


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("tokens",), -1),
        (("tokens",), None),
        (("checks",), {}),
        (("checks", 0, "value"), "many"),
        (("checks", 0, "stage"), 7),
        (("checks", 0, "higher_is_better"), 1),
        (("answer", "reference"), None),
        (("answer", "bundle_pieces"), [3]),
        (("positions", "text", "count"), 1.5),
        (("positions", "text", "bundle", "kl"), [1, 2]),
        (("positions", "text", "bundle", "kl"), [1, 2, "x"]),
        (("positions", "text", "bundle"), []),
    ],
)
def test_a_damaged_result_is_refused(tmp_path: Path, path: tuple[Any, ...], value: Any) -> None:
    file = tmp_path / "cases.jsonl"
    with ResultsFile(file, ABOUT, "--report") as results:
        FileResultCache(results).add(case(), result(1))
    first, line = file.read_text("utf-8").splitlines()
    whole = inner = json.loads(line)
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    file.write_text(f"{first}\n{json.dumps(whole)}\n", "utf-8")
    with (
        ResultsFile(file, ABOUT, "--report") as results,
        pytest.raises(ResultsError, match="the result of one is damaged"),
    ):
        FileResultCache(results).get(case())


def write_data(folder: Path, *lines: str | dict[str, str]) -> Path:
    Image.new("RGB", (40, 30), "red").save(folder / "red.png")
    path = folder / "own.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts), "utf-8")
    return path


GOOD = {"image": "red.png", "question": "What is it?", "answer": "Red."}
LONG = {"question": "How long? " * 300}


def test_own_questions_are_read_as_calibrations_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_data(tmp_path, GOOD, {"question": "问"}, "oops", {"image": "gone.png"})
    with pytest.raises(DataError, match=r"own\.jsonl, line 3: not a line of JSON.*--skip-bad"):
        read_cases(path, with_pictures=True, skip_bad=False)
    first, second = read_cases(path, with_pictures=True, skip_bad=True)
    *each, all_ = caplog.messages
    assert [line.rsplit("line ")[1][:2] for line in each] == ["3:", "4:"]
    assert "2 of 4 lines left out" in all_
    assert (first.name, first.answer) == (f"{path}, line 1", "Red.")
    picture = first.open()
    assert picture is not None and picture.size == (40, 30)
    assert second.open() is None
    assert first.digest != second.digest
    before = first.digest
    Image.new("RGB", (40, 30), "blue").save(tmp_path / "red.png")
    assert read_cases(path, with_pictures=True, skip_bad=True)[0].digest != before
    with pytest.raises(DataError, match="line 1: names an image"):
        read_cases(path, with_pictures=False, skip_bad=False)


def test_built_in_cases_are_the_same_each_time() -> None:
    settings = {"pictures": 2, "seed": 7, "text_prompts": ["a", "b"]}
    vision = ModelConfig.load(CONFIGS / "demo" / "config.json").vision
    first, second = (built_in_cases(settings, vision) for _ in range(2))
    assert [c.digest for c in first] == [c.digest for c in second]
    assert len({c.digest for c in first}) == len(first) == 4
    assert len({c.picture_digest for c in first}) == 2
    assert [c.open() for c in built_in_cases(settings, None)] == [None, None]


@pytest.fixture
def verify(capsys: pytest.CaptureFixture[str]) -> Verify:
    def verify(*arguments: Any) -> tuple[int, dict[str, Any] | str]:
        capsys.readouterr()
        code = main(["verify", *map(str, arguments), "--json"])
        said = capsys.readouterr()
        return code, json.loads(said.out) if code in (0, 1) else said.err

    return verify


def test_a_run_goes_on_where_it_ended(
    bundle: Path, tmp_path: Path, verify: Verify, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    data = write_data(
        tmp_path, GOOD, {"image": "red.png", "question": "And?"}, LONG, {"question": "Hello!"}
    )
    out = tmp_path / "report"
    arguments = [bundle, "--data", data, "--skip-bad", "--report", out]
    code, said = verify(bundle, "--data", data, "--report", out)
    assert code == 2
    assert "own.jsonl, line 3: the prompt has" in said
    shutil.rmtree(out)

    asked: list[str] = []
    real = run._Runner.run

    def until_the_second(self: Any, one: Case) -> CaseResult:
        if len(asked) == 1:
            raise KeyboardInterrupt
        asked.append(one.name)
        return real(self, one)

    with monkeypatch.context() as patched:
        patched.setattr(run._Runner, "run", until_the_second)
        assert verify(*arguments)[0] == INTERRUPTED
    assert {file.name for file in out.iterdir()} == {CASES}
    with (out / CASES).open("a") as file:
        file.write('{"key": "killed within a line')
    code, found = verify(*arguments)
    assert isinstance(found, dict)
    assert (code, found["earlier_cases"], len(found["answers"])) == (0, 1, 3)
    assert {file.name for file in out.iterdir()} == {CASES, DATA, PAGE}
    assert json.loads((out / DATA).read_text("utf-8")) == found
    assert "What is it?" in (out / PAGE).read_text("utf-8")

    code, again = verify(bundle, "--data", data, "--skip-bad")
    assert isinstance(again, dict)
    for name in ("seconds", "earlier_cases", "ran"):
        del found[name], again[name]
    for one in (found, again):  # the window is tried with the first case of each run
        one["checks"] = [c for c in one["checks"] if c["stage"] != "sliding window"]
    assert again["checks"] == found["checks"]
    assert again == found
    code, said = verify(*arguments, "--window", 512)
    assert code == 2
    assert "results of another run: window differ; name another --report" in said


def test_another_reference_needs_force(
    bundle: Path, checkpoint: Path, tmp_path: Path, verify: Verify
) -> None:
    other = shutil.copytree(checkpoint, tmp_path / "other")
    (weights,) = other.glob("*.safetensors")
    content = bytearray(weights.read_bytes())
    content[-4] ^= 1  # the last bit of a float32
    weights.write_bytes(content)
    code, said = verify(bundle, "--reference", other)
    assert code == 2
    assert "not the checkpoint" in said and "--force" in said
    code, found = verify(bundle, "--reference", other, "--force")
    assert code == 0 and isinstance(found, dict)
    (warning,) = found["warnings"]
    assert f"{other}: not the checkpoint that {bundle} was made from" in warning
    assert verify(bundle, "--force")[1]["warnings"] == []  # type: ignore[index]
    geometry = write_checkpoint(tmp_path / "geometry", seed=5)
    code, said = verify(bundle, "--reference", geometry, "--force")
    assert code == 2
    assert "model configuration" in said, "what has other shapes cannot be compared at all"


def test_an_altered_bundle_takes_nothing_from_an_earlier_run(
    bundle: Path, tmp_path: Path, verify: Verify
) -> None:
    pytest.importorskip("matplotlib")
    copy, out = shutil.copytree(bundle, tmp_path / "bundle"), tmp_path / "report"
    data = write_data(tmp_path, {"question": "Hello!"})
    arguments = [copy, "--data", data, "--report", out]
    assert verify(*arguments)[0] == 0
    generation = copy / "generation.json"
    generation.write_bytes(generation.read_bytes().replace(b"1", b"2", 1))
    code, found = verify(*arguments)
    assert isinstance(found, dict)
    assert (code, found["failed_stages"], found["earlier_cases"]) == (1, ["files", "settings"], 0)


def test_options_that_do_not_go_together(bundle: Path, verify: Verify) -> None:
    code, said = verify(bundle, "--skip-bad")
    assert code == 2
    assert "--skip-bad needs --data" in said
