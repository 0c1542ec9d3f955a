"""Which kinds of compiled blocks an engine uses for what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runtime.engine_client.protocol import Field


def describe_kinds(hello: Mapping[str, Any], loaded: Mapping[str, Any]) -> str:
    """Says which blocks compute what, and on how many threads if not as usually.

    Args:
        hello: the engine's first line.
        loaded: its answer to a load.
    """
    usual, threads = hello.get(Field.THREADS), loaded.get(Field.THREADS, {})
    said = {}
    for work, kind in loaded.get(Field.KINDS, {}).items():
        number = threads.get(work, usual)
        said[work] = kind if number == usual else f"{kind} on {number} threads"
    if len(set(said.values())) < 2:
        return "".join(set(said.values()))
    return ", ".join(f"{kind} for {work}" for work, kind in said.items())
