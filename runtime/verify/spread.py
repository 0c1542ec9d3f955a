"""Work on many tensors, one on each processor at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def spread(
    work: Callable[[_Item], _Result],
    items: Iterable[_Item],
    done: Callable[[int], None] = lambda count: None,
) -> list[_Result]:
    """Maps items to results, each on one processor.

    PyTorch's own threads wait for each other after every operation; on runs of rows that fit a
    cache this takes longer than the operation.

    Args:
        work: must not depend on other items.
        items: any number.
        done: called with how many items are finished, in order.
    """
    threads, results = torch.get_num_threads(), list[_Result]()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            for result in pool.map(work, items):
                results.append(result)
                done(len(results))
    finally:
        torch.set_num_threads(threads)
    return results
