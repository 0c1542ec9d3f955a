"""Trains a demo's SentencePiece model on its own words."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sentencepiece

from convert.checkpoint.config import ModelConfig, SliceConfig
from runtime.demo.task import Task
from runtime.inputs.prompt import ASSISTANT, IMAGE_END, IMAGE_START, USER

_FIRST_ID = 3  # after `<unk>`, `<s>` and `</s>`
_IMAGE_START_ID = 101  # as in the real tokenizer
_REPEATS = 10  # so that words are merged before chance neighbours among the common characters


def train_tokenizer(path: Path, config: ModelConfig, task: Task) -> None:
    """Writes a `tokenizer.model` of the real one's kind: BPE, byte fallback, text unchanged."""
    slices = None if config.vision is None else config.vision.slices
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=_corpus(task),
        model_writer=model,
        model_type="bpe",
        vocab_size=config.decoder.vocab_size,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_digits=True,
        user_defined_symbols=_user_defined(slices),
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())


def _user_defined(slices: SliceConfig | None) -> list[str]:
    """Lists the pieces from id 3: as many before `<image>` as give it its id.

    Tags of slices have ids, but no pieces of their own names, as in the real tokenizer.
    """
    fillers = (f"<reserved_{i}>" for i in itertools.count())
    pieces = ["\n", "\t", *"０１２３４５６７８９"]
    pieces += itertools.islice(fillers, _IMAGE_START_ID - _FIRST_ID - len(pieces))
    pieces += [IMAGE_START, IMAGE_END, "<ref>", "</ref>", "<box>", "</box>"]
    if slices is not None:
        last = max(slices.slice_start_token_id, slices.slice_end_token_id)
        pieces += itertools.islice(fillers, last + 1 - _FIRST_ID - len(pieces))
    return pieces


def _corpus(task: Task) -> Iterator[str]:
    """Yields the words and what stands between them, then GB 2312's first level.

    Whole sentences would make one piece of "green cross": in Chinese, where no space divides
    them, colour and shape would be no words of their own, and every pair a thing to learn.
    """
    for _ in range(_REPEATS):
        yield from (USER, ASSISTANT)
        yield from _words(task.wordings)
    if not task.common_characters:
        return
    for high in range(0xB0, 0xD8):  # so that these are pieces
        cells = range(0xA1, 0xFF if high < 0xD7 else 0xFA)
        yield "".join(bytes((high, low)).decode("gb2312") for low in cells)


def _words(node: Any) -> Iterator[str]:
    """Yields every text of the wordings, cut at its placeholders, as it may stand in a sentence."""
    if isinstance(node, str):
        for part in re.split(r"\{\w+\}", node):
            yield part
            if part.isascii():
                yield from (part.capitalize(), " " + part.lstrip())
    elif isinstance(node, dict):
        for child in node.values():
            yield from _words(child)
    elif isinstance(node, list):
        for child in node:
            yield from _words(child)
