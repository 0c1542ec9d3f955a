"""`minicpmv sideload` with a fake adb that fails in the same ways as the real one."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from pathlib import Path

import pytest

from android.build.apk_info import ApkInfo
from android.build.builder import build_apk, plan_apk
from android.build.signing import Key
from android.device import folders
from android.device.installing import install
from android.device.sideload import _check_phone
from convert.bundle.manifest import MANIFEST, Bundle
from convert.cli import main
from convert.support.progress import silent
from runtime.engine_client.adb import connect
from runtime.engine_client.phone_shell import PhoneError
from tests.engine.engines import add_phone
from tests.support.fake_phone import FakePhone
from tests.support.once import once

_START, _STOP = "am start -n org.minicpmv.app/.MainActivity", "am force-stop org.minicpmv.app"
TARGET = "/sdcard/Android/data/org.minicpmv.app/files/weights.safetensors"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_phones_that_the_app_does_not_run_on(phone: FakePhone) -> None:
    app = ApkInfo(
        package="p",
        version_name="1",
        version_code=1,
        min_sdk=26,
        target_sdk=34,
        size=1,
        abis=("arm64-v8a",),
        permissions=(),
        schemes=("v2",),
        certificate_sha256="",
    )
    _check_phone(app, connect().info())
    phone.abis("armeabi-v7a")
    with pytest.raises(PhoneError, match="runs armeabi-v7a; the app has arm64-v8a"):
        _check_phone(app, connect().info())
    phone.write("getprop.ro.build.version.sdk", "24")
    with pytest.raises(PhoneError, match="API 24; the app needs 26"):
        _check_phone(app, connect().info())


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


def test_the_command_with_a_full_phone(
    phone: FakePhone, apk: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    phone.free(4096)
    assert main(["sideload", str(apk), "--bundle", str(bundle.path)]) == 2
    assert "4.0 KiB are free below" in capsys.readouterr().err


def test_the_command_is_told_that_the_phone_is_full_on_the_way(
    phone: FakePhone, apk: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    phone.write("full", "100000")
    assert main(["sideload", str(apk), "--bundle", str(bundle.path)]) == 2
    assert "the phone is full, and what had arrived was removed" in capsys.readouterr().err
    assert list(phone.path(TARGET).parent.iterdir()) == []
    assert _found(phone.calls(), ["cat >>", _START]) == [_START, "cat >>"]  # not once more


def test_the_command_goes_on_with_half_copied_weights(
    phone: FakePhone, apk: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = bundle.path / "weights.safetensors"
    folder = phone.path(TARGET).parent
    folder.mkdir(parents=True)
    (folder / f"{weights.name}.part-{sha256(weights)[:8]}").write_bytes(
        weights.read_bytes()[: 1 << 20]
    )
    (folder / f"{weights.name}.part-01234567").write_bytes(b"of another bundle")
    (folder / weights.name).write_bytes(b"of an older bundle")
    phone.free((200 << 20) + weights.stat().st_size - (1 << 19))  # enough for the rest
    assert main(["sideload", str(apk), "--bundle", str(bundle.path)]) == 0
    assert [path.name for path in folder.iterdir()] == [weights.name]
    assert sha256(folder / weights.name) == sha256(weights)


def test_the_command_warns_of_little_memory(
    phone: FakePhone, apk: Path, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    phone.write("proc/meminfo", "MemTotal: 900000 kB\n")
    assert main(["sideload", str(apk), "--bundle", str(bundle.path)]) == 0
    assert "Pixel has 878.91 MiB of memory, and the weights take" in caplog.text


def test_several_phones(
    phone: FakePhone, apk: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    phone.write("devices", "ABC\tdevice\nDEF\tdevice\n")
    command = ["sideload", str(apk), "--bundle", str(bundle.path)]
    assert main(command) == 2
    assert "2 phones are connected: ABC, DEF" in capsys.readouterr().err
    assert main([*command, "--device", "DEF", "--json"]) == 0
    assert '"device": "DEF"' in capsys.readouterr().out


def test_an_app_takes_the_weights_of_its_own_bundle(
    phone: FakePhone, apk: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(bundle.path, other)
    (other / MANIFEST).write_text((other / MANIFEST).read_text() + "\n")
    assert main(["sideload", str(apk), "--bundle", str(other)]) == 2
    assert "was not built from" in capsys.readouterr().err
    assert main(["sideload", str(apk)]) == 2
    assert "has no embedded weights; give their bundle with --bundle" in capsys.readouterr().err
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
    build_apk(plan_apk(bundle, None, embed=False), key, app, silent, password="")
    assert main(["sideload", str(app), "--bundle", str(bundle.path)]) == 0
    assert sha256(phone.path(TARGET)) == sha256(bundle.path / "weights.safetensors")
    with zipfile.ZipFile(app) as archive:  # what the app reads window and settings from
        manifest = json.loads(archive.read("assets/bundle/bundle.json"))
        generation = json.loads(archive.read("assets/bundle/generation.json"))
    assert manifest["model"]["slice_mode"] is True
    assert generation["slices"]["window"] == 2048
