"""`minicpmv sideload` with fakes of adb and hdc that fail in the same ways as the real ones."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from android.build.builder import build_apk, plan_package
from android.build.signing import Key
from android.device import folders, harmony_app
from android.device.android_app import AndroidApp
from android.device.installing import install
from android.device.sideload import read_app
from convert.bundle.manifest import MANIFEST, WEIGHTS, Bundle
from convert.cli import main
from convert.support.progress import silent
from runtime.engine_client import hdc, hdc_app
from runtime.engine_client.adb import connect
from runtime.engine_client.phone_shell import PhoneError
from tests.engine.engines import add_phone
from tests.support.fake_phone import READY, FakePhone, fake_phone
from tests.support.once import once

_START, _STOP = "am start -n org.minicpmv.app/.MainActivity", "am force-stop org.minicpmv.app"
TARGET = "/sdcard/Android/data/org.minicpmv.app/files/weights.safetensors"
HARMONY_FILES = "data/storage/el2/base/haps/entry/files/bundle"
PIECE = 1 << 20


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_hap(path: Path, bundle: Path, **fields: str) -> Path:
    """Writes a HAP as DevEco Studio packs it, as far as sideload reads it."""
    described = {
        "app": {"bundleName": "org.minicpmv.app", "versionName": "1.0.0", "debug": True},
        "module": {"name": "entry", "mainElement": "EntryAbility"} | fields,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("module.json", json.dumps(described))
        archive.writestr("libs/arm64-v8a/libminicpmv.so", b"")
        archive.write(bundle / MANIFEST, f"resources/rawfile/bundle/{MANIFEST}")
    return path


@dataclass
class Case:
    """A kind of phone, an app for it, and where its weights go."""

    phone: FakePhone
    app: Path
    bundle: Bundle

    @property
    def weights(self) -> Path:
        return self.bundle.path / WEIGHTS

    @property
    def folder(self) -> Path:
        if self.phone.tool == "adb":
            return self.phone.path(TARGET).parent
        return self.phone.state / "apps/org.minicpmv.app" / HARMONY_FILES

    def sideload(self, *options: str) -> int:
        return main(["sideload", str(self.app), "--bundle", str(self.bundle.path), *options])

    def arrived(self) -> bytes:
        """Returns what is there of the weights; on HarmonyOS the app joins the pieces."""
        if self.phone.tool == "adb":
            return (self.folder / WEIGHTS).read_bytes()
        pieces = (self.folder / hdc_app.PIECES).iterdir()
        ordered = sorted(pieces, key=lambda piece: int(piece.name.partition("-")[2]))
        assert [int(p.name.partition("-")[2]) for p in ordered] == [
            PIECE * i for i in range(len(ordered))
        ]
        return b"".join(piece.read_bytes() for piece in ordered)

    def begun(self, content: bytes) -> None:
        """Leaves a part of the weights on the phone, as a copy that broke does."""
        short = sha256(self.weights)[:8]
        if self.phone.tool == "adb":
            self.folder.mkdir(parents=True)
            (self.folder / f"{WEIGHTS}.part-{short}").write_bytes(content)
            (self.folder / f"{WEIGHTS}.part-01234567").write_bytes(b"of another bundle")
            return
        pieces = self.folder / hdc_app.PIECES
        pieces.mkdir(parents=True)
        for start in range(0, len(content), PIECE):
            (pieces / f"{short}-{start}").write_bytes(content[start : start + PIECE])
        (pieces / "01234567-0").write_bytes(b"of another bundle")


@pytest.fixture(params=["adb", "hdc"])
def case(
    request: pytest.FixtureRequest,
    bundle: Bundle,
    apk: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Case:
    for module in (hdc, hdc_app):
        monkeypatch.setattr(module, "PIECE_BYTES", PIECE)
    monkeypatch.setattr(harmony_app, "_PAUSE", 0.0)
    monkeypatch.setattr(harmony_app, "_TRIES", 1)
    (tmp_path / "state").mkdir()
    phone = fake_phone(tmp_path / "state", monkeypatch, request.param)
    app = apk if request.param == "adb" else write_hap(tmp_path / "chat.hap", bundle.path)
    return Case(phone, app, bundle)


def test_phones_that_the_app_does_not_run_on(case: Case) -> None:
    app = read_app(case.app)
    phone = app.connect(None)
    app.check_phone(phone.info())
    case.phone.abis("armeabi-v7a")
    with pytest.raises(PhoneError, match=r"runs armv?.*7.*; the app has arm64-v8a"):
        app.check_phone(phone.info())


def test_an_android_that_is_too_old(phone: FakePhone, apk: Path) -> None:
    phone.write("getprop.ro.build.version.sdk", "24")
    with pytest.raises(PhoneError, match="API 24; the app needs 26"):
        AndroidApp(apk).check_phone(connect().info())


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("FAILED_UPDATE_INCOMPATIBLE", r"adb uninstall org\.x \(this deletes its chats\)"),
        ("FAILED_VERSION_DOWNGRADE", "newer version"),
        ("FAILED_INSUFFICIENT_STORAGE", "too little free space"),
        ("FAILED_USER_RESTRICTED", "developer options"),
        ("FAILED_NO_MATCHING_ABIS", "no engine for this phone"),
        ("FAILED_ABORTED", "was declined"),
        ("FAILED_OLDER_SDK", "Android is too old"),
        ("FAILED_VERIFICATION_FAILURE", "disable the verification of apps over USB"),
        ("FAILED_INVALID_APK", "the APK is damaged"),
        ("FAILED_SOMETHING_NEW", "INSTALL_FAILED_SOMETHING_NEW"),
        ("PARSE_FAILED_NO_CERTIFICATES", "not signed; .*INSTALL_PARSE_FAILED_NO_CERTIFICATES"),
    ],
)
def test_installing_fails(phone: FakePhone, tmp_path: Path, code: str, said: str) -> None:
    install(connect(), tmp_path / "chat.apk", "org.x")
    phone.write("install", f"adb: failed to install\nFailure [INSTALL_{code}: words]")
    with pytest.raises(PhoneError, match=f"chat.apk is not installed: .*{said}"):
        install(connect(), tmp_path / "chat.apk", "org.x")


def test_installing_fails_without_a_code(phone: FakePhone, tmp_path: Path) -> None:
    phone.write("fails", "install adb: failed to stat chat.apk: No such file or directory")
    with pytest.raises(PhoneError, match=r"not installed: adb: failed to stat chat\.apk"):
        install(connect(), tmp_path / "chat.apk", "org.x")


def test_the_command(
    phone: FakePhone, apk: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sideload", str(apk), "--bundle", str(bundle.path)]
    assert main([*command, "--json"]) == 0
    assert '"weights": "/sdcard/Android/data/org.minicpmv.app/files"' in capsys.readouterr().out
    assert sha256(phone.path(TARGET)) == sha256(bundle.path / "weights.safetensors")
    calls = phone.calls()
    # The first start makes the app's folder: one that the PC makes can be closed to the app.
    order = ["install", _STOP, _START, _STOP, "mkdir -p", "cat >>", _START]
    assert _found(calls, order) == order
    assert main(command) == 0
    assert "already on the phone" in capsys.readouterr().err
    assert _found(phone.calls(), [_START, _STOP]) == [_STOP, _START]  # the folder is there


def _found(calls: list[str], words: list[str]) -> list[str]:
    """Returns which of some words the calls contain, in the calls' order."""
    return [word for call in calls for word in dict.fromkeys(words) if word in call]


