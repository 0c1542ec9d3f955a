"""A bundle's engine on a phone, through an adb that is a script and a phone that is a folder."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convert import cli
from convert.bundle.errors import BundleError
from convert.bundle.manifest import Bundle
from convert.bundle.targets import EMULATOR
from runtime.engine_client import phone_shell
from runtime.engine_client.options import EngineOptions
from runtime.engine_client.phone import ROOT
from runtime.engine_client.phone_shell import PhoneError
from runtime.engine_client.places import open_place
from runtime.engine_client.process import EngineAwayError, EngineDiedError
from runtime.engine_client.protocol import Field, Tap
from runtime.inputs.generation_options import GenerationOptions
from runtime.sessions.chat import ChatModel
from runtime.sessions.engine_session import EngineSession
from runtime.verify.measure import run
from tests.support.fake_phone import SERIAL, FakePhone, fake_phone

QUESTION = [{"role": "user", "content": "What colour is the shape?"}]
ANSWER = GenerationOptions(max_new_tokens=8)
RED = Image.new("RGB", (60, 40), "red")
FETCH = {"adb": " pull ", "hdc": "file recv"}  # in the call that brings a file back
GONE = {"adb": "error", "hdc": "hdc does not list it"}


@pytest.fixture(params=["adb", "hdc"])
def phone(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> FakePhone:
    """An emulator, so that this PC's engine runs on it."""
    phone = fake_phone(tmp_path, monkeypatch, request.param)
    phone.abis("x86_64,arm64-v8a,x86,armeabi-v7a")
    return phone


def options(phone: FakePhone) -> EngineOptions:
    return EngineOptions(engine=phone.tool, threads=1)


def folder_of(phone: FakePhone) -> Path:
    """The folder that the engine runs in."""
    (folder,) = phone.path(ROOT).iterdir()
    return folder


def pushed(phone: FakePhone) -> list[str]:
    """The names of the files pushed since the last call."""
    targets = [re.search(r">> (\S+)\.part-", call) for call in phone.calls()]
    return [Path(target[1]).name for target in targets if target is not None]


