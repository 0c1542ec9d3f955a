"""Every file of a bundle with a fault in it, its hash corrected: verify notices, and names it.

Faults of tensors are in `diagnose/test_isolate.py`. Here are the files and fields that no tensor
depends on: what an engine reads as text, what a conversation starts with, and what a phone checks
itself against.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from convert.bundle.errors import BundleError
from convert.cli import main
from runtime.inputs.prompt import Prompt
from runtime.sessions.engine_session import EngineSession
from runtime.verify.files.differences import differences, listed
from runtime.verify.files.tokenizer import prompt_check, tokenizer_causes
from runtime.verify.measure import run
from runtime.verify.stages import EngineStages
from tests.support import faulty_engines as planted
from tests.support.faulty_engines import (
    Verified,
    alter_file,
    alter_manifest,
    alter_tokenizer,
    exchange,
)
from tests.support.needs import need_qemu

Json = dict[str, Any]


def _one_cause(found: Any, stages: set[str], where: str, *words: str) -> None:
    failed, causes = found
    assert {check.stage for check in failed} == stages
    assert [cause.where for cause in causes] == [where], causes
    for word in words:
        assert word in causes[0].why, causes[0].why


# Of tests.support.tiny's tokenizer: pieces that no built-in question has.
ONE, OTHER = 470, 480


def _exchange(model: Any) -> None:
    exchange(model, (model.pieces[ONE].piece, model.pieces[OTHER].piece))


def _rename(model: Any) -> None:
    model.pieces[ONE].piece = "zebra"


def _score(model: Any) -> None:
    model.pieces[ONE].score = 7.5


def _type(model: Any) -> None:
    model.pieces[ONE].type = 5  # unused: it is read, and never written


def _short(model: Any) -> None:
    del model.pieces[-1]


def _rule(model: Any) -> None:
    model.trainer_spec.model_prefix = "another"


def _other_bytes(content: bytes) -> bytes:
    """Adds an empty field that nobody knows."""
    return content + b"\xc2\x3e\x00"


TOKENIZERS: dict[Callable[[Any], None], tuple[str, ...]] = {
    _exchange: (
        "piece '{one}' has the id of '{other}' (480), and '{other}' that of '{one}' (470)",
    ),
    _rename: ("id 470 is the piece 'zebra', in the checkpoint's '{one}'",),
    _score: ("piece '{one}' (id 470) has the score 7.5, in the checkpoint's",),
    _type: ("piece '{one}' (id 470) has the type 5, in the checkpoint's 1",),
    _short: ("has 500 pieces, the checkpoint's has 501",),
    _rule: ("its trainer_spec.model_prefix is 'another', in the checkpoint's ",),
}


@pytest.mark.parametrize("change", TOKENIZERS)
def test_a_tokenizer(change: Callable[[Any], None], models: Verified, copy: Path) -> None:
    one, other = models.tokenizer.pieces([ONE, OTHER])
    alter_tokenizer(copy, change)
    failed, causes = models.causes(copy)
    assert [cause.where for cause in causes] == ["tokenizer.model"], causes
    for words in TOKENIZERS[change]:
        assert words.format(one=one, other=other) in causes[0].why
    # It is not blamed on what chose the tokens, nor on any part of the network.
    assert {check.stage for check in failed} <= {"tokenizer", "golden answers", "answers"}


def test_a_tokenizer_of_other_bytes(models: Verified, copy: Path) -> None:
    alter_file(copy, "tokenizer.model", _other_bytes)
    _one_cause(models.causes(copy), {"tokenizer"}, "tokenizer.model", "the same as", "other bytes")


def test_a_tokenizer_that_is_none(models: Verified, copy: Path) -> None:
    alter_file(copy, "tokenizer.model", lambda content: content[:-9])
    with pytest.raises(BundleError, match=r"tokenizer\.model: not a SentencePiece model"):
        models.causes(copy)


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (Prompt([1, 7, 9], 2), None),
        (Prompt([1, 8, 9], 2), "golden prompt 1: token 1 is another than the reference's"),
        (Prompt([1, 7], 2), "golden prompt 1: token 2 is another than the reference's"),
        (Prompt([1, 7, 9], None), "golden prompt 1: the picture is in another place"),
    ],
)
def test_an_engine_that_makes_other_ids_of_a_prompt(
    asked: Prompt, why: str | None, tmp_path: Path
) -> None:
    check = prompt_check("golden prompt 1", asked, Prompt([1, 7, 9], 2))
    failed = [] if check.passed else [check]
    causes = tokenizer_causes(failed, tmp_path / "own", tmp_path / "original")  # neither is read
    assert [cause.where for cause in causes] == ([] if why is None else ["prompt"])
    assert all((why or "") in cause.why and "convert again" in cause.why for cause in causes)


@pytest.mark.parametrize(
    ("stages", "session", "where", "why"),
    [
        (planted.OtherText, EngineSession, "detokenizer", "the same ids give another text"),
        (EngineStages, planted.Shouting, "detokenizer", "the same ids give another text"),
    ],
)
def test_an_engine_that_reads_a_right_tokenizer_otherwise(
    stages: type[EngineStages],
    session: type[EngineSession],
    where: str,
    why: str,
    models: Verified,
    bundle: Path,
) -> None:
    failed, causes = models.causes(bundle, stages=stages, session=session)
    assert "tokenizer" in {check.stage for check in failed}
    assert [cause.where for cause in causes] == [where], causes
    assert why in causes[0].why and "tokenizer.model is the checkpoint's" in causes[0].why


def _json(change: Callable[[Json], None]) -> Callable[[bytes], bytes]:
    def changed(content: bytes) -> bytes:
        value = json.loads(content)
        change(value)
        return json.dumps(value).encode()

    return changed


def _set(*path: str | int, to: Any) -> Callable[[bytes], bytes]:
    def change(value: Any) -> None:
        for key in path[:-1]:
            value = value[key]
        value[path[-1]] = to

    return _json(change)


def _shift(golden: Json) -> None:
    """Moves all logits of a prompt by more than the tolerance: greedy answers stay."""
    for step in golden["prompts"][2]["steps"]:
        for likely in step["top"]:
            likely["logit"] += 2.0


def _answer(golden: Json) -> None:
    """Makes of the second token the answer's first, and of its logit the largest."""
    prompt = golden["prompts"][0]
    first, second, *_ = prompt["steps"][0]["top"]
    first["id"], second["id"] = second["id"], first["id"]
    prompt["ids"][0] = first["id"]


