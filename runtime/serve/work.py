"""One model, one request at a time: the others wait, and only so many."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from runtime.engine_client.protocol import Stop
from runtime.http.worker import Worker
from runtime.inputs.logprobs import StepLogprobs
from runtime.inputs.memory import forget_locals, give_back_memory
from runtime.inputs.picture import open_picture
from runtime.serve.errors import ApiError, queue_full
from runtime.serve.request import ChatRequest
from runtime.sessions.session import Reply, Session
from runtime.web.model import LoadedModel


class QueueSlot:
    """A request's place among those that are answered or wait."""

    def __init__(self, give_back: Callable[[], None]) -> None:
        self._give_back = give_back
        self._is_taken = True

    def leave(self) -> None:
        """Gives it back; a second time does nothing."""
        if self._is_taken:
            self._is_taken = False
            self._give_back()


AnswerEvent = str | StepLogprobs | Reply | BaseException


class PendingAnswer:
    """An answer under way: pieces of text and tokens' logprobs, then a `Reply` or an error."""

    def __init__(self, request: ChatRequest) -> None:
        """Made in the event loop that gets its events."""
        self.request = request
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[AnswerEvent] = asyncio.Queue()
        self._cancel_requested = threading.Event()

    async def next(self) -> AnswerEvent:
        """Waits for what comes next."""
        return await self._events.get()

    def stop(self) -> None:
        """Requests cancellation."""
        self._cancel_requested.set()

    def is_stopped(self) -> bool:
        """Returns whether cancellation was requested."""
        return self._cancel_requested.is_set()

    def put(self, event: AnswerEvent) -> None:
        """Brings what comes next; from the thread that works."""
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:  # the loop has ended: nobody waits for it
            self.stop()


class AnswerQueue:
    """The thread that answers. From any thread, but `begin`: that is for the event loop."""

    def __init__(self, model: LoadedModel, *, window: int, waiting: int) -> None:
        """Args: window: tokens. waiting: how many requests may wait beside the one at work."""
        self._model, self._window, self._limit = model, window, 1 + waiting
        self._lock = threading.Lock()
        self._taken = 0
        self._jobs: set[PendingAnswer] = set()
        self._is_ending = False
        self._worker = Worker()

    @property
    def admitted(self) -> int:
        """Requests that are answered or wait."""
        with self._lock:
            return self._taken

    def enter(self) -> QueueSlot:
        """Takes a place.

        Raises:
            ApiError: there is none, or the server is about to end.
        """
        with self._lock:
            if self._is_ending:
                raise ApiError(503, "the server is about to end", code="ending")
            if self._taken >= self._limit:
                raise queue_full(f"{self._limit} requests are under way or wait")
            self._taken += 1
        return QueueSlot(self._leave)

    def begin(self, request: ChatRequest, place: QueueSlot) -> PendingAnswer:
        """Has a request answered in its turn; its place is given back then."""
        job = PendingAnswer(request)
        with self._lock:
            self._jobs.add(job)
            if self._is_ending:
                job.stop()
        self._worker.submit(self._run, job, place)
        return job

    def end(self) -> None:
        """Ends all that is under way and all that waits, and takes no more."""
        with self._lock:
            self._is_ending = True
            jobs = list(self._jobs)
        for job in jobs:
            job.stop()

    def close(self) -> None:
        """Ends the model, once nothing is under way."""
        self.end()
        self._worker.finish(self._model.close)

    def prepare(self) -> None:
        """Opens the model.

        Raises:
            ToolkitError: it cannot be opened.
        """
        self._worker.submit(self._session).result()

    def _leave(self) -> None:
        with self._lock:
            self._taken -= 1

    def _session(self) -> Session:
        return self._model.session({"window": self._window, "threads": 0}, lambda: None)

    def _run(self, job: PendingAnswer, place: QueueSlot) -> None:
        try:
            event: Reply | BaseException = self._answer(job)
        except BaseException as error:  # of any kind: the server goes on, and the client is told
            forget_locals(error)  # the picture among them
            event = error
        if job.request.picture is not None:
            give_back_memory()
        with self._lock:
            self._jobs.discard(job)
        place.leave()
        job.put(event)

    def _answer(self, job: PendingAnswer) -> Reply:
        request = job.request
        if not job.is_stopped():
            picture = None if request.picture is None else open_picture(request.picture)
            reply = self._session().reply(
                request.messages,
                picture,
                request.options,
                on_text=job.put,
                on_logprobs=job.put,
                cancelled=job.is_stopped,
            )
            if reply.statistics.stop != Stop.CANCELLED:
                return reply
        raise ApiError(503, "the answer was cut off: the server is about to end", code="ending")