@pytest.fixture(scope="module")
def for_phones(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose program for emulators is that for this PC."""
    folder = tmp_path_factory.mktemp("phone") / "a bundle"
    shutil.copytree(bundle, folder)
    shutil.copy(folder / "engine/host", folder / "engine" / EMULATOR)
    path = folder / "bundle.json"
    raw = json.loads(path.read_text())
    raw["targets"][EMULATOR] = raw["targets"]["host"] | {"program": f"engine/{EMULATOR}"}
    raw["files"][f"engine/{EMULATOR}"] = raw["files"]["engine/host"]
    path.write_text(json.dumps(raw))
    return folder


def open_session(folder: Path, phone: FakePhone) -> EngineSession:
    opened = Bundle.open(folder)
    place = open_place(opened, options(phone))
    place.prepare(lambda *_: None)
    return EngineSession(place, opened.config, window=200)


def test_answers_as_on_the_pc(for_phones, phone):
    here = ChatModel(for_phones, threads=1)
    expected = here.session.reply(QUESTION, RED, ANSWER)
    here.close()
    session = open_session(for_phones, phone)
    try:
        assert session.client().hello[Field.THREADS] == 1
        reply = session.reply(QUESTION, RED, ANSWER)
        assert reply.ids == expected.ids
        assert reply.statistics.encode_ms > 0
        hidden = np.random.default_rng(0).normal(size=(3, 256)).astype(np.float32)
        assert session.client().tap(Tap.LOGITS, hidden).shape == (3, 501)
        exchange = [p.name for p in folder_of(phone).glob("exchange-*/*")]
        extra = {"adb": [], "hdc": ["holder", "requests", "words"]}[phone.tool]
        assert sorted(exchange) == sorted(["input", "output", "picture", *extra])
    finally:
        session.close()
    assert not list(folder_of(phone).glob("exchange-*")), "it is cleared away"
    assert (
        folder_of(phone).name == Bundle.open(for_phones).manifest.targets[EMULATOR].program_id[:16]
    )


def test_only_what_is_missing_is_pushed(for_phones, phone):
    opened = Bundle.open(for_phones)
    place = open_place(opened, options(phone))
    seen: list[tuple[str, int, int]] = []
    place.prepare(lambda *progress: seen.append(progress))
    needed = {*opened.manifest.files, "bundle.json"} - {"engine/host"}
    assert sorted(pushed(phone)) == sorted(Path(name).name for name in needed)
    total = sum((for_phones / name).stat().st_size for name in needed)
    assert seen[0] == ("push to the phone", 0, total)
    assert seen[-1] == ("push to the phone", total, total)
    place.prepare(lambda *_: None)
    assert pushed(phone) == []
    (folder_of(phone) / "weights.safetensors").write_bytes(b"short")
    (folder_of(phone) / "tokenizer.model.sha256").write_text("0" * 64)
    place.prepare(lambda *_: None)
    assert sorted(pushed(phone)) == ["tokenizer.model", "weights.safetensors"]
    arrived = (folder_of(phone) / "weights.safetensors").read_bytes()
    assert arrived == (for_phones / "weights.safetensors").read_bytes()


def test_a_push_that_fails_is_tried_again(for_phones, phone):
    place = open_place(Bundle.open(for_phones), options(phone))
    place.prepare(lambda *_: None)
    pushed(phone)
    (folder_of(phone) / "weights.safetensors").unlink()
    phone.write("full", "100000")
    with pytest.raises(PhoneError, match=rf"{SERIAL}: push weights.safetensors failed: .*o space"):
        place.prepare(lambda *_: None)
    (phone.state / "full").unlink()
    pushed(phone)
    place.prepare(lambda *_: None)
    assert pushed(phone) == ["weights.safetensors"]


def test_an_engine_that_does_not_run_there_tells_its_last_words(for_phones, phone):
    session = open_session(for_phones, phone)
    session.close()
    program = folder_of(phone) / "engine" / EMULATOR
    program.write_text("#!/bin/sh\necho wrong phone >&2\nexit 7\n")
    opened = Bundle.open(for_phones)
    with pytest.raises(EngineDiedError, match=r"engine of phone .*exit code 7.*: wrong phone"):
        EngineSession(open_place(opened, options(phone)), opened.config, window=200)


def alter(path: Path) -> None:
    """Changes a byte; size and name stay."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_an_engine_that_changed_on_the_phone_is_pushed_again(for_phones, phone):
    """Its stamp says what it was when it arrived."""
    place = open_place(Bundle.open(for_phones), options(phone))
    place.prepare(lambda *_: None)
    pushed(phone)
    program = folder_of(phone) / "engine" / EMULATOR
    alter(program)
    place.prepare(lambda *_: None)
    assert pushed(phone) == [EMULATOR]
    assert program.read_bytes() == (for_phones / "engine" / EMULATOR).read_bytes()
    phone.program("sha256sum", "exit 127")  # an old phone cannot tell
    alter(program)
    place.prepare(lambda *_: None)
    assert pushed(phone) == []


@pytest.fixture
def short(monkeypatch, tmp_path, for_phones, phone):
    """Verifies with one question."""
    settings = run.load_settings()
    settings["built_in"] |= {"max_new_tokens": 4}
    monkeypatch.setattr(run, "load_settings", lambda: settings)
    (tmp_path / "data.jsonl").write_text(json.dumps({"question": "What colour is it?"}))
    data = ["--data", str(tmp_path / "data.jsonl"), "--no-noise-floor"]
    return ["verify", str(for_phones), "--engine", phone.tool, *data, "--json"]


@pytest.mark.parametrize("phone", ["adb"], indirect=True)  # the same code reads for both
def test_verify_reads_the_phone_s_own_files(for_phones, phone, capsys, short):
    assert cli.main(short) == 0
    report = json.loads(capsys.readouterr().out)
    stages = {check["stage"] for check in report["checks"]}
    assert {"tokenizer", "settings", "golden answers"} <= stages
    alter(folder_of(phone) / "golden.picture")
    assert cli.main(short) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["causes"][0]["where"] == "files: golden.picture on the phone"
    alter(folder_of(phone) / "tokenizer.model")  # the engine cannot even load it
    assert cli.main(short) == 2
    assert "tokenizer.model on the phone: altered: " in capsys.readouterr().err
    assert cli.main(short) == 0, "they were pushed again"


@pytest.mark.parametrize("phone_can_tell", [True, False])
def test_an_engine_that_is_not_the_bundle_s_is_not_pushed(
    for_phones, phone, tmp_path, phone_can_tell
):
    folder = shutil.copytree(for_phones, tmp_path / "bundle")
    alter(folder / "engine" / EMULATOR)
    if not phone_can_tell:
        phone.program("sha256sum", "exit 127")
    place = open_place(Bundle.open(folder), options(phone))
    with pytest.raises(BundleError, match=rf"{EMULATOR}: altered: its SHA-256"):
        place.prepare(lambda *_: None)
    assert pushed(phone) == []


def test_chat_on_a_phone(for_phones, phone, capsys):
    asked = ["--prompt", "What?", "--greedy", "--max-new-tokens", "3"]
    assert cli.main(["chat", str(for_phones), "--engine", phone.tool, *asked]) == 0
    out, err = capsys.readouterr()
    assert f"on the engine of phone {SERIAL}" in err
    assert cli.main(["chat", str(for_phones), *asked]) == 0
    assert capsys.readouterr().out == out


def test_a_phone_of_another_kind(for_phones, phone):
    phone.abis("armeabi-v7a,armeabi")
    kinds = {"adb": "armeabi-v7a, armeabi", "hdc": "armv7l"}[phone.tool]
    with pytest.raises(PhoneError, match=rf"runs {kinds}; .* a 64-bit system"):
        open_place(Bundle.open(for_phones), options(phone))
    phone.abis("arm64-v8a,armeabi-v7a")
    with pytest.raises(BundleError, match="convert again with --target android-arm64"):
        open_place(Bundle.open(for_phones), options(phone))


def test_a_program_id_that_is_no_hash_does_not_name_a_folder(for_phones, phone, tmp_path):
    folder = shutil.copytree(for_phones, tmp_path / "bundle")
    raw = json.loads((folder / "bundle.json").read_text())
    raw["targets"][EMULATOR]["program_id"] = "../../sdcard; reboot"
    (folder / "bundle.json").write_text(json.dumps(raw))
    with pytest.raises(BundleError, match="expected a hash"):
        open_place(Bundle.open(folder), options(phone))


def test_a_phone_without_room(for_phones, phone):
    phone.free(1 << 20)
    place = open_place(Bundle.open(for_phones), options(phone))
    with pytest.raises(PhoneError, match=r"1 MiB are free below /data/local/tmp/.*MiB are needed"):
        place.prepare(lambda *_: None)
    assert pushed(phone) == []


def test_a_push_goes_on_where_it_broke(for_phones, phone):
    """Of a run before: its part is there, and counts as room that is not needed again."""
    opened = Bundle.open(for_phones)
    place = open_place(opened, options(phone))
    place.prepare(lambda *_: None)
    weights = folder_of(phone) / "weights.safetensors"
    content, digest = weights.read_bytes(), opened.manifest.files[weights.name].sha256
    weights.with_name(f"{weights.name}.part-{digest[:8]}").write_bytes(content[:-100])
    weights.unlink()
    phone.free(1 << 10)
    seen: list[int] = []
    place.prepare(lambda _, done, total: seen.append(done))
    assert seen == [len(content) - 100, len(content)]
    assert weights.read_bytes() == content


ENGINE = "code=$?"  # in the call that starts an engine


def test_verify_goes_on_when_the_phone_is_back(for_phones, phone, capsys, short):
    """Whatever it was at: the figures are those of a phone that was there all the time."""
    assert cli.main(short) == 0
    expected = json.loads(capsys.readouterr().out)
    shutil.rmtree(folder_of(phone))
    pushed(phone)
    phone.write("break", "300000")
    phone.cut(
        ("mkdir -p", "after", 2),
        ("chmod 644", "after", 3),
        (".sha256", "before", 2),
        ("sha256sum", "after", 2),
        (ENGINE, "before", 3),  # as it is started
        (ENGINE, "1", 2),  # after its first line
        (FETCH[phone.tool], "before", 2),
        (ENGINE, "9", 3),  # at work
        ("exchange-", "before", 2),
        (ENGINE, "14", 2),
    )
    assert cli.main(short) == 0
    assert not (phone.state / "cuts").read_text(), "each of these moments came"
    found = json.loads(capsys.readouterr().out)
    assert found["checks"] == expected["checks"]
    assert found["answers"] == expected["answers"]
    names = [name for name in pushed(phone) if name in Bundle.open(for_phones).manifest.files]
    twice = {"adb": 1, "hdc": 0}[phone.tool]  # hdc sends a piece again before it is appended
    assert len(names) == len(set(names)) + twice, "one was cut, and went on"


def test_verify_of_a_phone_that_stays_away(for_phones, phone, capsys, short, monkeypatch):
    monkeypatch.setattr(phone_shell, "AWAY_SECONDS", 0.0)
    phone.cut((ENGINE, "9", 10**6))
    assert cli.main(short) == 2
    said = capsys.readouterr().err
    assert f"PhoneAwayError: {SERIAL}: went away, and did not come back within 0 s" in said
    assert GONE[phone.tool] in said
    (phone.state / "away").unlink()
    pushed(phone)
    assert cli.main(short) == 0
    there = {*Bundle.open(for_phones).manifest.files} & {*pushed(phone)}
    assert not there, "what has arrived is not pushed again"


def test_a_phone_that_goes_away_again_and_again(for_phones, phone):
    """Is told after some tries: it may be the engine that brings it down."""
    session = open_session(for_phones, phone)
    session.close()
    phone.cut(*[(ENGINE, "2", 1)] * 9)
    with pytest.raises(EngineAwayError, match=f"engine of phone {SERIAL}: .*the connection broke"):
        session.ask(lambda client: client.tap(Tap.EMBED, [5, 6]))
    assert len((phone.state / "cuts").read_text().splitlines()) == 4
    (phone.state / "cuts").unlink()
    assert session.ask(lambda client: client.tap(Tap.EMBED, [5, 6])).shape == (2, 256)
    session.close()
    assert not list(folder_of(phone).glob("exchange-*")), "each engine's is cleared away"


def test_an_answer_that_was_begun_is_not_begun_again(for_phones, phone):
    """Somebody has read its first words; the next question starts an engine on the phone."""
    session = open_session(for_phones, phone)
    try:
        expected = session.reply(QUESTION, None, ANSWER)
        session.close()
        phone.cut((ENGINE, "6", 2))  # after hello, load and some pieces
        heard: list[str] = []
        with pytest.raises(EngineAwayError):
            session.reply(QUESTION, None, ANSWER, on_text=heard.append)
        assert heard
        assert session.reply(QUESTION, None, ANSWER).ids == expected.ids
    finally:
        session.close()
