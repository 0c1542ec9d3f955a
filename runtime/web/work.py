"""Does what takes long, on one thread, one thing after the other."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.http.worker import Worker
from runtime.inputs.memory import give_back_memory
from runtime.inputs.slices import Grid, limit_slices, plan_cut
from runtime.sessions.engine_session import EngineSession
from runtime.sessions.session import Reply, Session
from runtime.web import benchmark, jobs, self_check
from runtime.web.chats import ASSISTANT, Chat, ChatStore, Turn
from runtime.web.events import Event
from runtime.web.failures import error_code
from runtime.web.jobs import Job, StoppedError
from runtime.web.model import LoadedModel
from runtime.web.pictures import Pictures
from runtime.web.settings import Settings

_SPEEDS = (
    "prompt_tokens", "reused_tokens", "generated_tokens", "prefill_tok_s", "decode_tok_s",
)  # fmt: skip
_FAILED = "failed"  # how an answer ended whose engine died

if TYPE_CHECKING:
    from PIL import Image

    from convert.checkpoint.config import VisionConfig

log = logging.getLogger(__name__)


def now() -> int:
    """Returns milliseconds since 1970."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, kw_only=True)
class ChatServices:
    """What the work is done with."""

    folder: Path  # where all of it is kept
    model: LoadedModel
    chats: ChatStore
    pictures: Pictures
    settings: Settings
    seed: int | None  # None: another answer each time


