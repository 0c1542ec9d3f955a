"""The demo of slices: its pictures, its questions, its labels, and what slices are worth to it."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from convert.checkpoint.config import ModelConfig
from convert.checkpoint.reader import DEMOS, Checkpoint
from runtime.demo import train as training
from runtime.demo.batches import Details, Samples
from runtime.demo.digits import (
    DIGIT_COLOURS,
    DIGIT_HEIGHTS,
    DIGITS,
    draw_digits,
    random_digit,
    random_question,
)
from runtime.demo.evaluate import WINDOW, evaluate
from runtime.demo.questions import LANGUAGES
from runtime.demo.scenes import WORDS
from runtime.demo.task import TASKS
from runtime.inputs.prompt import Tokenizer
from runtime.inputs.slices import plan_cut
from runtime.reference.load import load_reference
from runtime.sessions.backend import ReferenceBackend
from runtime.sessions.reference_session import ReferenceSession

TASK = TASKS["demo-2.0"]
README = DEMOS["demo-2.0"].parents[1] / "runtime/demo/README.md"


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    return ModelConfig.load(TASK.folder / "config.json")


@pytest.fixture(scope="module")
def tokenizer(config: ModelConfig) -> Tokenizer:
    return Tokenizer(TASK.folder / "tokenizer.model", config)


def test_a_scene_is_a_function_of_its_seed() -> None:
    first, second = (random_digit(np.random.default_rng([3, 5])) for _ in range(2))
    assert first == second
    pictures = [draw_digits(first, np.random.default_rng(1)).tobytes() for _ in range(2)]
    assert pictures[0] == pictures[1]
    assert draw_digits(first, np.random.default_rng(2)).tobytes() != pictures[0]


def test_a_digit_is_drawn_at_its_place_in_its_colour() -> None:
    """The ink around a digit's middle is nearest to its own colour."""
    for i in range(40):
        rng = np.random.default_rng([9, i])
        scene = random_digit(rng)
        pixels = np.asarray(draw_digits(scene, rng), dtype=np.int64)
        reach = 0.02 * math.sqrt(scene.width * scene.height)
        for item in scene.items:
            left, top = int(item.x - reach), int(item.y - reach)
            part = pixels[top : int(item.y + reach), left : int(item.x + reach)].reshape(-1, 3)
            # The background is light; what is furthest from white is ink.
            ink = part[np.abs(part - 255).sum(1).argmax()]
            distances = {
                name: np.abs(ink - WORDS["colours"][name]["rgb"]).sum() for name in DIGIT_COLOURS
            }
            assert min(distances, key=distances.__getitem__) == item.colour


def test_slices_show_digits_and_the_overview_does_not(config: ModelConfig) -> None:
    """A digit has 9 to 13 pixels of height in its slice, and at most 4 in the overview."""
    assert config.vision is not None
    for i in range(100):
        rng = np.random.default_rng([10, i])
        scene = random_digit(rng)
        cut = plan_cut((scene.width, scene.height), config.vision)
        assert cut.grid is not None
        least, most = (share * scene.whole / scene.height for share in DIGIT_HEIGHTS)
        refined = cut.grid[1] * cut.cell[1]
        assert 8.5 < least * refined and most * refined < 13
        assert most * cut.overview[1] < 4.5


@pytest.mark.parametrize("language", LANGUAGES)
def test_answers_are_right(language: str) -> None:
    """Every answer is the scene's digit or its colour, whichever the question names."""
    seen = set()
    for i in range(100):
        rng = np.random.default_rng([11, i])
        (item,) = (scene := random_digit(rng)).items
        example = random_question(scene, language, rng)
        asks_colour = (
            "colo" in example.messages[-1]["content"] or "颜色" in (example.messages[-1]["content"])
        )
        seen.add((example.meaning, len(example.messages)))
        right = WORDS["colours"][item.colour][language] if asks_colour else str(item.digit)
        assert example.answer.rstrip(".。").lower() == right
        assert asks_colour == (example.meaning == "colour")
    assert seen == {(meaning, turns) for meaning in DIGITS["meanings"] for turns in (1, 3)}


def test_labels_name_a_digit_once(config: ModelConfig, tokenizer: Tokenizer) -> None:
    """In the slices together; in the overview, only its colour can be told."""
    samples = Samples(tokenizer, TASK, config, seed=2, start=0, count=40, conversations=1)
    numbers = set()
    for i in range(40):
        subject = TASK.subject(np.random.default_rng([2, i]), True)
        (item,) = subject.scene.items
        digit, colour = item.digit + 1, DIGIT_COLOURS.index(item.colour) + 1
        overview, *slices = samples[i].images
        numbers.add(len(slices))
        for labels in ("patch_labels", "query_labels"):
            found = getattr(overview, labels)
            told = digit if subject.max_slices == 1 and not slices and subject.readable else -100
            assert found[:, found[1] > 0].T.tolist() == [[told, colour]]
            if slices:
                of_all = torch.cat([getattr(image, labels) for image in slices], dim=1)
                assert of_all[:, of_all[1] > 0].T.tolist() == [[digit, colour]]
    assert {0, 2, 4, 9} <= numbers


