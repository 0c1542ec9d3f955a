"""What is asked while measuring: texts of a given length in tokens, and pictures."""

from __future__ import annotations

import math
import string

import numpy as np
from PIL import Image

from convert.checkpoint.config import ModelConfig, VisionConfig
from runtime.inputs.prompt import Message, Tokenizer
from runtime.inputs.slices import Size, plan_cut

FIRST_QUESTION = "What is in this picture? Describe it in detail."
SECOND_QUESTION = "How many things are there, and which colours do they have?"
LONG_ANSWER = "Tell me a long story about a ship, a storm and an island."

_SIDE = 640  # pixels: more than the square of any vision encoder, so that it is resized
_WORDS = (
    "the sea was calm and a small ship lay at anchor while two sailors mended a red sail near "
    "an old lighthouse whose lamp had not been lit for years because nobody came this way now"
).split()


def ask(text: str) -> list[Message]:
    """Returns a conversation of one question."""
    return [Message(role="user", content=text)]


def text_of_length(tokenizer: Tokenizer, tokens: int) -> str:
    """Returns a text whose whole prompt, tags included, has `tokens` ids.

    If the tokenizer allows no such text, the prompt is the longest that was found below.
    """

    def length(text: str) -> int:
        return len(tokenizer.prompt(ask(text), 0).ids)

    def words(count: int) -> str:
        return " ".join(_WORDS[i % len(_WORDS)] for i in range(count))

    low, high = 1, max(tokens, 1)  # a word has at least one token
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if length(words(middle)) <= tokens else (low, middle - 1)
    text = words(low)
    while (missing := tokens - length(text)) > 0:
        # A character that merges with none adds one token.
        longer = [text + c for c in string.digits + string.ascii_letters + ".,;:"]
        found = next((t for t in longer if length(t) == tokens - missing + 1), None)
        if found is None:
            break
        text = found
    return text


def picture_sizes(vision: VisionConfig) -> dict[int, Size]:
    """Returns the sizes of the pictures to encode, by the number of images that each becomes.

    With slices those are one image, three, and as many as the model takes; else one square.
    """
    slices = vision.slices
    if slices is None:
        return {1: (_SIDE, _SIDE)}
    side = slices.scale_resolution
    sizes = {1: (side, side)}
    for count in {min(2, slices.max_slice_nums), slices.max_slice_nums} - {1}:
        rows = max(n for n in range(1, math.isqrt(count) + 1) if count % n == 0)
        sizes[1 + count] = count // rows * side, rows * side
    return sizes


def fits(tokenizer: Tokenizer, size: Size, config: ModelConfig, window: int) -> bool:
    """Says whether both questions about a picture, and an answer's first token, fit a window."""
    assert config.vision is not None and config.resampler is not None
    grid = None if config.vision.slices is None else plan_cut(size, config.vision).grid
    prompts = (
        tokenizer.prompt(ask(question), config.resampler.query_num, grid=grid)
        for question in (FIRST_QUESTION, SECOND_QUESTION)
    )
    return max(len(prompt.ids) for prompt in prompts) < window


def random_picture(seed: int, size: Size = (_SIDE, _SIDE)) -> Image.Image:
    """Returns a picture that no other seed gives: coarse patches of colour.

    Args:
        seed: of the colours.
        size: width and height, pixels.
    """
    patches = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize(size, Image.Resampling.NEAREST)
