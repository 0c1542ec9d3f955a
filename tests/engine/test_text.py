"""The engine's tokenizer, prompt and text stream give the same results as the Python ones."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from convert.checkpoint.config import CONFIGS, ModelConfig
from runtime.inputs.prompt import (
    ASSISTANT,
    USER,
    Message,
    Prompt,
    PromptError,
    Tokenizer,
    check_question,
)
from runtime.sessions.streaming import TextStream
from tests.engine.components import ComponentError, Components, numbers
from tests.support.slices import TINY_SLICES
from tests.support.tiny_config import tiny_config
from tests.support.tiny_tokenizer import tokenizer_model

REAL = Path(__file__).resolve().parents[2] / "../shared/model/minicpm-v/tokenizer.model"
STRINGS = 10_000
TAGS = [
    *"<image> </image> <ref> </ref> <box> </box> <quad> </quad> <point> </point> <slice>".split(),
    *"<SEP> <CLS> <reserved_0> <reserved_97> <reserved_> <reserved_99999> <unk> <s> </s>".split(),
    *"<0xE4> <用户> <AI> < </ <image image> <<image>> <AI I> <用户 用户> <b> </td> > ><".split(),
]
WORDS = (
    "红色的 ， 中文mixed英文 𠮷 1234567890 3.14 ٣ é e\u0301 한국어 русский עברית हिन्दी ﬁ Ａ".split()
)
EMOJI = "😀 👨\u200d👩\u200d👧\u200d👦 🇨🇳 👍🏽 ❤\ufe0f".split()
SPACES = [" ", "  ", "\n", "\n\n", "\t", "\r\n", "▁", "▁▁", "\u2028", "\u3000", "\u00a0", "\u200b"]
ODD = ["\0", "\x01\x7f\x1b", "\ufeff", "\ufffd", "\ue000", "\uffff", "\U0010ffff", "x" * 50]
PIECES = [*TAGS, *WORDS, *EMOJI, *SPACES, *ODD, "The shape is red.", "这个图形是什么颜色？"]


@pytest.fixture(params=["tiny", "real"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "real":
        if not REAL.exists():
            pytest.skip("the real tokenizer.model is not there")
        return REAL
    path = tmp_path / "tokenizer.model"
    path.write_bytes(tokenizer_model())
    return path


@pytest.fixture
def tokenizer(model: Path, components: Components) -> Tokenizer:
    """The Python tokenizer; the engine loads the same file."""
    components.call("load", model.read_bytes())
    return Tokenizer(model)


def _character(rng: random.Random) -> str:
    limit = rng.choice([0x80, 0x100, 0x800, 0x3000, 0xA000, 0x10000, 0x20000, 0x110000])
    code = rng.randrange(limit)
    return "?" if 0xD800 <= code < 0xE000 else chr(code)


def _text(rng: random.Random, longest: int = 12) -> str:
    makers: list[Callable[[], str]] = [
        lambda: rng.choice(PIECES),
        lambda: rng.choice(TAGS),
        lambda: _character(rng),
        lambda: chr(rng.randrange(32)),
        lambda: chr(rng.randrange(0x4E00, 0x9FA6)),
    ]
    return "".join(rng.choice(makers)() for _ in range(rng.randrange(longest)))


def _merging(tokenizer: Tokenizer) -> list[str]:
    """Returns texts whose last character forms one piece with a following `<`."""
    pieces = map(tokenizer._sp.id_to_piece, range(tokenizer.vocab_size))
    return [piece[:-1].replace("▁", " ") for piece in pieces if piece[1:].endswith("<")]


def test_texts_have_the_same_ids(tokenizer: Tokenizer, components: Components) -> None:
    rng = random.Random(0)
    texts = ["", *PIECES, *(a + b for a in TAGS for b in ("<", ">", "a", "\n", "用")), "<" * 5000]
    texts += _merging(tokenizer)
    texts += [_text(rng) for _ in range(STRINGS - len(texts))]
    for text in texts:
        ids = components.ints("encode", text)
        assert ids == tokenizer.encode(text), repr(text)
        assert components.call("decode", numbers(ids)).decode() == tokenizer.decode(ids)


def test_conversations_have_the_same_ids(tokenizer: Tokenizer, components: Components) -> None:
    rng = random.Random(1)
    merging = _merging(tokenizer)
    for _ in range(1500):
        turns: list[Message] = [
            {"role": "assistant" if i % 2 else "user", "content": _text(rng)}
            for i in range(rng.choice([1, 1, 3, 5]))
        ]
        for turn in turns:
            turn["content"] += rng.choice([*merging, "", "?"])
        turns[-1]["content"] += rng.choice("?a.。)")
        image_tokens = rng.choice([0, 9, 64])
        expected = tokenizer.prompt(turns, image_tokens)
        assert _prompt(components, turns, image_tokens) == expected, turns
        last = turns[-1]["content"]
        assert components.ints("turn", last) == [len(tokenizer.encode(USER + last + ASSISTANT))]


@pytest.fixture(params=["tiny", "real"])
def sliced(
    request: pytest.FixtureRequest, components: Components, tmp_path: Path
) -> tuple[Tokenizer, bytes]:
    """A tokenizer whose file calls the tags of slices otherwise, or the real one."""
    if request.param == "real":
        if not REAL.exists():
            pytest.skip("the real tokenizer.model is not there")
        config, content = (
            ModelConfig.load(CONFIGS / "model" / "minicpm-v-2.0.json"),
            REAL.read_bytes(),
        )
    else:
        config, content = ModelConfig.from_json(tiny_config(**TINY_SLICES)), tokenizer_model()
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    slices = config.vision.slices if config.vision else None
    assert slices is not None
    components.call("load", content, f"{slices.slice_start_token_id} {slices.slice_end_token_id}")
    return Tokenizer(path, config), content


def test_slices_have_the_same_ids(sliced: tuple[Tokenizer, bytes], components: Components) -> None:
    tokenizer, _ = sliced
    rng = random.Random(4)
    grids = [None, (1, 2), (2, 1), (3, 3), (4, 2), (9, 1), (1, 9)]
    for grid in [*grids * 30]:
        turns: list[Message] = [
            {"role": "assistant" if i % 2 else "user", "content": _text(rng)}
            for i in range(rng.choice([1, 3]))
        ]
        turns[-1]["content"] += "?"
        image_tokens = rng.choice([9, 64])
        expected = tokenizer.prompt(turns, image_tokens, grid=grid)
        found = _prompt(components, turns, image_tokens, grid)
        assert found == expected, (turns, grid)


def test_tags_of_slices_are_texts_and_spelled(
    sliced: tuple[Tokenizer, bytes], components: Components
) -> None:
    """Whatever the file calls them: in a question they stay text, in an answer they are spelled."""
    tokenizer, _ = sliced
    slices = tokenizer._slices
    assert slices is not None
    tags = [slices.slice_start_token_id, slices.slice_end_token_id]
    names = [tokenizer._sp.id_to_piece(tag) for tag in tags]
    rng = random.Random(5)
    for _ in range(300):
        text = "".join(rng.choice([*names, *PIECES]) for _ in range(5))
        ids = components.ints("encode", text)
        assert ids == tokenizer.encode(text), repr(text)
        assert not set(tags) & set(ids)
        answer = [rng.choice([*tags, *ids, rng.randrange(tokenizer.vocab_size)]) for _ in range(9)]
        decoded = components.call("decode", numbers(answer)).decode()
        assert decoded == tokenizer.decode(answer)
    spelled = components.call("decode", numbers([tags[0], 5 + tags[1], tags[1]])).decode()
    assert spelled.startswith("<slice>") and spelled.endswith("</slice>")


def test_tags_that_are_no_reserved_pieces_are_refused(
    components: Components, tmp_path: Path
) -> None:
    for tags in ("98 101", "2 99", "98 480", "98 501"):
        with pytest.raises(
            ComponentError, match=r"^invalid_bundle: .*reserved for a tag of slices"
        ):
            components.call("load", tokenizer_model(), tags)


def _prompt(
    components: Components,
    messages: Sequence[Message],
    image_tokens: int,
    grid: tuple[int, int] | None = None,
    *,
    as_original: bool = False,
) -> Prompt:
    """Builds a prompt; checks the end of its picture, which follows from the rest in Python."""
    layout = numbers([image_tokens, *(grid or ())])
    fields = [field for turn in messages for field in (turn["role"], turn["content"])]
    reply = components.call("prompt", layout, int(as_original), *fields).decode()
    starts, end, ids = ([int(word) for word in line.split()] for line in reply.split("\n"))
    prompt = Prompt(ids, starts[0] if starts else None, tuple(starts[1:]))
    expected = prompt.picture_end(image_tokens)
    assert end == [-1 if expected is None else expected]
    return prompt


def test_any_ids_are_decoded_alike(tokenizer: Tokenizer, components: Components) -> None:
    rng = random.Random(2)
    for _ in range(2000):
        ids = _answer(rng, tokenizer)
        assert components.call("decode", numbers(ids)).decode() == tokenizer.decode(ids)


@pytest.mark.parametrize(
    "text",
    [b"\xff", b"a\x80", b"\xc0\xaf", b"\xc3", b"\xe4\xb8", b"\xed\xa0\x80", b"\xf4\x90\x80\x80",
     b"\xf0\x82\x82\xac", b"\xe0\x80\xaf", b"\xf8\x88\x80\x80\x80", b"\xc3a", b"ok \xf0\x9f\x98"],
)  # fmt: skip
def test_invalid_utf8_is_refused(components: Components, text: bytes) -> None:
    components.call("load", tokenizer_model())
    with pytest.raises(UnicodeDecodeError):
        text.decode()
    for fields in (("encode", text), ("prompt", 0, 0, "user", text)):
        with pytest.raises(ComponentError, match=r"^invalid_text: .*UTF-8"):
            components.call(*fields)
    assert components.ints("encode", "a"), "the next request works"


def test_random_bytes_are_text_where_python_says_so(components: Components) -> None:
    components.call("load", tokenizer_model())
    rng = random.Random(3)
    leads = [0x41, 0xC2, 0xDF, 0xE0, 0xE1, 0xED, 0xEF, 0xF0, 0xF1, 0xF4, 0xF5, 0x80, 0xBF]
    valid = 0
    for _ in range(20_000):
        text = bytes(
            rng.choice([rng.choice(leads), rng.randrange(0x80, 0xC0), rng.randrange(0x80, 0xC0)])
            for _ in range(rng.randrange(1, 5))
        )
        try:
            text.decode()
        except UnicodeDecodeError:
            with pytest.raises(ComponentError, match="invalid_text"):
                components.call("encode", text)
        else:
            valid += 1
            components.call("encode", text)
    assert valid > 500


_CONVERSATIONS: list[list[Message]] = [
    [],
    [{"role": "assistant", "content": "a"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
    [{"role": "user", "content": "a"}] * 3,
    [{"role": "user", "content": "a"}, *[{"role": "assistant", "content": ""}] * 2],
    [{"role": "system", "content": "a"}],
    [{"role": "user", "content": "a"}, {"role": "system", "content": "a"}],
    *([{"role": "user", "content": text}] for text in ("", "\u3000 \n", "\x1c\x1f\x85\u200a")),
    *([{"role": "user", "content": text}] for text in ("\u200b", "\x00", "\x1b", "\u180e")),
]


@pytest.mark.parametrize("as_original", [False, True])
@pytest.mark.parametrize("messages", _CONVERSATIONS)
def test_conversations_are_taken_and_refused_alike(
    components: Components, tmp_path: Path, messages: list[Message], as_original: bool
) -> None:
    components.call("load", tokenizer_model())
    path = tmp_path / "tokenizer.model"
    path.write_bytes(tokenizer_model())
    fields = [field for message in messages for field in (message["role"], message["content"])]
    try:
        check_question(messages, as_original=as_original)
    except PromptError:
        with pytest.raises(ComponentError, match=r"^invalid_request: "):
            components.call("prompt", 0, int(as_original), *fields)
    else:
        expected = Tokenizer(path).prompt(messages, 0, as_original=as_original)
        assert _prompt(components, messages, 0, as_original=as_original) == expected


@pytest.mark.parametrize("damage", [b"", b"no model", "cut", "other"])
def test_files_that_are_no_model_are_refused(components: Components, damage: bytes | str) -> None:
    model = tokenizer_model()
    if damage == "cut":
        model = model[: len(model) // 2]
    elif damage == "other":
        model = model.replace(b"<unk>", b"<abc>")
    else:
        assert isinstance(damage, bytes)
        model = damage
    with pytest.raises(ComponentError, match=r"^invalid_bundle: tokenizer\.model: "):
        components.call("load", model)


def _answer(rng: random.Random, tokenizer: Tokenizer) -> list[int]:
    """Returns random ids, many of them bytes: of whole, truncated and invalid characters."""
    byte = {i: tokenizer._sp.piece_to_id(f"<0x{i:02X}>") for i in range(256)}
    ids: list[int] = []
    for _ in range(rng.randrange(1, 25)):
        kind = rng.randrange(7)
        if kind == 0:
            ids += [byte[b] for b in _character(rng).encode()]
        elif kind == 1:
            cut = _character(rng).encode()
            ids += [byte[b] for b in cut[: rng.randrange(len(cut)) + 1]]
        elif kind == 2:
            ids.append(byte[rng.randrange(256)])
        elif kind == 3:
            ids += tokenizer.encode(rng.choice([" ", "\n", "\u3000", "\ufffd", " \n ", "\u00a0"]))
        elif kind == 4:
            ids.append(rng.randrange(tokenizer.vocab_size + 50))  # some have no piece
        elif kind == 5:
            ids += rng.choices(range(3), k=rng.choice([1, 1, 2, 3]))  # control tokens
        else:
            ids += tokenizer.encode(rng.choice(PIECES))
    return ids


def test_streams_are_the_same_piece_by_piece(tokenizer: Tokenizer, components: Components) -> None:
    rng = random.Random(4)
    for _ in range(2000):
        ids = _answer(rng, tokenizer)
        passed: list[str] = []
        expected = []
        stream = TextStream(tokenizer, passed.append)
        for id in ids:
            stream.add(id)
            expected.append("".join(passed))
            passed.clear()
        answer = stream.finish(ids)
        expected += ["".join(passed), "", answer]
        actual = components.texts("stream", numbers(ids))
        assert actual == expected, ids
        assert "".join(actual[:-2]) == answer, "what was passed on is the answer"


def test_stop_strings_end_an_answer(tokenizer: Tokenizer, components: Components) -> None:
    """The answer ends before the first stop string, however it is split into tokens."""
    rng = random.Random(5)
    stops = ["ab", "abc", "。中", "\n\n", "xyx"]
    stopped = 0
    for _ in range(1000):
        text = "".join(rng.choice("abcxy中。\n 😀") for _ in range(30))
        ids = tokenizer.encode(text)
        chosen = rng.sample(stops, rng.randrange(1, 4))
        *pieces, was_stopped, answer = components.texts("stream", numbers(ids), *chosen)
        places = [text.find(stop) for stop in chosen if stop in text]
        assert answer == (text[: min(places)] if places else text).strip()
        assert "".join(pieces) == answer
        assert was_stopped == ("stopped" if places else "")
        stopped += bool(places)
    assert 100 < stopped < 1000


@pytest.mark.parametrize("stop", [b"", b"\xff"])
def test_stop_strings_that_mean_nothing_are_refused(components: Components, stop: bytes) -> None:
    components.call("load", tokenizer_model())
    with pytest.raises(ComponentError, match=r"^invalid_request: a stop string"):
        components.call("stream", "300", stop)
