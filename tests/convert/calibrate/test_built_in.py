"""The built-in calibration set: whole, of many kinds, in both languages, its licences named."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from convert.calibrate import built_in
from convert.calibrate.built_in import (
    DRAWINGS,
    FOLDER,
    PHOTOGRAPHS,
    TEXTS,
    default_samples,
    read_drawings,
)
from convert.calibrate.drawings import glyphs
from convert.calibrate.samples import CalibrationError, CalibrationSample, read_samples
from convert.support.cache import cache_folder
from runtime.demo.task import TASKS
from runtime.inputs.prompt import Tokenizer
from tests.bench import real_text

KINDS = {
    *("arithmetic", "classical", "code-other", "code-python", "dates", "dialogues"),
    *("encyclopaedia", "essays", "forum", "instructions", "interviews", "json", "legal"),
    *("letters", "lists", "mixed", "news", "ocr", "poems", "products", "recipes", "reference"),
    *("reviews", "science", "shell", "stories", "summaries", "tables", "translation", "travel"),
}
DRAWN = {
    *("bars", "calendar", "chat", "clock", "dialog", "editor", "flow", "form", "landscape"),
    *("lines", "map", "note", "objects", "pattern", "pie", "receipt", "road", "settings", "table"),
}
MOST_PIXELS, MOST_BYTES = 448, 1_500_000  # a side of a photograph; all photographs
REAL = Path(__file__).resolve().parents[3] / "../shared/model/minicpm-v/tokenizer.model"
IMAGE_TOKENS = 64
WORDS = 10  # in a row, which two texts do not share by chance


@pytest.fixture(scope="module")
def samples() -> list[CalibrationSample]:
    return default_samples(demo=None, pictures=True)


def text_of(sample: CalibrationSample) -> str:
    return "\n".join([*(message["content"] for message in sample.messages), sample.answer])


def is_chinese(sample: CalibrationSample) -> bool:
    return any("\u4e00" <= char <= "\u9fff" for char in sample.messages[-1]["content"])


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def test_it_is_of_the_size_that_its_page_states(samples: list[CalibrationSample]) -> None:
    pictured = [sample for sample in samples if sample.picture is not None]
    assert (len(samples), len(pictured)) == (256, 94)
    assert len({sample.picture_digest for sample in pictured}) == 47
    assert len(default_samples(demo=None, pictures=False)) == 162
    assert all(sample.answer.strip() for sample in samples)
    assert any(len(sample.messages) > 1 for sample in samples)


def test_its_tokens_are_those_that_its_page_states(samples: list[CalibrationSample]) -> None:
    if not REAL.exists():
        pytest.skip(f"the real tokenizer is not at {REAL}")
    tokenizer = Tokenizer(REAL)

    def tokens(chosen: list[CalibrationSample], image: int) -> str:
        total = 0
        for sample in chosen:
            prompt = tokenizer.prompt(sample.messages, 0 if sample.picture is None else image)
            total += len(prompt.ids) + len(tokenizer.encode(sample.answer))
        return f"{total:,}"

    page = " ".join((FOLDER / "README.md").read_text("utf-8").split())
    assert f"has {tokens(samples, 0)} tokens, and {tokens(samples, IMAGE_TOKENS)} with" in page
    texts = default_samples(demo=None, pictures=False)
    assert f"a decoder alone uses it, it has {tokens(texts, 0)}." in page


def test_both_languages(samples: list[CalibrationSample]) -> None:
    assert 0.45 < np.mean([is_chinese(sample) for sample in samples]) < 0.55
    for path in sorted(TEXTS.glob("*.jsonl")):
        kind = read_samples(path, pictures=False, skip_bad=False)
        if path.stem != "mixed":
            assert 0.3 < np.mean([is_chinese(sample) for sample in kind]) < 0.8, path.stem
    by_picture: dict[str, list[bool]] = {}
    for sample in samples:
        if sample.picture is not None:
            by_picture.setdefault(sample.picture_digest, []).append(is_chinese(sample))
    assert all(sorted(each) == [False, True] for each in by_picture.values())


def test_every_kind_is_there() -> None:
    assert {path.stem for path in TEXTS.iterdir()} == KINDS
    kinds = Counter(type(d.picture).__struct_config__.tag for _, d in read_drawings(DRAWINGS))
    assert set(kinds) == DRAWN
    assert max(kinds.values()) <= 2
    assert len(list(PHOTOGRAPHS.glob("*.jpg"))) == 21


def test_no_sample_is_there_twice(samples: list[CalibrationSample]) -> None:
    seen: dict[tuple[str, ...], str] = {}
    for sample in samples:
        found = words(text_of(sample))
        for i in range(len(found) - WORDS):
            run = tuple(found[i : i + WORDS])
            assert seen.setdefault(run, sample.where) == sample.where, (run, sample.where)
    questions = [(sample.messages, sample.picture_digest) for sample in samples]
    assert all(questions.count(question) == 1 for question in questions)


@pytest.mark.parametrize("step", [1, 2, 4, 8, 16])
def test_every_nth_is_a_fair_choice(step: int, samples: list[CalibrationSample]) -> None:
    """As `--target-size` and `verify --sensitivity` take it."""
    few = samples[::step]
    assert 0.2 < np.mean([is_chinese(sample) for sample in few]) < 0.8
    assert 0.15 < np.mean([sample.picture is not None for sample in few]) < 0.7


def test_questions_about_a_picture_follow_each_other(samples: list[CalibrationSample]) -> None:
    """Then each picture is encoded once."""
    digests = [sample.picture_digest for sample in samples if sample.picture_digest]
    assert len(list(itertools.groupby(digests))) == len(set(digests))


def held_out(name: str) -> list[str]:
    if name == "licences":
        if not real_text.LICENCES.is_dir():
            pytest.skip("Debian's licence texts are not here")
        return [path.read_text("utf-8") for path in real_text.LICENCES.iterdir()]
    archive = cache_folder() / "text" / real_text.ARCHIVE
    if not archive.is_file():
        pytest.skip(f"{archive.name} was not fetched; tests.bench.real_decoder does")
    return list(real_text.pages(archive).values())


@pytest.mark.parametrize("name", ["licences", "documentation"])
def test_what_the_benchmark_holds_out_is_not_in_it(
    name: str, samples: list[CalibrationSample]
) -> None:
    mine = {}
    for sample in samples:
        found = words(text_of(sample))
        mine |= {tuple(found[i : i + WORDS]): sample.where for i in range(len(found) - WORDS)}
    assert len(mine) > 5000
    for text in held_out(name):
        theirs = words(text)
        for i in range(len(theirs) - WORDS):
            run = tuple(theirs[i : i + WORDS])
            assert run not in mine, (mine.get(run), run)


def test_photographs(samples: list[CalibrationSample]) -> None:
    files = sorted(PHOTOGRAPHS.glob("*.jpg"))
    asked = {json.loads(line)["image"] for line in
             (PHOTOGRAPHS / "photographs.jsonl").read_text("utf-8").splitlines()}  # fmt: skip
    assert asked == {path.name for path in files}
    assert sum(path.stat().st_size for path in files) < MOST_BYTES
    page = (PHOTOGRAPHS / "LICENCES.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `(.+?)` \|(.+)\|$", page, re.MULTILINE))
    assert set(rows) == asked
    for path in files:
        picture = Image.open(path)
        assert max(picture.size) <= MOST_PIXELS and picture.format == "JPEG"
        cells = [cell.strip() for cell in rows[path.name].split("|")]
        assert len(cells) == 4 and all(cells), path.name  # what, whose, from where, licence
        assert re.search(r"CC0|CC BY 2\.0|[Pp]ublic domain|[Nn]o known copyright", cells[3])


def test_drawings_are_the_same_every_time() -> None:
    pixels = set()
    for where, drawing in read_drawings(DRAWINGS):
        picture = drawing.draw()
        assert picture.mode == "RGB" and 150 <= min(picture.size) <= max(picture.size) <= 600, where
        content = picture.tobytes()
        assert content == drawing.draw().tobytes(), where
        others = (msgspec.structs.replace(drawing, seed=seed).draw() for seed in range(6))
        assert any(content != other.tobytes() for other in others), f"{where}: of no seed"
        assert len(set(picture.convert("L").tobytes())) > 10, f"{where}: nearly empty"
        pixels.add(content)
    assert len(pixels) == len(read_drawings(DRAWINGS))


def test_notes_have_known_glyphs_only() -> None:
    for where, drawing in read_drawings(DRAWINGS):
        lines = getattr(drawing.picture, "lines", [])
        if type(drawing.picture).__struct_config__.tag == "note":
            assert set("".join(lines)) <= glyphs.GLYPHS, where


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda line: line[:-9], "line 2: .*"),
        (lambda line: line.replace('"seed"', '"sed"'), "line 2: .*unknown field `sed`"),
        (lambda line: re.sub(r'"kind": "\w+"', '"kind": "oil"', line), "line 2: .*'oil'"),
        (lambda line: re.sub(r'"question": ".*?"', '"question": " "', line), "prompt is empty"),
        (lambda line: line.replace('"answer"', '"reply"'), "line 2: .*unknown field `reply`"),
    ],
)
def test_a_damaged_set_is_refused(
    damage: object, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert callable(damage)
    path = tmp_path / "drawings.jsonl"
    lines = DRAWINGS.read_text("utf-8").splitlines()
    path.write_text("\n".join([lines[0], damage(lines[1])]), "utf-8")
    monkeypatch.setattr(built_in, "DRAWINGS", path)
    with pytest.raises(CalibrationError, match=f"drawings.jsonl, {problem}|{problem}"):
        default_samples(demo=None, pictures=True)


def test_a_file_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(PHOTOGRAPHS, tmp_path / "p")
    (tmp_path / "p" / "cat.jpg").unlink()
    monkeypatch.setattr(built_in, "PHOTOGRAPHS", tmp_path / "p")
    with pytest.raises(CalibrationError, match=r"line \d+: .*cat\.jpg: no such file"):
        default_samples(demo=None, pictures=True)
    monkeypatch.setattr(built_in, "DRAWINGS", tmp_path / "none.jsonl")
    with pytest.raises(CalibrationError, match=r"none\.jsonl: cannot be read"):
        read_drawings(built_in.DRAWINGS)


@pytest.mark.parametrize("demo", TASKS)
def test_a_demo_has_a_set_of_its_own(demo: str) -> None:
    drawn = default_samples(demo=demo, pictures=True)
    assert len(drawn) == 192 and all(sample.picture is not None for sample in drawn)
    assert drawn[0].picture_digest == drawn[1].picture_digest != drawn[2].picture_digest
    wordings = {w for form in TASKS[demo].wordings["meanings"].values() for w in form["zh"]["ask"]}
    pattern = "|".join(re.sub(r"\{\w+\}", ".+", wording) for wording in wordings)
    assert re.fullmatch(pattern, drawn[1].messages[0]["content"])
    assert default_samples(demo=demo, pictures=False) == []
