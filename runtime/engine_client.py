"""Starts an engine and talks to it: JSON lines through its pipes.

`runtime/engine/PROTOCOL.md` describes the lines.
"""

from __future__ import annotations

import json
import queue
import shutil
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from quantize.errors import ToolkitError
from runtime import protocol
from runtime.picture_file import write_picture_file
from runtime.prompt import Message
from runtime.protocol import Event, Field, Op, Tap

LOCAL, QEMU = "local", "qemu"
QEMU_PROGRAM = "qemu-aarch64-static"
START_SECONDS = 60.0
QUIET_SECONDS = 600.0  # between two lines of the engine while it works
_END_SECONDS = 10.0  # from the end of its input to its own end
_CANCEL_ID = 0  # no request's
_LAST_WORDS = 20  # lines of stderr that are kept

Line = dict[str, Any]
Float32 = NDArray[np.float32]
OnProgress = Callable[[str, int, int], None]  # stage, done, in all
OnText = Callable[[str], None]
_NOTHING: Mapping[str, Any] = MappingProxyType({})


def _ignore(*_: object) -> None:
    """Hears of nothing."""


class EngineError(ToolkitError):
    """The engine refused a request."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class EngineDiedError(ToolkitError):
    """The engine ended, or does not answer."""


@dataclass(frozen=True)
class EngineAnswer:
    """An answer, and what it took."""

    text: str
    ids: list[int]
    stop: str  # a value of `runtime.protocol.Stop`
    statistics: Mapping[str, Any]


def engine_command(engine: str, program: Path, *, cpu: str = "max") -> list[str]:
    """Returns how to start a program.

    Args:
        engine: `local`, or `qemu` for a phone's program.
        program: the engine.
        cpu: the core that qemu imitates.

    Raises:
        EngineDiedError: qemu is not installed.
    """
    if engine == LOCAL:
        return [str(program)]
    assert engine == QEMU, f"no way to start {engine}"
    if shutil.which(QEMU_PROGRAM) is None:
        raise EngineDiedError(
            f"{QEMU_PROGRAM} is not installed; Debian has it in the package qemu-user-static"
        )
    return [QEMU_PROGRAM, "-cpu", cpu, str(program)]


class EngineClient:
    """A running engine; a context manager that ends it. Requests come one after the other.

    Only `cancel` may be called from another thread while a request is under way.
    """

    def __init__(self, command: Sequence[str], *, quiet_seconds: float = QUIET_SECONDS) -> None:
        """Starts an engine and hears its first line.

        Args:
            command: see `engine_command`.
            quiet_seconds: after how long without a line an engine at work counts as dead.

        Raises:
            EngineDiedError: it does not start, or speaks another version of the protocol.
            EngineError: it cannot run on this processor.
        """
        self._name = Path(command[-1]).name
        self._quiet_seconds = quiet_seconds
        self._lines: queue.Queue[bytes | None] = queue.Queue()
        self._last_words: deque[str] = deque(maxlen=_LAST_WORDS)
        self._sending = threading.Lock()
        self._number = 0
        pipe = subprocess.PIPE
        try:
            # In a session of its own: an interrupt from the keyboard is the client's to handle.
            self._process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
            )
        except OSError as error:
            raise EngineDiedError(
                f"{command[0]}: does not start: {error.strerror or error}"
            ) from error
        assert self._process.stdout is not None and self._process.stderr is not None
        self._threads = [
            threading.Thread(target=self._read_lines, args=(self._process.stdout,), daemon=True),
            threading.Thread(target=self._read_words, args=(self._process.stderr,), daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        try:
            self.hello = _checked(self._receive(START_SECONDS))
            if self.hello.get(Field.PROTOCOL) != protocol.VERSION:
                raise EngineDiedError(
                    f"{self._name}: speaks version {self.hello.get(Field.PROTOCOL)} of the "
                    f"protocol; expected {protocol.VERSION}: convert again"
                )
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> EngineClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the engine; what it was doing is cancelled."""
        process = self._process
        assert process.stdin is not None
        try:
            process.stdin.close()
        except OSError:
            pass  # it is dead already
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for thread in self._threads:
            thread.join()
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()

    def request(
        self,
        op: str,
        fields: Mapping[str, Any] = _NOTHING,
        *,
        on_progress: OnProgress = _ignore,
        on_text: OnText = _ignore,
    ) -> Line:
        """Sends a request and waits for its last event.

        Args:
            op: a value of `runtime.protocol.Op`.
            fields: of the request.
            on_progress: hears of work that takes long.
            on_text: hears an answer as it grows.

        Raises:
            EngineError: the engine refused it.
            EngineDiedError: the engine ended, or was quiet for too long.
        """
        self._number += 1
        number = self._number
        self._send({Field.OP: op, Field.ID: number, **fields})
        try:
            while True:
                line = self._receive(self._quiet_seconds)
                # Without an id it is an error: the engine could not even read this request.
                if line.get(Field.ID, number) != number:
                    continue  # of a request that was given up, or of a cancel
                event = _checked(line)[Field.EVENT]
                if event == Event.DONE:
                    return line
                if event == Event.PROGRESS:
                    on_progress(line[Field.STAGE], line[Field.DONE], line[Field.TOTAL])
                elif event == Event.TEXT:
                    on_text(line[Field.TEXT])
        except (EngineError, EngineDiedError):
            raise
        except BaseException:
            self.cancel()  # nobody waits for it any more
            raise

    def cancel(self) -> None:
        """Ends the request that is under way; an answer then stops with reason `cancelled`."""
        self._send({Field.OP: Op.CANCEL, Field.ID: _CANCEL_ID})

    def load(self, bundle: Path, *, window: int) -> Line:
        """Loads a bundle in place of the one before."""
        return self.request(Op.LOAD, {Field.BUNDLE: str(bundle), Field.WINDOW: window})

    def image(self, picture: Image.Image, on_progress: OnProgress = _ignore) -> Line:
        """Encodes a picture, unless the engine remembers it; the line names it for `chat`."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "picture"
            write_picture_file(path, picture)
            return self.request(Op.IMAGE, {Field.PATH: str(path)}, on_progress=on_progress)

    def chat(
        self,
        messages: Sequence[Message],
        *,
        image: str | None = None,
        max_new_tokens: int,
        options: Mapping[str, Any] = _NOTHING,
        on_progress: OnProgress = _ignore,
        on_text: OnText = _ignore,
    ) -> EngineAnswer:
        """Answers the last turn of a conversation.

        Args:
            messages: all turns, a user's first and last.
            image: what `image` said of the picture that is shown with the first turn.
            max_new_tokens: after which an answer ends.
            options: more fields of the request: sampling, `stop`, `as_original`.
            on_progress: hears of the prefill.
            on_text: hears the answer as it grows.
        """
        fields = {
            Field.MESSAGES: list(messages),
            Field.IMAGE: image,
            Field.MAX_NEW_TOKENS: max_new_tokens,
            **options,
        }
        line = self.request(Op.CHAT, fields, on_progress=on_progress, on_text=on_text)
        return EngineAnswer(
            line[Field.TEXT], line[Field.IDS], line[Field.STOP], line[Field.STATISTICS]
        )

    def save_image(self, image: str, path: Path) -> None:
        """Writes what was computed of a picture to a file of the engine's machine."""
        self.request(Op.SAVE_IMAGE, {Field.IMAGE: image, Field.PATH: str(path)})

    def restore_image(self, path: Path) -> Line:
        """Remembers a picture that `save_image` wrote; the line names it for `chat`."""
        return self.request(Op.RESTORE_IMAGE, {Field.PATH: str(path)})

    def self_check(self, on_progress: OnProgress = _ignore) -> Line:
        """Answers the bundle's golden prompts; the line says whether as expected."""
        return self.request(Op.SELF_CHECK, on_progress=on_progress)

    def bandwidth(self, size: int | None = None) -> Line:
        """Measures how fast memory is read; `size` is the buffer's, bytes."""
        return self.request(Op.BANDWIDTH, {Field.BYTES: size})

    def reset(self) -> None:
        """Forgets the conversation; pictures stay encoded."""
        self.request(Op.RESET)

    def tap(
        self,
        what: str,
        value: Float32 | Image.Image | Sequence[int],
        options: Mapping[str, Any] = _NOTHING,
    ) -> Float32:
        """Runs one stage of the model.

        Args:
            what: a value of `runtime.protocol.Tap`.
            value: the stage's input; ids for `embed`, a picture for `preprocess`.
            options: more fields of the request.
        """
        with tempfile.TemporaryDirectory() as folder:
            source, result = Path(folder) / "input", Path(folder) / "output"
            fields = {Field.WHAT: what, Field.OUTPUT: str(result), **options}
            if what == Tap.EMBED:
                fields[Field.IDS] = [int(i) for i in np.asarray(value)]
            else:
                fields[Field.INPUT] = str(source)
            if isinstance(value, Image.Image):
                write_picture_file(source, value)
            elif what != Tap.EMBED:
                np.ascontiguousarray(value, np.dtype("<f4")).tofile(source)
            line = self.request(Op.TAP, fields)
            output: Float32 = np.fromfile(result, np.dtype("<f4")).reshape(line[Field.SHAPE])
            return output

    def _send(self, line: Line) -> None:
        data = json.dumps(line, ensure_ascii=True).encode() + b"\n"
        stdin = self._process.stdin
        assert stdin is not None
        try:
            with self._sending:
                stdin.write(data)
                stdin.flush()
        except (OSError, ValueError) as error:
            raise self._died("has ended") from error

    def _receive(self, seconds: float) -> Line:
        try:
            data = self._lines.get(timeout=seconds)
        except queue.Empty:
            raise self._died(f"has said nothing for {seconds:.0f} s") from None
        if data is None:
            self._lines.put(None)  # for whoever asks next
            raise self._died("has ended")
        try:
            line: Line = json.loads(data)
        except ValueError as error:
            raise self._died(f"said what is no JSON: {data[:80]!r}") from error
        return line

    def _died(self, what: str) -> EngineDiedError:
        """Makes the error that tells the engine's last words."""
        try:
            code = self._process.wait(0.5)
        except subprocess.TimeoutExpired:
            end = ""
        else:
            end = f" (signal {-code})" if code < 0 else f" (exit code {code})"
            for thread in self._threads:
                thread.join(_END_SECONDS)  # its last words may still be on their way
        words = " | ".join(self._last_words)
        return EngineDiedError(f"{self._name}: {what}{end}{f': {words}' if words else ''}")

    def _read_lines(self, stream: BinaryIO) -> None:
        for line in stream:
            self._lines.put(line)
        self._lines.put(None)

    def _read_words(self, stream: BinaryIO) -> None:
        for line in stream:
            self._last_words.append(line.decode(errors="replace").rstrip())


def _checked(line: Line) -> Line:
    """Returns a line that is no error."""
    if line.get(Field.EVENT) == Event.ERROR:
        raise EngineError(line[Field.CODE], line[Field.MESSAGE])
    return line
