"""The engine's taps of pictures, for models with slices and without.

A model without slices knows the shape of its one image, and its engine refuses to be told.
"""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from convert.checkpoint.config import VisionConfig
from runtime.engine_client.client import EngineClient, Float32
from runtime.engine_client.protocol import Field, Tap


@dataclass(frozen=True)
class PictureTaps:
    """The taps of one engine; arrays are float32."""

    client: EngineClient
    vision: VisionConfig

    def images(self, picture: Image.Image) -> tuple[list[Float32], tuple[int, int] | None]:
        """Returns the images of a picture (3, height, width), and the grid of its slices."""
        if self.vision.slices is None:
            return [self.client.tap(Tap.PREPROCESS, picture)], None
        sizes, grid = self.client.cut(picture)
        indices = range(len(sizes))
        return [self.client.tap(Tap.PREPROCESS, picture, {Field.INDEX: i}) for i in indices], grid

    def embed(self, pixels: Float32) -> Float32:
        """Maps an image's pixels (3, height, width) to patch embeddings (P, Dv)."""
        height, width = pixels.shape[-2:]
        fields = {Field.WIDTH: width, Field.HEIGHT: height}
        return self.client.tap(Tap.VISION_EMBED, pixels, self._if_slices(fields))

    def block(self, index: int, x: Float32) -> Float32:
        """Runs one vision block on (P, Dv)."""
        return self.client.tap(Tap.VISION_BLOCK, x, {Field.INDEX: index})

    def norm(self, x: Float32) -> Float32:
        """Maps (P, Dv) to vision features (P, Dv)."""
        return self.client.tap(Tap.VISION_NORM, x)

    def resample(self, features: Float32, shape: tuple[int, int]) -> Float32:
        """Maps vision features (P, Dv) of rows and columns of patches to image tokens (Q, D)."""
        rows, columns = shape
        fields = {Field.ROWS: rows, Field.COLUMNS: columns}
        return self.client.tap(Tap.RESAMPLER, features, self._if_slices(fields))

    def image_tokens(self, pixels: Float32) -> Float32:
        """Maps an image's pixels (3, height, width) to image tokens (Q, D)."""
        height, width = (side // self.vision.patch_size for side in pixels.shape[-2:])
        x = self.embed(pixels)
        for i in range(self.vision.depth):
            x = self.block(i, x)
        return self.resample(self.norm(x), (height, width))

    def _if_slices(self, fields: dict[str, int]) -> dict[str, int]:
        return {} if self.vision.slices is None else fields