A_STEP = ("prompts", 0, "steps", 0, "top")
FILES: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "temperature": (
        "generation.json",
        _set("sets", "OmniLMMChat", "sample", "temperature", to=2.0),
        "sets.OmniLMMChat.sample.temperature is 2.0; expected 0.7",
    ),
    "beams": (
        "generation.json",
        _set("sets", "minicpm-v-1.0", "beam", "num_beams", to=1),
        "sets.minicpm-v-1.0.beam.num_beams is 1; expected 3",
    ),
    "sampling": (
        "generation.json",
        _set("sets", "minicpm-v-1.0", "sampling", to=True),
        "sets.minicpm-v-1.0.sampling is True; expected False",
    ),
    "window": ("generation.json", _set("window", to=64), "window is 64; expected 1024"),
    "a set": (
        "generation.json",
        _json(lambda value: value["sets"].pop("minicpm-v-2.0")),
        "sets.minicpm-v-2.0 is missing; expected an object",
    ),
    "no JSON": ("generation.json", lambda _: b"{", "cannot be read as JSON"),
    "a number that is none": (
        "generation.json",
        lambda content: content.replace(b"1024", b"1e999", 1),
        "cannot be read as JSON: the number 1e999 is out of range",
    ),
    "tolerance": ("golden.json", _set("tolerance", to=1e9), "tolerance is 1000000000.0; expected"),
    "a prompt": (
        "golden.json",
        _json(lambda value: value["prompts"].pop()),
        "prompts has 2 entries; expected 3",
    ),
    "a question": (
        "golden.json",
        _set("prompts", 0, "messages", 0, "content", to="?"),
        "prompts[0].messages[0].content is '?'; expected 'What colour is the shape?'",
    ),
    "no picture": (
        "golden.json",
        _set("prompts", 1, "image", to=None),
        "prompts[1].image is None; expected 'golden.picture'",
    ),
    "a short answer": ("golden.json", _set("prompts", 0, "ids", to=[]), "prompts[0].ids is no"),
    "no steps": (
        "golden.json",
        _set("prompts", 0, "steps", to=[]),
        "prompts[0].steps does not have the",
    ),
    "a step of one token": (
        "golden.json",
        _set(*A_STEP, to=[]),
        "prompts[0].steps[0] does not have the logits of 16 tokens",
    ),
    "another answer": (
        "golden.json",
        _set("prompts", 0, "ids", 0, to=3),
        "prompts[0].steps[0] has a likelier token than its id, 3",
    ),
    "a step that is none": (
        "golden.json",
        _set(*A_STEP, to="?"),
        "prompts[0].steps[0] does not have",
    ),
    "logits": (
        "golden.json",
        _json(_shift),
        "prompt 3, 'How many shapes are there?': the engine's logits differ from those in the file",
    ),
    "its likeliest token": ("golden.json", _json(_answer), "prompt 1, 'What colour is the shape?'"),
    "a pixel": (
        "golden.picture",
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),
        "not the picture that convert shows",
    ),
}


