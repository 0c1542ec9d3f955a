"""Bundles with an int8 KV cache, from conversion to the phone's engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convert.bundle.kv_cache import INT8
from convert.bundle.manifest import GOLDEN, Bundle
from convert.cli import main
from runtime.engine_client.client import EngineClient, engine_command
from runtime.engine_client.options import LOCAL, QEMU
from runtime.engine_client.protocol import Field, Tap
from runtime.inputs.prompt import Message
from tests.engine.engines import Built, add_phone, build_host_engine
from tests.support.compare import Record, assert_close
from tests.support.compiled import CompiledModel, compile_here
from tests.support.needs import need_host_engine, need_qemu

ROUNDING = 1e-5  # float32; the cosines of the RoPE angles come from two libraries
CODES = 2e-3  # a number halfway between two codes may round to either
QUESTIONS = ("What colour is the shape?", "图片里有几个圆形？")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A tiny text-only model, with its engine for this PC."""
    need_host_engine()
    folder = tmp_path_factory.mktemp("text")
    return build_host_engine(folder, INT8, decoder_only=True)


def _layers(client: EngineClient, x: np.ndarray, window: int, pinned: int) -> np.ndarray:
    options = {Field.PER_LAYER: False, Field.WINDOW: window, Field.PINNED: pinned}
    return client.tap(Tap.LAYERS, x[None], options)


@pytest.mark.parametrize(("window", "pinned"), [(256, 4), (40, 9)])
def test_the_engine_is_its_blocks(
    window: int, pinned: int, text: Built, record_property: Record
) -> None:
    """Including where the ring buffer wraps around; with the engine's chunk size."""
    bundle = Bundle.open(text.bundle)
    machine = compile_here(bundle.config, bundle.plan)
    model = CompiledModel(bundle.config, machine, bundle.weights(), bundle.plan.kv)
    x = model.embed([int(i) for i in np.random.default_rng(0).integers(0, 501, 150)])
    cache = model.new_cache(window, pinned)
    expected = model.layer(0, x, cache)
    with EngineClient(engine_command(LOCAL, text.program)) as client:
        client.load(text.bundle, window=window)
        actual = _layers(client, x, window, pinned)[0]
    assert_close("layer 0", actual, expected, CODES, record_property)
    assert np.median(np.abs(actual - expected)) < ROUNDING * np.abs(expected).max()


@pytest.mark.slow  # its engine is built for all of them
@pytest.mark.parametrize("cpu", ["cortex-a53", "cortex-a76", "max,sme=off", "max"])
def test_the_phones_engine(
    cpu: str, text: Built, tmp_path_factory: pytest.TempPathFactory, record_property: Record
) -> None:
    """NEON, dotprod, i8mm and, under a new qemu, SME, compared with the PC's engine."""
    need_qemu()
    if "android-arm64" not in Bundle.open(text.bundle).manifest.targets:
        add_phone(text.bundle)
    program = Bundle.open(text.bundle).program("android-arm64")
    x = np.random.default_rng(1).normal(size=(70, 256)).astype(np.float32)
    layers, replies = [], []
    for engine, path, options in ((LOCAL, text.program, {}), (QEMU, program, {"cpu": cpu})):
        with EngineClient(engine_command(engine, path, **options)) as client:
            client.load(text.bundle, window=48)
            layers.append(_layers(client, x, 40, 9)[0])
            asked = ([Message(role="user", content=question)] for question in QUESTIONS)
            replies.append([client.chat(one, max_new_tokens=12).ids for one in asked])
    assert_close("layer 0", layers[1], layers[0], CODES, record_property)
    assert replies[1] == replies[0]


def test_the_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: Built) -> None:
    """Verified against int8 arithmetic and by its golden answers."""
    folder = tmp_path / "demo"
    command = ["convert", "-o", str(folder), "--target", "host", "--kv", INT8]
    assert main([*command, "--method", "rtn"]) == 0
    capsys.readouterr()
    assert main(["verify", str(folder), "--json"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (report["kv_cache"], report["failed_stages"]) == (INT8, [])
    same = [c for c in report["checks"] if c["metric"] == "SQNR, same arithmetic"]
    layers = [c["value"] for c in same if c["stage"] in ("decoder layers", "sliding window")]
    # Against float16 arithmetic it would be about 35 dB, which would also pass.
    assert np.median([float(value) for value in layers]) > 45
    bundle = Bundle.open(folder)
    assert GOLDEN in bundle.manifest.files
    with EngineClient(engine_command(LOCAL, bundle.program("host"))) as client:
        client.load(folder, window=256)
        assert client.self_check()[Field.PASSED]
