"""The demo: its pictures, its questions, its packed batches, and how well it answers."""

import json

import numpy as np
import pytest
import torch

from convert.checkpoint.config import CONFIGS, ModelConfig
from convert.checkpoint.reader import DEMO, Checkpoint
from runtime.demo import scenes
from runtime.demo.batches import IGNORED_TARGET, Samples, collate
from runtime.demo.evaluate import WINDOW, evaluate
from runtime.demo.questions import LANGUAGES, all_wordings, random_example
from runtime.demo.scenes import Scene, ShapeItem, draw, random_scene
from runtime.demo.task import TASKS
from runtime.demo.tokenizer import train_tokenizer
from runtime.inputs.prompt import Tokenizer
from runtime.reference.load import load_reference
from runtime.reference.model import MiniCPMV
from runtime.sessions.backend import ReferenceBackend
from runtime.sessions.reference_session import ReferenceSession

SQUARE = Scene((ShapeItem("square", "red", "big", 4),), 120, 120)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(DEMO / "tokenizer.model")


def test_a_scene_is_a_function_of_its_seed():
    first, second = (random_scene(np.random.default_rng([3, 5])) for _ in range(2))
    assert first == second
    pictures = [draw(first, np.random.default_rng(1)).picture.tobytes() for _ in range(2)]
    assert pictures[0] == pictures[1]
    assert draw(first, np.random.default_rng(2)).picture.tobytes() != pictures[0]


def test_an_item_is_drawn_in_its_cell_and_its_colour():
    for place in range(scenes.PLACES):
        scene = Scene((ShapeItem("circle", "blue", "small", place),), 150, 120)
        drawing = draw(scene, np.random.default_rng(place))
        labels = np.asarray(drawing.labels) > 0
        rows, columns = np.nonzero(labels)
        cell = labels.shape[0] / 3, labels.shape[1] / 3
        assert {
            int(r // cell[0]) * 3 + int(c // cell[1]) for r, c in zip(rows, columns, strict=True)
        } == {place}
        y, x = int(rows.mean()) // 2, int(columns.mean()) // 2
        red, green, blue = drawing.picture.getpixel((x, y))
        assert blue > 180 and red < 60 and green < 110


@pytest.mark.parametrize("shape", scenes.SHAPES)
def test_big_is_bigger_than_small(shape):
    areas = {}
    for size in scenes.SIZES:
        scene = Scene((ShapeItem(shape, "red", size, 4),), 150, 150)
        drawn = [draw(scene, np.random.default_rng(i)).labels for i in range(20)]
        areas[size] = [int((np.asarray(d) > 0).sum()) for d in drawn]
    assert min(areas["big"]) > 1.4 * max(areas["small"])


def _count(scene, **wanted):
    return sum(all(getattr(i, k) == v for k, v in wanted.items()) for i in scene.items)


@pytest.mark.parametrize("language", LANGUAGES)
def test_answers_are_right(language):
    """Answers of three meanings, found again from question and scene by other means."""
    words = scenes.WORDS
    numbers = [n.capitalize() for n in words["numbers"][language]]
    seen = set()
    for i in range(600):
        rng = np.random.default_rng([11, i])
        scene = random_scene(rng)
        example = random_example(scene, language, rng)
        question = example.messages[-1]["content"]
        seen.add(example.meaning)
        shapes = [s for s in scenes.SHAPES if words["shapes"][s][language][1] in question]
        colours = [c for c in scenes.COLOURS if words["colours"][c][language] in question]
        if example.meaning == "count_all":
            assert numbers[len(scene.items)] in example.answer
        elif example.meaning == "count_shape":
            assert numbers[_count(scene, shape=shapes[0])] in example.answer
        elif example.meaning == "count_colour":
            assert numbers[_count(scene, colour=colours[0])] in example.answer
        elif example.meaning == "describe":
            assert example.answer.count("。" if language == "zh" else ".") == len(scene.items)
    assert seen == set(all_wordings(language)), "a meaning is never asked"


def test_wordings_of_the_readme_are_among_them():
    assert "What colour is the shape?" in all_wordings("en")["only_colour"]
    assert "这个图形是什么颜色？" in all_wordings("zh")["only_colour"]
    for language in LANGUAGES:
        everything = [w for by in all_wordings(language).values() for w in by]
        assert len(everything) == len(set(everything)), "two meanings share a wording"


def test_the_tokenizer_is_of_the_real_ones_kind(tokenizer):
    config = ModelConfig.load(DEMO / "config.json")
    assert tokenizer.vocab_size == config.decoder.vocab_size and tokenizer.vocab_size % 2
    assert (tokenizer.image_start_id, tokenizer.image_end_id) == (101, 102)
    for text in (
        "What colour is it?",
        "这个图形是什么颜色？",
        " two  spaces ",
        "𝄞 ünïcödé\n\t",
        "１2",
    ):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("name", TASKS)
def test_the_tokenizer_follows_from_the_wordings(name, tmp_path):
    task = TASKS[name]
    trained = tmp_path / "tokenizer.model"
    train_tokenizer(trained, ModelConfig.load(task.folder / "config.json"), task)
    assert trained.read_bytes() == (task.folder / "tokenizer.model").read_bytes()


@pytest.mark.parametrize("name", TASKS)
def test_packed_conversations_equal_separate_ones(name):
    """The packing is only a saving: every answer's logits are those of the conversation alone."""
    task = TASKS[name]
    config = ModelConfig.load(task.folder / "config.json")
    tokenizer = Tokenizer(task.folder / "tokenizer.model", config)
    torch.manual_seed(0)
    model = MiniCPMV(config).eval()
    samples = Samples(tokenizer, task, config, seed=1, start=0, count=2, conversations=3)
    batch = collate([samples[0], samples[1]])
    with torch.inference_mode():
        packed = model.llm(model.llm.embed(batch.ids), positions=batch.positions, mask=batch.mask)
        for row, sample in enumerate([samples[0], samples[1]]):
            for branch in range(1, 4):
                at = torch.nonzero((sample.branch == 0) | (sample.branch == branch)).flatten()
                alone = model.llm(model.llm.embed(sample.ids[at].unsqueeze(0)))
                # Float32 sums in another order.
                torch.testing.assert_close(packed[row, at], alone[0], atol=2e-5, rtol=1e-5)
                learnt = sample.targets[at] != IGNORED_TARGET
                assert learnt.any() and not learnt[: int((sample.branch == 0).sum())].any()


def test_the_checkpoint_answers(tokenizer):
    """A sample of the 500 questions per language whose accuracy the README states."""
    record = json.loads((DEMO / "accuracy.json").read_text())
    backend = ReferenceBackend(load_reference(Checkpoint.open(None)))
    session = ReferenceSession(backend, tokenizer, window=WINDOW)
    scores = evaluate(session, TASKS["demo"], 40)
    for language in LANGUAGES:
        # 40 questions: three standard deviations below the measured accuracy.
        p = record[language]["accuracy"]
        least = p - 3 * (p * (1 - p) / 40) ** 0.5 - 0.02
        assert scores[language]["all"].accuracy >= least, (language, scores[language])


def test_the_readme_lists_every_wording():
    readme = (CONFIGS.parent / "runtime/demo/README.md").read_text("utf-8")
    for language in LANGUAGES:
        for wordings in all_wordings(language).values():
            assert [w for w in wordings if w not in readme] == []
