"""Writes a checkpoint's weights as Hugging Face does, without holding a tensor in memory.

Shards in the order of the tensors, with an index where there is more than one. Values come in
pieces and go straight to the file, in safetensors or in the zip format of `torch.save`.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy.typing as npt
import torch

from convert.checkpoint.shards import FLOATS

SHARD_BYTES = 5 * 10**9  # what `save_pretrained` puts into one file at most
FORMATS = {"safetensors": "model", "bin": "pytorch_model"}  # suffix to stem

_SAFETENSORS_TYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_STORAGES = {
    "bfloat16": torch.BFloat16Storage,
    "float16": torch.HalfStorage,
    "float32": torch.FloatStorage,
}
_ALIGNMENT = 64  # bytes; where `torch.save` puts a tensor's values
_LARGE = 2**30  # bytes; entries of the zip format from here on get 64-bit sizes
_LOCAL_HEADER, _ZIP64_EXTRA, _EXTRA_HEADER = 30, 20, 4  # bytes, of the zip format

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class TensorEntry:
    """A tensor that is to be written."""

    name: str  # as the file has it
    shape: tuple[int, ...]
    dtype: str  # a key of `convert.checkpoint.shards.FLOATS`

    @property
    def count(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return self.count * FLOATS[self.dtype]


# Gives a tensor's values in order, in pieces of any length: bytes as the file has them.
Values = Callable[[TensorEntry], Iterable[Array]]


def write_weights(
    folder: Path,
    tensors: Sequence[TensorEntry],
    values: Values,
    *,
    format: str,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes all shards, and their index if there is more than one.

    Args:
        folder: where to write.
        tensors: what to write, in this order.
        values: called once for every tensor.
        format: a key of `FORMATS`.
        shard_bytes: after which a shard is full; a larger tensor gets one of its own.
    """
    write = {"safetensors": _write_safetensors, "bin": _write_zip}[format]
    shards = _split(tensors, shard_bytes)
    stem = FORMATS[format]
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards, 1):
        part = f"-{i:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
        name = f"{stem}{part}.{format}"
        with (folder / name).open("xb") as file:
            write(file, shard, values)
        weight_map |= {tensor.name: name for tensor in shard}
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors)},
            "weight_map": weight_map,
        }
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / f"{stem}.{format}.index.json").write_text(text, "utf-8")


def _split(tensors: Sequence[TensorEntry], limit: int) -> list[list[TensorEntry]]:
    """Fills shards one after the other, numbered as huggingface_hub does: when they are full."""
    full: list[list[TensorEntry]] = []
    shard: list[TensorEntry] = []
    for tensor in tensors:
        if tensor.nbytes > limit:
            full.append([tensor])
            continue
        if sum(other.nbytes for other in shard) + tensor.nbytes > limit:
            full.append(shard)
            shard = []
        shard.append(tensor)
    return [*full, shard] if shard else full


def _write_safetensors(file: BinaryIO, tensors: Sequence[TensorEntry], values: Values) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.nbytes
        dtype = _SAFETENSORS_TYPES[tensor.dtype]
        header[tensor.name] = {
            "dtype": dtype,
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    length = -(-len(text) // 8) * 8  # so that the values lie on a border of 8 bytes
    file.write(length.to_bytes(8, "little") + text.ljust(length))
    for tensor in tensors:
        _write_values(file, tensor, values)


def _write_zip(file: BinaryIO, tensors: Sequence[TensorEntry], values: Values) -> None:
    """Writes what `torch.save` would write of a state dict: one stored entry per tensor."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo("archive/data.pkl"), _pickled(tensors))
        archive.writestr(zipfile.ZipInfo("archive/byteorder"), b"little")
        for i, tensor in enumerate(tensors):
            large = tensor.nbytes >= _LARGE
            entry = zipfile.ZipInfo(f"archive/data/{i}")
            at = file.tell() + _LOCAL_HEADER + len(entry.filename) + _EXTRA_HEADER
            pad = -(at + (_ZIP64_EXTRA if large else 0)) % _ALIGNMENT
            entry.extra = b"FB" + pad.to_bytes(2, "little") + bytes(pad)
            with archive.open(entry, "w", force_zip64=large) as stored:
                _write_values(stored, tensor, values)
        archive.writestr(zipfile.ZipInfo("archive/version"), b"3\n")


def _write_values(file: Any, tensor: TensorEntry, values: Values) -> None:
    written = 0
    for piece in values(tensor):
        file.write(piece.data)
        written += piece.nbytes
    assert written == tensor.nbytes, f"{tensor} got {written} bytes"


def _pickled(tensors: Sequence[TensorEntry]) -> bytes:
    """Returns the state dict as `torch.save` pickles it, its values left out."""
    buffer = io.BytesIO()
    pickler = _Pickler(buffer, protocol=2)
    pickler.dump({t.name: _PickledTensor(t, str(i)) for i, t in enumerate(tensors)})
    return buffer.getvalue()


@dataclass(frozen=True)
class _Storage:
    """Stands for a tensor's values in the pickle."""

    key: str  # of the entry in data/
    dtype: str
    count: int


@dataclass(frozen=True)
class _PickledTensor:
    """Becomes a tensor when it is unpickled."""

    tensor: TensorEntry
    key: str

    def __reduce__(self) -> tuple[Any, ...]:
        t = self.tensor
        strides = tuple(math.prod(t.shape[i + 1 :]) for i in range(len(t.shape)))
        storage = _Storage(self.key, t.dtype, t.count)
        hooks: OrderedDict[str, object] = OrderedDict()
        return torch._utils._rebuild_tensor_v2, (storage, 0, t.shape, strides, False, hooks)


class _Pickler(pickle.Pickler):
    """Writes storages as references to entries of the archive."""

    def persistent_id(self, obj: Any) -> Any:
        """See `pickle`; the tuple is what `torch.load` expects."""
        if isinstance(obj, _Storage):
            return "storage", _STORAGES[obj.dtype], obj.key, "cpu", obj.count
        return None
