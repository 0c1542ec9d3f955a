"""Requests to an engine, and its answers.

`runtime/engine/PROTOCOL.md` describes the lines.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convert.bundle.program import Program
from convert.support.closing import Closing
from convert.support.progress import Progress, silent
from convert.support.scratch import scratch_folder
from quantize.errors import ToolkitError
from runtime.engine_client import protocol
from runtime.engine_client.emulator import QEMU_PROGRAM, emulator
from runtime.engine_client.kinds import describe_kinds
from runtime.engine_client.options import LOCAL, QEMU
from runtime.engine_client.process import Death, EngineDiedError, EngineProcess, Line
from runtime.engine_client.protocol import Event, Field, Op, Tap
from runtime.inputs.callbacks import Cancelled, OnLogprobs, OnText
from runtime.inputs.logprobs import StepLogprobs, TokenLogprob
from runtime.inputs.picture_file import write_picture_file
from runtime.inputs.prompt import Message

NEWEST_CPU = "max"  # qemu's name for a processor with all that it can emulate
START_SECONDS = 60.0
QUIET_SECONDS = 600.0  # between two lines of the engine while it works
CANCEL_SECONDS = 5.0  # from a cancel to the engine's next line
SLOW_CANCEL_SECONDS = 30.0  # under qemu, and on a phone
_IDLE_SECONDS = 1.0  # an engine that ends sooner after a request had not read it
_CANCEL_ID = 0  # no request's

_LOG = logging.getLogger(__name__)
Float32 = NDArray[np.float32]
_NOTHING: Mapping[str, Any] = MappingProxyType({})


def _ignore(*_: object) -> None:
    """Ignores what it receives."""


@cache
def _warn_once(text: str) -> None:
    """Says what every engine on this machine would say again."""
    _LOG.warning("%s", text)


def _never() -> bool:
    """Cancels nothing."""
    return False


class EngineError(ToolkitError):
    """The engine refused a request."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class EngineGoneError(EngineDiedError):
    """The engine had ended before it read a request, which can be sent to another engine."""


@dataclass(frozen=True)
class EngineAnswer:
    """An answer, and what it took."""

    text: str
    ids: list[int]
    stop: str  # a value of `runtime.engine_client.protocol.Stop`
    statistics: Mapping[str, Any]


def engine_command(engine: str, program: Program, *, cpu: str = NEWEST_CPU) -> list[str | Program]:
    """Returns how to start a program.

    Args:
        engine: `local`, or `qemu` for a phone's program.
        program: the engine; compared with its bundle's manifest whenever it is started.
        cpu: the core that qemu imitates.

    Raises:
        EngineDiedError: qemu is not installed.
    """
    if engine == LOCAL:
        return [program]
    assert engine == QEMU, f"no way to start {engine}"
    qemu = emulator()
    if qemu is None:
        raise EngineDiedError(
            f"{QEMU_PROGRAM} is not installed; Debian has it in the package qemu-user-static",
            Death.NO_ENGINE,
        )
    return [qemu, "-cpu", cpu, program]


class Files(Protocol):
    """How the files that requests name get to an engine and back."""

    def send(self, path: Path) -> str:
        """Makes a file readable for the engine; returns its path there."""

    def room(self, path: Path) -> str:
        """Returns the path at which the engine is to write what `fetch` brings to `path`."""

    def fetch(self, path: Path) -> None:
        """Brings what the engine wrote."""


class SharedFiles:
    """Files of an engine on this machine: it sees them where they are."""

    def send(self, path: Path) -> str:
        """See `Files`."""
        return str(path)

    def room(self, path: Path) -> str:
        """See `Files`."""
        return str(path)

    def fetch(self, path: Path) -> None:
        """See `Files`."""


class _Patience:
    """Until when an engine at work may be quiet."""

    def __init__(self, quiet_seconds: float, cancel_seconds: float) -> None:
        """Args: see `EngineClient`."""
        self._quiet_seconds, self._cancel_seconds = quiet_seconds, cancel_seconds
        self._sent = self._heard = time.monotonic()
        self._hurried = math.inf

    def restart(self) -> None:
        """Notes a line."""
        self._heard = time.monotonic()

    def hurry(self) -> None:
        """Notes a cancel."""
        self._hurried = time.monotonic()

    def deadline(self) -> float:
        """Returns it, by `time.monotonic`."""
        hurried = max(self._heard, self._hurried) + self._cancel_seconds
        return min(self._heard + self._quiet_seconds, hurried)

    def is_unheard(self) -> bool:
        """Says whether the request is so young that nothing was begun."""
        return self._heard == self._sent and time.monotonic() < self._sent + _IDLE_SECONDS


