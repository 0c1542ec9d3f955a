"""Writes a weights file: in a thread of its own, hashed on the way, to go on with if it breaks off.

The thread writes and hashes one tensor while the next is made. After each piece of work the hash
of all bytes so far is a mark: with the last mark that still fits, a broken file is cut there and
goes on, and whoever needs the whole file's hash need not read it again.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, cast

import numpy as np

from convert.bundle.weights_file import DTYPES, Array, TensorSpec, layout
from convert.support.hashing import Digest, feed

_CODES = {dtype: code for code, dtype in DTYPES.items()}
_WAITING = 2  # tensors at most that are made but not written


@dataclass(frozen=True)
class Mark:
    """How far a file is good."""

    tensors: int  # written, from the first on
    sha256: str  # of the file up to there


class WeightsWriter:
    """Writes tensors in the order in which they were announced; a context manager."""

    def __init__(self, path: Path, specs: Sequence[TensorSpec], marks: Sequence[Mark] = ()) -> None:
        """Creates the file and writes its header, or goes on with one that broke off.

        Args:
            path: the file; with marks it may be there already.
            specs: of all tensors.
            marks: of the broken file, in their order; what lies behind the last one that fits
                its bytes is cut off.
        """
        header, offsets = layout(specs)
        self._path, self._specs = path, tuple(specs)
        self._starts = [len(header) + offset for offset in offsets]
        self._digest: Digest = hashlib.sha256()
        mode = "r+b" if marks else "xb"
        self._file = cast(BinaryIO, open(path, mode, buffering=0, opener=_open_plain))
        try:
            self._kept = self._recover(header, marks)
            self._next = 0 if self._kept is None else self._kept.tensors
            if self._kept is None:
                self._begin(header)
        except BaseException:
            self._file.close()
            raise
        self._thread = ThreadPoolExecutor(1, "weights")
        self._waiting: deque[Future[None]] = deque()
        self._broken = False  # something could not be written

    @property
    def kept(self) -> Mark | None:
        """What the file began with, other than its header."""
        return self._kept

    def write(self, name: str, values: Array) -> None:
        """Hands over the next tensor; its name, type and shape must be the announced ones.

        The values may not change any more: they may be written later.

        Raises:
            OSError: an earlier tensor could not be written.
        """
        assert self._next < len(self._specs), f"{name}: every announced tensor is written"
        spec = self._specs[self._next]
        found = (name, _CODES.get(values.dtype), values.shape)
        assert found == (spec.name, spec.dtype, spec.shape), f"{found} comes where {spec} should"
        self._submit(lambda at=self._next: self._write(at, values))  # type: ignore[misc]
        self._next += 1

    def mark(self, note: Callable[[Mark], None]) -> None:
        """Calls `note`, in the writer's thread, when all that was handed over is written."""
        tensors = self._next
        self._submit(lambda: note(Mark(tensors, self._digest.hexdigest())))

    def sha256(self) -> str:
        """Returns the whole file's hash, when everything is written."""
        self._wait(0)
        assert self._next == len(self._specs), "asked too early"
        return self._digest.hexdigest()

    def __enter__(self) -> WeightsWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                missing = [spec.name for spec in self._specs[self._next :]]
                assert not missing, f"{self._path}: announced but never written: {missing}"
                self._wait(0)
        finally:
            self._thread.shutdown(cancel_futures=True)
            self._file.close()

    def _recover(self, header: bytes, marks: Sequence[Mark]) -> Mark | None:
        """Returns the last mark that fits, with the file and its hash at that place."""
        if not marks:
            return None
        found = self._file.read(len(header))
        if found != header:
            return None
        digest, kept = hashlib.sha256(header), None
        for mark in marks:
            if mark.tensors > len(self._specs):
                break
            end = self._end(mark.tensors)
            feed(self._file, digest, end - self._file.tell())
            if self._file.tell() != end or digest.hexdigest() != mark.sha256:
                break
            kept, self._digest = mark, digest.copy()
        if kept is not None:
            self._file.seek(self._end(kept.tensors))
            self._file.truncate()
        return kept

    def _begin(self, header: bytes) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._digest = hashlib.sha256(header)
        self._put(header)

    def _end(self, tensors: int) -> int:
        """Returns where the first `tensors` tensors end."""
        return self._starts[tensors - 1] + self._specs[tensors - 1].nbytes

    def _write(self, at: int, values: Array) -> None:
        padding = bytes(self._starts[at] - self._file.tell())
        # A view of nothing cannot be cast.
        raw = np.ascontiguousarray(values).data.cast("B") if values.size else b""
        for data in (padding, raw):
            self._put(data)
            self._digest.update(data)

    def _put(self, data: memoryview | bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) :]

    def _submit(self, work: Callable[[], None]) -> None:
        def unless_broken() -> None:
            if not self._broken:  # what comes behind a hole would be lost
                self._broken = True
                work()
                self._broken = False

        self._wait(_WAITING)
        self._waiting.append(self._thread.submit(unless_broken))

    def _wait(self, most: int) -> None:
        """Waits until at most `most` pieces of work are left; raises what one of them raised."""
        while len(self._waiting) > most:
            self._waiting.popleft().result()


def _open_plain(path: str, flags: int) -> int:
    """Opens a plain file, and nothing through a link."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path}: not a plain file")
    return descriptor
