"""A conversion from request to summary: the loop over its products, and `convert` for Python.

To add a product, subclass `Product` and add the class to `PRODUCTS`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from convert.bundle.kv_cache import FP16, find_kv_format
from convert.checkpoint.reader import DEMO_NAME, Checkpoint
from convert.conversion.bundle_product import BundleProduct, BundleSummary
from convert.conversion.config import DEFAULT_TARGET, ConvertConfig, MlcOptions
from convert.conversion.conversion import Conversion
from convert.conversion.product import Product, ProductSummary
from convert.engine.compile import Target
from convert.mlc.product import MlcProduct, MlcSummary, check_options
from convert.onnx.product import OnnxProduct, OnnxSummary
from convert.support.measure import peak_rss_bytes
from convert.support.phases import Phases, processor_seconds
from convert.support.progress import Progress, silent
from quantize.errors import ConfigError

# In the order in which they are made.
PRODUCTS: tuple[type[Product], ...] = (BundleProduct, OnnxProduct, MlcProduct)

Summary = TypeVar("Summary")


@dataclass(frozen=True, kw_only=True)
class ConversionSummary:
    """What a conversion made, and the time and memory it took."""

    settings: Mapping[str, str]  # the request, in the user's words
    products: tuple[ProductSummary, ...]
    phases: Mapping[str, Mapping[str, float]]  # seconds and processor_seconds of each
    seconds: float
    processor_seconds: float  # of this process, and of the programs that it waited for
    peak_rss_bytes: int  # of this process

    @property
    def bundle(self) -> BundleSummary | None:
        """The bundle; None if no target has an engine."""
        return self._find(BundleSummary)

    @property
    def onnx(self) -> OnnxSummary | None:
        """The ONNX export; None without the target `onnx`."""
        return self._find(OnnxSummary)

    @property
    def mlc(self) -> MlcSummary | None:
        """The MLC package; None without a target such as `mlc-android`."""
        return self._find(MlcSummary)

    def to_json(self) -> dict[str, Any]:
        """Returns what `minicpmv convert --json` prints."""
        products: dict[str, Any] = {}
        for product in self.products:
            products |= product.to_json()
        return {
            "config": dict(self.settings),
            **products,
            "phases": dict(self.phases),
            "seconds": self.seconds,
            "processor_seconds": self.processor_seconds,
            "peak_rss_bytes": self.peak_rss_bytes,
        }

    def _find(self, kind: type[Summary]) -> Summary | None:
        return next((product for product in self.products if isinstance(product, kind)), None)


def convert(
    checkpoint: str | Path | None,
    output: str | Path,
    *,
    target: str | Sequence[str] = DEFAULT_TARGET,
    quant: str | None = None,
    method: str | None = None,
    kv: str | None = None,
    target_size: str | None = None,
    calibration: str | Path | None = None,
    skip_bad: bool = False,
    mlc: MlcOptions | None = None,
    resume: bool = False,
    progress: Progress = silent,
) -> ConversionSummary:
    """Converts a checkpoint, as `minicpmv convert` does.

    A product appears under its final name when it is complete, and replaces an older one only then.

    Args:
        checkpoint: a folder, a Hugging Face id, or a demo's name; None: the demo.
        output: the bundle's folder. If nothing but ONNX or an MLC package is made, that product's;
            beside a bundle those go to `OUTPUT-onnx` and `OUTPUT-mlc`.
        target: what to make, as a list or separated by commas: `host`, `android-arm64` and
            `android-x86_64` give a bundle with an engine for each, `onnx` the vision encoder and
            the resampler, `mlc-android`, `mlc-opencl` and `mlc-host` a package for MLC-LLM.
        quant: a recipe's name or `.json` file; None: `small`, `mlc` for MLC.
        method: `rtn`, `mse`, `awq` or `gptq`, for 4-bit codes; None: the recipe's.
        kv: the bundle's KV cache, `fp16` or `int8`; None: `fp16`.
        target_size: the size of the bundle's weights, such as `1.9GB`; each part of the model gets
            the format that loses least within it. None: the recipe's formats.
        calibration: a JSON Lines file of calibration samples; None: the built-in ones.
        skip_bad: leave out lines of `calibration` that cannot be used.
        mlc: how MLC-LLM compiles; None: with the `mlc_llm` of this environment.
        resume: continue the bundle that an interrupted run of the same request left unfinished.
        progress: receives the progress of every stage.

    Returns:
        A summary per product, and the time and memory it took.

    Raises:
        ConfigError: an option is unknown, or does not apply to what is made.
        CheckpointError: the checkpoint is incomplete, damaged or of another model.
        OutputFolderError: an output folder holds something else, or the disk is full.
        ToolkitError: the base class of these, and of all other errors that a user can fix.
    """
    config = resolve_config(
        checkpoint,
        output,
        target=target,
        quant=quant,
        method=method,
        kv=kv,
        target_size=target_size,
        calibration=calibration,
        skip_bad=skip_bad,
        mlc=mlc,
        resume=resume,
    )
    return _convert(config, progress)


def _convert(config: ConvertConfig, progress: Progress) -> ConversionSummary:
    conversion, products = begin(config, progress, time.monotonic())
    for product in products:
        product.plan(conversion)
    make_products(conversion, products)
    return summarize(conversion, products)


def known_targets() -> tuple[str, ...]:
    """Returns the names of all targets."""
    return *Target.names(), *(name for kind in PRODUCTS for name in kind.targets)


def parse_targets(target: str | Sequence[str]) -> tuple[str, ...]:
    """Splits `host,onnx` and checks every name.

    Raises:
        ConfigError: an unknown target, or one named twice.
    """
    names = target.split(",") if isinstance(target, str) else target
    targets = tuple(name.strip() for name in names)
    for name in targets or ("",):
        if name not in known_targets():
            raise ConfigError(f"target {name!r} is unknown; known: {', '.join(known_targets())}")
    if len(set(targets)) != len(targets):
        raise ConfigError(f"targets {','.join(targets)!r}: one is named twice")
    return targets


def resolve_config(
    checkpoint: str | Path | None,
    output: str | Path,
    *,
    target: str | Sequence[str],
    quant: str | None,
    method: str | None,
    kv: str | None,
    target_size: str | None,
    calibration: str | Path | None,
    skip_bad: bool,
    mlc: MlcOptions | None,
    resume: bool,
) -> ConvertConfig:
    """Checks a request and gives every product its folder; see `convert`.

    Raises:
        ConfigError: the target or the KV cache is unknown, or an option does not apply.
    """
    targets = parse_targets(target)
    compiled = tuple(name for name in targets if name in Target.names())
    of_bundles = {"--target-size": target_size, "--resume": resume, "--kv": kv}
    for option, given in of_bundles.items():
        if given not in (None, False) and not compiled:
            raise ConfigError(f"{option} is for bundles; choose a target such as {DEFAULT_TARGET}")
    mlc_targets = tuple(name for name in targets if name in MlcProduct.targets)
    mlc = mlc or MlcOptions()
    check_options(mlc, mlc_targets)
    kv = FP16 if kv is None else kv
    find_kv_format(kv)
    return ConvertConfig(
        checkpoint=None if checkpoint is None else str(checkpoint),
        outputs=_outputs(Path(output), targets),
        targets=compiled,
        quant=quant,
        kv=kv,
        method=method,
        target_size=target_size,
        samples=None if calibration is None else Path(calibration),
        skip_bad=skip_bad,
        mlc_targets=mlc_targets,
        mlc=mlc,
        resume=resume,
    )


def settings(config: ConvertConfig) -> dict[str, str]:
    """Returns the settings of a request, in the user's words."""
    named = {"checkpoint": config.checkpoint or DEMO_NAME}
    for kind in _kinds(config):
        named |= kind.settings(config)
    return named


