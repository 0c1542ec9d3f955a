"""The engine against the same blocks run through Python, over its protocol."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convert.bundle.manifest import Bundle
from convert.bundle.program import Program
from convert.bundle.targets import PHONE
from runtime.engine_client import protocol
from runtime.engine_client.client import EngineClient, EngineError, engine_command
from runtime.engine_client.options import LOCAL, QEMU
from runtime.engine_client.process import EngineDiedError
from runtime.engine_client.protocol import ErrorCode, Event, Field, Op, Stage, Stop, Tap
from runtime.inputs.generation_options import GenerationOptions
from runtime.inputs.picture import preprocess
from runtime.inputs.picture_file import write_picture_file
from runtime.inputs.prompt import Message, Tokenizer
from runtime.sessions.reference_session import ReferenceSession
from tests.engine.engines import Built
from tests.engine.operations import ENDLESS_TOKENS, REPEATING
from tests.engine.test_picture import random_picture
from tests.support.compare import Record, assert_close
from tests.support.compiled import CompiledBackend, CompiledModel, compile_here

ROUNDING = 1e-5  # float32; the cosines of the RoPE angles come from two libraries
WINDOW = 160
WIDE = 4096  # an answer is cancelled long before it fills this window
LONG = 150  # tokens: more than one chunk


@pytest.fixture(scope="module")
def model(built: Built) -> CompiledModel:
    bundle = Bundle.open(built.bundle)
    return CompiledModel(bundle.config, compile_here(bundle.config, bundle.plan), bundle.weights())


@pytest.fixture(scope="module")
def running(engine: list[str | Program]) -> Iterator[EngineClient]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TVM_NUM_THREADS", "1")
        with EngineClient(engine, quiet_seconds=60) as client:
            yield client


@pytest.fixture
def client(built: Built, running: EngineClient) -> EngineClient:
    """An engine with the bundle freshly loaded."""
    running.load(built.bundle, window=WINDOW)
    return running


@pytest.fixture
def session(built: Built, model: CompiledModel) -> ReferenceSession:
    tokenizer = Tokenizer(built.bundle / "tokenizer.model")
    return ReferenceSession(CompiledBackend(model), tokenizer, window=WINDOW)


def _ask(*turns: str) -> list[Message]:
    roles = ("user", "assistant")
    return [Message(role=roles[i % 2], content=text) for i, text in enumerate(turns)]


def _code(client: EngineClient, op: str, **fields: Any) -> str:
    with pytest.raises(EngineError) as error:
        client.request(op, fields)
    assert str(error.value)
    return error.value.code


def test_hello(built: Built, running: EngineClient) -> None:
    manifest = Bundle.open(built.bundle).manifest
    assert running.hello[Field.PROGRAM_ID] == manifest.targets["host"].program_id
    assert running.hello[Field.TARGET] == "host"
    assert "x86-64-v3" in running.hello[Field.CPU_FEATURES]
    assert running.hello[Field.THREADS] == 1


def test_load_says_what_it_loaded(built: Built, running: EngineClient) -> None:
    line = running.load(built.bundle, window=WINDOW)
    assert line[Field.ARCHITECTURE] == "MiniCPMV"
    assert line[Field.IMAGE_TOKENS] == 9
    assert line[Field.WEIGHTS_BYTES] == (built.bundle / "weights.safetensors").stat().st_size
    assert 0 < line[Field.LOAD_MS] < 1000


def test_vision_stages(client: EngineClient, model: CompiledModel, record_property: Record) -> None:
    picture = random_picture(100, 70)
    pixels = preprocess(picture, 56)[0].numpy()
    np.testing.assert_array_equal(client.tap(Tap.PREPROCESS, picture), pixels)
    x = model.vision_embed(pixels)
    assert_close("vision_embed", client.tap(Tap.VISION_EMBED, pixels), x, ROUNDING, record_property)
    for i in range(len(model._vision_blocks)):
        x, before = model.vision_block(i, x), x
        tapped = client.tap(Tap.VISION_BLOCK, before, {"index": i})
        assert_close(f"vision_block {i}", tapped, x, ROUNDING, record_property)
    features = model.vision_norm(x)
    assert_close("vision_norm", client.tap(Tap.VISION_NORM, x), features, ROUNDING, record_property)
    tokens = model.resample(features, (4, 4))
    assert_close(
        "resampler", client.tap(Tap.RESAMPLER, features), tokens, ROUNDING, record_property
    )


def test_decoder_stages(
    client: EngineClient, model: CompiledModel, record_property: Record
) -> None:
    """Including past the window, where the ring buffer wraps around."""
    ids = [int(i) for i in np.random.default_rng(0).integers(0, 501, LONG * 3)]
    x = model.embed(ids)
    np.testing.assert_array_equal(client.tap(Tap.EMBED, ids), x)
    cache, inputs, outputs = model.new_cache(WINDOW, 15), [], []
    for i in range(2):
        inputs.append(x)
        x = model.layer(i, x, cache)
        outputs.append(x)
    fields: dict[str, Any] = {"window": WINDOW, "pinned": 15}
    each = client.tap(Tap.LAYERS, np.stack(inputs), fields | {"per_layer": True})
    _assert_mostly_close("layers, each", each, np.stack(outputs), record_property)
    chained = client.tap(Tap.LAYERS, inputs[0], fields)
    _assert_mostly_close("layers, chained", chained, np.stack(outputs), record_property)
    hidden = outputs[-1][:LONG]
    assert_close(
        "logits", client.tap(Tap.LOGITS, hidden), model.logits(hidden), ROUNDING, record_property
    )


def _assert_mostly_close(name: str, actual: Any, expected: Any, record: Record) -> None:
    """A value halfway between two int8 codes may round to either; few rows have one."""
    assert actual.shape == expected.shape
    error = np.abs(actual - expected).max(-1) / np.abs(expected).max(-1)
    record(name, f"median {np.median(error):.1e}, largest {error.max():.1e}")
    assert np.median(error) < ROUNDING and error.max() < 0.05


@pytest.mark.parametrize("with_picture", [False, True])
def test_greedy_answers(
    client: EngineClient, session: ReferenceSession, with_picture: bool
) -> None:
    """A conversation of three questions, which outgrows the window."""
    picture = random_picture(80, 90) if with_picture else None
    image = None if picture is None else client.image(picture)[Field.IMAGE]
    turns: list[str] = []
    for question in ("What colour is the shape?", "图片里有几个圆形？", "How many circles?"):
        turns.append(question)
        options = GenerationOptions(max_new_tokens=50)
        pieces: list[str] = []
        expected = session.reply(_ask(*turns), picture, options)
        answer = client.chat(_ask(*turns), image=image, max_new_tokens=50, on_text=pieces.append)
        assert (answer.ids, answer.text) == (expected.ids, expected.text)
        assert answer.stop == expected.statistics.stop
        assert "".join(pieces) == answer.text
        about = answer.statistics
        assert about[Field.PROMPT_TOKENS] == expected.statistics.prompt_tokens
        assert about[Field.GENERATED_TOKENS] == len(answer.ids)
        assert about[Field.PEAK_RSS_BYTES] > 1 << 20
        if len(turns) == 3:
            assert about[Field.REUSED_TOKENS] > 5
        turns.append(answer.text)
    client.reset()
    again = client.chat(_ask(*turns[:-1]), image=image, max_new_tokens=5)
    assert again.statistics[Field.REUSED_TOKENS] == 0


def test_a_picture_is_remembered(client: EngineClient) -> None:
    stages: list[tuple[str, int, int]] = []
    first = client.image(random_picture(30, 40), lambda *progress: stages.append(progress))
    assert stages[-1] == (Stage.ENCODE, 6, 6) and not first[Field.REMEMBERED]
    again = client.image(random_picture(30, 40))
    assert again[Field.REMEMBERED] and again[Field.IMAGE] == first[Field.IMAGE]
    assert client.image(random_picture(40, 30))[Field.IMAGE] != first[Field.IMAGE]


def test_sampling(client: EngineClient) -> None:
    options: dict[str, Any] = {"do_sample": True, "temperature": 1.5, "top_k": 50, "top_p": 0.95}
    ask = _ask("What colour?")
    texts = [
        client.chat(ask, max_new_tokens=12, options=options | {"seed": seed}).text
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_stop_strings_and_length(client: EngineClient) -> None:
    whole = client.chat(_ask("What colour?"), max_new_tokens=30)
    assert whole.stop in (Stop.LENGTH, Stop.EOS)
    stop = whole.text[4:6]
    cut = client.chat(_ask("What colour?"), max_new_tokens=30, options={"stop": [stop]})
    assert cut.stop == Stop.STOP_STRING
    assert cut.text == whole.text[: whole.text.index(stop)].strip()
    assert len(client.chat(_ask("What colour?"), max_new_tokens=3).ids) == 3


def test_texts(client: EngineClient, session: ReferenceSession) -> None:
    grounded = "<ref>cat</ref><box>1 2</box>"
    for text in ("The shape is red.", "这个图形<image>是什么", "😀\0", grounded):
        ids = client.request(Op.TOKENIZE, {"text": text})[Field.IDS]
        assert ids == session.tokenizer.encode(text)
        assert client.request(Op.DETOKENIZE, {"ids": ids})[Field.TEXT] == text
    for ids, text in (
        ([1, 0, 103, 104, 2], "<s><ref></ref>"),
        ([103, 1, 2, 104], "<ref><s></s></ref>"),
    ):
        assert client.request(Op.DETOKENIZE, {"ids": ids})[Field.TEXT] == text
    line = client.request(Op.TOKENIZE, {"messages": _ask("What?"), "image_tokens": 9})
    prompt = session.tokenizer.prompt(_ask("What?"), 9)
    assert (line[Field.IDS], line[Field.IMAGE_START]) == (prompt.ids, prompt.image_start)
    twice = {"messages": _ask("What?") * 2}
    assert _code(client, Op.TOKENIZE, **twice) == ErrorCode.INVALID_REQUEST
    ids = client.request(Op.TOKENIZE, {**twice, Field.AS_ORIGINAL: True})[Field.IDS]
    assert ids == session.tokenizer.prompt(_ask("What?") * 2, 0, as_original=True).ids


def test_cancel(built: Built, client: EngineClient) -> None:
    """Another thread cancels an answer midway; the conversation continues."""
    client.load(built.bundle, window=WIDE)
    ask, heard = _ask("What colour?"), threading.Event()

    def cancel() -> None:
        heard.wait(60)
        client.cancel()

    helper = threading.Thread(target=cancel)
    helper.start()
    answer = client.chat(
        ask, max_new_tokens=ENDLESS_TOKENS, options=REPEATING, on_text=lambda _: heard.set()
    )
    helper.join()
    assert answer.stop == Stop.CANCELLED and answer.ids
    again = client.chat(ask, max_new_tokens=3, options=REPEATING)
    assert again.ids[: len(answer.ids)] == answer.ids[:3]
    prompt = again.statistics[Field.PROMPT_TOKENS]
    # A busy machine lets the cancel wait. The last token may have been computed, or not yet.
    has_slid = prompt + answer.statistics[Field.DECODE_STEPS] >= WIDE
    assert again.statistics[Field.REUSED_TOKENS] == (0 if has_slid else prompt - 1)


def test_bad_requests(client: EngineClient) -> None:
    ask = _ask("What?")
    bad = ErrorCode.INVALID_REQUEST
    assert _code(client, "sing") == bad
    assert _code(client, Op.RESET, loud=True) == bad
    assert _code(client, Op.CHAT, messages=ask) == bad
    assert _code(client, Op.CHAT, messages=[], max_new_tokens=1) == bad
    assert _code(client, Op.CHAT, messages=ask * 2, max_new_tokens=1) == bad
    assert _code(client, Op.CHAT, messages=_ask(" "), max_new_tokens=1) == bad
    assert _code(client, Op.CHAT, messages="What?", max_new_tokens=1) == bad
    for name, value in (
        ("max_new_tokens", 0),
        ("max_new_tokens", 1.5),
        ("temperature", -1),
        ("temperature", "hot"),
        ("top_k", 0),
        ("top_p", -0.1),
        ("repetition_penalty", 0),
        ("seed", -1),
        ("stop", [""]),
        ("stop", [1]),
        ("do_sample", 1),
    ):
        fields = {"messages": ask, "max_new_tokens": 1, name: value}
        assert _code(client, Op.CHAT, **fields) == bad, name
    assert _code(client, Op.CHAT, messages=_ask("\ud800"), max_new_tokens=1) == bad
    long = _ask("colour " * WINDOW)
    assert _code(client, Op.CHAT, messages=long, max_new_tokens=1) == ErrorCode.PROMPT_TOO_LONG
    fields = {"messages": ask, "max_new_tokens": 1, "image": "0123456789abcdef"}
    assert _code(client, Op.CHAT, **fields) == ErrorCode.UNKNOWN_PICTURE
    assert _code(client, Op.DETOKENIZE, ids=[-1]) == bad
    assert _code(client, Op.TOKENIZE, messages=ask, image_tokens=8) == bad
    assert client.chat(ask, max_new_tokens=1).ids


def test_bad_pictures(client: EngineClient, tmp_path: Path) -> None:
    path = tmp_path / "picture"
    write_picture_file(path, random_picture(10, 10))
    whole = path.read_bytes()
    contents = (b"", whole[:-1], whole + b"\0", b"JPEG" + whole[4:], whole[:12] + bytes(12))
    for content in contents:
        path.write_bytes(content)
        assert _code(client, Op.IMAGE, path=str(path)) == ErrorCode.INVALID_PICTURE
    missing = str(tmp_path / "missing")
    assert _code(client, Op.IMAGE, path=missing) == ErrorCode.INVALID_PICTURE


def test_bad_taps(client: EngineClient, tmp_path: Path) -> None:
    path, output = tmp_path / "values", str(tmp_path / "output")
    path.write_bytes(bytes(1000))
    files = {"input": str(path), "output": output}
    for what in (Tap.VISION_EMBED, Tap.RESAMPLER, Tap.LOGITS):
        assert _code(client, Op.TAP, what=what, **files) == ErrorCode.FILE_ERROR
    fields = {"what": Tap.VISION_BLOCK, **files}
    assert _code(client, Op.TAP, index=99, **fields) == ErrorCode.INVALID_REQUEST
    assert _code(client, Op.TAP, what="magic", **files) == ErrorCode.INVALID_REQUEST
    for ids in ([], [501], [2**40]):
        code = _code(client, Op.TAP, what=Tap.EMBED, ids=ids, output=output)
        assert code == ErrorCode.INVALID_REQUEST
    with pytest.raises(EngineError, match="no room"):
        client.tap(Tap.LAYERS, np.zeros((1, 256), np.float32), {"window": 10, "pinned": 10})


def test_bad_bundles(built: Built, client: EngineClient, tmp_path: Path) -> None:
    """Each is refused, and the loaded bundle stays."""

    def refused(folder: Path, code: str, **manifest: Any) -> None:
        if manifest:
            raw = json.loads((folder / "bundle.json").read_text())
            (folder / "bundle.json").write_text(json.dumps(raw | manifest))
        assert _code(client, Op.LOAD, bundle=str(folder), window=WINDOW) == code

    raw = json.loads((built.bundle / "bundle.json").read_text())
    bad = ErrorCode.INVALID_BUNDLE
    refused(tmp_path / "missing", bad)
    folder = tmp_path / "bundle"
    shutil.copytree(built.bundle, folder)
    refused(folder, bad, format_version=1)
    refused(folder, bad, format_version=2, format="zip")
    other = {"host": raw["targets"]["host"] | {"program_id": "0"}}
    refused(folder, ErrorCode.OTHER_PROGRAM, format=raw["format"], targets=other)
    refused(folder, ErrorCode.OTHER_PROGRAM, targets={})
    refused(folder, bad, targets=raw["targets"], tensors={})
    for name, record in raw["tensors"].items():
        for wrong in ({"shape": [*record["shape"], 2]}, {"format": "q5"}):
            refused(folder, bad, tensors=raw["tensors"] | {name: record | wrong})
            if name not in ("llm.embed", "vision.pos_embed"):
                break
    for key in ("hidden_size", "num_hidden_layers", "image_size", "query_num", "vocab_size"):
        model = raw["model"] | {key: raw["model"][key] * 2}
        refused(folder, bad, tensors=raw["tensors"], model=model)
    refused(folder, bad, model=raw["model"] | {"num_attention_heads": 0})
    (folder / "bundle.json").write_text(json.dumps(raw))
    weights = folder / "weights.safetensors"
    whole = weights.read_bytes()
    for content in (whole[:-1], whole[:100], whole.replace(b"llm.norm", b"llm.form", 1)):
        weights.write_bytes(content)
        refused(folder, bad)
    weights.write_bytes(whole)
    (folder / "bundle.json").write_text("[" * 1000)
    refused(folder, bad)
    assert _code(client, Op.LOAD, bundle=str(built.bundle), window=0) == ErrorCode.INVALID_REQUEST
    assert _code(client, Op.LOAD, bundle=str(built.bundle), window=4) == ErrorCode.PROMPT_TOO_LONG
    huge = _code(client, Op.LOAD, bundle=str(built.bundle), window=2**62)
    assert huge == ErrorCode.INVALID_REQUEST
    assert client.chat(_ask("What?"), max_new_tokens=1).ids


def test_lines_that_are_no_requests(built: Built) -> None:
    lines = [
        b"",
        b"hello",
        b"[" * 100_000,
        b"[]",
        b'{"op": 1}',
        b'{"op": "reset", "id": 1.5}',
        b'{"op": "reset"} {}',
        b'{"op": "r\xff"}',
        b'{"op": "load", "bundle": "\\ud800", "window": 10}',
        b'{"op": "' + b"x" * (protocol.LINE_LIMIT + 1) + b'"}',
        b'{"op": "reset", "id": "last"}',
    ]
    done = subprocess.run(
        [built.program.path], input=b"\n".join(lines), capture_output=True, timeout=60, check=True
    )
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[0][Field.EVENT] == Event.HELLO
    assert [event[Field.EVENT] for event in events[1:]] == [Event.ERROR] * len(lines)
    codes = [event[Field.CODE] for event in events[1:]]
    assert codes[7] == ErrorCode.INVALID_TEXT
    assert codes[10] == ErrorCode.NOT_LOADED and events[11][Field.ID] == "last"
    assert {*codes[:7], *codes[8:10]} == {ErrorCode.INVALID_REQUEST}
    assert not done.stderr


def test_a_dead_engine_is_reported(built: Built) -> None:
    with EngineClient(engine_command(LOCAL, built.program)) as client:
        os.kill(client._process.pid, signal.SIGKILL)
        with pytest.raises(EngineDiedError, match="signal 9"):
            client.reset()
    with pytest.raises(EngineDiedError, match="does not start"):
        EngineClient([str(built.program.path.with_name("missing"))])
    with pytest.raises(EngineDiedError, match=r"exit code 3.*: oh no"):
        EngineClient(["sh", "-c", "echo oh no >&2; exit 3"])


def test_the_end_of_its_input_ends_it(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    """It exits without a signal, even during an answer that would take minutes."""
    monkeypatch.setattr("runtime.engine_client.process._TERM_SECONDS", 60)
    client = EngineClient(engine_command(LOCAL, built.program))
    client.load(built.bundle, window=WINDOW)
    answer = {"messages": _ask("What?"), "max_new_tokens": ENDLESS_TOKENS, **REPEATING}
    client._process.send({Field.OP: Op.CHAT, **answer})
    client.close()
    assert client._process.exit_code == 0


@pytest.mark.parametrize(
    ("cpu", "blocks"),
    [("cortex-a53", "neon_"), ("cortex-a76", "dotprod_"), ("max,sme=off", "i8mm_")],
)
def test_the_phones_engine(
    cpu: str, blocks: str, phone_built: Built, client: EngineClient, record_property: Record
) -> None:
    """Under qemu, as it ships: the same answers, and nearly the same numbers.

    Vision's attention is in 16-bit words on x86 and in float32 on arm64: pictures come out alike,
    not equal, and random weights make much of the difference.
    """
    with EngineClient(engine_command(QEMU, phone_built.program, cpu=cpu)) as arm64:
        assert (arm64.hello[Field.TARGET], arm64.hello[Field.KINDS][0]) == (PHONE, blocks)
        arm64.load(phone_built.bundle, window=WINDOW)
        picture = random_picture(80, 90)
        images = [one.image(picture)[Field.IMAGE] for one in (client, arm64)]
        assert images[0] == images[1]
        pixels = client.tap(Tap.PREPROCESS, picture)
        np.testing.assert_array_equal(arm64.tap(Tap.PREPROCESS, picture), pixels)
        patches = client.tap(Tap.VISION_EMBED, pixels)
        host_block, arm_block = (
            one.tap(Tap.VISION_BLOCK, patches, {"index": 0}) for one in (client, arm64)
        )
        assert_close("vision block, phone", arm_block, host_block, 2e-2, record_property)
        assert arm64.chat(_ask("?"), image=images[0], max_new_tokens=3).ids
        for question in ("What colour is the shape?", "图片里有几个圆形？"):
            host, arm = (one.chat(_ask(question), max_new_tokens=20) for one in (client, arm64))
            assert (arm.ids, arm.text, arm.stop) == (host.ids, host.text, host.stop)
        hidden = np.random.default_rng(0).normal(size=(5, 256)).astype(np.float32)
        host_logits, arm_logits = (one.tap(Tap.LOGITS, hidden) for one in (client, arm64))
        assert_close("logits, phone", arm_logits, host_logits, ROUNDING, record_property)
