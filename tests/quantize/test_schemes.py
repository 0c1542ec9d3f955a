import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from quantize import schemes
from quantize.errors import CheckpointError, ConfigError, ShapeError
from quantize.layout import pack_mlc
from quantize.schemes import (
    GroupScheme,
    all_finite,
    dequantize_groups,
    error_bound,
    quantize_groups,
    row_chunks,
)

GOLDEN = Path(__file__).resolve().parents[1] / "golden/mlc-q4f16_1"
Q4 = GroupScheme.load("q4f16_1")


def _read_checkpoint(folder: Path) -> dict[str, np.ndarray]:
    """Reads a safetensors file of bfloat16 tensors as float32."""
    raw = (folder / "model.safetensors").read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        assert entry["dtype"] == "BF16"
        start, end = (8 + size + offset for offset in entry["data_offsets"])
        values = np.frombuffer(raw[start:end], ml_dtypes.bfloat16).astype(np.float32)
        tensors[name] = values.reshape(entry["shape"])
    return tensors


def _sources(name: str, tensors: dict[str, np.ndarray]) -> np.ndarray:
    """Finds (and stacks) the weight that MLC's parameter `name` was made from."""
    for packed, parts in (("qkv_proj", "qkv"), ("wqkv_pack", "qkv")):
        if packed in name:
            return np.concatenate(
                [tensors[f"{name.replace(packed, p + '_proj')}.weight"] for p in parts]
            )
    if "gate_up_proj" in name:
        return np.concatenate(
            [tensors[f"{name.replace('gate_up', p)}.weight"] for p in ("gate", "up")]
        )
    return tensors[f"{name}.weight"]


@pytest.mark.parametrize("which", ["tied", "untied"])
def test_every_bit_of_mlc(which: str) -> None:
    folder = GOLDEN / which
    tensors = _read_checkpoint(folder / "checkpoint")
    cache = json.loads((folder / "expected/tensor-cache.json").read_text())
    checked = 0
    for shard in cache["records"]:
        data = (folder / "expected" / shard["dataPath"]).read_bytes()
        entries = {
            e["name"]: np.frombuffer(
                data, e["dtype"], int(np.prod(e["shape"])), e["byteOffset"]
            ).reshape(e["shape"])
            for e in shard["records"]
        }
        for key, expected in entries.items():
            if not key.endswith(".q_weight"):
                continue
            name = key.removesuffix(".q_weight")
            weight = _sources(name, tensors).astype(np.float16)
            q, scale = quantize_groups(weight, Q4, name=name)
            np.testing.assert_array_equal(pack_mlc(q), expected, err_msg=name)
            np.testing.assert_array_equal(
                scale.view(np.uint16), entries[f"{name}.q_scale"].view(np.uint16), err_msg=name
            )
            checked += 1
    assert checked == {"tied": 5, "untied": 6}[which]


@pytest.mark.parametrize("spread", [1e-8, 1e-6, 1e-3, 1.0, 1e3])
def test_error_stays_within_the_bound(spread: float) -> None:
    rng = np.random.default_rng(1)
    weight = (rng.standard_t(3, (50, 96)) * spread).astype(np.float16)
    weight[3], weight[4], weight[5, 32:64] = 0, 65504, -65504
    q, scale = quantize_groups(weight, Q4, name="w")
    error = np.abs(dequantize_groups(q, scale, Q4) - weight.astype(np.float32))
    assert (error <= error_bound(weight, scale, Q4)).all()
    assert q.max() <= Q4.max_code
    assert (dequantize_groups(q, scale, Q4)[3] == 0).all()


def test_equals_plain_float16_arithmetic() -> None:
    """The float32 detour gives what numpy's own float16 operations give."""
    patterns = np.random.default_rng(2).integers(0, 2**16, 32 * 4096).astype(np.uint16)
    weight = patterns.view(np.float16).reshape(-1, 32)
    weight = np.where(np.isfinite(weight), weight, np.float16(0))
    weight[:1000] *= np.float16(2.0**-14)  # subnormal groups
    groups = weight.reshape(-1, 1, 32)
    with np.errstate(all="ignore"):
        scale = np.abs(groups).max(-1) / np.float16(7)
        code = np.rint(groups / scale[..., None] + np.float16(7)).clip(0, 14)
    q, got = quantize_groups(weight, Q4, name="w")
    np.testing.assert_array_equal(got.view(np.uint16), scale.view(np.uint16))
    np.testing.assert_array_equal(q, np.nan_to_num(code).reshape(q.shape).astype(np.uint8))


def test_chunks_equal_the_whole() -> None:
    weight = np.random.default_rng(3).standard_normal((70, 64)).astype(np.float16)
    chunks = list(row_chunks(70, 64, values=64 * 20))
    assert [(c.start, c.stop) for c in chunks] == [(0, 16), (16, 32), (32, 48), (48, 64), (64, 70)]
    whole = quantize_groups(weight, Q4, name="w")
    parts = [quantize_groups(weight[rows], Q4, name="w") for rows in chunks]
    for i in (0, 1):
        np.testing.assert_array_equal(np.concatenate([part[i] for part in parts]), whole[i])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_refuses_values_that_are_not_finite(value: float) -> None:
    weight = np.zeros((4, 64), np.float16)
    weight[2, 33] = value
    with pytest.raises(CheckpointError, match=r"layers\.0\.down: 1 values .* at \[2, 33\]"):
        quantize_groups(weight, Q4, name="layers.0.down")


def test_what_is_finite() -> None:
    weight = np.zeros((700, 400), np.float16)  # more than one piece
    assert all_finite(weight)
    assert all_finite(weight[:0])
    weight[:, ::2] = np.finfo(np.float16).max
    assert all_finite(weight[:, ::2])
    for place in ((0, 0), (699, 399), (350, 7)):
        for value in (np.nan, -np.inf):
            bad = weight.copy()
            bad[place] = value
            assert not all_finite(bad)
            assert all_finite(bad[:, place[1] + 1 :])


@pytest.mark.parametrize("shape", [(4, 33), (64,), (2, 2, 32)])
def test_refuses_shapes_without_whole_groups(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="embed: shape"):
        quantize_groups(np.zeros(shape, np.float16), Q4, name="embed")


def test_recipes_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"'q5' is unknown; known: .*q4f16_1"):
        GroupScheme.load("q5")
    monkeypatch.setattr(schemes, "RECIPES", tmp_path)
    good = {"name": "r", "bits": 4, "group_size": 32, "zero_point": 7, "max_code": 14}
    bad = [
        ({"extra": 1}, "has the keys"),
        ({"bits": "4"}, "expected int"),
        ({"bits": 8}, "holds 4 bits"),
        ({"max_code": 16}, "must rise"),
        ({"zero_point": 14}, "must rise"),
    ]
    for change, message in bad:
        (tmp_path / "r.json").write_text(json.dumps({**good, **change}))
        with pytest.raises(ConfigError, match=message):
            GroupScheme.load("r")
