"""The MLC package as a product: written whole, then compiled where MLC-LLM is installed."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from convert.bundle.card import write_card
from convert.bundle.licence import Licence
from convert.bundle.plan import Plan
from convert.checkpoint.reader import Checkpoint
from convert.conversion.config import MLC_RECIPE, ConvertConfig, MlcOptions
from convert.conversion.conversion import Conversion
from convert.conversion.product import Product
from convert.mlc.card import package_card
from convert.mlc.checkout import MlcCheckout
from convert.mlc.compile import compile_package
from convert.mlc.compilers import (
    ABIS,
    DEVICES,
    MlcCompiler,
    command_for_later,
    find_compiler,
    from_checkout,
)
from convert.mlc.manifest import KIND, LibraryRecord, PackageManifest
from convert.mlc.package import make_mlc_plan, write_package
from convert.mlc.square import cut_square, one_shape
from convert.mlc.vision_config import MlcVisionConfig
from convert.support.console import Size, megabytes
from convert.support.output_folder import OutputFolder
from quantize.errors import ConfigError

PHONE_ROOM = 250 * 10**6  # bytes: what a library may take of a phone beside weights and KV cache
_PHASE = "package for MLC"
_PHONE = "mlc-android"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class MlcSummary:
    """The MLC package that was made."""

    path: Path
    parameters: int
    nbytes: int  # of all parameters, as stored
    pictures: bool
    square: int | None  # pixels: the side that each image of a model with slices is scaled to
    why_no_tokenizer_json: str | None  # None: there is one, with the ids of tokenizer.model
    libraries: Mapping[str, LibraryRecord]  # by target; none: MLC-LLM is not installed here
    mlc_llm: str | None  # the version that compiled them
    compile_with: Mapping[str, str]  # by target: the command that compiles it elsewhere

    @property
    def bits_per_weight(self) -> float:
        """The package's bits per parameter."""
        return round(8 * self.nbytes / self.parameters, 3)

    def to_json(self) -> dict[str, Any]:
        """Returns this product's part of the command's `--json`."""
        values = {
            "path": str(self.path),
            "parameters": self.parameters,
            "bytes": self.nbytes,
            "bits_per_weight": self.bits_per_weight,
            "pictures": self.pictures,
            "square": self.square,
            "why_no_tokenizer_json": self.why_no_tokenizer_json,
            "libraries": {
                target: str(self.path / library.file) for target, library in self.libraries.items()
            },
            "temporary_bytes": {
                target: library.temporary_bytes for target, library in self.libraries.items()
            },
            "mlc_llm": self.mlc_llm,
            "compile_with": dict(self.compile_with),
        }
        return {"mlc": values}

    def shown(self) -> list[tuple[str, str]]:
        """Returns the lines that the command prints, each as a name and a text."""
        bits = f"{self.bits_per_weight:.2f} bits per weight"
        what = "with pictures" if self.pictures else "text only, without pictures"
        rows = [("mlc package", f"{Size(self.nbytes)}, {bits}; {what}")]
        if self.square is not None:
            rows.append(("mlc pictures", f"{one_shape(self.square)}; README.md has the prompt"))
        if self.why_no_tokenizer_json is not None:
            rows.append(("mlc tokenizer", f"no tokenizer.json: {self.why_no_tokenizer_json}"))
        for library in self.libraries.values():
            path = self.path / library.file
            rows.append(("mlc library", f"compiled by mlc_llm {self.mlc_llm}: {path}"))
            if library.temporary_bytes is not None:
                size = megabytes(library.temporary_bytes)
                rows.append(("mlc memory", f"{size} beside weights and KV cache"))
        for command in self.compile_with.values():
            rows.append(("mlc library", f"mlc_llm is not installed here; to compile it: {command}"))
        return rows


def check_options(options: MlcOptions, targets: Sequence[str]) -> None:
    """Checks the options of MLC-LLM.

    Args:
        options: what the user asked for.
        targets: those for MLC-LLM.

    Raises:
        ConfigError: options of something that is not made, or that contradict each other.
    """
    named = [name for name, value in asdict(options).items() if value is not None]
    if named and not targets:
        example = next(iter(DEVICES))
        raise ConfigError(f"--mlc-{named[0]} is for MLC-LLM; choose a target such as {example}")
    if options.abi not in (None, *ABIS):
        raise ConfigError(f"--mlc-abi {options.abi} is unknown; known: {', '.join(ABIS)}")
    if options.source is None:
        if options.abi is not None or options.pictures:
            option = "--mlc-pictures" if options.abi is None else "--mlc-abi"
            raise ConfigError(f"{option} needs --mlc-source: an installed mlc_llm has its own way")
    elif options.python is not None:
        raise ConfigError("--mlc-source and --mlc-python: give one of them")


