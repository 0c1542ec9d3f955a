import json
from pathlib import Path
from typing import Any

import pytest

from convert import cli
from convert.bundle.manifest import Bundle
from convert.checkpoint.config import CONFIGS
from convert.checkpoint.reader import Checkpoint
from tests.support.bundles import write_bundle
from tests.support.tiny import random_state, write_checkpoint
from tests.support.tiny_config import tiny_config


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("info") / "bundle")


@pytest.fixture
def described(capsys: pytest.CaptureFixture[str]) -> Any:
    def describe(path: Path) -> Any:
        capsys.readouterr()
        assert cli.main(["info", str(path), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return describe


def test_checkpoint(bundle: Path, described: Any) -> None:
    info = described(bundle.with_name("bundle-checkpoint"))
    state = random_state(tiny_config(), head="none")
    assert info["kind"] == "checkpoint"
    assert info["parts"]["all"]["parameters"] == sum(t.numel() for t in state.values())
    assert info["parts"]["all"]["bytes"] == 2 * info["parts"]["all"]["parameters"]
    assert info["parts"]["all"]["bits_per_weight"] == 16
    assert info["dtypes"] == ["bfloat16"]
    assert list(info["dropped"].values()) == ["equals the token embedding"]
    assert info["tokenizer"] == {"pieces": tiny_config()["vocab_size"]}
    size = (bundle / "weights.safetensors").stat().st_size
    assert info["converted"]["q4f16_1"]["bytes"] == size


def test_bundle(bundle: Path, described: Any) -> None:
    info = described(bundle)
    opened = Bundle.open(bundle)
    assert info["kind"] == "bundle"
    assert (info["quantization"], info["method"]) == ("small", "rtn")
    assert info["source"]["sha256"] == Checkpoint.open(opened.manifest.source.path).source_hash()
    assert info["kv_cache"] == {"format": "fp16", "bytes_per_token": 2 * 2 * 2 * 256}
    assert info["programs"] == {"host": opened.manifest.targets["host"].program_id}
    for table in (info["formats"].values(), [info["parts"]["all"]]):
        assert sum(row["parameters"] for row in table) == opened.plan.parameters
        assert sum(row["bytes"] for row in table) == sum(t.nbytes for t in opened.plan.tensors)
    parts = dict(info["parts"])
    assert parts.pop("all")["bytes"] == sum(part["bytes"] for part in parts.values())
    assert 4.5 < info["parts"]["decoder layers"]["bits_per_weight"] < 4.6


def test_configuration_of_the_real_model(described: Any) -> None:
    info = described(CONFIGS / "model" / "minicpm-v-1.0.json")
    assert info["kind"] == "configuration"
    assert info["kv_caches"] == {"fp16": 368_640, "int8": 195_840}
    assert info["parts"]["decoder embedding"]["parameters"] == 122753 * 2304
    # 3.155 B with what the stored vision encoder has beside it; see configs/model.
    assert info["parts"]["all"]["parameters"] == pytest.approx(3.155e9, rel=1e-3)
    # As the real index says, with a copy of the head; what a head of its own adds is its rows.
    assert info["stored"] == {"dtype": "bfloat16", "tensors": 694, "bytes": 6_869_931_584}
    tied, own = info["converted"], info["converted_own_head"]
    assert tied.keys() == own.keys()
    rows, width = 122753 + 15, 2304  # in tiles of 16
    added = {name: own[name]["bytes"] - tied[name]["bytes"] for name in own}
    assert added["q4f16_1"] == pytest.approx(rows * width * 4.5 / 8, rel=1e-4)
    assert added["best"] == pytest.approx(rows * width * 8.125 / 8, rel=1e-4)
    # The arithmetic of the linears: 4.5 bits each, and 8.125 in the vision encoder.
    assert info["converted"]["q4f16_1"]["bits_per_weight"] == pytest.approx(5.03, abs=0.01)


def test_configuration_of_the_real_model_with_slices(described: Any) -> None:
    """Its bundle holds the trained positions, and the halves of a matrix for those of the keys."""
    square, cut = (described(CONFIGS / f"model/minicpm-v-{n}.json") for n in ("1.0", "2.0"))
    assert "an overview and up to 9 slices of about 448² px" in cut["vision"]
    assert cut["resampler"] == "64 image tokens for each image"
    assert cut["kv_caches"] == square["kv_caches"]
    more = 2 * 2304 * 1152 * 2 + 2304 * 4  # in float16, and a bias
    fewer = (1024 - 729) * 1152 * 4 + 1024 * 2304 * 4
    for name, sizes in cut["converted_own_head"].items():
        added = sizes["bytes"] - square["converted_own_head"][name]["bytes"]
        assert added == pytest.approx(more - fewer, abs=4096), name


def test_sizes_of_both_heads_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", str(CONFIGS / "model" / "minicpm-v-1.0.json")]) == 0
    shown = capsys.readouterr().out
    assert "bfloat16, 694 tensors with the LM head, 6,870 MB (6.40 GiB)" in shown
    assert "with --quant q4f16_1: 1,979 MB (1.84 GiB), 5.03 bits per weight" in shown
    assert "with an LM head that is not the embedding: 2,138 MB (1.99 GiB)" in shown
    assert cli.main(["info", str(CONFIGS / "quant" / "best.json")]) == 0
    assert "2,779 MB (2.59 GiB) with an LM head of its own" in capsys.readouterr().out
    tied = tmp_path / "config.json"
    tied.write_text(json.dumps(tiny_config(tie_word_embeddings=True)))
    assert cli.main(["info", str(tied)]) == 0
    assert "that is not the embedding" not in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["checkpoint", "bundle", "configuration", "decoder"])
def test_for_people(
    kind: str, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = bundle.with_name("bundle-checkpoint")
    path = {
        "checkpoint": source,
        "bundle": bundle,
        "configuration": source / "config.json",
        "decoder": write_checkpoint(tmp_path / "d", decoder_only=True, tokenizer=False),
    }[kind]
    capsys.readouterr()
    assert cli.main(["info", str(path)]) == 0
    shown = capsys.readouterr().out
    for text in (str(path), "architecture", "decoder layers", "all"):
        assert text in shown
    assert ("MiB" in shown) == (kind != "configuration") or "converted" in shown
    if kind == "decoder":
        assert "tokenizer     none" in shown
        assert "vision" not in shown


def test_the_demo_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    if not (CONFIGS / "demo" / "model.safetensors").exists():
        pytest.skip("the demo checkpoint is not trained yet")
    assert cli.main(["info"]) == 0
    assert str(CONFIGS / "demo") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda p: p.mkdir(), "holds neither a bundle.json"),
        (lambda p: None, "no such folder"),
        (lambda p: p.write_text("{"), "cannot be read as JSON"),
        (lambda p: p.write_text("{}"), "architectures is"),
        (lambda p: (p.mkdir(), (p / "bundle.json").write_text("{}")), "not a bundle's manifest"),
        (lambda p: (p.mkdir(), (p / "config.json").write_text("{}")), "architectures is"),
    ],
)
def test_bad_paths(
    tmp_path: Path, make: Any, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "x")
    assert cli.main(["info", str(tmp_path / "x")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert problem in lines[0]
    assert str(tmp_path / "x") in lines[0]