@pytest.mark.parametrize("am", ["exit 1", "exit 0"], ids=["does not start", "makes no folder"])
def test_the_command_where_the_app_makes_no_folder(
    phone: FakePhone,
    apk: Path,
    bundle: Bundle,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    am: str,
) -> None:
    monkeypatch.setattr(folders, "_TRIES", 1)
    phone.program(
        "am",
        f'[ "$1" != start ] || [ -e {phone.state}/tried ] && exit 0\n'
        f"touch {phone.state}/tried\n{am}",
    )
    assert main(["sideload", str(apk), "--bundle", str(bundle.path)]) == 0
    assert "weights in /data/local/tmp/minicpmv" in capsys.readouterr().err
    assert not phone.path(TARGET).parent.exists()
    weights = phone.path("/data/local/tmp/minicpmv/weights.safetensors")
    assert sha256(weights) == sha256(bundle.path / "weights.safetensors")


def test_the_command_where_the_apps_folder_is_closed(
    phone: FakePhone, apk: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    phone.write("readonly", "/sdcard/Android/data")
    assert main(["sideload", str(apk), "--bundle", str(bundle.path)]) == 0
    assert "weights in /data/local/tmp/minicpmv" in capsys.readouterr().err
    weights = phone.path("/data/local/tmp/minicpmv/weights.safetensors")
    assert weights.stat().st_mode & 0o777 == 0o644
    assert weights.parent.stat().st_mode & 0o777 == 0o755


def test_the_command_with_a_full_phone(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    case.phone.free(4096)
    assert case.sideload() == 2
    assert "4.0 KiB are free below" in capsys.readouterr().err


def test_the_command_is_told_that_the_phone_is_full_on_the_way(
    case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    case.phone.write("full", str(PIECE + 100_000))
    assert case.sideload() == 2
    assert "the phone is full, and what had arrived was removed" in capsys.readouterr().err
    assert [path for path in case.folder.rglob("*") if path.is_file()] == []
    send, start = {"adb": ("cat >>", _START), "hdc": ("file send", "aa start")}[case.phone.tool]
    sends = {"adb": 1, "hdc": 2}[case.phone.tool]  # pieces; not once more
    assert _found(case.phone.calls(), [send, start]) == [start, *[send] * sends]


def test_the_command_goes_on_with_half_copied_weights(case: Case) -> None:
    whole = case.weights.read_bytes()
    case.begun(whole[: 2 * PIECE])
    (case.folder / WEIGHTS).write_bytes(b"of an older bundle")
    case.phone.free((200 << 20) + len(whole) - (3 * PIECE // 2))  # enough for the rest
    assert case.sideload() == 0
    assert case.arrived() == whole
    assert not [path for path in case.folder.rglob("*") if "01234567" in path.name]
    if case.phone.tool == "hdc":
        assert not (case.folder / WEIGHTS).exists(), "the app cannot use it"
        sends = sum("file send" in call for call in case.phone.calls())
        assert sends == -(-len(whole) // PIECE) - 2


def test_the_command_warns_of_little_memory(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    case.phone.write("proc/meminfo", "MemTotal: 900000 kB\n")
    assert case.sideload() == 0
    assert "Pixel has 878.91 MiB of memory, and the weights take" in caplog.text


def test_several_phones(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    ready = READY[case.phone.tool]
    case.phone.devices({"ABC": ready, "DEF": ready})
    assert case.sideload() == 2
    assert "2 phones are connected: ABC, DEF" in capsys.readouterr().err
    assert case.sideload("--device", "DEF", "--json") == 0
    assert '"device": "DEF"' in capsys.readouterr().out


def test_weights_that_are_there_are_not_sent(
    case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    case.folder.mkdir(parents=True)
    shutil.copy(case.weights, case.folder)
    assert case.sideload() == 0
    assert "already on the phone" in capsys.readouterr().err
    (case.folder / WEIGHTS).write_bytes(b"W" + case.weights.read_bytes()[1:])
    assert case.sideload() == 0, "damaged ones are replaced"
    assert case.arrived() == case.weights.read_bytes()


def test_altered_weights_are_named(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of the bundle; nothing of them stays on the phone."""
    altered = case.app.parent / "altered"
    shutil.copytree(case.bundle.path, altered)
    (altered / WEIGHTS).write_bytes(case.weights.read_bytes()[:-1] + b"?")
    assert main(["sideload", str(case.app), "--bundle", str(altered)]) == 2
    assert "altered: its SHA-256 is not" in capsys.readouterr().err
    assert [path for path in case.folder.rglob("*") if path.is_file()] == []
    shutil.rmtree(altered)


def test_a_missing_tool_is_named(
    case: Case, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    app = read_app(case.app)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(PhoneError, match=f"^{case.phone.tool} is not installed"):
        app.connect(None)


def test_an_app_takes_the_weights_of_its_own_bundle(
    case: Case, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(case.bundle.path, other)
    (other / MANIFEST).write_text((other / MANIFEST).read_text() + "\n")
    assert main(["sideload", str(case.app), "--bundle", str(other)]) == 2
    assert "was not built from" in capsys.readouterr().err
    assert main(["sideload", str(case.app)]) == 2
    assert "has no embedded weights; give their bundle with --bundle" in capsys.readouterr().err
    assert not (case.phone.state / "log").exists()


def test_files_that_are_no_apks(
    phone: FakePhone, apk: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name, said in (
        ("none.apk", "no such file; expected an APK"),
        ("", "a folder; expected an APK"),
        ("text.apk", "text.apk: not an APK: aapt2: "),
        ("half.apk", "half.apk: not an APK: aapt2: "),
    ):
        (tmp_path / "text.apk").write_text("no APK")
        (tmp_path / "half.apk").write_bytes(apk.read_bytes()[:100_000])
        assert main(["sideload", str(tmp_path / name)]) == 2
        assert said in capsys.readouterr().err
    assert not (phone.state / "log").exists()


def test_the_command_with_a_model_that_cuts_pictures(
    phone: FakePhone,
    sliced_bundle: Bundle,
    key: Key,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    def make(folder: Path) -> None:  # the same as in the engine's tests
        shutil.copytree(sliced_bundle.path, folder / "bundle")
        add_phone(folder / "bundle")

    bundle = Bundle.open(once(tmp_path_factory, "phone-slices", make) / "bundle")
    app = tmp_path / "chat.apk"
    build_apk(plan_package(bundle, None, embed=False), key, app, silent, password="")
    assert main(["sideload", str(app), "--bundle", str(bundle.path)]) == 0
    assert sha256(phone.path(TARGET)) == sha256(bundle.path / "weights.safetensors")
    with zipfile.ZipFile(app) as archive:  # what the app reads window and settings from
        manifest = json.loads(archive.read("assets/bundle/bundle.json"))
        generation = json.loads(archive.read("assets/bundle/generation.json"))
    assert manifest["model"]["slice_mode"] is True
    assert generation["slices"]["window"] == 2048
