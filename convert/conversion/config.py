"""What a conversion is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from convert.bundle.kv_cache import FP16
from convert.bundle.targets import HOST

DEFAULT_TARGET, DEFAULT_RECIPE, MLC_RECIPE = HOST, "small", "mlc"


@dataclass(frozen=True, kw_only=True)
class MlcOptions:
    """How MLC-LLM compiles a package, which of its compilers, and for which runtime."""

    python: str | None = None  # the Python that has mlc_llm; None: this one
    source: Path | None = None  # a checkout of mlc-llm instead; None: an installed one
    abi: str | None = None  # release of apache-tvm whose runtime loads the library; None: this one
    pictures: bool | None = None  # None: if `source` is given and the model has a vision encoder


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """The user's request, resolved: every product has its folder."""

    checkpoint: str | None  # a folder or a hub id; None: the demo
    outputs: Mapping[str, Path]  # by `Product.name`
    targets: tuple[str, ...] = ()  # those that get an engine in the bundle
    quant: str | None = None  # a recipe of configs/quant; None: each product's default
    kv: str = FP16  # the bundle's KV cache: a key of convert.bundle.kv_cache.KV_FORMATS
    method: str | None = None  # None: the recipe's
    target_size: str | None = None  # of the bundle's weights; None: the recipe's formats
    samples: Path | None = None  # for calibration; None: the built-in ones
    skip_bad: bool = False
    mlc_targets: tuple[str, ...] = ()  # those that get a library in the MLC package
    mlc: MlcOptions = MlcOptions()
    resume: bool = False