@pytest.mark.parametrize("fault", FILES)
def test_a_file(fault: str, models: Verified, copy: Path) -> None:
    name, change, why = FILES[fault]
    alter_file(copy, name, change)
    stage = "settings" if name == "generation.json" else "golden answers"
    _one_cause(models.causes(copy), {stage}, name, why)


def _verify(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, Any]:
    """Returns the exit code, and the report or what was said instead of one."""
    capsys.readouterr()
    code = main(["verify", *map(str, arguments), "--json"])
    said = capsys.readouterr()
    return code, json.loads(said.out) if code < 2 else said.err


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has verify ask two short questions only."""
    settings = run.load_settings()
    settings["built_in"] |= {"pictures": 1, "max_new_tokens": 8}
    monkeypatch.setattr(run, "load_settings", lambda: settings)


def _put(*path: str, to: Any) -> Callable[[Json], None]:
    def change(manifest: Json) -> None:
        value: Any = manifest
        for key in path[:-1]:
            value = value[key]
        value[path[-1]] = to

    return change


# Fields of bundle.json by name: what is put there, and what verify says. A field that nothing
# reads is not in it: `tools` and `source.path` are shown, what `source` names is told by its hash.
FIELDS: dict[str, tuple[Callable[[Json], None], str]] = {
    "format": (_put("format", to="zip"), "not a bundle's manifest"),
    "format_version": (_put("format_version", to=3), "format version 3"),
    "architecture": (_put("architecture", to="MiniCPMForCausalLM"), "architecture is"),
    "model.eos_token_id": (
        _put("model", "eos_token_id", to=5),
        "model.eos_token_id is 5; expected none",  # the default is 2
    ),
    "model.scale_emb": (_put("model", "scale_emb", to=3), "model.scale_emb is 3; expected 1"),
    "model.rope_theta": (_put("model", "rope_theta", to=5e5), "model.rope_theta is 500000.0"),
    "model.rms_norm_eps": (_put("model", "rms_norm_eps", to=0.1), "model.rms_norm_eps is 0.1"),
    "model.vocab_size": (_put("model", "vocab_size", to=500), "does not follow from its model"),
    "model.query_num": (_put("model", "query_num", to=16), "does not follow from its model"),
    "quantization.bits": (_put("quantization", "bits", to=8), "bits 8 in groups of 32"),
    "quantization.tensors": (
        _put("quantization", "tensors", to=[{"pattern": "*", "format": "f16", "why": ""}]),
        "does not follow from its model and recipe",
    ),
    "kv_cache": (
        _put("kv_cache", to="int8"),
        "says that the KV cache is int8, but the engine's blocks were compiled for something else",
    ),
    "source.sha256": (_put("source", "sha256", to="0" * 64), "not the checkpoint that"),
    "source.demo": (_put("source", "demo", to=True), "not the checkpoint that"),
    "program": (
        _put("targets", "host", "program", to="weights.safetensors"),
        "weights.safetensors: does not start",
    ),
    "program_id": (_put("targets", "host", "program_id", to="0" * 64), "made for the program 000"),
    "tensors": (
        _put("tensors", "llm.embed", "format", to="q8"),
        "tensor llm.embed does not follow",
    ),
    "size": (_put("files", "tokenizer.model", "size", to=1), "tokenizer.model: altered: it has"),
    "hash of the engine": (
        _put("files", "engine/host", "sha256", to="0" * 64),
        "engine/host: altered: its SHA-256",
    ),
    "no tokenizer": (
        lambda manifest: manifest["files"].pop("tokenizer.model"),
        "has no tokenizer.model, but its checkpoint has one",
    ),
}


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("field", FIELDS)
def test_a_field_of_the_manifest(
    field: str, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, why = FIELDS[field]
    alter_manifest(copy, change)
    code, said = _verify(capsys, copy)
    assert code == 2
    assert why in said


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("zero_point", 8, "quantization.zero_point is 8; expected 7"),
        ("max_code", 15, "quantization.max_code is 15; expected 14"),
        ("method", "awq", "quantization.max_code is 14; expected 15"),
    ],
)
def test_a_recipe_that_is_not_the_one_of_its_name(
    key: str, value: Any, why: str, models: Verified, copy: Path
) -> None:
    alter_manifest(copy, _put("quantization", key, to=value))
    failed, causes = models.causes(copy)
    assert "settings" in {check.stage for check in failed}
    assert (causes[0].where, causes[0].why) == ("bundle.json: quantization", why)


@pytest.mark.usefixtures("few")
def test_what_is_not_here_to_compare_with_is_said(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A recipe of the user's own, and a bundle from a machine that could not run its engine."""

    def change(manifest: Json) -> None:
        manifest["quantization"]["name"] = "mine"
        for name in ("golden.json", "golden.picture"):
            del manifest["files"][name]

    alter_manifest(copy, change)
    code, report = _verify(capsys, copy)
    assert (code, report["failed_stages"]) == (0, [])
    recipe, golden = report["warnings"]
    assert "no recipe 'mine' here" in recipe
    assert "has no golden.json, with which a phone checks itself" in golden


