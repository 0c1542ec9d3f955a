"""The bundle's weights file: safetensors, with every tensor aligned to 64 bytes.

Names, types and shapes are known in advance, so the header is written first, then one tensor after
another. The format forbids gaps; padding between two tensors is therefore a tensor of bytes itself,
`__pad.N`. `convert.bundle.weights_writer` writes the file.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from convert.bundle.errors import BundleError
from convert.support.regular_file import open_regular
from convert.support.strict_json import parse_json

ALIGNMENT = 64  # bytes: a cache line, and the widest vector of any target
PAD = "__pad."
METADATA = "__metadata__"
HEADER_LIMIT = 100_000_000  # bytes; the safetensors library refuses more
# The types that a bundle uses, as the format spells them.
DTYPES: dict[str, np.dtype[Any]] = {
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
}
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class TensorSpec:
    """Name, type and shape of a stored tensor."""

    name: str
    dtype: str  # a key of DTYPES
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The size of its values in bytes."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def file_size(specs: Sequence[TensorSpec]) -> int:
    """Returns the size in bytes of the file that holds `specs`."""
    header, offsets = layout(specs)
    return len(header) + (offsets[-1] + specs[-1].nbytes if specs else 0)


def layout(specs: Sequence[TensorSpec]) -> tuple[bytes, list[int]]:
    """Returns the header's bytes, including its length field, and each tensor's offset after it."""
    entries: dict[str, Any] = {}
    offsets: list[int] = []
    end = pads = 0
    for spec in specs:
        reserved = spec.name == METADATA or spec.name.startswith(PAD)
        assert spec.name not in entries and not reserved, f"{spec.name}: twice, or reserved"
        start = -(-end // ALIGNMENT) * ALIGNMENT
        if start > end:
            entries[f"{PAD}{pads}"] = _entry("U8", (start - end,), end, start)
            pads += 1
        end = start + spec.nbytes
        entries[spec.name] = _entry(spec.dtype, spec.shape, start, end)
        offsets.append(start)
    text = json.dumps(entries, separators=(",", ":")).encode()
    length = -(-(8 + len(text)) // ALIGNMENT) * ALIGNMENT - 8
    return length.to_bytes(8, "little") + text.ljust(length), offsets


class WeightsFile(Mapping[str, Array]):
    """Read-only views of a memory-mapped weights file, without padding tensors."""

    def __init__(self, path: Path) -> None:
        """Maps the file, and validates the whole header before any value is read.

        Raises:
            BundleError: truncated, overlapping, misaligned, or not a safetensors file.
        """
        self.path = path
        try:
            with open_regular(path) as file:
                size = file.seek(0, 2)
                file.seek(0)
                header = _read_header(path, file.read(8), file, size)
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise BundleError(f"{path}: cannot be read: {error.strerror or error}") from error
        self._base = header.data_start
        self._entries = _checked_entries(path, header, size)

    def specs(self) -> list[TensorSpec]:
        """Returns the tensors in the order of the file, without padding."""
        return [spec for spec, _ in self._entries.values()]

    def release(self) -> None:
        """Releases the memory of pages that were read; views stay valid and read the file again."""
        if hasattr(mmap, "MADV_DONTNEED"):  # missing on some systems
            self._map.madvise(mmap.MADV_DONTNEED)

    def __getitem__(self, name: str) -> Array:
        spec, offset = self._entries[name]
        dtype = DTYPES[spec.dtype]
        flat = np.frombuffer(
            self._map, dtype, count=math.prod(spec.shape), offset=self._base + offset
        )
        return flat.reshape(spec.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


@dataclass(frozen=True)
class _Header:
    """A parsed header, and the position where the values start."""

    entries: dict[str, Any]
    data_start: int  # bytes from the start of the file


def _entry(dtype: str, shape: tuple[int, ...], start: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def _read_header(path: Path, prefix: bytes, file: Any, size: int) -> _Header:
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > HEADER_LIMIT or 8 + length > size:
        raise BundleError(
            f"{path}: truncated, or not a safetensors file: its first 8 bytes announce a header of "
            f"{length:,} bytes, but the file has {size:,}"
        )
    try:
        entries = parse_json(file.read(length))
    except ValueError as error:
        raise BundleError(f"{path}: its header is not valid JSON: {error}") from error
    if not isinstance(entries, dict):
        raise BundleError(f"{path}: its header is {type(entries).__name__}; expected an object")
    return _Header(entries, 8 + length)


def _checked_entries(path: Path, header: _Header, size: int) -> dict[str, tuple[TensorSpec, int]]:
    """Checks that the tensors are aligned, adjacent, and fill the file exactly."""
    found: list[tuple[int, int, TensorSpec]] = []
    for name, entry in header.entries.items():
        if name != METADATA:
            found.append(_checked_entry(f"{path}: tensor {name}", name, entry))
    found.sort(key=lambda item: item[:2])
    end = 0
    entries: dict[str, tuple[TensorSpec, int]] = {}
    for start, stop, spec in found:
        if start != end:
            problem = "overlaps the tensor before it" if start < end else "leaves a gap before it"
            raise BundleError(f"{path}: tensor {spec.name} starts at byte {start} and {problem}")
        end = stop
        if spec.name.startswith(PAD):
            continue
        if (header.data_start + start) % ALIGNMENT:
            raise BundleError(f"{path}: tensor {spec.name} is not aligned to {ALIGNMENT} bytes")
        entries[spec.name] = (spec, start)
    if header.data_start + end != size:
        raise BundleError(
            f"{path}: truncated or altered: its header describes {header.data_start + end:,} "
            f"bytes, the file has {size:,}"
        )
    return entries


def _checked_entry(where: str, name: str, entry: Any) -> tuple[int, int, TensorSpec]:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise BundleError(f"{where}: expected the keys dtype, shape, data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise BundleError(f"{where}: type {dtype!r:.40}; expected one of {', '.join(DTYPES)}")
    if not _is_counts(shape) or not _is_counts(offsets) or len(offsets) != 2:
        raise BundleError(f"{where}: shape and data_offsets must be lists of integers")
    spec = TensorSpec(name, dtype, tuple(shape))
    if offsets[1] - offsets[0] != spec.nbytes:
        raise BundleError(
            f"{where}: {dtype} of shape {shape} takes {spec.nbytes:,} bytes, but its offsets span "
            f"{offsets[1] - offsets[0]:,}"
        )
    return offsets[0], offsets[1], spec


def _is_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)
