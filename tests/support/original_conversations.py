"""Conversations for MiniCPM-V 2.0's code and for ours; the pictures are computed."""

from __future__ import annotations

import numpy as np
from PIL import Image

MAX_NEW_TOKENS = 24
SETTINGS = {
    "greedy": {"num_beams": 1, "repetition_penalty": 1.0},
    "beams": {"num_beams": 3, "repetition_penalty": 1.2},
}
SIZES = (
    (1, 1), (5, 3), (13, 200), (14, 14), (60, 40), (100, 100), (168, 168), (300, 200),  # one image
    (447, 448), (448, 448), (449, 448), (448, 449), (450, 450),  # the border
    (640, 480), (480, 640), (512, 512), (600, 400), (634, 633), (800, 600), (896, 448),
    (448, 896), (777, 333), (897, 896), (1000, 1000), (1024, 768), (768, 1024), (1080, 1920),
    (1280, 720), (1344, 448), (448, 1344), (1366, 768), (1600, 900), (1920, 1080), (2000, 300),
    (300, 2000), (2016, 1344), (2448, 3264), (100, 4000), (4000, 100), (60, 6000), (8000, 90),
    (3999, 800), (700, 3500), (4000, 3000),
)  # fmt: skip
_QUESTIONS = (
    "What colour is the shape?",
    "这个图形是什么颜色？",
    "Describe the picture.",
    "图片里有什么？",
    "How many shapes are there?",
)
_FOLLOWED = (
    {"role": "user", "content": "What shape is this?"},
    {"role": "assistant", "content": "A circle."},
    {"role": "user", "content": "它在哪里？"},
)
# Size of the picture, None without one; settings; messages.
CONVERSATIONS = [
    (size, ("greedy", "beams")[i % 2], [{"role": "user", "content": _QUESTIONS[i % 5]}])
    for i, size in enumerate(SIZES)
]
CONVERSATIONS += [
    ((1000, 700), "beams", list(_FOLLOWED)),
    ((333, 222), "greedy", list(_FOLLOWED)),
    (None, "beams", [{"role": "user", "content": _QUESTIONS[0]}]),
]


def picture(width: int, height: int) -> Image.Image:
    """Draws ramps, rings and edges with integers: the same bytes everywhere."""
    y, x = np.mgrid[:height, :width].astype(np.int64)
    far = (x - width // 3) ** 2 + (y - height // 2) ** 2
    red = (x * 255 // max(width - 1, 1) + 64 * ((x // 23 + y // 17) % 2)) % 256
    green = (y * 255 // max(height - 1, 1) + far // 97) % 256
    blue = np.where(far < (width + height) ** 2 // 40, 230, (x * 7 + y * 13) % 256)
    return Image.fromarray(np.stack((red, green, blue), axis=-1).astype(np.uint8))
