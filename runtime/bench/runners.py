"""What can be measured: a bundle in an engine, and the reference in this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from convert.support.measure import peak_rss_bytes
from runtime.bench.inputs import ask
from runtime.engine_client.client import EngineClient
from runtime.engine_client.protocol import Field
from runtime.inputs.generation_options import GenerationOptions
from runtime.sessions.session import Session

_READ_BYTES = (2**26, 2**30)  # smallest and largest buffer of the bandwidth measurement


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The time and tokens of one question."""

    total_ms: float  # as the caller sees it, including the picture
    encode_ms: float  # 0 where the picture was remembered, or there was none
    prefill_ms: float
    decode_ms: float
    prompt_tokens: int
    reused_tokens: int
    decode_steps: int

    @property
    def prefilled_tokens(self) -> int:
        """Tokens of the prompt that had to be computed."""
        return self.prompt_tokens - self.reused_tokens


@dataclass(frozen=True, kw_only=True)
class MachineSpeed:
    """The machine's limits on every kernel."""

    read_bytes_s: float  # from memory, by all threads
    launch_us: float  # to hand a task to all threads and to wait for them


class Runner(Protocol):
    """A model that can be loaded and asked."""

    def load(self) -> float:
        """Loads the model anew; returns milliseconds."""

    def ask(self, text: str, picture: Image.Image | None, max_new_tokens: int) -> Asked:
        """Asks one question, greedily; may reuse the previous question's cache."""

    def forget(self) -> None:
        """Forgets the conversation; pictures stay encoded."""

    def machine(self) -> MachineSpeed | None:
        """Measures the machine; None if this runner cannot."""

    def peak_rss_bytes(self) -> int | None:
        """Returns the most memory that the model's process had when it last answered."""


class EngineRunner:
    """A bundle in an engine, here or elsewhere."""

    def __init__(
        self, client: EngineClient, bundle: Path, *, window: int, max_slices: int | None = None
    ) -> None:
        """Loads nothing.

        Args:
            client: the engine.
            bundle: where the engine finds it.
            window: tokens that a token may see.
            max_slices: of a picture; None: the model's limit.
        """
        self._client, self._bundle, self._window = client, bundle, window
        self._max_slices = max_slices
        self._peak: int | None = None
        memory = client.hello[Field.MEMORY_BYTES]
        # As large as memory allows: it must exceed the CPU cache, which is 256 MiB on some servers.
        self._read_bytes = max(_READ_BYTES[0], min(memory // 8, _READ_BYTES[1]))

    @property
    def device(self) -> Mapping[str, Any]:
        """What the engine reported about itself and the machine."""
        return self._client.about

    @property
    def client(self) -> EngineClient:
        """The engine."""
        return self._client

    def load(self) -> float:
        """See `Runner`."""
        return float(self._client.load(self._bundle, window=self._window)[Field.LOAD_MS])

    def ask(self, text: str, picture: Image.Image | None, max_new_tokens: int) -> Asked:
        """See `Runner`."""
        start = time.perf_counter()
        image, encode_ms = None, 0.0
        if picture is not None:
            line = self._client.image(picture, max_slices=self._max_slices)
            image = line[Field.IMAGE]
            encode_ms = 0.0 if line[Field.REMEMBERED] else float(line[Field.ENCODE_MS])
        # A step is a pass over one token, whatever the answer repeats.
        answer = self._client.chat(
            ask(text), image=image, max_new_tokens=max_new_tokens, options={Field.LOOKUP: False}
        )
        total_ms = (time.perf_counter() - start) * 1000
        statistics = answer.statistics
        self._peak = statistics[Field.PEAK_RSS_BYTES]
        return Asked(
            total_ms=total_ms,
            encode_ms=encode_ms,
            prefill_ms=statistics[Field.PREFILL_MS],
            decode_ms=statistics[Field.DECODE_MS],
            prompt_tokens=statistics[Field.PROMPT_TOKENS],
            reused_tokens=statistics[Field.REUSED_TOKENS],
            decode_steps=statistics[Field.DECODE_STEPS],
        )

    def forget(self) -> None:
        """See `Runner`."""
        self._client.reset()

    def machine(self) -> MachineSpeed:
        """See `Runner`."""
        line = self._client.bandwidth(self._read_bytes)
        return MachineSpeed(
            read_bytes_s=line[Field.BYTES] / line[Field.MS] * 1000,
            launch_us=line[Field.LAUNCH_US],
        )

    def peak_rss_bytes(self) -> int | None:
        """See `Runner`."""
        return self._peak


class ReferenceRunner:
    """The full-precision model in this process."""

    def __init__(self, load: Callable[[], Session], *, max_slices: int | None = None) -> None:
        """Args: load: loads the model. max_slices: of a picture; None: the model's limit."""
        self._load, self._max_slices = load, max_slices
        self._session: Session | None = None

    def load(self) -> float:
        """See `Runner`."""
        self._session = None  # so that there are never two in memory
        start = time.perf_counter()
        self._session = self._load()
        return (time.perf_counter() - start) * 1000

    def ask(self, text: str, picture: Image.Image | None, max_new_tokens: int) -> Asked:
        """See `Runner`."""
        start = time.perf_counter()
        options = GenerationOptions(max_new_tokens=max_new_tokens)
        reply = self._loaded().reply(ask(text), picture, options, max_slices=self._max_slices)
        s = reply.statistics
        return Asked(
            total_ms=(time.perf_counter() - start) * 1000,
            encode_ms=s.encode_ms,
            prefill_ms=s.prefill_ms,
            decode_ms=s.decode_ms,
            prompt_tokens=s.prompt_tokens,
            reused_tokens=s.reused_tokens,
            decode_steps=s.decode_steps,
        )

    def forget(self) -> None:
        """See `Runner`."""
        self._loaded().reset()

    def machine(self) -> MachineSpeed | None:
        """See `Runner`: PyTorch has no such measurement."""
        return None

    def peak_rss_bytes(self) -> int | None:
        """See `Runner`."""
        return peak_rss_bytes()

    def _loaded(self) -> Session:
        assert self._session is not None, "load comes first"
        return self._session
