"""The card of an ONNX export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from convert.bundle.card import Accuracy, Card
from convert.bundle.manifest import BundleSource
from convert.checkpoint.config import ModelConfig
from convert.onnx.check import Difference
from convert.onnx.export import DATA, MANIFEST, MODEL, TOOLS, OnnxReport
from convert.onnx.graph import FEATURES, INPUT, OPSET, TOKENS
from convert.support.console import Size
from convert.support.versions import package_version

_DATA_DTYPE = "float32"


def onnx_card(source: BundleSource, config: ModelConfig, report: OnnxReport, folder: Path) -> Card:
    """Returns what the card of an export says.

    Args:
        source: the checkpoint.
        config: its geometry, with vision.
        report: on what was written.
        folder: that holds it.
    """
    vision, resampler = config.vision, config.resampler
    assert vision is not None and resampler is not None, "checked first"
    size, patches = vision.image_size, vision.grid**2
    return Card(
        source=source,
        form="vision encoder as ONNX",
        about=f"The vision encoder and the resampler of {config.architecture} as an ONNX model: it "
        f"maps a picture to the {resampler.query_num} image tokens that the decoder reads. The "
        "decoder is not part of it.",
        tools={name: package_version(name) for name in TOOLS},
        relation=None,  # the hub has no word for the same weights in another format
        library="onnx",
        task="image-feature-extraction",
        tags=["minicpm-v", "onnx", "vision-encoder"],
        facts=[
            ["weights", f"{report.parameters:,} in {_DATA_DTYPE}, {Size(report.nbytes)}"],
            ["input", f"`{INPUT}`: pictures x 3 x {size} x {size}, from -1 to 1"],
            ["output", f"`{TOKENS}`: pictures x {resampler.query_num} x {resampler.embed_dim}"],
            ["output", f"`{FEATURES}`: pictures x {patches} x {vision.embed_dim}"],
            ["opset", str(OPSET)],
        ],
        files={name: (folder / name).stat().st_size for name in (DATA, MODEL)},
        manifest=f"`{MANIFEST}` has the model's configuration and the SHA-256 of both files.",
        run=_run(size),
        unmeasured="Not measured.",
    )


def agreement(differences: Sequence[Difference]) -> Accuracy:
    """Returns how far onnxruntime is from the reference."""
    return Accuracy(
        f"`minicpmv convert` ran the model in onnxruntime, and compared it with the checkpoint in "
        f"{_DATA_DTYPE} in PyTorch on two pictures.",
        ["output", "largest difference", "of the output's largest value"],
        [[d.output, f"{d.max_abs:.0e}", f"{d.relative:.0e}"] for d in differences],
    )


def _run(size: int) -> str:
    return f"""In the folder:

```python
import numpy as np
import onnxruntime
from PIL import Image

picture = Image.open("picture.jpg").convert("RGB")
# Columns first, then rows, as the checkpoint's own code does; the aspect is not kept.
picture = picture.resize(({size}, picture.height), Image.Resampling.BICUBIC)
picture = picture.resize(({size}, {size}), Image.Resampling.BICUBIC)
pixels = (np.asarray(picture, np.float32) / 255 - 0.5) / 0.5
session = onnxruntime.InferenceSession("{MODEL}")
(tokens,) = session.run(["{TOKENS}"], {{"{INPUT}": pixels.transpose(2, 0, 1)[None]}})
```"""
