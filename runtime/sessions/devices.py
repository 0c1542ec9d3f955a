"""Where the reference computes, and in which type."""

from __future__ import annotations

from collections.abc import Callable

import torch

from quantize.errors import ConfigError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def choose_device(device: str | None) -> torch.device:
    """Returns the asked device, or the fastest that is there.

    Raises:
        ConfigError: no such device here.
    """
    present: dict[str, Callable[[], bool]] = {
        "cuda": torch.cuda.is_available,
        "mps": torch.backends.mps.is_available,
        "cpu": lambda: True,
    }
    if device is None:
        return torch.device(next(name for name, is_there in present.items() if is_there()))
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device is {device!r}; expected cpu, mps or cuda") from error
    if chosen.type not in present:
        raise ConfigError(f"device is {device!r}; expected cpu, mps or cuda")
    count = torch.cuda.device_count() if chosen.type == "cuda" else 1
    if not present[chosen.type]() or (chosen.index or 0) >= count:
        raise ConfigError(f"device {device!r} is not on this machine; try --device cpu")
    return chosen


def choose_dtype(dtype: str | None, device: torch.device) -> torch.dtype:
    """Returns the asked dtype; by default full precision on a CPU, half elsewhere."""
    if dtype is not None:
        if dtype not in DTYPES:
            raise ConfigError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
        return DTYPES[dtype]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.float16 if device.type == "mps" else torch.float32
