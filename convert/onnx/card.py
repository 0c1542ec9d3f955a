"""The card of an ONNX export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from convert.bundle.card import Accuracy, Card
from convert.bundle.manifest import BundleSource
from convert.checkpoint.config import ModelConfig, SliceConfig
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
    slices, patch = vision.slices, vision.patch_size
    if slices is None:
        size, patches = f"{vision.image_size} x {vision.image_size}", str(vision.num_patches)
        maps, images = "a picture", "pictures"
    else:
        size, patches = "height x width", f"(height / {patch} x width / {patch})"
        maps, images = "an image of any shape", "images"
    facts = [
        ["weights", f"{report.parameters:,} in {_DATA_DTYPE}, {Size(report.nbytes)}"],
        ["input", f"`{INPUT}`: {images} x 3 x {size}, from -1 to 1"],
        ["output", f"`{TOKENS}`: {images} x {resampler.query_num} x {resampler.embed_dim}"],
        ["output", f"`{FEATURES}`: {images} x {patches} x {vision.embed_dim}"],
        ["opset", str(OPSET)],
    ]
    if slices is not None:
        facts.insert(2, ["height, width", f"multiples of {patch}; images of a run have one size"])
    return Card(
        source=source,
        form="vision encoder as ONNX",
        about=f"The vision encoder and the resampler of {config.architecture} as an ONNX model: it "
        f"maps {maps} to the {resampler.query_num} image tokens that the decoder reads. The "
        "decoder is not part of it.",
        tools={name: package_version(name) for name in TOOLS},
        relation=None,  # the hub has no word for the same weights in another format
        library="onnx",
        task="image-feature-extraction",
        tags=["minicpm-v", "onnx", "vision-encoder"],
        facts=facts,
        files={name: (folder / name).stat().st_size for name in (DATA, MODEL)},
        manifest=f"`{MANIFEST}` has the model's configuration and the SHA-256 of both files.",
        run=_run(vision.image_size) if slices is None else _run_slices(slices, patch),
        unmeasured="Not measured.",
    )


def agreement(differences: Sequence[Difference]) -> Accuracy:
    """Returns how far onnxruntime is from the reference."""
    several = len({d.size for d in differences}) > 1
    return Accuracy(
        f"`minicpmv convert` ran the model in onnxruntime, and compared it with the checkpoint in "
        f"{_DATA_DTYPE} in PyTorch on two {'images of each size' if several else 'pictures'}.",
        [
            "output",
            *(["pixels"] if several else []),
            "largest difference",
            "of the output's largest value",
        ],
        [
            [
                d.output,
                *([f"{d.size[0]} x {d.size[1]}"] if several else []),
                f"{d.max_abs:.0e}",
                f"{d.relative:.0e}",
            ]
            for d in differences
        ],
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


def _run_slices(slices: SliceConfig, patch: int) -> str:
    return f"""A picture becomes an overview and, where it is large, slices: images of about
{slices.scale_resolution}² pixels, of which each gives its own image tokens. All slices of a picture
have one size. The model computes the positions that belong to the size. In the folder:

```python
import math
import numpy as np
import onnxruntime
from PIL import Image

SIDE, PATCH, MOST_SLICES = {slices.scale_resolution}, {patch}, {slices.max_slice_nums}


def multiple(length, unit):
    return max(round(length / unit) * unit, unit)


def image_size(width, height):
    ratio = width / height
    height = int(SIDE / math.sqrt(ratio))
    return multiple(int(height * ratio), PATCH), multiple(height, PATCH)


def resized(picture, width, height):
    # Columns first, then rows, each rounded to bytes.
    picture = picture.resize((width, picture.height), Image.Resampling.BICUBIC)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def encode(images):
    pixels = (np.stack([np.asarray(image, np.float32) for image in images]) / 255 - 0.5) / 0.5
    return session.run(["{TOKENS}"], {{"{INPUT}": pixels.transpose(0, 3, 1, 2)}})[0]


session = onnxruntime.InferenceSession("{MODEL}")
picture = Image.open("picture.jpg").convert("RGB")
width, height = picture.size
tokens = [encode([resized(picture, *image_size(width, height))])]
columns = rows = 0  # of slices
count = min(math.ceil(width * height / SIDE**2), MOST_SLICES)
if count > 1:
    grids = [
        (c, n // c)
        for n in (count - 1, count, count + 1) if 1 < n <= MOST_SLICES
        for c in range(1, n + 1) if n % c == 0
    ]
    shape = math.log(width / height)
    columns, rows = min(grids, key=lambda grid: abs(shape - math.log(grid[0] / grid[1])))
    w, h = image_size(multiple(width, columns) / columns, multiple(height, rows) / rows)
    whole = resized(picture, columns * w, rows * h)
    boxes = [(x * w, y * h, x * w + w, y * h + h) for y in range(rows) for x in range(columns)]
    tokens += [encode([whole.crop(box)]) for box in boxes]  # or all at once, with more memory
tokens = np.concatenate(tokens)  # the overview's, then those of the slices, row by row
```

In the prompt each image is `<image>`, its tokens, `</image>`. After the overview come, where there
are slices, `<slice>`, the images of each row of slices, with a newline between rows, and
`</slice>`; then a newline and the question."""
