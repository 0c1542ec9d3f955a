"""An engine as a process: JSON lines through its pipes, and its last words."""

from __future__ import annotations

import atexit
import errno
import json
import os
import queue
import select
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from enum import Enum
from pathlib import Path
from typing import Any, BinaryIO

from convert.bundle.program import Program, forbidding_mount
from quantize.errors import ToolkitError

_POLL_SECONDS = 0.1  # between two calls while it waits
_SEND_SECONDS = 60.0  # for which it may leave a request unread
_TERM_SECONDS, _KILL_SECONDS = 3.0, 5.0  # from the end of its input to each signal
_SILENT_SECONDS = 1.0  # from one signal to the other where it does not answer anyway
_WORDS_SECONDS = 5.0  # for what it said to arrive
_LAST_WORDS = 20  # lines of stderr that are kept

Line = dict[str, Any]


class Death(str, Enum):
    """Why an engine is gone, as far as its end shows; named as EngineException.java does."""

    DIED = "engine_died"  # ended by itself
    KILLED = "engine_killed"  # by the system, most often for its memory
    CRASHED = "engine_crashed"  # a mistake of ours
    FORBIDDEN = "engine_forbidden"  # a system call that is refused
    SILENT = "engine_silent"  # says nothing any more
    NO_ENGINE = "no_engine"  # cannot be started

    @staticmethod
    def of(exit_code: int) -> Death:
        """Tells from an exit code, which is minus the signal for one that a signal ended."""
        if exit_code == -signal.SIGKILL:
            return Death.KILLED
        if exit_code == -signal.SIGSYS:
            return Death.FORBIDDEN
        return Death.CRASHED if -exit_code in _MISTAKES else Death.DIED


_MISTAKES = (signal.SIGILL, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGSEGV)


class EngineDiedError(ToolkitError):
    """The engine ended, or does not answer."""

    def __init__(
        self, message: str, death: Death = Death.DIED, *, from_outside: bool = False
    ) -> None:
        """Says it.

        Args:
            message: one line for people.
            death: the reason for programs.
            from_outside: whether something else ended it, as far as that shows.
        """
        super().__init__(message)
        self.death, self.from_outside = death, from_outside


class EngineAwayError(EngineDiedError):
    """The machine that the engine ran on went away; what became of the engine is not known."""


_running: set[EngineProcess] = set()
_running_lock = threading.Lock()


def kill_engines() -> None:
    """Kills all engines of this process; who waits for one gets `EngineDiedError`."""
    with _running_lock:
        engines = list(_running)
    for engine in engines:
        engine.kill()


atexit.register(kill_engines)  # one that is stuck does not notice the end of its input