def begin(
    config: ConvertConfig, progress: Progress, started: float
) -> tuple[Conversion, list[Product]]:
    """Opens the checkpoint, and checks everything that can be checked before the work.

    Args:
        config: the request.
        progress: receives the progress of every stage.
        started: the value of `time.monotonic()` when the command started.

    Raises:
        ToolkitError: an output folder holds something else, or the checkpoint cannot be
            converted.
    """
    products = [kind(config) for kind in _kinds(config)]
    phases = Phases()
    with phases.measure("open checkpoint"):
        checkpoint = Checkpoint.open(config.checkpoint)
    conversion = Conversion(config, checkpoint, progress, phases, started)
    for product in products:
        product.check(conversion)
    return conversion, products


def make_products(conversion: Conversion, products: Sequence[Product]) -> None:
    """Makes products that are planned, one after another.

    Each one is committed before the next is started, unless the next is a cross-check: then it is
    committed after the cross-check, and not at all if the cross-check fails.
    """
    with ExitStack() as unfinished:
        for product in products:
            if not product.is_cross_check:
                unfinished.close()
            unfinished.enter_context(product.make(conversion))


def summarize(conversion: Conversion, products: Sequence[Product]) -> ConversionSummary:
    """Returns what was made, and the time and memory it took so far."""
    return ConversionSummary(
        settings=settings(conversion.config),
        products=tuple(product.summary() for product in products),
        phases=conversion.phases.to_json(),
        seconds=round(time.monotonic() - conversion.started, 2),
        processor_seconds=round(processor_seconds(), 2),
        peak_rss_bytes=peak_rss_bytes(),
    )


def _kinds(config: ConvertConfig) -> list[type[Product]]:
    return [kind for kind in PRODUCTS if kind.name in config.outputs]


def _outputs(output: Path, targets: Sequence[str]) -> dict[str, Path]:
    """Returns each product's folder: the output itself, or one beside it."""
    # `.` and `..` have no name to add to.
    named = output if output.name.strip(".") else output.resolve()
    outputs = {}
    for kind in PRODUCTS:
        if not kind.targets:
            if set(targets) & set(Target.names()):
                outputs[kind.name] = output
        elif set(kind.targets) & set(targets):
            alone = set(targets) <= set(kind.targets)
            outputs[kind.name] = output if alone else Path(f"{named}-{kind.name}")
    return outputs
