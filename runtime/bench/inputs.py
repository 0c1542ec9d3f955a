"""What is asked while measuring: texts of a given length in tokens, and pictures."""

from __future__ import annotations

import string

import numpy as np
from PIL import Image

from runtime.inputs.prompt import Message, Tokenizer

FIRST_QUESTION = "What is in this picture? Describe it in detail."
SECOND_QUESTION = "How many things are there, and which colours do they have?"
LONG_ANSWER = "Tell me a long story about a ship, a storm and an island."

_SIDE = 640  # pixels: more than any vision encoder takes, so that it is resized
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


def random_picture(seed: int) -> Image.Image:
    """Returns a picture that no other seed gives: coarse patches of colour."""
    patches = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize((_SIDE, _SIDE), Image.Resampling.NEAREST)
