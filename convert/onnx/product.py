"""The ONNX export as a product: it appears only if onnxruntime computes what the reference does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.bundle.card import write_card
from convert.bundle.errors import BundleError
from convert.bundle.licence import Licence
from convert.conversion.config import ConvertConfig
from convert.conversion.conversion import Conversion
from convert.conversion.product import Product
from convert.onnx.card import agreement, onnx_card
from convert.onnx.check import Difference, compare_onnx, sample_pixels, sample_sizes, worst
from convert.onnx.export import KIND, MODEL, onnx_bytes, write_onnx
from convert.support.console import Size
from convert.support.output_folder import OutputFolder
from runtime.reference.load import VISION, load_reference

# The exported graph sums in another order than PyTorch does; both in float32.
TOLERANCE = 1e-4  # of the output's largest magnitude
_PHASE = "export to ONNX"


@dataclass(frozen=True, kw_only=True)
class OnnxSummary:
    """The ONNX export that was made."""

    path: Path
    tensors: int
    parameters: int
    nbytes: int  # of all files
    differences: Mapping[str, float]  # by output: the largest, relative to the output's scale

    def to_json(self) -> dict[str, Any]:
        """Returns this product's part of the command's `--json`."""
        values = {
            "tensors": self.tensors,
            "parameters": self.parameters,
            "bytes": self.nbytes,
            "differences": dict(self.differences),
        }
        return {"onnx": values}

    def shown(self) -> list[tuple[str, str]]:
        """Returns the lines that the command prints, each as a name and a text."""
        worst = ", ".join(f"{name} {value:.1e}" for name, value in self.differences.items())
        differs = f"largest difference from the reference, of its scale: {worst}"
        return [("onnx", f"{Size(self.nbytes)}, {differs}")]


class OnnxProduct(Product):
    """The vision encoder and the resampler as ONNX."""

    name = "onnx"
    targets = ("onnx",)
    is_cross_check = True  # of the weights that the bundle gets, too

    @staticmethod
    def settings(config: ConvertConfig) -> Mapping[str, str]:
        """Returns the settings of the ONNX export in a request, in the user's words."""
        return {"onnx": str(config.outputs[OnnxProduct.name])}

    def __init__(self, config: ConvertConfig) -> None:
        """Checks that the export's folder may be written."""
        self._output = OutputFolder(config.outputs[self.name], KIND)
        self._summary: OnnxSummary | None = None

    def check(self, conversion: Conversion) -> None:
        """Refuses a checkpoint without a vision encoder."""
        if conversion.checkpoint.config.vision is None:
            raise BundleError(
                f"{conversion.checkpoint.path}: has no vision encoder; leave out "
                f"--target {self.targets[0]}"
            )

    @contextmanager
    def make(self, conversion: Conversion) -> Iterator[None]:
        """Exports to ONNX and compares what onnxruntime computes with the reference."""
        checkpoint, progress = conversion.checkpoint, conversion.progress
        source, config = conversion.source, checkpoint.config
        assert config.vision is not None, "checked first"
        self._output.require_space(onnx_bytes(config))
        with self._output as folder:
            with conversion.phases.measure(_PHASE):
                report = write_onnx(checkpoint.read, config, source.sha256, folder, progress)
                progress("check ONNX", 0, 0)
                reference = load_reference(checkpoint, only=VISION)
                images = [sample_pixels(size) for size in sample_sizes(config.vision)]
                differences = compare_onnx(folder / MODEL, reference, images)
                self._require_agreement(differences)
                card = onnx_card(source, config, report, folder)
                write_card(folder, card, Licence.of(checkpoint.path), agreement(differences))
                progress("check ONNX", 1, 1)
            yield
            with conversion.phases.measure(_PHASE):
                self._output.commit()
        self._summary = OnnxSummary(
            path=self._output.path,
            tensors=report.tensors,
            parameters=report.parameters,
            nbytes=report.nbytes,
            differences={d.output: d.relative for d in worst(differences)},
        )

    def summary(self) -> OnnxSummary:
        """Returns what was made."""
        assert self._summary is not None, "made first"
        return self._summary

    def _require_agreement(self, differences: Sequence[Difference]) -> None:
        for difference in differences:
            w, h = difference.size
            if not difference.relative <= TOLERANCE:
                raise BundleError(
                    f"{self._output.path}: {difference.output} of {w} x {h} pixels in onnxruntime "
                    f"is {difference.relative:.1e} of its scale away from the reference; at most "
                    f"{TOLERANCE:.0e} is allowed"
                )
