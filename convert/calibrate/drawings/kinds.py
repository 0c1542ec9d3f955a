"""The drawings of the built-in calibration set: what they show, and what is asked about them."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from msgspec import Struct
from PIL import Image

from convert.calibrate.drawings.charts import Bars, Flow, Lines, Pie, StreetMap
from convert.calibrate.drawings.documents import Calendar, Form, Note, Receipt, Table
from convert.calibrate.drawings.scenes import Clock, Landscape, Objects, Pattern, Road
from convert.calibrate.drawings.screens import Chat, Dialog, Editor, Settings

Kind: TypeAlias = (
    Bars
    | Calendar
    | Chat
    | Clock
    | Dialog
    | Editor
    | Flow
    | Form
    | Landscape
    | Lines
    | Note
    | Objects
    | Pattern
    | Pie
    | Receipt
    | Road
    | Settings
    | StreetMap
    | Table
)


class Asked(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A question about a drawing; several strings are turns of user and assistant."""

    question: str | list[str]
    answer: str


class Drawing(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One picture; the same seed draws the same."""

    seed: int
    picture: Kind
    asked: list[Asked]

    def draw(self) -> Image.Image:
        """Draws the picture."""
        return self.picture.draw(np.random.default_rng(self.seed))
