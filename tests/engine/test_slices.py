"""The engine cuts pictures as `runtime/inputs/slices.py`, to the byte."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from convert.checkpoint.config import CONFIGS, ModelConfig, SliceConfig, VisionConfig
from runtime.inputs.picture_file import write_picture_file
from runtime.inputs.picture_format import PictureError
from runtime.inputs.slices import images_of, plan_cut
from tests.engine.components import ComponentError, Components, numbers
from tests.engine.test_picture import random_picture
from tests.support.original_conversations import SIZES

RULES = [(9, 448, 14), (4, 42, 14), (1, 448, 14), (30, 100, 10)]


def _vision(most: int, side: int, patch: int) -> VisionConfig:
    vision = ModelConfig.load(CONFIGS / "model" / "minicpm-v-2.0.json").vision
    assert vision is not None and vision.slices is not None
    slices: SliceConfig = replace(vision.slices, max_slice_nums=most, scale_resolution=side)
    return replace(vision, slices=slices, patch_size=patch, image_size=patch)


def _sizes() -> list[tuple[int, int]]:
    """Sizes of every kind, those on a grid's border among them."""
    numbers = random.Random(7)
    sizes = [(numbers.randint(1, 4200), numbers.randint(1, 4200)) for _ in range(3000)]
    sizes += [(numbers.randint(1, 40), numbers.randint(1, 9000)) for _ in range(300)]
    sizes += [(side, side) for side in range(1, 1400, 7)]
    sizes += [(448 * i + a, 448 * j + b) for i in range(1, 5) for j in range(1, 5)
              for a in (-1, 0, 1) for b in (-1, 0, 1)]  # fmt: skip
    return [*SIZES, *sizes]


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("program", ["components", "arm64"])
def test_cuts(program: str, rules: tuple[int, int, int], request: pytest.FixtureRequest) -> None:
    vision, known = _vision(*rules), {}
    for size in _sizes():
        try:
            cut = plan_cut(size, vision)
        except PictureError:
            continue
        known[size] = [*cut.overview, *(cut.grid or (0, 0)), *cut.cell]
    assert len(known) > 3000
    components: Components = request.getfixturevalue(program)
    lines = "\n".join(numbers([*size, *rules]) for size in known)
    found = np.array(components.ints("cuts", lines)).reshape(-1, 6).tolist()
    assert found == list(known.values())


@pytest.mark.parametrize("size", [(1, 100_000), (100_000, 1), (2, 30_000)])
def test_pictures_without_a_middle_are_refused(
    components: Components, size: tuple[int, int]
) -> None:
    with pytest.raises(PictureError) as expected:
        plan_cut(size, _vision(*RULES[0]))
    with pytest.raises(ComponentError) as found:
        components.call("cuts", numbers([*size, *RULES[0]]))
    assert str(found.value) == f"invalid_picture: {expected.value}".replace(",", "", 1).replace(
        "2,048", "2048"
    )


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize(
    "size", [(1, 1), (448, 448), (449, 448), (300, 2000), (640, 480), (1920, 1080), (897, 896)]
)
def test_pixels(
    components: Components, tmp_path: Path, size: tuple[int, int], rules: tuple[int, int, int]
) -> None:
    picture = random_picture(*size)
    write_picture_file(tmp_path / "picture", picture)
    found = np.frombuffer(components.call("slices", tmp_path / "picture", numbers(rules)), "<f4")
    images = images_of(picture, _vision(*rules)).pixels
    expected = np.concatenate([pixels.contiguous().numpy().ravel() for pixels in images])
    np.testing.assert_array_equal(found, expected)
