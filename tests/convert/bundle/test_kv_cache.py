"""`--kv`: which cache a bundle's decoder is compiled for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tvm import tirx

from convert.bundle.kv_cache import FP16, INT8, find_kv_format
from convert.bundle.manifest import Bundle
from convert.engine.compile import Target, build_blocks
from quantize.errors import ConfigError
from tests.support.bundles import convert, without_programs
from tests.support.tiny import write_checkpoint


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    without_programs(monkeypatch)
    return write_checkpoint(tmp_path / "checkpoint")


def test_the_choice_is_in_the_bundle(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened, summaries = {}, {}
    for kv, arguments in ((FP16, ()), (INT8, ("--kv", INT8))):
        capsys.readouterr()
        assert convert(checkpoint, tmp_path / kv, "--json", *arguments) == 0
        summaries[kv] = json.loads(capsys.readouterr().out)
        opened[kv] = Bundle.open(tmp_path / kv)
        assert (opened[kv].manifest.kv_cache, opened[kv].plan.kv) == (kv, kv)
        assert summaries[kv]["config"]["kv cache"] == kv
    values = 2 * 2 * 256  # of 2 layers, key and value, 4 heads of 64
    assert summaries[FP16]["kv_cache"] == {"format": FP16, "bytes_per_token": 2 * values}
    coded = values + 2 * 2 * 4 * 4  # scales
    assert summaries[INT8]["kv_cache"] == {"format": INT8, "bytes_per_token": coded}
    weights = [bundle.manifest.files["weights.safetensors"] for bundle in opened.values()]
    assert weights[0] == weights[1], "the cache has no say in them"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--kv", "int4"), "KV cache 'int4' is unknown; known: fp16, int8"),
        (("--kv", ""), "KV cache '' is unknown"),
        (("--kv", "int8", "--target", "onnx"), "--kv is for bundles; choose a target such as host"),
    ],
)
def test_what_cannot_be_is_said_before_the_work(
    checkpoint: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    problem: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert convert(checkpoint, tmp_path / "b", *arguments) == 2
    error = capsys.readouterr().err
    assert problem in error
    assert "Traceback" not in error
    assert not (tmp_path / "b").exists()


def test_a_package_for_mlc_beside_a_bundle_keeps_its_own(checkpoint: Path, tmp_path: Path) -> None:
    more = ("--target", "host,mlc-android", "--kv", INT8)
    assert convert(checkpoint, tmp_path / "b", *more) == 0
    assert Bundle.open(tmp_path / "b").plan.kv == INT8
    assert (tmp_path / "b-mlc" / "mlc-chat-config.json").is_file()


def test_kernels_differ_by_their_cache_alone(checkpoint: Path, tmp_path: Path) -> None:
    variant = Target.load("host").variants[-1]
    modules = {}
    for kv in (FP16, INT8):
        assert convert(checkpoint, tmp_path / kv, "--kv", kv) == 0
        bundle = Bundle.open(tmp_path / kv)
        modules[kv] = build_blocks(bundle.config, bundle.plan, variant)[0]
    scripts = [
        {
            name.name_hint: function.script()
            for name, function in module.functions.items()
            if isinstance(function, tirx.PrimFunc)
        }
        for module in modules.values()
    ]
    assert scripts[0].keys() == scripts[1].keys()
    changed = {name for name in scripts[0] if scripts[0][name] != scripts[1][name]}
    assert changed == {"rotate_and_store", "cached_attention"}


def test_an_unknown_cache_is_named() -> None:
    with pytest.raises(ConfigError, match="KV cache 'bf16' is unknown; known: fp16, int8"):
        find_kv_format("bf16")
