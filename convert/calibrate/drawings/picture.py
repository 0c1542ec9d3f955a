"""What every kind of drawing is: content that is read from data, and how it is drawn."""

from __future__ import annotations

from msgspec import Struct
from PIL import Image

from convert.calibrate.drawings.canvas import Generator


class Picture(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"):
    """A drawing's content; what a question may ask of is here, never left to chance."""

    def draw(self, rng: Generator) -> Image.Image:
        """Draws it; colours, lighting and small offsets come from `rng`."""
        raise NotImplementedError
