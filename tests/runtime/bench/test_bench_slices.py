"""bench of a model that cuts pictures into slices: which it shows, and a row for each."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from convert.checkpoint.config import CONFIGS, ModelConfig, VisionConfig
from convert.checkpoint.reader import Checkpoint
from quantize.errors import ConfigError
from runtime.bench import measure as bench
from runtime.bench.inputs import FIRST_QUESTION, ask, picture_sizes
from runtime.bench.measure import Workload, measure
from runtime.bench.runners import ReferenceRunner
from runtime.commands.bench import _pictures, _print
from runtime.inputs.prompt import Tokenizer
from runtime.inputs.slices import limit_slices, plan_cut
from runtime.reference.load import load_reference
from runtime.sessions.backend import ReferenceBackend
from runtime.sessions.reference_session import ReferenceSession
from tests.support.slices import write_slices_checkpoint

REAL = ModelConfig.load(CONFIGS / "model" / "minicpm-v-2.0.json")


def vision(most: int | None = None) -> VisionConfig:
    limited = limit_slices(REAL.vision, most)
    assert limited is not None
    return limited


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint.open(write_slices_checkpoint(tmp_path_factory.mktemp("bench") / "model"))


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    assert checkpoint.tokenizer is not None
    return Tokenizer(checkpoint.tokenizer, checkpoint.config)


def test_pictures_of_1_3_and_10_images() -> None:
    assert sorted(picture_sizes(vision())) == [1, 3, 10]
    assert picture_sizes(vision())[10] == (1344, 1344)


@pytest.mark.parametrize("most", range(1, 10))
def test_a_picture_becomes_the_images_that_its_row_names(most: int) -> None:
    sizes = picture_sizes(vision(most))
    assert sorted(sizes) == sorted({1, 1 + min(most, 2), 1 + most} - ({2} if most == 1 else set()))
    for images, size in sizes.items():
        assert len(plan_cut(size, vision(most)).sizes) == images


def test_pictures_that_exceed_the_window_are_left_out(
    checkpoint: Checkpoint, tokenizer: Tokenizer
) -> None:
    config = checkpoint.config
    assert sorted(_pictures(config, tokenizer, 2048, None)) == [1, 3, 10]
    assert sorted(_pictures(config, tokenizer, 2048, 4)) == [1, 3, 5]
    assert sorted(_pictures(config, tokenizer, 600, None)) == [1, 3]
    assert sorted(_pictures(replace(config, vision=None), tokenizer, 2048, None)) == []
    for wrong in (0, 10):
        with pytest.raises(ConfigError, match=f"max_slices is {wrong}; this model takes 1 .* to 9"):
            _pictures(config, tokenizer, 2048, wrong)


def test_each_number_of_images_is_measured(
    checkpoint: Checkpoint, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "PREFILL_LENGTHS", ())
    monkeypatch.setattr(bench, "DECODE_STEPS", 2)
    encoded: list[int] = []
    backend = ReferenceBackend(load_reference(checkpoint))
    encode = backend.encode_image

    def counted(pixels: Any) -> Any:
        encoded.append(pixels.shape[2] * pixels.shape[3])
        return encode(pixels)

    monkeypatch.setattr(backend, "encode_image", counted)
    runner = ReferenceRunner(
        lambda: ReferenceSession(backend, tokenizer, window=2048), max_slices=4
    )
    pictures = _pictures(checkpoint.config, tokenizer, 2048, 4)
    work = Workload(pictures=pictures, tokenizer=tokenizer, reads=None, window=2048, rounds=1)
    figures = measure(runner, work, lambda *_: None)
    assert {name for name in figures.figures if "encode" in name} == {
        "image_encode_ms", "image_encode_3_ms", "image_encode_5_ms",
    }  # fmt: skip
    assert all(figure.median > 0 for figure in figures.figures.values())
    # The warm-up's five, then each picture once: the second question finds its picture.
    assert len(encoded) == 5 + 1 + 3 + 5
    prompt = tokenizer.prompt(ask(FIRST_QUESTION), 64, grid=(2, 2))
    assert figures.tokens["ttft_first_ms"] == len(prompt.ids)
    assert 0 < figures.tokens["ttft_second_ms"] < 60


def test_the_table_has_a_row_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    figure = {"median": 1000.0, "min": 900.0, "max": 1100.0, "tokens": 5}
    names = ["image_encode_ms", "image_encode_3_ms", "image_encode_10_ms"]
    report = {
        "bundle": str(Path("b")), "quantization": "small", "weights_bytes": 5, "engine": "local",
        "device": {"cpu": "x", "threads": 2}, "rounds": 1, "seconds": 2.0, "window": 2048,
        "kv_cache": None, "decode_reads": None, "peak_rss_bytes": None,
        "figures": dict.fromkeys(names, figure), "images": [1, 3, 10],
    }  # fmt: skip
    _print(json.loads(json.dumps(report)), Console(width=200))
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if "image" in line]
    starts = [line[:6] for line in lines]
    assert starts == [
        ["encode", "a", "picture:", count, "image" if count == "1" else "images", "1,000.0"]
        for count in ("1", "3", "10")
    ]
    assert [line[-5] for line in lines[1:]] == ["333.3", "100.0"]
