import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from numpy.testing import assert_array_equal

from convert.bundle.errors import BundleError
from convert.bundle.weights_file import (
    ALIGNMENT,
    DTYPES,
    PAD,
    TensorSpec,
    WeightsFile,
    file_size,
)
from convert.bundle.weights_writer import WeightsWriter

SHAPES = {
    "codes": ("U8", (3, 5, 7)),
    "scales": ("F16", (9,)),
    "norm": ("F32", (16,)),
    "signed": ("I8", (1, 1)),
    "table": ("F32", (33, 3)),
}
SPECS = [TensorSpec(name, dtype, shape) for name, (dtype, shape) in SHAPES.items()]


def values(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {s.name: (rng.random(s.shape) * 100).astype(DTYPES[s.dtype]) for s in SPECS}


def write(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    with WeightsWriter(path, SPECS) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
    return path


def rewrite_header(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Replaces the header's JSON by what `change` makes of it; the values stay as they are."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    text = json.dumps(change(json.loads(data[8 : 8 + length]))).encode()
    text = text.ljust(-(-(8 + len(text)) // ALIGNMENT) * ALIGNMENT - 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def test_reads_back_what_was_written(tmp_path: Path) -> None:
    tensors = values()
    file = WeightsFile(write(tmp_path / "w.safetensors", tensors))
    assert list(file) == list(tensors)
    assert file.specs() == SPECS
    for name, tensor in tensors.items():
        assert_array_equal(file[name], tensor, strict=True)
        assert not file[name].flags.writeable
        assert file[name].ctypes.data % ALIGNMENT == 0


def test_the_safetensors_library_reads_it(tmp_path: Path) -> None:
    tensors = values()
    loaded = safetensors.numpy.load_file(write(tmp_path / "w.safetensors", tensors))
    pads = {name for name in loaded if name.startswith(PAD)}
    assert set(loaded) - pads == set(tensors)
    assert all(not loaded[name].any() for name in pads)
    for name, tensor in tensors.items():
        assert_array_equal(loaded[name], tensor, strict=True)


def test_size_is_known_before_and_bytes_are_the_same_every_time(tmp_path: Path) -> None:
    first = write(tmp_path / "a", values()).read_bytes()
    assert len(first) == file_size(SPECS)
    assert first == write(tmp_path / "b", values()).read_bytes()


def test_writer_refuses_what_was_not_announced(tmp_path: Path) -> None:
    tensors = values()
    writer = WeightsWriter(tmp_path / "w", SPECS)
    with pytest.raises(AssertionError, match="scales"):
        writer.write("scales", tensors["scales"])
    with pytest.raises(AssertionError, match="codes"):
        writer.write("codes", tensors["codes"].astype(np.int8))
    writer.write("codes", tensors["codes"])
    with pytest.raises(AssertionError, match=r"never written.*scales"), writer:
        pass


@pytest.mark.parametrize("cut", [0, 5, 8, 100, -1])
def test_truncated(tmp_path: Path, cut: int) -> None:
    path = write(tmp_path / "w", values())
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(BundleError, match="w: truncated"):
        WeightsFile(path)


def test_bytes_too_many(tmp_path: Path) -> None:
    path = write(tmp_path / "w", values())
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(BundleError, match="altered"):
        WeightsFile(path)


def test_header_promises_more_than_there_is(tmp_path: Path) -> None:
    path = tmp_path / "w"
    path.write_bytes((1 << 60).to_bytes(8, "little") + bytes(64))
    with pytest.raises(BundleError, match="announce a header of"):
        WeightsFile(path)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="No such file"):
        WeightsFile(tmp_path / "w")


def set_entry(name: str, **changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda header: header | {name: header[name] | changes}


def without(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda header: {key: entry for key, entry in header.items() if key != name}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda header: [1], "expected an object"),
        (set_entry("norm", dtype="F64"), "tensor norm: type 'F64'"),
        (set_entry("norm", shape=[17]), "tensor norm: F32 of shape .17. takes 68 bytes"),
        (set_entry("norm", shape=[-16]), "lists of integers"),
        (set_entry("norm", shape=[True, 16]), "lists of integers"),
        (set_entry("norm", shape=[1 << 40, 1 << 40]), "tensor norm.*takes"),
        (set_entry("norm", data_offsets=[0, 64]), "starts at byte 0 and overlaps"),
        (set_entry("norm", data_offsets=[64, 0]), "offsets span -64"),
        (set_entry("norm", extra=1), "expected the keys"),
        (without("norm"), "leaves a gap"),
        (without("table"), "altered"),
        (lambda h: without("__pad.0")(h) | {"gap": h["__pad.0"]}, "tensor gap is not aligned"),
    ],
)
def test_altered_header(tmp_path: Path, change: Callable[[Any], Any], problem: str) -> None:
    path = write(tmp_path / "w", values())
    rewrite_header(path, change)
    with pytest.raises(BundleError, match=problem):
        WeightsFile(path)


def test_header_is_not_json_or_names_a_key_twice(tmp_path: Path) -> None:
    path = tmp_path / "w"
    for text in (b"{]", b"\xff\xfe", b'{"a":1,"a":2}', b"[" * 5000):
        path.write_bytes(len(text).to_bytes(8, "little") + text)
        with pytest.raises(BundleError, match="JSON"):
            WeightsFile(path)


def test_views_outlive_the_release_of_their_memory(tmp_path: Path) -> None:
    tensors = values()
    file = WeightsFile(write(tmp_path / "w.safetensors", tensors))
    views = dict(file)
    file.release()
    for name, tensor in tensors.items():
        assert_array_equal(views[name], tensor, strict=True)
        assert_array_equal(file[name], tensor, strict=True)