class EngineProcess:
    """A started program. Lines may be sent from any thread, and are received in one."""

    def __init__(
        self,
        command: Sequence[str | Program],
        *,
        name: str | None,
        environment: Mapping[str, str],
        end_mark: str | None = None,
    ) -> None:
        """Starts it.

        Args:
            command: its command line; what is an engine's program is compared with its bundle's
                manifest first.
            name: by which errors call it; by default its program's.
            environment: variables that it gets besides this process's.
            end_mark: the last line on stderr of an engine elsewhere; if it is missing, the
                connection broke.

        Raises:
            BundleError: the program is not its bundle's.
            EngineDiedError: it does not start.
        """
        self._end_mark, self._has_marked = end_mark, False
        words = [str(word.path) if isinstance(word, Program) else word for word in command]
        self.name = name or Path(words[-1]).name
        self._lines: queue.Queue[bytes | None] = queue.Queue()
        self._last_words: deque[str] = deque(maxlen=_LAST_WORDS)
        self._sending = threading.Lock()
        self._is_silent = False  # it did not answer in time
        try:
            self._process = _start(command, {**os.environ, **environment})
        except OSError as error:
            advice = _advice(error, Path(words[0]))
            raise EngineDiedError(
                f"{words[0]}: does not start: {error.strerror or error}{advice}", Death.NO_ENGINE
            ) from error
        with _running_lock:
            _running.add(self)
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)
        assert self._process.stdout is not None and self._process.stderr is not None
        self._threads = [
            threading.Thread(target=self._read_lines, args=(self._process.stdout,), daemon=True),
            threading.Thread(target=self._read_words, args=(self._process.stderr,), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def pid(self) -> int:
        """The number by which the system knows it."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """How it ended; None while it runs, minus the signal that ended it."""
        return self._process.poll()

    def kill(self) -> None:
        """Ends it, and what it has started, at once; from any thread."""
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # it leads a group; see `_start`

    def close(self) -> None:
        """Ends it: its input ends, and if that does not help, SIGTERM and SIGKILL do."""
        process = self._process
        assert process.stdin is not None
        try:
            process.stdin.close()
            if self._is_silent or not self._ends_within(_TERM_SECONDS):
                process.terminate()
                left = _SILENT_SECONDS if self._is_silent else _KILL_SECONDS - _TERM_SECONDS
                self._ends_within(left)
        finally:  # whatever interrupts the wait, no orphan stays behind
            self.kill()
            process.wait()
            with _running_lock:
                _running.discard(self)
        for thread, stream in zip(self._threads, (process.stdout, process.stderr), strict=True):
            thread.join(_WORDS_SECONDS)
            assert stream is not None
            if not thread.is_alive():  # a child of its own may hold the pipe open
                stream.close()

    def send(self, line: Line) -> None:
        """Writes a line.

        Raises:
            EngineDiedError: it has ended, or reads nothing.
        """
        data = json.dumps(line, ensure_ascii=True).encode() + b"\n"
        stdin = self._process.stdin
        assert stdin is not None
        try:
            with self._sending:
                self._write(stdin.fileno(), memoryview(data))
        except (OSError, ValueError) as error:
            died = self._died("has ended")
            died.from_outside = True  # whatever ended it, it was not this request
            raise died from error

    def receive(
        self, deadline: Callable[[], float], on_wait: Callable[[], None] = lambda: None
    ) -> Line:
        """Waits for the next line, and calls `on_wait` again and again meanwhile.

        Args:
            deadline: until when, by `time.monotonic`; asked again and again, too.
            on_wait: may move it.

        Raises:
            EngineDiedError: it has ended, was silent too long, or sent a line that is not JSON.
        """
        data = self._wait(deadline, on_wait)
        if data is None:
            self._lines.put(None)  # for whoever asks next
            raise self._died("has ended")
        try:
            line: Line = json.loads(data)
        except ValueError as error:
            what = f"sent a line that is not JSON: {data[:80]!r}"
            raise self._died(what, Death.CRASHED) from error
        return line

    def _ends_within(self, seconds: float) -> bool:
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _write(self, pipe: int, data: memoryview) -> None:
        """Writes all, but never waits for ever: a process that is stopped reads nothing."""
        poll, size = select.poll(), len(data)
        poll.register(pipe, select.POLLOUT)
        deadline = time.monotonic() + _SEND_SECONDS
        try:
            while data:
                if poll.poll(_POLL_SECONDS * 1000):
                    data = data[os.write(pipe, data) :]
                elif time.monotonic() > deadline:
                    raise self._died(f"has read nothing for {_SEND_SECONDS:.0f} s")
        except BaseException:
            if 0 < len(data) < size:  # half a line is no request, nor is what would follow it
                self.kill()
            raise

    def _wait(self, deadline: Callable[[], float], on_wait: Callable[[], None]) -> bytes | None:
        start = time.monotonic()
        while True:
            on_wait()
            left = deadline() - time.monotonic()
            try:
                return self._lines.get(timeout=min(max(left, 0), _POLL_SECONDS))
            except queue.Empty:
                if left <= 0:
                    what = f"has said nothing for {time.monotonic() - start:.0f} s"
                    raise self._died(what, Death.SILENT) from None

    def _died(self, what: str, running: Death = Death.SILENT) -> EngineDiedError:
        """Makes the error that tells its last words. Args: running: what is wrong if it runs."""
        death = running
        try:
            code = self._process.wait(0.5)
        except subprocess.TimeoutExpired:
            end = ""
            self._is_silent = death == Death.SILENT
        else:
            death = Death.of(code)
            end = f" (signal {-code})" if code < 0 else f" (exit code {code})"
            for thread in self._threads:
                thread.join(_WORDS_SECONDS)  # its last words may still be on their way
        words = " | ".join(self._last_words)
        gone = self._process.returncode is not None
        if gone and self._end_mark is not None and not self._has_marked:
            said = f": {words}" if words else ""
            return EngineAwayError(
                f"{self.name}: {what}: the connection broke{said}; look at the cable, and whether "
                "the phone has memory left",
                death,
            )
        text = f"{self.name}: {what}{end}{f': {words}' if words else ''}"
        by_signal = death in (Death.KILLED, Death.DIED) and (self.exit_code or 0) < 0
        return EngineDiedError(text, death, from_outside=by_signal)

    def _read_lines(self, stream: BinaryIO) -> None:
        for line in stream:
            self._lines.put(line)
        self._lines.put(None)

    def _read_words(self, stream: BinaryIO) -> None:
        for line in stream:
            text = line.decode(errors="replace").rstrip()
            if text == self._end_mark:
                self._has_marked = True
            else:
                self._last_words.append(text)


def _start(
    command: Sequence[str | Program], environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Starts a command line; raises OSError where that fails."""
    pipe = subprocess.PIPE
    with ExitStack() as opened:
        descriptors = {
            i: opened.enter_context(word.opened())
            for i, word in enumerate(command)
            if isinstance(word, Program)
        }
        # The new process's own name for what was opened and found right here.
        words = [
            f"/proc/self/fd/{descriptors[i]}" if i in descriptors else str(word)
            for i, word in enumerate(command)
        ]
        first = command[0]
        shown = str(first.path) if isinstance(first, Program) else first
        # In a session of its own: an interrupt from the keyboard is the client's to handle.
        return subprocess.Popen(
            [shown, *words[1:]],
            executable=words[0],
            pass_fds=tuple(descriptors.values()),
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            env=environment,
            start_new_session=True,
        )


def _advice(error: OSError, program: Path) -> str:
    """Says what to do about a program that does not start."""
    if error.errno == errno.ENOEXEC:
        return ": it is no program for this computer; is it another target's?"
    if not isinstance(error, PermissionError):
        return ""
    mount = forbidding_mount(program) if program.exists() else None
    if mount is None:
        return f"; try `chmod +x {program}`"
    return (
        f": what is mounted at {mount} may not run programs (noexec); copy the bundle to another "
        "place, such as your home folder, and use it there"
    )
