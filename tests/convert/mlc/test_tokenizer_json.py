"""`tokenizer.json` against the SentencePiece model that it was made from."""

from __future__ import annotations

import json
import random
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers

from convert import cli
from convert.checkpoint.config import CONFIGS
from convert.checkpoint.synth_tokenizer import generate_tokenizer
from convert.checkpoint.tokenizer_file import open_tokenizer
from convert.mlc import tokenizer_json
from convert.mlc.manifest import PackageManifest
from convert.mlc.same_ids import first_difference, mixed_texts
from convert.mlc.tokenizer_json import TokenizerJsonError, make_tokenizer_json
from quantize.errors import CheckpointError
from runtime.inputs.prompt import ASSISTANT, IMAGE_END, IMAGE_START, USER, Message, Tokenizer
from tests.support.pieces import model_of
from tests.support.tiny import write_checkpoint
from tests.support.tiny_tokenizer import tokenizer_model, wrong_tokenizers

ROOT = Path(__file__).resolve().parents[3]
DEMO = CONFIGS / "demo/tokenizer.model"
REAL = ROOT / "../shared/model/minicpm-v/tokenizer.model"
MIXED_BYTES = 2 << 20
EMOJI = ("👍🏽", "❄️", "🇺🇸", "🇸🇺", "🇺🇺", "▁👍", "\ufe0f\\", "\\\\", "▁▁", "👍", "\ufe0f", "\\")


class Pair:
    """A SentencePiece model and the `tokenizer.json` made from it."""

    def __init__(self, path: Path) -> None:
        self.path, self.text = path, make_tokenizer_json(path)
        self.pieces: sentencepiece.SentencePieceProcessor = open_tokenizer(path)
        self.json = tokenizers.Tokenizer.from_str(self.text)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.json.encode(text, add_special_tokens=False).ids
        return ids

    def check(self, text: str) -> None:
        ids: list[int] = self.pieces.encode(text)
        assert self.encode(text) == ids, repr(text[:80])
        decoded = self.json.decode(ids, skip_special_tokens=False)
        assert decoded == self.pieces.decode(ids) == text.replace("▁", " "), repr(text[:80])


@pytest.fixture(scope="module", params=["demo", "real"])
def pair(request: pytest.FixtureRequest) -> Pair:
    path = DEMO if request.param == "demo" else REAL
    if not path.exists():
        pytest.skip(f"the real tokenizer is not at {path}")
    return Pair(path)


def written(folder: Path, content: bytes) -> Path:
    path = folder / "tokenizer.model"
    path.write_bytes(content)
    return path


def files(folders: list[Path], kinds: str, most: int) -> list[str]:
    """Returns the texts of files, in the order of their names, up to a number of bytes."""
    paths = sorted(path for folder in folders for path in folder.rglob("*.*") if path.is_file())
    texts: list[str] = []
    for path in paths:
        if path.suffix in kinds.split() and most > 0:
            texts.append(path.read_text("utf-8", "replace"))
            most -= len(texts[-1].encode())
    return texts


