"""Work that is cut into pieces, one on each processor at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def parallel_map(
    work: Callable[[_Item], _Result],
    items: Sequence[_Item],
    done: Callable[[_Item], None] = lambda item: None,
) -> list[_Result]:
    """Maps items to results, each on one processor.

    PyTorch's own threads wait for each other after every operation; on runs of rows that fit a
    cache this takes longer than the operation. Not for use by several threads at a time.

    Args:
        work: must not depend on other items.
        items: any number.
        done: called with each item that is finished, in order.
    """
    threads, results = torch.get_num_threads(), list[_Result]()
    inference, gradients = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    def one(item: _Item) -> _Result:
        with torch.inference_mode(inference), torch.set_grad_enabled(gradients):
            return work(item)

    torch.set_num_threads(1)
    try:
        for item, result in zip(items, _pool(threads).map(one, items), strict=True):
            results.append(result)
            done(item)
    finally:
        torch.set_num_threads(threads)
    return results


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)
