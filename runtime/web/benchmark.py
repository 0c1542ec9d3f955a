"""Measures what a question about one image takes, as the app's `Benchmark.java` does."""

from __future__ import annotations

import os
from typing import Any

from PIL import Image

from runtime.inputs.generation_options import GenerationOptions
from runtime.sessions.session import Session
from runtime.web.jobs import Job

QUESTION = (
    "Describe this picture in detail: what is in it, where each thing is, which colours it has, "
    "what stands in the background, and what may happen next. Write several sentences."
)
_SIDE = 512  # pixels; the engine scales it
_NEW_TOKENS = 64


def run(session: Session, job: Job) -> dict[str, Any]:
    """Runs it once; returns what the page shows.

    Raises:
        StoppedError: the user ended it.
    """
    session.reset()  # nothing of the prompt is cached
    vision = session.config.vision
    reply = session.reply(
        [{"role": "user", "content": QUESTION}],
        None if vision is None else _noise(),
        GenerationOptions(max_new_tokens=_NEW_TOKENS),
        max_slices=1 if vision is not None and vision.slices is not None else None,
        on_progress=job.advance,
        cancelled=job.is_stopped,
    )
    job.check()
    found = reply.statistics
    results: dict[str, Any] = {
        "prompt_tokens": found.prompt_tokens,
        "prefill_tok_s": found.prefill_tok_s,
        "generated_tokens": found.generated_tokens,
        "decode_tok_s": found.decode_tok_s,
    }
    if vision is not None:
        results["encode_ms"] = found.encode_ms
    if found.peak_rss_bytes is not None:
        results["peak_rss_bytes"] = found.peak_rss_bytes
    return results


def _noise() -> Image.Image:
    """Returns a picture that the engine cannot remember from an earlier run."""
    return Image.frombytes("RGB", (_SIDE, _SIDE), os.urandom(_SIDE * _SIDE * 3))
