"""The kernels in a library that TVM compiled for OpenCL, read from its OpenCL module's bytes."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# How a module begins: its format, with the length before it; "cl" is source text.
_START = (2).to_bytes(8, "little") + b"cl"
_MARK = "// Function: "  # TVM begins each kernel's source with it
# A kernel's argument by (code, bits) of its DLDataType; 3 is a handle: a buffer.
_TYPES: dict[tuple[int, int], Any] = {
    (0, 32): ctypes.c_int32,
    (0, 64): ctypes.c_int64,
    (1, 32): ctypes.c_uint32,
    (2, 32): ctypes.c_float,
    (3, 64): ctypes.c_void_p,
}


@dataclass(frozen=True)
class Kernel:
    """A kernel, and how TVM's host code calls it: its arguments, then the extents of threads."""

    name: str
    types: tuple[Any, ...]  # of its arguments, as ctypes has them
    threads: tuple[str, ...]  # such as `blockIdx.x` or `threadIdx.y`
    source: str  # OpenCL C: declarations of all kernels and the definition of this one

    def sizes(self, extents: Sequence[int]) -> tuple[list[int], list[int]]:
        """Returns the global and the local size, in work items, for the extents of a launch."""
        blocks, items = [1, 1, 1], [1, 1, 1]
        for thread, extent in zip(self.threads, extents, strict=True):
            kind, _, axis = thread.partition(".")
            {"blockIdx": blocks, "threadIdx": items}[kind]["xyz".index(axis)] = extent
        return [b * i for b, i in zip(blocks, items, strict=True)], items


def read_kernels(data: bytes) -> list[Kernel]:
    """Reads the OpenCL module that TVM stores in a library or in an object file."""
    assert data.count(_START) == 1
    reader = _Reader(data[data.index(_START) + len(_START) :])
    described = {}
    for _ in range(reader.number()):
        name, again = reader.text(), reader.text()
        assert name == again
        types = tuple(reader.type() for _ in range(reader.number()))
        threads = tuple(reader.text() for _ in range(reader.number()))
        for _ in range(reader.number()):  # what each argument is for: nothing here
            reader.take(4)
        described[name] = types, threads
    sources = {}
    for part in reader.text().split(_MARK)[1:]:
        name, _, source = part.partition("\n")
        sources[name] = source
    assert sources.keys() == described.keys()
    return [Kernel(name, *described[name], source) for name, source in sources.items()]


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, count: int) -> bytes:
        assert self._at + count <= len(self._data)
        self._at += count
        return self._data[self._at - count : self._at]

    def number(self) -> int:
        return int.from_bytes(self.take(8), "little")

    def text(self) -> str:
        return self.take(self.number()).decode()

    def type(self) -> Any:
        code, bits, lanes = struct.unpack("<BBH", self.take(4))
        assert lanes == 1
        return _TYPES[code, bits]
