"""The bundle as a product: planned, calibrated, written and committed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from convert.bundle.bundle_card import bundle_card
from convert.bundle.card import write_card
from convert.bundle.kv_cache import describe_kv
from convert.bundle.licence import Licence
from convert.bundle.manifest import KIND, Bundle
from convert.bundle.plan import Plan
from convert.calibrate.target_size import choose_recipe, measure_losses, parse_size, smallest_size
from convert.conversion.bundle_writer import add_golden, open_journal, write_bundle
from convert.conversion.config import DEFAULT_RECIPE, ConvertConfig
from convert.conversion.conversion import Conversion
from convert.conversion.default_method import settle_method
from convert.conversion.product import Product
from convert.support.console import Size
from convert.support.output_folder import OutputFolder

# Room for a compiled program and the manifest, beside the weights.
_PROGRAM_BYTES = 16 * 2**20


@dataclass(frozen=True, kw_only=True)
class BundleSummary:
    """The bundle that was made."""

    path: Path
    tensors: int
    parameters: int
    weights_bytes: int
    bits_per_weight: float
    kv_cache: Mapping[str, Any]  # its format, and its bytes per token
    bundle_bytes: int  # of all files
    programs: Mapping[str, str]  # each target's program id
    resumed_tensors: int  # that an interrupted run had written already

    def to_json(self) -> dict[str, Any]:
        """Returns this product's part of the command's `--json`."""
        values = asdict(self)
        del values["path"]
        return values

    def shown(self) -> list[tuple[str, str]]:
        """Returns the lines that the command prints, each as a name and a text."""
        counts = f"{self.tensors:,} tensors, {self.parameters:,} parameters"
        size = f"{Size(self.weights_bytes)}, {self.bits_per_weight:.2f} bits per weight"
        rows = [("weights", f"{counts}, {size}")]
        if self.resumed_tensors:
            rows.append(("resumed", f"{self.resumed_tensors:,} tensors were there already"))
        kv = self.kv_cache
        rows.append(("kv cache", f"{kv['format']}, {kv['bytes_per_token']:,} bytes per token"))
        rows.append(("bundle", str(Size(self.bundle_bytes))))
        rows += [("program", f"{target}: {identity}") for target, identity in self.programs.items()]
        return rows


class BundleProduct(Product):
    """One weights file, and an engine for each compiled target."""

    name = "bundle"

    @staticmethod
    def settings(config: ConvertConfig) -> Mapping[str, str]:
        """Returns the settings of the bundle in a request, in the user's words."""
        chosen = [config.method, config.target_size]
        return {
            "bundle": str(config.outputs[BundleProduct.name]),
            "target": ", ".join(config.targets),
            "quantization": ", ".join([_recipe_name(config), *(text for text in chosen if text)]),
            "kv cache": config.kv,
        }

    def __init__(self, config: ConvertConfig) -> None:
        """Checks that the bundle's folder may be written."""
        self._output = OutputFolder(config.outputs[self.name], KIND, resume=config.resume)
        self._plan: Plan | None = None
        self._summary: BundleSummary | None = None

    def check(self, conversion: Conversion) -> None:
        """Takes every model."""

    def plan(self, conversion: Conversion) -> Plan:
        """Decides how each tensor is stored; measures the formats first for a target size.

        Raises:
            ToolkitError: the recipe does not suit the model, or the size is too small for it.
        """
        config, checkpoint = conversion.config, conversion.checkpoint
        recipe = conversion.load_recipe(_recipe_name(config))
        if config.target_size is not None:
            with conversion.phases.measure("choose formats"):
                size = parse_size(config.target_size)
                smallest_size(checkpoint, recipe, size)  # refuses before the long measurement
                losses = measure_losses(
                    checkpoint, recipe, conversion.samples(), conversion.progress
                )
                recipe = choose_recipe(checkpoint, recipe, size, losses).recipe
        self._plan = settle_method(conversion, recipe)
        return self._plan

    @contextmanager
    def make(self, conversion: Conversion) -> Iterator[None]:
        """Makes the bundle, or the rest of one that an earlier run left unfinished."""
        assert self._plan is not None, "planned first"
        plan, phases, source = self._plan, conversion.phases, conversion.source
        with self._output as folder:
            with phases.measure("calibrate"):
                calibrated = conversion.calibrate(plan)
            journal = open_journal(folder, source, plan, calibrated)
            self._output.resumable = journal.has_marks
            programs = _PROGRAM_BYTES * len(conversion.config.targets)
            self._output.require_space(plan.nbytes + programs - journal.nbytes)
            manifest = write_bundle(conversion, plan, folder, calibrated, journal)
            with phases.measure("golden answers"):
                manifest = add_golden(folder, manifest, conversion.progress)
            licence = Licence.of(conversion.checkpoint.path)
            write_card(folder, bundle_card(Bundle.open(folder)), licence)
            yield
            journal.remove()
            with phases.measure("write to disk"):
                self._output.commit()
        self._summary = BundleSummary(
            path=self._output.path,
            tensors=len(plan.tensors),
            parameters=plan.parameters,
            weights_bytes=plan.nbytes,
            bits_per_weight=round(plan.bits_per_weight, 3),
            kv_cache=describe_kv(plan.kv, conversion.checkpoint.config.decoder),
            bundle_bytes=sum(record.size for record in manifest.files.values()),
            programs={name: record.program_id for name, record in manifest.targets.items()},
            resumed_tensors=journal.kept_tensors,
        )

    def summary(self) -> BundleSummary:
        """Returns what was made."""
        assert self._summary is not None, "made first"
        return self._summary


def _recipe_name(config: ConvertConfig) -> str:
    return config.quant or DEFAULT_RECIPE
