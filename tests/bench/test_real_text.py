"""What the benchmark on real weights calibrates on."""

from __future__ import annotations

from itertools import chain

import pytest
from tokenizers import Tokenizer, pre_tokenizers

from convert.calibrate.built_in import default_samples
from tests.bench import real_text
from tests.bench.smollm2 import byte_level_bpe


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """A token for each byte."""
    return byte_level_bpe({"tokens": sorted(pre_tokenizers.ByteLevel.alphabet()), "merges": []})


def test_built_in_texts_of_a_number_of_tokens(tokenizer: Tokenizer) -> None:
    everything = real_text.built_in(tokenizer, 1 << 30)
    samples = default_samples(demo=None, pictures=False)
    assert len(everything) == len(samples)
    first = samples[0]
    spelled = tokenizer.decode(everything[0])
    assert first.messages[0]["content"] in spelled and first.answer in spelled
    some = real_text.built_in(tokenizer, 5000)
    assert sum(map(len, some)) == 5000
    assert list(chain(*some)) == list(chain(*everything))[:5000]


def test_sequences_are_evenly_spaced(tokenizer: Tokenizer) -> None:
    text = "".join(chr(97 + i % 26) for i in range(10 * real_text.LENGTH))
    ids = tokenizer.encode(text).ids
    assert real_text.cut(tokenizer, [text], 2) == [
        ids[: real_text.LENGTH],
        ids[5 * real_text.LENGTH : 6 * real_text.LENGTH],
    ]
