"""Giving memory back after pictures, in commands that live on."""

from __future__ import annotations

import ctypes
import traceback


def give_back_memory() -> None:
    """Gives freed memory back to the system, where the C library would keep it for later.

    What several threads took and freed leaves holes: GNU's library kept hundreds of MiB after
    pictures of 200 megapixels.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other libraries keep less
    if trim is not None:
        trim(0)


def forget_locals(error: BaseException) -> None:
    """Frees what an error's traceback holds: each variable of the functions that it ended.

    An error that is kept, for another thread or by its own traceback, would keep pictures, too.
    """
    seen: set[int] = set()
    chain: list[BaseException | None] = [error]
    while chain:
        current = chain.pop()
        if current is not None and id(current) not in seen:
            seen.add(id(current))
            traceback.clear_frames(current.__traceback__)
            chain += [current.__cause__, current.__context__]