class ChatWorker:
    """Its methods come from any thread and return at once."""

    def __init__(
        self,
        services: ChatServices,
        publish: Callable[[Event], None],
        on_change: Callable[[], None],
    ) -> None:
        """Args: publish: takes events for the page. on_change: called when the state changes."""
        self._services, self._publish, self._on_change = services, publish, on_change
        self._lock = threading.RLock()
        self._worker = Worker()
        self._job: Job | None = None  # what is under way
        self._waiting: Job | None = None  # an answer that waits for a job of another kind
        self._problem: dict[str, str] | None = None  # why nothing can be asked
        self._verified = "no"

    def prepare(self) -> None:
        """Opens the model."""
        self._begin(self._new(jobs.LOAD), self._load)

    def answer(self, chat: Chat) -> None:
        """Answers a chat's last question."""
        self._begin(self._new(jobs.ANSWER, chat.name), partial(self._answer, chat))

    def check(self) -> None:
        """Checks that everything works; the results are an event."""
        if self._services.model.bundle is not None:
            self._begin(self._new(jobs.CHECK), self._check)

    def bench(self) -> None:
        """Measures the speed; the results are an event."""
        self._begin(self._new(jobs.BENCH), self._bench)

    def stop(self) -> None:
        """Ends what is under way and what waits."""
        with self._lock:
            for job in (self._job, self._waiting):
                if job is not None:
                    job.stop()

    def answering(self) -> Job | None:
        """Returns the answer that is under way or waits."""
        with self._lock:
            return self._job if self._job and self._job.chat else self._waiting

    def describe(self) -> Event:
        """Returns what the page's state says of all this."""
        model = self._services.model
        with self._lock:
            state: Event = {"verified": self._verified, "bundle": model.about()}
            if self._job is not None:
                state["job"] = self._job.to_json()
            answering = self.answering()
            if answering is not None:
                state["answering"] = answering.chat
            if self._problem is not None:
                state["problem"] = self._problem
        if model.is_ready:
            state["model"] = {
                "image_tokens": model.image_tokens(),
                "max_slices": model.most_slices(),
            }
            state["engine"] = {"cpu": model.hello.get("cpu")}
        return state

    def close(self) -> None:
        """Ends what is under way, and the model."""
        self.stop()
        self._worker.finish(self._services.model.close)

    def _new(self, kind: str, chat: str | None = None) -> Job:
        return Job(kind, chat, self._publish)

    def _begin(self, job: Job, task: Callable[[Job], None]) -> None:
        """Starts a task unless another is running; an answer waits for other kinds of job."""
        with self._lock:
            if self._job is None:
                self._job = job
            elif job.chat is not None and self.answering() is None:
                self._waiting = job
            else:
                return
            self._worker.submit(self._run, job, task)
        self._on_change()

    def _run(self, job: Job, task: Callable[[Job], None]) -> None:
        with self._lock:
            self._job = job
            self._waiting = None if self._waiting is job else self._waiting
        self._on_change()
        try:
            task(job)
        except StoppedError:
            log.info("%s: stopped", job.kind)
        except Exception as error:  # of any kind: the server lives on, and the page is told
            self._fail(job, error)
        finally:
            with self._lock:
                self._job = None
            self._on_change()
            give_back_memory()  # of the picture that it may have been about

    def _fail(self, job: Job, error: Exception) -> None:
        code = error_code(error)
        log.warning("%s: %s: %s", job.kind, code, error)
        with self._lock:
            if not self._services.model.is_ready:
                self._problem = {"code": code, "message": str(error)}
        self._publish({"event": "error", "code": code, "message": str(error), "chat": job.chat})

    def _load(self, job: Job) -> None:
        self._session(job)

    def _session(self, job: Job) -> Session:
        """Returns the model's session, opened if need be."""
        settings = self._services.settings.all()
        session = self._services.model.session(settings, partial(job.advance, "load", 0, 0))
        with self._lock:
            self._problem = None
        return session

    def _answer(self, chat: Chat, job: Job) -> None:
        stop, speed = _FAILED, None
        try:
            session = self._session(job)
            self._on_change()  # it is loaded
            job.check()
            name = chat.picture()
            if name is not None:
                job.advance("decode", 0, 0)
            picture = None if name is None else self._services.pictures.open(name)
            max_slices = self._max_slices()
            grid = grid_of(picture, session.config.vision, max_slices)
            reply = session.reply(
                chat.messages(),
                picture,
                self._services.settings.options(self._services.seed),
                max_slices=max_slices,
                on_text=job.add,
                on_progress=partial(job.advance_picture, grid),
                cancelled=job.is_stopped,
            )
            stop, speed = reply.statistics.stop, _speed(reply)
        finally:
            if job.text:  # text that came before an engine died is kept, too
                answer = Turn(role=ASSISTANT, text=job.text, stop=stop, speed=speed)
                chat.answer(answer, now())
                self._services.chats.save(chat)

    def _max_slices(self) -> int | None:
        """Returns into how many slices to cut a picture at most; None: the model cuts none."""
        most = self._services.model.most_slices()
        return min(most, self._services.settings.all()["max_slices"]) if most else None

    def _check(self, job: Job) -> None:
        bundle = self._services.model.bundle
        assert bundle is not None, "the reference has no self-check"
        results = [self_check.check_weights(bundle, job)]
        with self._lock:
            self._verified = "yes" if results[0]["ok"] else "failed"
        try:
            session = self._session(job)
            assert isinstance(session, EngineSession), "a bundle's session"
            results += self_check.check_engine(bundle, session, job)
        except Exception as error:  # a result like others, whatever it is
            job.check()
            results.append(self_check.failure("engine", error))
        log.info("self-check: %s", results)
        self._publish({"event": "check", "results": results})

    def _bench(self, job: Job) -> None:
        results = benchmark.run(self._session(job), job)
        log.info("benchmark: %s", results)
        self._publish({"event": "bench", "results": results})


def grid_of(
    picture: Image.Image | None, vision: VisionConfig | None, max_slices: int | None
) -> Grid | None:
    """Returns columns and rows of a picture's slices; None: it has none.

    Args:
        picture: None: there is none.
        vision: the model's.
        max_slices: the most slices; None: the model cuts no pictures.

    Raises:
        PictureError: the picture is too long and narrow.
    """
    limited = limit_slices(vision, max_slices)
    if picture is None or limited is None or limited.slices is None:
        return None
    return plan_cut(picture.size, limited).grid


def _speed(reply: Reply) -> dict[str, Any]:
    """Returns what the page's line of speeds needs."""
    statistics = reply.statistics
    return {
        "encode_ms": statistics.encode_ms,
        "statistics": {name: getattr(statistics, name) for name in _SPEEDS},
    }
