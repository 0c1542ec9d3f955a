"""The MLC package as a product: written whole, then compiled where MLC-LLM is installed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.bundle.plan import Plan
from convert.conversion.config import MLC_RECIPE, ConvertConfig
from convert.conversion.conversion import Conversion
from convert.conversion.product import Product
from convert.mlc.compile import command_for_later, compile_package, find_compiler
from convert.mlc.package import KIND, make_mlc_plan, write_package
from convert.support.console import Size
from convert.support.output_folder import OutputFolder

_PHASE = "package for MLC"


@dataclass(frozen=True, kw_only=True)
class MlcSummary:
    """The MLC package that was made."""

    path: Path
    parameters: int
    nbytes: int  # of all parameters, as stored
    library: Path | None  # None: MLC-LLM is not installed here
    mlc_llm: str | None  # the version that compiled the library
    compile_with: str | None  # the command that compiles it elsewhere

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
            "pictures": False,
        }
        if self.library is None:
            return {"mlc": values | {"library": None, "compile_with": self.compile_with}}
        return {"mlc": values | {"library": str(self.library), "mlc_llm": self.mlc_llm}}

    def shown(self) -> list[tuple[str, str]]:
        """Returns the lines that the command prints, each as a name and a text."""
        bits = f"{self.bits_per_weight:.2f} bits per weight"
        if self.library is None:
            how = f"mlc_llm is not installed here; to compile it: {self.compile_with}"
        else:
            how = f"compiled by mlc_llm {self.mlc_llm}: {self.library}"
        package = f"{Size(self.nbytes)}, {bits}; text only, without pictures"
        return [("mlc package", package), ("mlc library", how)]


class MlcProduct(Product):
    """The decoder as a package for MLC-LLM."""

    name = "mlc"
    target = "mlc-android"

    @staticmethod
    def settings(config: ConvertConfig) -> Mapping[str, str]:
        """Returns the settings of the MLC package in a request, in the user's words."""
        method = f", {config.method}" if config.method else ""
        package = config.outputs[MlcProduct.name]
        return {"mlc package": f"{package} ({_recipe_name(config)}{method})"}

    def __init__(self, config: ConvertConfig) -> None:
        """Checks that the package's folder may be written, and looks for MLC-LLM."""
        self._output = OutputFolder(config.outputs[self.name], KIND)
        self._compiler = find_compiler(config.mlc_python)
        self._plan: Plan | None = None
        self._summary: MlcSummary | None = None

    def check(self, conversion: Conversion) -> None:
        """Accepts every checkpoint that can be opened."""

    def plan(self, conversion: Conversion) -> Plan:
        """Decides how the decoder is stored.

        Raises:
            ToolkitError: the recipe's number format is not MLC-LLM's, or does not suit the model.
        """
        checkpoint = conversion.checkpoint
        recipe = conversion.load_recipe(_recipe_name(conversion.config))
        self._plan = make_mlc_plan(checkpoint.config, checkpoint.untied_head, recipe)
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
            yield
            with conversion.phases.measure(_PHASE):
                output.commit()
        with conversion.phases.measure(_PHASE):
            conversion.progress("mlc_llm compile", 0, 0)
            later = library = None
            if compiler is None:
                later = command_for_later(output.path, conversion.config.mlc_python)
            else:
                library = compile_package(compiler, output.path)
        self._summary = MlcSummary(
            path=output.path,
            parameters=report.parameters,
            nbytes=report.weights_bytes,
            library=library,
            mlc_llm=None if compiler is None else compiler.version,
            compile_with=later,
        )

    def summary(self) -> MlcSummary:
        """Returns what was made."""
        assert self._summary is not None, "made first"
        return self._summary


def _recipe_name(config: ConvertConfig) -> str:
    return config.quant or MLC_RECIPE