def test_labels_stand_where_the_ink_is(config: ModelConfig) -> None:
    """Of the pictures that the encoder learns from first."""
    images = Details(TASK, config, seed=3, start=0, end=20)
    near = 0
    for i in range(20):
        image = images[i]
        rows, columns = (side // 14 for side in image.pixels.shape[-2:])
        ink = image.pixels.mean(0).unfold(0, 14, 14).unfold(1, 14, 14).flatten(2)
        contrast = (ink.median() - ink.amin(2)).reshape(rows * columns)
        marked = image.patch_labels[1] > 0
        near += int((contrast[marked] > contrast[~marked].median() + 0.1).sum())
        assert (image.patch_labels[0] > 0).equal(marked)
    assert near > 0.95 * 20 * 8


def test_the_tokenizer_has_ids_for_slices(tokenizer: Tokenizer) -> None:
    """Text that spells the tags of a picture gets other ids."""
    assert (tokenizer.image_start_id, tokenizer.image_end_id) == (101, 102)
    assert tokenizer.vocab_size % 2
    assert not {101, 102, 111, 112} & set(tokenizer.encode("<image></image><slice></slice>"))
    prompt = tokenizer.prompt([{"role": "user", "content": "?"}], 16, grid=(3, 2))
    assert (prompt.ids.count(111), prompt.ids.count(112)) == (1, 1)
    assert len(prompt.image_starts) == 7


@pytest.mark.parametrize("max_slices", [None, 1])
def test_the_checkpoint_answers(
    max_slices: int | None, config: ModelConfig, tokenizer: Tokenizer
) -> None:
    """A sample of the questions whose accuracy the README states, with and without slices."""
    record = _accuracy()
    model = load_reference(Checkpoint.open("demo-2.0"))
    session = ReferenceSession(ReferenceBackend(model), tokenizer, window=WINDOW)
    scores = evaluate(session, TASK, 30, max_slices=max_slices)
    for language in LANGUAGES:
        # 30 questions: three standard deviations around the measured accuracy.
        p = record[str(max_slices or config.vision.slices.max_slice_nums)][language]["accuracy"]
        room = 3 * (p * (1 - p) / 30) ** 0.5 + 0.02
        assert abs(scores[language]["all"].accuracy - p) <= room, (language, scores[language])


def test_what_slices_are_worth() -> None:
    """The record of the committed checkpoint: without slices it guesses."""
    record = _accuracy()
    for language in LANGUAGES:
        for meaning in DIGITS["meanings"]:
            assert _share(record["9"][language], meaning) > 0.85
            assert _share(record["1"][language], meaning) < 0.3


def _accuracy() -> dict[str, Any]:
    """Returns the recorded accuracy by the limit of slices."""
    found: dict[str, Any] = json.loads((TASK.folder / "accuracy.json").read_text())["max_slices"]
    return found


def _share(scores: dict[str, dict[str, str]], meaning: str) -> float:
    right, asked = scores["right of asked"][meaning].split(" of ")
    return int(right) / int(asked)


def test_the_readme_lists_every_wording() -> None:
    readme = README.read_text("utf-8")
    for form in DIGITS["meanings"].values():
        for language in LANGUAGES:
            assert [w for w in form[language]["ask"] if w not in readme] == []


def test_an_interrupted_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights are those of a training that was not interrupted."""
    short = replace(TASK, steps=2, batch=2, conversations=2, detail_steps=2, detail_batch=2)
    monkeypatch.setitem(TASKS, TASK.name, short)
    monkeypatch.setattr(training, "_SAVE_EVERY_S", -1)  # after every step
    whole, halted = tmp_path / "whole", tmp_path / "halted"
    training.train(_asked(whole))
    save = training._save
    for step in (1, 3):  # among the steps of detail, and among those of questions

        def save_and_halt(*state: Any, step: int = step) -> None:
            save(*state)
            if state[-1] == step:
                raise KeyboardInterrupt

        monkeypatch.setattr(training, "_save", save_and_halt)
        with pytest.raises(KeyboardInterrupt):
            training.train(_asked(halted, resume=step > 1))
    monkeypatch.setattr(training, "_save", save)
    training.train(_asked(halted, resume=True))
    names = ("model.safetensors", "config.json", "tokenizer.model", "training.json", "sample.png")
    for name in names:
        assert (halted / name).read_bytes() == (whole / name).read_bytes(), name
    assert Checkpoint.open(whole).config.source == Checkpoint.open("demo-2.0").config.source


def _asked(output: Path, *, resume: bool = False) -> argparse.Namespace:
    return argparse.Namespace(task=TASK.name, output=output, probe_weight=0.5, resume=resume)