class EngineClient(Closing):
    """A running engine; a context manager that ends it. Requests come one after the other.

    Only `cancel` may be called from another thread while a request is under way.
    """

    def __init__(
        self,
        command: Sequence[str | Program],
        *,
        name: str | None = None,
        environment: Mapping[str, str] = _NOTHING,
        files: Files | None = None,
        kinds_file: str | None = None,
        end_mark: str | None = None,
        quiet_seconds: float = QUIET_SECONDS,
        cancel_seconds: float = CANCEL_SECONDS,
    ) -> None:
        """Starts an engine and reads its first line.

        Args:
            command: see `engine_command`.
            name: what errors call the engine; by default its program's name.
            environment: variables added to this process's.
            files: how files get to the engine; by default it reads this machine's.
            kinds_file: where the engine remembers which of its blocks are fastest, in its own
                file system; None: it takes the first kind that its processor runs.
            end_mark: see `EngineProcess`.
            quiet_seconds: an engine at work that writes no line for so long counts as dead.
            cancel_seconds: the same after a cancel.

        Raises:
            BundleError: the program is not its bundle's.
            EngineDiedError: it does not start, or speaks another version of the protocol.
            EngineError: it cannot run on this processor.
        """
        self._process = EngineProcess(
            command, name=name, environment=environment, end_mark=end_mark
        )
        self._files, self._kinds_file = files or SharedFiles(), kinds_file
        self._kinds = ""
        self._picture_kind: str | None = None
        self._quiet_seconds, self._cancel_seconds = quiet_seconds, cancel_seconds
        self._number = 0
        started = time.monotonic()
        try:
            self.hello = _checked(self._process.receive(lambda: started + START_SECONDS))
            if self.hello.get(Field.PROTOCOL) != protocol.VERSION:
                raise EngineDiedError(
                    f"{self._process.name}: speaks version {self.hello.get(Field.PROTOCOL)} of the "
                    f"protocol; expected {protocol.VERSION}: convert again",
                    Death.NO_ENGINE,
                )
        except BaseException:
            self.close()
            raise
        for sentence in self.hello.get(Field.REFUSED, ()):
            _warn_once(f"{self._process.name}: {sentence}")

    def close(self) -> None:
        """Ends the engine; what it was doing is cancelled."""
        self._process.close()

    @property
    def about(self) -> Line:
        """Its first line; `kinds` is a text that says which blocks compute the loaded bundle."""
        return {**self.hello, Field.KINDS: self._kinds}

    @property
    def picture_kind(self) -> str | None:
        """The kind of blocks that encodes pictures, of the loaded bundle; None if it says none."""
        return self._picture_kind

    @property
    def has_ended(self) -> bool:
        """Whether it is gone, as far as that is known."""
        return self._process.exit_code is not None

    def request(
        self,
        op: str,
        fields: Mapping[str, Any] = _NOTHING,
        *,
        on_progress: Progress = silent,
        on_text: OnText = _ignore,
        on_logprobs: OnLogprobs = _ignore,
        cancelled: Cancelled = _never,
    ) -> Line:
        """Sends a request and waits for its last event.

        Args:
            op: a value of `runtime.engine_client.protocol.Op`.
            fields: of the request.
            on_progress: receives the progress of work that takes long.
            on_text: receives each new piece of an answer's text.
            on_logprobs: receives every token of an answer, if the request asks for logprobs.
            cancelled: polled while the engine works; true cancels the request.

        Raises:
            EngineError: the engine refused it, or a picture was cancelled.
            EngineGoneError: the engine had ended before it read this request.
            EngineDiedError: the engine ended, or was quiet for too long.
        """
        self._number += 1
        number = self._number
        patience = _Patience(self._quiet_seconds, self._cancel_seconds)

        def ask() -> None:
            nonlocal cancelled
            if cancelled():
                cancelled = _never  # once is enough
                self.cancel()
                patience.hurry()

        try:
            self._process.send({Field.OP: op, Field.ID: number, **fields})
            while True:
                line = self._process.receive(patience.deadline, ask)
                patience.restart()
                # Without an id it is an error: the engine could not even read this request.
                if line.get(Field.ID, number) != number:
                    continue  # of a request that was given up, or of a cancel
                event = _checked(line)[Field.EVENT]
                if event == Event.DONE:
                    return line
                _report(event, line, on_progress, on_text, on_logprobs)
        except EngineDiedError as error:
            if error.from_outside and patience.is_unheard():
                raise EngineGoneError(str(error), error.death) from error
            raise
        except EngineError:
            raise
        except BaseException:
            self.cancel()  # nobody waits for it any more
            raise

    def cancel(self) -> None:
        """Ends the request that is under way; an answer then stops with reason `cancelled`."""
        self._process.send({Field.OP: Op.CANCEL, Field.ID: _CANCEL_ID})

    def load(self, bundle: Path, *, window: int) -> Line:
        """Loads a bundle in place of the one before."""
        fields: dict[str, Any] = {Field.BUNDLE: str(bundle), Field.WINDOW: window}
        if self._kinds_file is not None and Field.KINDS in self.hello:  # from 0.2.0 on
            fields[Field.KINDS_FILE] = self._kinds_file
        line = self.request(Op.LOAD, fields)
        self._kinds = describe_kinds(self.hello, line)
        self._picture_kind = line.get(Field.KINDS, {}).get(Field.PICTURE)
        return line

    def image(
        self,
        picture: Image.Image,
        on_progress: Progress = silent,
        cancelled: Cancelled = _never,
        *,
        max_slices: int | None = None,
    ) -> Line:
        """Encodes a picture, unless the engine remembers it; the line names it for `chat`.

        Args:
            picture: which.
            on_progress: receives the progress, counted in blocks of all images.
            cancelled: polled while the engine works; true cancels the request.
            max_slices: the most slices that it is cut into; None: the model's own limit.
        """
        with scratch_folder() as folder:
            path = folder / "picture"
            write_picture_file(path, picture)
            fields: dict[str, Any] = {Field.PATH: self._files.send(path)}
            if max_slices is not None:  # engines before 0.2.0 do not know the field
                fields[Field.MAX_SLICES] = max_slices
            return self.request(Op.IMAGE, fields, on_progress=on_progress, cancelled=cancelled)

    def chat(
        self,
        messages: Sequence[Message],
        *,
        image: str | None = None,
        max_new_tokens: int,
        options: Mapping[str, Any] = _NOTHING,
        on_progress: Progress = silent,
        on_text: OnText = _ignore,
        on_logprobs: OnLogprobs = _ignore,
        cancelled: Cancelled = _never,
    ) -> EngineAnswer:
        """Answers the last turn of a conversation.

        Args:
            messages: all turns, a user's first and last.
            image: what `image` said of the picture that is shown with the first turn.
            max_new_tokens: after which an answer ends.
            options: more fields of the request: sampling, `stop`, `as_original`.
            on_progress: receives the progress of the prefill.
            on_text: receives each new piece of the answer's text.
            on_logprobs: receives every token before its text, if the options ask for logprobs.
            cancelled: polled while the engine works; true ends the answer early.
        """
        fields = {
            Field.MESSAGES: list(messages),
            Field.IMAGE: image,
            Field.MAX_NEW_TOKENS: max_new_tokens,
            **options,
        }
        line = self.request(
            Op.CHAT,
            fields,
            on_progress=on_progress,
            on_text=on_text,
            on_logprobs=on_logprobs,
            cancelled=cancelled,
        )
        return EngineAnswer(
            line[Field.TEXT], line[Field.IDS], line[Field.STOP], line[Field.STATISTICS]
        )

    def save_image(self, image: str, path: Path) -> None:
        """Writes what was computed of a picture to a file of the engine's machine."""
        self.request(Op.SAVE_IMAGE, {Field.IMAGE: image, Field.PATH: str(path)})

    def restore_image(self, path: Path) -> Line:
        """Remembers a picture that `save_image` wrote; the line names it for `chat`."""
        return self.request(Op.RESTORE_IMAGE, {Field.PATH: str(path)})

    def self_check(self, on_progress: Progress = silent) -> Line:
        """Answers the bundle's golden prompts; the line says whether as expected."""
        return self.request(Op.SELF_CHECK, on_progress=on_progress)

    def bandwidth(self, size: int | None = None) -> Line:
        """Measures how fast memory is read; `size` is the buffer's, bytes."""
        return self.request(Op.BANDWIDTH, {Field.BYTES: size})

    def use_threads(self, threads: int | None = None) -> int:
        """Sets how many threads compute from now on; None takes all of `hello`."""
        return int(self.request(Op.THREADS, {Field.THREADS: threads})[Field.THREADS])

    def profile(self) -> list[Line]:
        """Returns what each kernel took since the last call; the first one begins measuring."""
        kernels: list[Line] = self.request(Op.PROFILE)[Field.KERNELS]
        return kernels

    def tokenize(
        self,
        messages: Sequence[Message],
        image_tokens: int,
        grid: tuple[int, int] | None = None,
    ) -> tuple[list[int], int | None, tuple[int, ...]]:
        """Returns a conversation's ids, and where the tokens of its overview and slices begin."""
        fields: dict[str, Any] = {
            Field.MESSAGES: list(messages),
            Field.IMAGE_TOKENS: image_tokens,
        }
        if grid is not None:
            fields[Field.GRID] = grid
        line = self.request(Op.TOKENIZE, fields)
        starts = tuple(line.get(Field.SLICE_STARTS, ()))
        return line[Field.IDS], line.get(Field.IMAGE_START), starts

    def detokenize(self, ids: Sequence[int]) -> str:
        """Returns the text of ids."""
        text: str = self.request(Op.DETOKENIZE, {Field.IDS: list(ids)})[Field.TEXT]
        return text

    def cut(
        self, picture: Image.Image, *, max_slices: int | None = None
    ) -> tuple[list[tuple[int, int]], tuple[int, int] | None]:
        """Returns the width and height of each image of a picture, and the grid of its slices."""
        sizes, line = self._tap(Tap.CUT, picture, {Field.MAX_SLICES: max_slices})
        grid = line.get(Field.GRID)
        return (
            [(int(width), int(height)) for width, height in sizes],
            None if grid is None else (grid[0], grid[1]),
        )

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
            what: a value of `runtime.engine_client.protocol.Tap`.
            value: the stage's input; ids for `embed`, a picture for `cut` and `preprocess`.
            options: more fields of the request.
        """
        return self._tap(what, value, options)[0]

    def _tap(
        self, what: str, value: Float32 | Image.Image | Sequence[int], options: Mapping[str, Any]
    ) -> tuple[Float32, Line]:
        """Returns a stage's output, and the line that came with it."""
        with scratch_folder() as folder:
            source, result = folder / "input", folder / "output"
            fields = {Field.WHAT: what, Field.OUTPUT: self._files.room(result), **options}
            if what == Tap.EMBED:
                fields[Field.IDS] = [int(i) for i in np.asarray(value)]
            else:
                if isinstance(value, Image.Image):
                    write_picture_file(source, value)
                else:
                    np.ascontiguousarray(value, np.dtype("<f4")).tofile(source)
                fields[Field.INPUT] = self._files.send(source)
            line = self.request(Op.TAP, fields)
            self._files.fetch(result)
            output: Float32 = np.fromfile(result, np.dtype("<f4")).reshape(line[Field.SHAPE])
            return output, line


def _report(
    event: str, line: Line, on_progress: Progress, on_text: OnText, on_logprobs: OnLogprobs
) -> None:
    """Calls the callback that an event before the last one is for."""
    if event == Event.PROGRESS:
        on_progress(line[Field.STAGE], line[Field.DONE], line[Field.TOTAL])
    elif event == Event.TEXT:
        on_text(line[Field.TEXT])
    elif event == Event.TOKEN:
        on_logprobs(StepLogprobs(_token(line), tuple(map(_token, line[Field.TOP]))))


def _token(line: Line) -> TokenLogprob:
    return TokenLogprob(line[Field.TOKEN], line[Field.LOGPROB])


def _checked(line: Line) -> Line:
    """Returns a line that is no error."""
    if line.get(Field.EVENT) == Event.ERROR:
        raise EngineError(line[Field.CODE], line[Field.MESSAGE])
    return line
