"""A bundle's engine on a phone, through an adb that is a script and a phone that is a folder."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convert import cli
from convert.bundle import Bundle
from quantize.errors import BundleError
from runtime.adb import Adb, AdbError, connect
from runtime.chat import ChatModel
from runtime.engine_options import EngineOptions
from runtime.engine_process import EngineDiedError
from runtime.engine_session import EngineSession
from runtime.phone import EMULATOR, ROOT
from runtime.places import open_place
from runtime.protocol import Field, Tap
from runtime.sampling import GenerationOptions

QUESTION = [{"role": "user", "content": "What colour is the shape?"}]
ANSWER = GenerationOptions(max_new_tokens=8)
RED = Image.new("RGB", (60, 40), "red")
SERIAL = "emulator-5554"
OPTIONS = EngineOptions(engine="adb", threads=1)


class FakePhone:
    """The folder of `fake_adb.sh`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        script = folder / "adb"
        script.write_bytes(Path(__file__).with_name("fake_adb.sh").read_bytes())
        script.chmod(0o755)
        (self.root / "data/local/tmp").mkdir(parents=True)
        self.set("devices", f"{SERIAL}\tdevice\n\n")
        self.set("abis", "x86_64,arm64-v8a,x86,armeabi-v7a\n")

    @property
    def root(self) -> Path:
        return self.folder / "root"

    @property
    def bundle(self) -> Path:
        """The folder that the engine runs in."""
        (folder,) = (self.root / ROOT[1:]).iterdir()
        return folder

    def set(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def pushed(self) -> list[str]:
        """The names of the files pushed since the last call."""
        log = self.folder / "log"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return [line.split()[2] for line in lines if line.split()[1] == "push"]


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakePhone:
    folder = tmp_path / "adb"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.delenv("ANDROID_SERIAL", raising=False)
    return FakePhone(folder)


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


def open_session(folder: Path) -> EngineSession:
    opened = Bundle.open(folder)
    place = open_place(opened, OPTIONS)
    place.prepare(lambda *_: None)
    return EngineSession(place, opened.config, window=200)


def test_answers_as_on_the_pc(for_phones, phone):
    here = ChatModel(for_phones, threads=1)
    expected = here.session.reply(QUESTION, RED, ANSWER)
    here.close()
    session = open_session(for_phones)
    try:
        assert session.client().hello[Field.THREADS] == 1
        reply = session.reply(QUESTION, RED, ANSWER)
        assert reply.ids == expected.ids
        assert reply.statistics.encode_ms > 0
        hidden = np.random.default_rng(0).normal(size=(3, 256)).astype(np.float32)
        assert session.client().tap(Tap.LOGITS, hidden).shape == (3, 501)
        exchange = [p.name for p in phone.bundle.glob("exchange-*/*")]
        assert sorted(exchange) == ["input", "output", "picture"]
    finally:
        session.close()
    assert not list(phone.bundle.glob("exchange-*")), "it is cleared away"
    assert phone.bundle.name == Bundle.open(for_phones).manifest.targets[EMULATOR].program_id[:16]


def test_only_what_is_missing_is_pushed(for_phones, phone):
    opened = Bundle.open(for_phones)
    place = open_place(opened, OPTIONS)
    seen: list[tuple[str, int, int]] = []
    place.prepare(lambda *progress: seen.append(progress))
    needed = {*opened.manifest.files, "bundle.json"} - {"engine/host"}
    assert sorted(phone.pushed()) == sorted(Path(name).name for name in needed)
    total = sum((for_phones / name).stat().st_size for name in needed)
    assert seen[0] == ("push to the phone", 0, total)
    assert seen[-1] == ("push to the phone", total, total)
    place.prepare(lambda *_: None)
    assert phone.pushed() == []
    (phone.bundle / "weights.safetensors").write_bytes(b"short")
    (phone.bundle / "tokenizer.model.sha256").write_text("0" * 64)
    place.prepare(lambda *_: None)
    assert sorted(phone.pushed()) == ["tokenizer.model", "weights.safetensors"]
    pushed = (phone.bundle / "weights.safetensors").read_bytes()
    assert pushed == (for_phones / "weights.safetensors").read_bytes()


def test_a_push_that_fails_is_tried_again(for_phones, phone):
    place = open_place(Bundle.open(for_phones), OPTIONS)
    place.prepare(lambda *_: None)
    phone.pushed()
    (phone.bundle / "weights.safetensors").unlink()
    phone.set("fails", "push")
    with pytest.raises(AdbError, match=rf"{SERIAL}: push weights.safetensors failed: .*No space"):
        place.prepare(lambda *_: None)
    phone.set("fails", "")
    phone.pushed()
    place.prepare(lambda *_: None)
    assert phone.pushed() == ["weights.safetensors"]


def test_an_engine_that_does_not_run_there_tells_its_last_words(for_phones, phone):
    session = open_session(for_phones)
    session.close()
    program = phone.bundle / "engine" / EMULATOR
    program.write_text("#!/bin/sh\necho wrong phone >&2\nexit 7\n")
    opened = Bundle.open(for_phones)
    with pytest.raises(EngineDiedError, match=r"engine of phone .*exit code 7.*: wrong phone"):
        EngineSession(open_place(opened, OPTIONS), opened.config, window=200)


def test_chat_on_a_phone(for_phones, phone, capsys):
    asked = ["--prompt", "What?", "--greedy", "--max-new-tokens", "3"]
    assert cli.main(["chat", str(for_phones), "--engine", "adb", *asked]) == 0
    out, err = capsys.readouterr()
    assert f"on the engine of phone {SERIAL}" in err
    assert cli.main(["chat", str(for_phones), *asked]) == 0
    assert capsys.readouterr().out == out


@pytest.mark.parametrize(
    ("devices", "problem"),
    [
        ("", "no phone is connected; switch on USB debugging"),
        ("A\tdevice\nB\tdevice\n", r"2 phones are connected: A, B; choose one with --serial"),
        ("A\tunauthorized\n", r"phone A is not ready \(unauthorized\): allow USB debugging"),
        ("A\tno permissions (user in plugdev group)\n", "this user may not use its USB port"),
        ("A\trecovery\n", r"not ready \(recovery\): try again"),
    ],
)
def test_phones_that_cannot_be_used(phone, devices, problem):
    phone.set("devices", devices)
    with pytest.raises(AdbError, match=problem):
        connect()


def test_the_phone_is_chosen_by_its_serial(phone, monkeypatch):
    phone.set("devices", "A\tdevice\nB\tdevice\nC\toffline\n")
    assert connect("B").serial == "B"
    monkeypatch.setenv("ANDROID_SERIAL", "A")
    assert connect().serial == "A"
    assert connect("B").serial == "B"
    with pytest.raises(AdbError, match="phone D is not connected; `adb devices` lists A, B, C"):
        connect("D")
    with pytest.raises(AdbError, match=r"C is not ready \(offline\): unplug it"):
        connect("C")


def test_a_missing_adb_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AdbError, match="adb is not installed"):
        connect()


