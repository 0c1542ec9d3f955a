"""Compiles an engine's C++ beside other work: while weights are written and blocks compiled."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event

from convert.engine.build import compile_parts
from convert.support.progress import Progress


class EnginePrebuild:
    """Compiles what engines for some platforms are linked from. Use as a context manager.

    The objects go to the toolkit's cache, where `build_engine` finds them.
    """

    def __init__(self, triples: Sequence[str], progress: Progress) -> None:
        """Args: triples: zig's names of the platforms, in the order in which they are needed."""
        self._triples = tuple(dict.fromkeys(triples))
        self._progress = progress
        self._stopped = Event()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="engines")
        self._parts: dict[str, Future[None]] = {}

    def __enter__(self) -> EnginePrebuild:
        for triple in self._triples:
            self._parts[triple] = self._pool.submit(compile_parts, triple, self._report)
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the work; compilers that are running finish their file."""
        self._stopped.set()
        self._pool.shutdown(cancel_futures=True)

    def wait(self, triple: str) -> None:
        """Waits until all objects for a platform are compiled.

        Raises:
            BuildError: something does not compile, or cannot be fetched.
        """
        self._parts[triple].result()

    def _report(self, stage: str, done: int, total: int) -> None:
        if self._stopped.is_set():
            raise _StoppedError
        self._progress(stage, done, total)


class _StoppedError(Exception):
    """The result is no longer needed."""