def mixed_texts_of(size: int) -> list[str]:
    """Returns texts of so many bytes: documents, code, conversations, drawn Unicode and pieces."""
    ours = [ROOT / name for name in ("android/app", "convert", "runtime", "tests/golden/original")]
    texts = files(ours, ".md .py .cc .h .java .js .html .css .json .xml", size // 2)
    texts += files([Path(sysconfig.get_path("stdlib")) / "email"], ".py", size // 4)
    source = random.Random(15)
    words, missing = "".join(texts).split(" "), size - sum(len(text.encode()) for text in texts)
    while missing > 0:
        start = source.choice((0x20, 0x300, 0x4E00, 0x1F1E6, 0x1F300, 0xE000, 0x10000, 0x100000))
        drawn = [chr(source.randrange(start, start + 0x700)) for _ in range(200)]
        said = " ".join(source.choices(words, k=50))
        turn = (
            f"{USER}{IMAGE_START}{IMAGE_END}\n{said}{ASSISTANT}<ref>{said[:9]}</ref><box>1 2</box>"
        )
        mixed = "".join(source.choices([*EMOJI, *drawn, *words, " ", "  ", "\n"], k=200))
        texts += ["".join(drawn), turn, mixed]
        missing -= sum(len(text.encode()) for text in texts[-3:])
    return texts


def test_the_same_ids_on_2_mb_of_mixed_text(pair: Pair) -> None:
    texts = mixed_texts_of(MIXED_BYTES)
    assert sum(len(text.encode()) for text in texts) >= MIXED_BYTES
    for text in texts:
        pair.check(text)


def test_tags_of_the_template_are_single_ids(pair: Pair) -> None:
    """MLC-LLM encodes a prompt as text; the toolkit puts the tags' ids there itself."""
    ours, question = Tokenizer(pair.path), Message(role="user", content="这是 what?")
    prompt = ours.prompt([question], 1).ids
    text = f"{USER}{IMAGE_START}{IMAGE_END}\n{question['content']}{ASSISTANT}"
    assert [1, *pair.encode(text)] == [one for one in prompt if one != 0]
    assert pair.encode("<ref></ref><box></box>") == [103, 104, 105, 106]
    for name in ("<s>", "</s>", "<unk>", "<0x41>"):
        assert len(pair.encode(name)) > 1, f"{name} in a text is text"


@pytest.mark.parametrize("content", [tokenizer_model(), generate_tokenizer(900)])
def test_other_tokenizers(content: bytes, tmp_path: Path) -> None:
    pair = Pair(written(tmp_path, content))
    for text in mixed_texts():
        pair.check(text)


def test_characters_that_are_no_pieces(tmp_path: Path) -> None:
    """Flags and skin tones compete for characters, with each other and with other merges."""
    normal = ("▁▁", "\\\\", "▁👍", "\ufe0f\\", "🇸🇺", "👍🏽", "🇺🇸", "❄️", "🇺🇺")
    pair = Pair(written(tmp_path, model_of([*normal, "👍", "\ufe0f", "\\"])))
    assert pair.pieces.encode("🇺🇸🇺🇸", out_type=str)[4:5] == ["🇸🇺"], (
        "the better one is not the first"
    )
    assert pair.pieces.encode("👍🏽 👍🏽", out_type=str)[:2] == ["👍🏽", "▁👍"]
    source, atoms = random.Random(0), sorted(set("".join(EMOJI)) - {"▁"} | {" ", "a"})
    for _ in range(3000):
        pair.check("".join(source.choices(atoms, k=12)))
        pair.check("".join(source.choices(EMOJI, k=6)).replace("▁", " "))


def test_pieces_that_overlap_themselves(tmp_path: Path) -> None:
    normal = ("ab", "ba", "aba", "aa", "aaa", "abab", "▁▁", "▁▁▁", "a▁a", "a▁a▁a")
    pair = Pair(written(tmp_path, model_of([*normal, "a▁", "▁a", "a", "b"])))
    source = random.Random(0)
    for _ in range(3000):
        pair.check("".join(source.choices("ab ", k=16)))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (model_of(["ab", "a", "b"], trainer={"model_type": 1}), "of the type UNIGRAM, not BPE"),
        (model_of("a", normalizer={"escape_whitespaces": False}), "changes text before or after"),
        (model_of(["ab", "a", "b"], types={"ab": 5}), r"'ab'\) is of the type UNUSED"),
        (model_of("a", fixed=["<x>"], types={"<x>": 3}), r"id 3 \('<x>'\) is of the type CONTROL"),
        (model_of(["a" * 65, "a"]), "has 65 characters; limit 64"),
        (model_of(["zq9", "a"]).replace(b"zq9", b"z\xff9"), "id 259 is no valid UTF-8"),
        (model_of("a", fixed=["a b"]), "where tokenizer.model gives"),
        (model_of(["ab", "ba", "a", "b"], scores={"ab": -9, "ba": -9}), "have the same score"),
        (model_of(["ab", "a", "b"], scores={"ab": float("nan")}), "or one has none"),
        (model_of(["👍🏽", "👍🏽🏽", "👍"]), "'👍🏽🏽' has a character that is no piece"),
        (model_of(["aa", "aa👍", "👍🏽", "a", "👍"]), "'aa👍' competes with '👍🏽'"),
        (model_of(["👍🏽", "👍"], fixed=["<🏽>"]), "in a user-defined piece and in a merge"),
    ],
)  # fmt: skip
def test_what_the_format_lacks(content: bytes, reason: str, tmp_path: Path) -> None:
    with pytest.raises(TokenizerJsonError, match=reason):
        make_tokenizer_json(written(tmp_path, content))


