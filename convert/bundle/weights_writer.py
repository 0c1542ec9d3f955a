"""Writes a weights file in a thread of its own, hashes it on the way, and can resume.

The thread writes and hashes one tensor while the next is computed. The hash of all bytes up to a
tensor is a mark. An interrupted file is truncated at the last mark that still matches its bytes and
continued from there. The finished file need not be read again for its hash.
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
_WAITING = 2  # the most tensors that wait to be written


@dataclass(frozen=True)
class Mark:
    """A position up to which a file is valid."""

    tensors: int  # the number of tensors before the position
    sha256: str  # of the file up to the position


class WeightsWriter:
    """Writes tensors in the order of their specs. A context manager."""

    def __init__(self, path: Path, specs: Sequence[TensorSpec], marks: Sequence[Mark] = ()) -> None:
        """Creates the file and writes its header, or continues an interrupted one.

        Args:
            path: the file; it must not exist unless there are marks.
            specs: of all tensors.
            marks: of the interrupted file, in order; it is truncated at the last one that matches
                its bytes.
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
        self._broken = False  # a write failed

    @property
    def kept(self) -> Mark | None:
        """The last mark of the interrupted file that was kept; None if nothing was."""
        return self._kept

    def write(self, name: str, values: Array) -> None:
        """Queues the next tensor; its name, type and shape must be those of its spec.

        The values must not change afterwards, because they may be written later.

        Raises:
            OSError: an earlier tensor could not be written.
        """
        assert self._next < len(self._specs), f"{name}: all tensors have been written"
        spec = self._specs[self._next]
        found = (name, _CODES.get(values.dtype), values.shape)
        assert found == (spec.name, spec.dtype, spec.shape), f"found {found}; expected {spec}"
        self._submit(lambda at=self._next: self._write(at, values))  # type: ignore[misc]
        self._next += 1

    def mark(self, note: Callable[[Mark], None]) -> None:
        """Calls `note` in the writer's thread when all queued tensors have been written."""
        tensors = self._next
        self._submit(lambda: note(Mark(tensors, self._digest.hexdigest())))

    def sha256(self) -> str:
        """Waits until everything is written, and returns the hash of the whole file."""
        self._wait(0)
        assert self._next == len(self._specs), "some tensors are still to come"
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
                assert not missing, f"{self._path}: never written: {missing}"
                self._wait(0)
        finally:
            self._thread.shutdown(cancel_futures=True)
            self._file.close()

    def _recover(self, header: bytes, marks: Sequence[Mark]) -> Mark | None:
        """Returns the last mark that matches; leaves the file and the hash at its position."""
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
        """Returns the position at which the first `tensors` tensors end."""
        return self._starts[tensors - 1] + self._specs[tensors - 1].nbytes

    def _write(self, at: int, values: Array) -> None:
        padding = bytes(self._starts[at] - self._file.tell())
        # An empty view cannot be cast.
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
            if not self._broken:  # later writes would leave a gap
                self._broken = True
                work()
                self._broken = False

        self._wait(_WAITING)
        self._waiting.append(self._thread.submit(unless_broken))

    def _wait(self, most: int) -> None:
        """Waits until at most `most` jobs are left; raises the exception of a failed one."""
        while len(self._waiting) > most:
            self._waiting.popleft().result()


def _open_plain(path: str, flags: int) -> int:
    """Opens a regular file, and does not follow symbolic links."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path}: not a regular file")
    return descriptor