def test_a_phone_of_another_kind(for_phones, phone):
    phone.set("abis", "armeabi-v7a,armeabi\n")
    with pytest.raises(AdbError, match=r"runs armeabi-v7a, armeabi; .* a 64-bit system"):
        open_place(Bundle.open(for_phones), OPTIONS)
    phone.set("abis", "arm64-v8a,armeabi-v7a\n")
    with pytest.raises(BundleError, match="convert again with --target android-arm64"):
        open_place(Bundle.open(for_phones), OPTIONS)


def test_a_program_id_that_is_no_hash_does_not_name_a_folder(for_phones, phone, tmp_path):
    folder = shutil.copytree(for_phones, tmp_path / "bundle")
    raw = json.loads((folder / "bundle.json").read_text())
    raw["targets"][EMULATOR]["program_id"] = "../../sdcard; reboot"
    (folder / "bundle.json").write_text(json.dumps(raw))
    with pytest.raises(BundleError, match="expected a hash"):
        open_place(Bundle.open(folder), OPTIONS)


def test_a_phone_that_does_not_answer(phone):
    script = phone.folder / "adb"
    script.write_text("#!/bin/sh\nexec sleep 1000\n")
    started, looks = time.monotonic(), []
    with pytest.raises(AdbError, match="X: shell took too long; is the phone still connected"):
        Adb("X")._run(["adb"], "shell", 0.3)
    with pytest.raises(AdbError, match="X: push took too long"):
        Adb("X")._run(["adb"], "push", 0.3, lambda: looks.append(1))
    assert looks
    assert time.monotonic() - started < 60


def test_a_push_says_how_far_it_is(phone, tmp_path, monkeypatch):
    """A look at the size comes between; a slow copy shows it."""
    monkeypatch.setattr("runtime.adb._LOOK_SECONDS", 0.05)
    script = phone.folder / "adb"
    slow = script.read_text().replace('cp "$1" "$target"', 'echo half > "$target" && sleep 1')
    assert slow != script.read_text()
    script.write_text(slow)
    (tmp_path / "file").write_bytes(bytes(10))
    sizes: list[int] = []
    Adb(SERIAL).push(tmp_path / "file", "/data/local/tmp/file", sizes.append)
    assert 5 in sizes
