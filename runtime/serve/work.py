"""One model, one request at a time; a limited number of others wait."""

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
    """A request's place in the queue, also while it is answered."""

    def __init__(self, give_back: Callable[[], None]) -> None:
        self._give_back = give_back
        self._is_held = True

    def leave(self) -> None:
        """Gives the place back; a second call does nothing."""
        if self._is_held:
            self._is_held = False
            self._give_back()


AnswerEvent = str | StepLogprobs | Reply | BaseException


class PendingAnswer:
    """An answer under way: pieces of text and tokens' logprobs, then a `Reply` or an error."""

    def __init__(self, request: ChatRequest) -> None:
        """Must be created in the event loop that receives the events."""
        self.request = request
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[AnswerEvent] = asyncio.Queue()
        self._cancel_requested = threading.Event()

    async def next(self) -> AnswerEvent:
        """Waits for the next event."""
        return await self._events.get()

    def stop(self) -> None:
        """Requests cancellation."""
        self._cancel_requested.set()

    def is_stopped(self) -> bool:
        """Returns whether cancellation was requested."""
        return self._cancel_requested.is_set()

    def put(self, event: AnswerEvent) -> None:
        """Adds an event; called from the worker thread."""
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:  # the loop is closed: nobody waits for the event
            self.stop()


class AnswerQueue:
    """The queue and its worker thread. Thread-safe, except `begin`: event loop only."""

    def __init__(
        self, model: LoadedModel, *, window: int, max_slices: int | None, waiting: int
    ) -> None:
        """Creates an empty queue.

        Args:
            model: loaded.
            window: tokens.
            max_slices: most slices that a picture is cut into; None: the model's limit.
            waiting: how many requests may wait besides the one in progress.
        """
        self._model, self._window, self._limit = model, window, 1 + waiting
        self._max_slices = max_slices
        self._lock = threading.Lock()
        self._admitted = 0
        self._jobs: set[PendingAnswer] = set()
        self._is_ending = False
        self._worker = Worker()

    @property
    def admitted(self) -> int:
        """Number of requests that are waiting or being answered."""
        with self._lock:
            return self._admitted

    def enter(self) -> QueueSlot:
        """Takes a place in the queue.

        Raises:
            ApiError: the queue is full, or the server is shutting down.
        """
        with self._lock:
            if self._is_ending:
                raise ApiError(503, "the server is shutting down", code="ending")
            if self._admitted >= self._limit:
                raise queue_full(f"{self._limit} requests are already waiting or in progress")
            self._admitted += 1
        return QueueSlot(self._leave)

    def begin(self, request: ChatRequest, place: QueueSlot) -> PendingAnswer:
        """Queues a request; its place is given back once it is answered."""
        job = PendingAnswer(request)
        with self._lock:
            self._jobs.add(job)
            if self._is_ending:
                job.stop()
        self._worker.submit(self._run, job, place)
        return job

    def end(self) -> None:
        """Cancels all requests, waiting or in progress, and admits no more."""
        with self._lock:
            self._is_ending = True
            jobs = list(self._jobs)
        for job in jobs:
            job.stop()

    def close(self) -> None:
        """Closes the model once no request is in progress."""
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
            self._admitted -= 1

    def _session(self) -> Session:
        return self._model.session({"window": self._window, "threads": 0}, lambda: None)

    def _run(self, job: PendingAnswer, place: QueueSlot) -> None:
        try:
            event: Reply | BaseException = self._answer(job)
        except (
            BaseException
        ) as error:  # any error: the server keeps running, and the client is told
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
            session = self._session()
            vision = session.config.vision
            is_cut = vision is not None and vision.slices is not None
            reply = session.reply(
                request.messages,
                picture,
                request.options,
                max_slices=1 if is_cut and request.overview_only else self._max_slices,
                on_text=job.put,
                on_logprobs=job.put,
                cancelled=job.is_stopped,
            )
            if reply.statistics.stop != Stop.CANCELLED:
                return reply
        raise ApiError(503, "the answer was cut off: the server is shutting down", code="ending")