@pytest.mark.parametrize("name", wrong_tokenizers())
def test_wrong_files(name: str, tmp_path: Path) -> None:
    content, problem = wrong_tokenizers()[name]
    if name not in ("no tags", "more pieces"):  # these need the model's configuration
        with pytest.raises(CheckpointError, match=problem):
            make_tokenizer_json(written(tmp_path, content))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda json: json["model"]["merges"].pop(0), "where tokenizer.model gives"),
        (lambda json: json["model"].update(byte_fallback=False), "where tokenizer.model gives"),
        (lambda json: json["added_tokens"].pop(), "'</box>'"),
        (lambda json: json["model"]["vocab"].update(a=99_999), "<99999>"),
        (lambda json: json["normalizer"]["normalizers"].clear(), "where tokenizer.model gives"),
        (lambda json: json["decoder"]["decoders"].pop(1), "give another text"),
    ],
)
def test_a_difference_is_found(change: Any, reason: str) -> None:
    changed = json.loads(make_tokenizer_json(DEMO))
    change(changed)
    other = tokenizers.Tokenizer.from_str(json.dumps(changed))
    assert reason in str(first_difference(open_tokenizer(DEMO), other))


def test_what_mlc_finds_in_it(pair: Pair, tmp_path: Path) -> None:
    """By the rules of `DetectTokenizerInfo` in MLC-LLM's cpp/tokenizers/tokenizers.cc."""
    parsed = json.loads(pair.text)
    decoders, normalizers = parsed["decoder"]["decoders"], parsed["normalizer"]["normalizers"]
    assert {"type": "ByteFallback"} in decoders, "token_postproc_method is byte_fallback"
    assert "ByteLevel" not in {one["type"] for one in decoders}
    assert "Prepend" not in {one["type"] for one in normalizers}, "prepend_space_in_encode is false"
    assert "Strip" not in {one["type"] for one in decoders}, "strip_space_in_decode is false"
    contents = [one["content"] for one in parsed["added_tokens"]]
    assert len(set(contents)) == len(contents), "MLC-LLM refuses a token that is there twice"
    assert pair.json.get_vocab_size() == pair.pieces.vocab_size(), "no ids beyond the model's"
    command = ["convert", str(write_checkpoint(tmp_path / "c")), "-o", str(tmp_path / "p")]
    assert cli.main([*command, "--target", "mlc-android"]) == 0
    assert json.loads((tmp_path / "p/mlc-chat-config.json").read_text())["tokenizer_info"] == {
        "token_postproc_method": "byte_fallback",
        "prepend_space_in_encode": False,
        "strip_space_in_decode": False,
    }


def test_a_package_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = write_checkpoint(tmp_path / "c"), tmp_path / "p"
    command = ["convert", str(source), "-o", str(output), "--target", "mlc-android"]
    assert cli.main(command) == 0
    assert (output / "tokenizer.json").is_file()
    assert PackageManifest.read(output).why_no_tokenizer_json is None
    assert cli.main(["info", str(output)]) == 0
    assert "tokenizer.json, tokenizer.model" in capsys.readouterr().out
    monkeypatch.setattr(tokenizer_json, "first_difference", lambda *_: "one id differs")
    assert cli.main(command) == 0
    assert "no tokenizer.json: one id differs" in capsys.readouterr().out
    assert not (output / "tokenizer.json").exists(), "that of the package before is gone, too"
    assert PackageManifest.read(output).why_no_tokenizer_json == "one id differs"
    config = json.loads((output / "mlc-chat-config.json").read_text())
    assert config["tokenizer_files"] == ["tokenizer.model"]
    assert cli.main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mlc"]["why_no_tokenizer_json"] == "one id differs"
    assert cli.main(["info", str(output)]) == 0
    assert "tokenizer.model; no tokenizer.json: one id differs" in capsys.readouterr().out
