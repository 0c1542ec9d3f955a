"""Trains the demo's SentencePiece model on its own questions and answers."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import sentencepiece

from runtime.demo.questions import LANGUAGES, random_example
from runtime.demo.scenes import random_scene
from runtime.prompt import ASSISTANT, IMAGE_END, IMAGE_START, USER

_IMAGE_START_ID = 101  # as in the real tokenizer
_SENTENCES = 20_000


def train_tokenizer(path: Path, vocab_size: int, seed: int) -> None:
    """Writes a `tokenizer.model` of the real one's kind: BPE, byte fallback, text unchanged."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=_corpus(seed),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_digits=True,
        user_defined_symbols=_user_defined(),
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())


def _user_defined() -> list[str]:
    """Lists the pieces from id 3: as many before `<image>` as give it its id."""
    before = ["\n", "\t", *"０１２３４５６７８９"]
    before += [f"<reserved_{i}>" for i in range(_IMAGE_START_ID - 3 - len(before))]
    return [*before, IMAGE_START, IMAGE_END, "<ref>", "</ref>", "<box>", "</box>"]


def _corpus(seed: int) -> Iterator[str]:
    """Yields conversations, and GB 2312's first level so that common characters are pieces."""
    for high in range(0xB0, 0xD8):
        cells = range(0xA1, 0xFF if high < 0xD7 else 0xFA)
        yield "".join(bytes((high, low)).decode("gb2312") for low in cells)
    for i in range(_SENTENCES):
        rng = np.random.default_rng([seed, i])
        example = random_example(random_scene(rng), LANGUAGES[i % 2], rng)
        question = example.messages[-1]["content"]
        yield f"{USER}{question}{ASSISTANT}{example.answer}"
