"""Work on many tensors, one on each processor at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def spread(
    work: Callable[[_Item], _Result],
    items: Sequence[_Item],
    done: Callable[[_Item], None] = lambda item: None,
) -> list[_Result]:
    """Maps items to results, each on one processor.

    PyTorch's own threads wait for each other after every operation; on runs of rows that fit a
    cache this takes longer than the operation.

    Args:
        work: must not depend on other items.
        items: any number.
        done: called with each item that is finished, in order.
    """
    threads, results = torch.get_num_threads(), list[_Result]()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            for item, result in zip(items, pool.map(work, items), strict=True):
                results.append(result)
                done(item)
    finally:
        torch.set_num_threads(threads)
    return results