class MlcProduct(Product):
    """The model as a package for MLC-LLM, with the vision encoder or without."""

    name = "mlc"
    targets = tuple(DEVICES)

    @staticmethod
    def settings(config: ConvertConfig) -> Mapping[str, str]:
        """Returns the settings of the MLC package in a request, in the user's words."""
        method = f", {config.method}" if config.method else ""
        package = config.outputs[MlcProduct.name]
        return {"mlc package": f"{package} ({_recipe_name(config)}{method})"}

    def __init__(self, config: ConvertConfig) -> None:
        """Checks that the package's folder may be written, and looks for MLC-LLM."""
        self._output = OutputFolder(config.outputs[self.name], KIND)
        self._compiler = _find_compiler(config)
        self._pictures = False
        self._plan: Plan | None = None
        self._summary: MlcSummary | None = None

    def check(self, conversion: Conversion) -> None:
        """Checks that a model which shall take pictures has a vision encoder.

        Raises:
            ConfigError: it has none, or one that MLC-LLM has no place for.
        """
        config = conversion.config
        sees = conversion.checkpoint.config.vision is not None
        if config.mlc.pictures and not sees:
            raise ConfigError("--mlc-pictures: the checkpoint has no vision encoder")
        self._pictures = sees and config.mlc.source is not None and config.mlc.pictures is not False
        if self._pictures:
            MlcVisionConfig.of(conversion.checkpoint.config)

    def plan(self, conversion: Conversion) -> Plan:
        """Decides how the tensors are stored.

        Raises:
            ToolkitError: the recipe's number format is not MLC-LLM's, or does not suit the model.
        """
        checkpoint = conversion.checkpoint
        recipe = conversion.load_recipe(_recipe_name(conversion.config))
        self._plan = make_mlc_plan(
            checkpoint.config, checkpoint.untied_head, recipe, pictures=self._pictures
        )
        return self._plan

    @contextmanager
    def make(self, conversion: Conversion) -> Iterator[None]:
        """Writes the package; compiles it when it is complete."""
        assert self._plan is not None, "planned first"
        plan, output, compiler = self._plan, self._output, self._compiler
        checkpoint, source = conversion.checkpoint, conversion.source
        with conversion.phases.measure(_PHASE):
            calibrated = conversion.calibrate(plan)
        output.require_space(plan.nbytes)
        with output as folder:
            with conversion.phases.measure(_PHASE):
                report = write_package(
                    checkpoint, source, plan, folder, conversion.progress, calibrated
                )
                _write_card(folder, checkpoint)
            yield
            with conversion.phases.measure(_PHASE):
                output.commit()
        with conversion.phases.measure(_PHASE):
            libraries, later = {}, {}
            for target in conversion.config.mlc_targets:
                conversion.progress(f"mlc_llm compile, {target}", 0, 0)
                if compiler is None:
                    python = conversion.config.mlc.python
                    later[target] = command_for_later(target, output.path, python)
                else:
                    libraries[target] = compile_package(compiler, target, output.path)
                    _write_card(output.path, checkpoint)
                    _check_memory(target, libraries[target], pictures=self._pictures)
        self._summary = MlcSummary(
            path=output.path,
            parameters=report.parameters,
            nbytes=report.weights_bytes,
            pictures=self._pictures,
            square=cut_square(checkpoint.config) if self._pictures else None,
            why_no_tokenizer_json=report.why_no_tokenizer_json,
            libraries=libraries,
            mlc_llm=None if compiler is None else compiler.version,
            compile_with=later,
        )

    def summary(self) -> MlcSummary:
        """Returns what was made."""
        assert self._summary is not None, "made first"
        return self._summary


def _write_card(folder: Path, checkpoint: Checkpoint) -> None:
    """Writes what the manifest says now, libraries included."""
    write_card(folder, package_card(PackageManifest.read(folder)), Licence.of(checkpoint.path))


def _find_compiler(config: ConvertConfig) -> MlcCompiler | None:
    if config.mlc.source is None:
        return find_compiler(config.mlc.python)
    checkout = MlcCheckout.open(config.mlc.source)
    if checkout.warning is not None:
        _LOG.warning("%s", checkout.warning)
    return from_checkout(checkout, config.mlc.abi or ABIS[0])


def _check_memory(target: str, library: LibraryRecord, *, pictures: bool) -> None:
    """Warns of a library that takes more memory than is meant for a phone."""
    planned = library.temporary_bytes or 0
    if target == _PHONE and planned > PHONE_ROOM:
        size, room = megabytes(planned), megabytes(PHONE_ROOM)
        hint = "; --no-mlc-pictures takes less" if pictures else ""
        _LOG.warning(
            "%s takes %s beside weights and KV cache, more than the %s meant for a phone%s",
            library.file,
            size,
            room,
            hint,
        )


def _recipe_name(config: ConvertConfig) -> str:
    return config.quant or MLC_RECIPE