COLOURS = (("Red", "Blue"), ("红色", "蓝色"), ("红", "蓝"))


@pytest.mark.parametrize("engine", ["local", "qemu"])
def test_colours_exchanged_in_two_languages(
    engine: str,
    demo: Path,
    few: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The demo answers other colours than its checkpoint; nothing but the tokenizer is blamed."""
    if engine == "qemu":
        need_qemu()
    folder = shutil.copytree(demo, tmp_path / "bundle")
    data = tmp_path / "red.jsonl"
    picture = Path(__file__).parents[4] / "configs/demo/sample.png"
    questions = ["What colour is the shape?", "这个图形是什么颜色？"]
    lines = [json.dumps({"image": str(picture), "question": q}) for q in questions]
    data.write_text("\n".join(lines), "utf-8")
    arguments = [folder, "--data", data, "--engine", engine]
    alter_tokenizer(folder, lambda model: exchange(model, *COLOURS))
    code, report = _verify(capsys, *arguments)
    assert code == 1
    assert report["failed_stages"] == ["tokenizer", "answers"]
    assert [(a["reference"], a["bundle"]) for a in report["answers"]] == [
        ("Red.", "Blue."),
        ("红色。", "蓝色。"),
    ]
    (cause,) = report["causes"]
    assert cause["where"] == "tokenizer.model"
    for a, b in COLOURS:
        assert f"piece {a!r} has the id of {b!r} (" in cause["why"]


def test_differences_are_told_in_words() -> None:
    found = {"a": [1, 2], "b": {"c": True}, "d": "x" * 200, "e": 1}
    expected = {"a": [1, 3, 4], "b": {"c": 1}, "f": None, "e": 1}
    assert list(differences(found, expected, "")) == [
        "a has 2 entries; expected 3",
        "a[1] is 2; expected 3",
        "b.c is True; expected 1",
        "f is missing; expected None",
        f"d is '{'x' * 79}; expected none",
    ]
    assert listed(list("abcde")) == "a, b, c, and 2 more"
    assert list(differences([], {}, "")) == ["it is a list; expected an object"]
    assert list(differences(1.0, 1, "x")) == []
