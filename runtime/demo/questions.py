"""Questions about a scene with their answers, in English and Chinese, in one and two turns."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from runtime.demo.scenes import (
    COLOURS,
    MAX_ITEMS,
    PLACES,
    SHAPES,
    WORDS,
    Generator,
    Scene,
    ShapeItem,
)
from runtime.inputs.prompt import Message

LANGUAGES = ("en", "zh")
Words = dict[str, str]


@dataclass(frozen=True)
class Example:
    """A conversation that ends with a question, and its right answer."""

    language: str
    meaning: str  # of the last question
    messages: tuple[Message, ...]
    answer: str


@dataclass(frozen=True)
class Turn:
    """A question and its right answer."""

    meaning: str
    question: str
    answer: str
    about: ShapeItem | None = None  # the one item that the answer is about


def random_example(scene: Scene, language: str, rng: Generator) -> Example:
    """Asks one question, or two; the second may refer to the first's item as "it"."""
    first = _random_turn(scene, language, rng)
    if rng.random() < 0.65:
        return conversation(language, [first])
    if first.about is not None and rng.random() < 0.7:
        second = _follow_up(first, language, rng)
    else:
        second = _random_turn(scene, language, rng)
    return conversation(language, [first, second])


def all_wordings(language: str) -> dict[str, list[str]]:
    """Returns the wordings of every meaning, with their placeholders."""
    return {name: list(by[language]["ask"]) for name, by in WORDS["meanings"].items()}


def conversation(language: str, turns: list[Turn]) -> Example:
    """Makes an example of turns, the last of which is to be answered."""
    messages: list[Message] = []
    for turn in turns:
        messages += [
            {"role": "user", "content": turn.question},
            {"role": "assistant", "content": turn.answer},
        ]
    return Example(language, turns[-1].meaning, tuple(messages[:-1]), turns[-1].answer)


def _random_turn(scene: Scene, language: str, rng: Generator) -> Turn:
    """Picks a meaning that has exactly one right answer for this scene."""
    items = scene.items
    item = items[int(rng.integers(len(items)))]
    choices = ["count_all", "count_shape", "count_colour", "exists", "what_at", "describe"]
    if len(items) == 1:
        choices += ["only_colour", "only_shape", "only_size", "only_place"] * 2
    if sum(i.shape == item.shape for i in items) == 1:
        choices += ["colour_of"] * 2
    if sum(i.colour == item.colour for i in items) == 1:
        choices += ["shape_of"] * 2
    if sum((i.shape, i.colour) == (item.shape, item.colour) for i in items) == 1:
        choices += ["place_of"] * 2
    meaning = str(rng.choice(choices))
    if meaning.startswith("only_") or meaning in ("colour_of", "shape_of", "place_of"):
        return _turn(meaning, _item_words(item, language), language, rng, item)
    return _COUNTING[meaning](scene, item, language, rng)


def _count_all(scene: Scene, item: ShapeItem, language: str, rng: Generator) -> Turn:
    return _turn("count_all", _number_words(len(scene.items), language), language, rng)


def _count_shape(scene: Scene, item: ShapeItem, language: str, rng: Generator) -> Turn:
    shape = item.shape if rng.random() < 0.75 else str(rng.choice(SHAPES))
    words = _number_words(sum(i.shape == shape for i in scene.items), language)
    words["shapes"] = WORDS["shapes"][shape][language][1]
    return _turn("count_shape", words, language, rng)


def _count_colour(scene: Scene, item: ShapeItem, language: str, rng: Generator) -> Turn:
    colour = item.colour if rng.random() < 0.75 else str(rng.choice(COLOURS))
    words = _number_words(sum(i.colour == colour for i in scene.items), language)
    words["colour"] = WORDS["colours"][colour][language]
    return _turn("count_colour", words, language, rng)


def _exists(scene: Scene, item: ShapeItem, language: str, rng: Generator) -> Turn:
    # Half of the questions name an item that is there; the others share its shape or colour.
    shape, colour = item.shape, item.colour
    if rng.random() < 0.5:
        if rng.random() < 0.5:
            shape = str(rng.choice(SHAPES))
        else:
            colour = str(rng.choice(COLOURS))
    there = any((i.shape, i.colour) == (shape, colour) for i in scene.items)
    words = {
        "shape": WORDS["shapes"][shape][language][0],
        "colour": WORDS["colours"][colour][language],
        "yes": WORDS["yes"][language][there],
    }
    return _turn("exists", words, language, rng)


def _what_at(scene: Scene, item: ShapeItem, language: str, rng: Generator) -> Turn:
    if len(scene.items) == PLACES or rng.random() < 0.75:
        return _turn("what_at", _item_words(item, language), language, rng, item)
    empty = sorted(set(range(PLACES)) - {i.place for i in scene.items})
    place = WORDS["places"][int(rng.choice(empty))][language]
    turn = _turn("what_at", {**_item_words(item, language), "place": place}, language, rng)
    return Turn("what_at", turn.question, WORDS["nothing"][language])


def _describe(scene: Scene, item: ShapeItem, language: str, rng: Generator) -> Turn:
    form = WORDS["meanings"]["describe"][language]
    turn = _turn("describe", _item_words(item, language), language, rng)
    descriptions = (fill(form["say"], _item_words(i, language)) for i in scene.items)
    return Turn("describe", turn.question, form["join"].join(descriptions))


_COUNTING = {
    "count_all": _count_all,
    "count_shape": _count_shape,
    "count_colour": _count_colour,
    "exists": _exists,
    "what_at": _what_at,
    "describe": _describe,
}


def _follow_up(first: Turn, language: str, rng: Generator) -> Turn:
    """Asks about the first turn's item something that the first turn did not."""
    asked = {"its_" + part for part in first.meaning.split("_")}
    choices = sorted({"its_place", "its_colour", "its_shape", "its_size"} - asked)
    assert first.about is not None
    meaning = str(rng.choice(choices))
    return _turn(meaning, _item_words(first.about, language), language, rng, first.about)


def _turn(
    meaning: str, words: Words, language: str, rng: Generator, about: ShapeItem | None = None
) -> Turn:
    form: dict[str, Any] = WORDS["meanings"][meaning][language]
    question = fill(str(rng.choice(form["ask"])), words)
    return Turn(meaning, question, fill(form["say"], words), about)


def fill(form: str, words: Words) -> str:
    """Puts words in the places of a form: `{Colour}` is `{colour}` with a capital."""
    capitals = {key.capitalize(): word.capitalize() for key, word in words.items()}
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", form.format(**words, **capitals))


def _item_words(item: ShapeItem, language: str) -> Words:
    return {
        "shape": WORDS["shapes"][item.shape][language][0],
        "colour": WORDS["colours"][item.colour][language],
        "size": WORDS["sizes"][item.size][language],
        "place": WORDS["places"][item.place][language],
    }


def _number_words(count: int, language: str) -> Words:
    assert count <= MAX_ITEMS
    return {"number": WORDS["numbers"][language][count]}
