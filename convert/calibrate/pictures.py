"""The pictures of samples: encoded once each, and put into the decoder's inputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from convert.calibrate.samples import TokenizedSample
from convert.support.progress import Progress, silent
from runtime.reference.model import MiniCPMV


@torch.no_grad()
def encode_pictures(
    model: MiniCPMV, samples: Sequence[TokenizedSample], progress: Progress = silent
) -> list[Tensor | None]:
    """Encodes each image of each picture alone, as the model does.

    Args:
        model: its vision encoder and resampler are used.
        samples: those of one picture share the result.
        progress: receives the samples done.

    Returns:
        For each sample the tokens of its picture's images (I, Q, D); None without a picture.
    """
    stage = "calibration pictures"
    found: dict[str, Tensor] = {}
    for i, sample in enumerate(samples):
        progress(stage, i, len(samples))
        if sample.images is not None and sample.picture_digest not in found:
            found[sample.picture_digest] = torch.cat([_encode(model, x) for x in sample.images()])
    progress(stage, len(samples), len(samples))
    return [None if s.images is None else found[s.picture_digest] for s in samples]


def put_images(embeds: Tensor, sample: TokenizedSample, images: Tensor | None) -> None:
    """Puts the tokens of images (I, Q, D) in the places of their placeholders in embeds (L, D)."""
    if images is not None:
        for start, image in zip(sample.image_starts, images, strict=True):
            embeds[start : start + len(image)] = image


def _encode(model: MiniCPMV, pixels: Tensor) -> Tensor:
    """Returns the image tokens (1, Q, D) of pixels (1, 3, height, width).

    `MiniCPMV.encode_image` asks the decoder for device and dtype; here it may not be loaded.
    """
    assert model.vpm is not None and model.resampler is not None
    rows, columns = (side // model.vpm.patch_size for side in pixels.shape[-2:])
    tokens: Tensor = model.resampler(model.vpm(pixels), (rows, columns))
    return tokens
