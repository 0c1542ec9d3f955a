"""Compares a `tokenizer.json` with the SentencePiece model that it was made from."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from convert.checkpoint.tokenizer_file import SPACE
from runtime.inputs.prompt import ASSISTANT, IMAGE_END, IMAGE_START, USER

if TYPE_CHECKING:
    import sentencepiece
    from tokenizers import Tokenizer

_SHOWN = 4  # pieces on either side of a difference
_PER_TEXT = 200  # pieces or words; longer texts are no harder
_WORDS = (
    "The picture shows a red circle, two squares and some text; isn't it 3.14159 wide? "
    "What colour is the shape on the left: blue or green? It's 12:30, 2024-02-29, $1,234.56! "
    "naïve façade Ångström Straße ΑΒΓ αβγ Привет мир שלום مرحبا हिन्दी ภาษาไทย 日本語です 한국어 "
    "图片里有几个圆形？ 左边的图形是什么颜色？ 红色。 这是一个测试，请描述这张图片！ "
    "《标题》 １２３４ 繁體中文 "
    "def main(argv): return [x**2 for x in range(10) if x != -1] # TODO\n #include <vector>\n "
    'std::vector<int> v{0xFF, 1e-9}; if (a && !b || c == NULL) { printf("%d\\n", i++); } '
    'https://example.org/a_b?q=1&r=%20#top SELECT * FROM t WHERE id >= 42; {"k": [null, true]} '
    "... --- *** ``` === >>> <!-- --> aaaa hahahaha abababa 000000 ？？？ 。。。。。。 ！！ ———— "
)
_TAGS = (
    *(USER, ASSISTANT, IMAGE_START, IMAGE_END, "<ref>", "</ref>", "<box>", "</box>"),
    *("<s>", "</s>", "<unk>", "<0x41>", "<0xFF>", "<reserved_1>", "<", ">", SPACE),
)
_WHITE = (" ", "\n", "\t", "\r\n", "\u3000", "\xa0", "\u2028")
_EMOJI = ("👍", "👋", "❤️", "✔️", "😀", "👩\u200d💻", "🏳️\u200d🌈", "8️⃣", "🧑", "👨\u200d👩\u200d👧")
_TONES = range(0x1F3FB, 0x1F400)
_FLAGS = range(0x1F1E6, 0x1F200)  # the letters that flags are made of
_COMBINING = range(0x300, 0x370)
_LONGEST_RUN = 40


def first_difference(pieces: sentencepiece.SentencePieceProcessor, other: Tokenizer) -> str | None:
    """Returns where a tokenizer's ids differ from SentencePiece's, or its text; None: nowhere."""
    vocabulary = [pieces.id_to_piece(i) for i in range(pieces.vocab_size())]
    for text in itertools.chain(mixed_texts(), vocabulary_texts(vocabulary)):
        expected: list[int] = pieces.encode(text)
        found: list[int] = other.encode(text, add_special_tokens=False).ids
        if found != expected:
            return _difference(vocabulary, found, expected)
        if other.decode(found, skip_special_tokens=False) != pieces.decode(expected):
            return f"the ids of {text[:40]!r} give another text"
    return None


def mixed_texts() -> Iterator[str]:
    """Yields texts, about 160 kB, always the same: languages, code, numbers, emoji, white space."""
    source = random.Random(0)
    words = _WORDS.split(" ")
    yield _WORDS
    for _ in range(40):
        chosen = source.choices(words, k=_PER_TEXT)
        yield "".join(word + source.choice((" ", " ", " ", "\n", "  ", "")) for word in chosen)
        yield "".join(source.choices((*_TAGS, *_WHITE, *words), k=_PER_TEXT))
    for white in _WHITE:
        yield "".join(white * run + "x" for run in range(1, _LONGEST_RUN))
        yield "".join(f"{white * run}{tag}" for run in (1, 2, 3) for tag in _TAGS)
    yield from ("", "".join(map(chr, range(0x20))), "".join(map(chr, range(0x7E, 0x250))))
    for one in _EMOJI:
        toned = [one, *(one + chr(tone) for tone in _TONES)]
        yield "".join(white + text for text in toned for white in ("", " ", "  ", "a ", "\n", "。"))
    flags = ["".join(map(chr, two)) for two in itertools.product(_FLAGS, repeat=2)]
    yield " ".join(flags)
    yield "".join(source.sample(flags, len(flags)))
    yield "".join(c + chr(mark) for c, mark in zip("aeiouñ汉🙂" * 14, _COMBINING, strict=True))
    for end in (0x3000, 0xD800, 0x20000, 0x110000):
        drawn = (source.randrange(end) for _ in range(5 * _PER_TEXT))
        yield "".join(chr(code) for code in drawn if not 0xD800 <= code < 0xE000)


def vocabulary_texts(pieces: Sequence[str]) -> Iterator[str]:
    """Yields every piece of a vocabulary: in its order, in a drawn order, alone and in runs."""
    source = random.Random(0)
    texts = [piece.replace(SPACE, " ") for piece in pieces]
    drawn = source.sample(texts, len(texts))
    for start in range(0, len(texts), _PER_TEXT):
        yield "\n".join(texts[start : start + _PER_TEXT])
        yield "".join(drawn[start : start + _PER_TEXT])
    # Where a piece overlaps itself, the order of its merges decides.
    for piece in texts:
        for at in range(1, len(piece)):
            if piece.startswith(piece[at:]):
                yield piece[:at] + piece + piece[at:] + piece
        if len(piece) > 1 and piece == piece[0] * len(piece):
            yield "".join(piece[0] * run + "\n" for run in range(1, _LONGEST_RUN))


def _difference(vocabulary: Sequence[str], found: Sequence[int], expected: Sequence[int]) -> str:
    pairs = enumerate(zip(found, expected, strict=False))
    at = next((i for i, (one, other) in pairs if one != other), min(len(found), len(expected)))
    near = slice(max(at - _SHOWN, 0), at + _SHOWN)
    known = range(len(vocabulary))
    one, other = (
        [vocabulary[i] if i in known else f"<{i}>" for i in ids[near]] for ids in (found, expected)
    )
    return f"it gives the pieces {one} where tokenizer.model gives {other}"
