"""`minicpmv sideload` on a stand-in for adb, which fails in the ways that adb fails."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from android.adb import Adb, PhoneError
from android.apk_info import ApkInfo
from android.sideload_command import _check_phone
from android.tools import ToolError
from convert.bundle import MANIFEST, Bundle
from convert.cli import main
from tests.android.fake_phone import FakePhone

TARGET = "/sdcard/Android/data/org.minicpmv.app/files/weights.safetensors"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(bytes(range(256)) * 12000)  # three blocks
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def copy(adb: Adb, weights: Path, target: str = TARGET) -> list[int]:
    heard: list[int] = []
    assert adb.can_write(target.rpartition("/")[0])
    adb.copy(weights, target, sha256(weights), lambda done, total: heard.append(done))
    return heard


@pytest.mark.parametrize(
    ("devices", "said"),
    [
        ("", "no phone is connected; plug one in"),
        ("ABC\tunauthorized", "ABC: the phone asks whether it trusts this PC"),
        ("ABC\toffline", "ABC: the phone does not answer"),
        ("ABC\tno permissions (udev); see", "ABC: this user may not use the USB device"),
        ("ABC\tdevice\nDEF\tdevice", "several phones are connected: ABC, DEF; choose --device"),
    ],
)
def test_phones_that_cannot_be_used(phone: FakePhone, devices: str, said: str) -> None:
    phone.write("devices", devices)
    with pytest.raises(PhoneError) as caught:
        Adb()
    assert str(caught.value).startswith(said)


def test_a_phone_is_chosen(phone: FakePhone) -> None:
    phone.write("devices", "ABC\tdevice\nDEF\tdevice")
    assert Adb("DEF").serial == "DEF"
    with pytest.raises(PhoneError, match="GHI: not connected; connected: ABC, DEF"):
        Adb("GHI")


def test_what_a_phone_is(phone: FakePhone) -> None:
    info = Adb().info()
    assert (info.model, info.api, info.abis[0]) == ("Pixel", 26, "arm64-v8a")
    assert info.memory_bytes > 0
    phone.write("getprop.ro.build.version.sdk", "")
    with pytest.raises(PhoneError, match="does not say what Android it has"):
        Adb().info()


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
    _check_phone(app, Adb().info())
    phone.write("getprop.ro.product.cpu.abilist", "armeabi-v7a")
    with pytest.raises(PhoneError, match="runs armeabi-v7a; the app has arm64-v8a"):
        _check_phone(app, Adb().info())
    phone.write("getprop.ro.build.version.sdk", "24")
    with pytest.raises(PhoneError, match="API 24; the app needs 26"):
        _check_phone(app, Adb().info())


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("FAILED_UPDATE_INCOMPATIBLE", "adb uninstall org.x"),
        ("FAILED_VERSION_DOWNGRADE", "newer version"),
        ("FAILED_INSUFFICIENT_STORAGE", "too little free space"),
        ("FAILED_USER_RESTRICTED", "developer options"),
        ("FAILED_NO_MATCHING_ABIS", "no engine for this phone"),
        ("FAILED_SOMETHING_NEW", "INSTALL_FAILED_SOMETHING_NEW"),
        ("PARSE_FAILED_NO_CERTIFICATES", "INSTALL_PARSE_FAILED_NO_CERTIFICATES"),
    ],
)
def test_installing_fails(phone: FakePhone, tmp_path: Path, code: str, said: str) -> None:
    Adb().install(tmp_path / "chat.apk", "org.x")
    phone.write("install", f"adb: failed to install\nFailure [INSTALL_{code}: words]")
    with pytest.raises(PhoneError, match=said):
        Adb().install(tmp_path / "chat.apk", "org.x")


def test_weights_arrive(phone: FakePhone, weights: Path) -> None:
    heard = copy(Adb(), weights)
    assert phone.path(TARGET).read_bytes() == weights.read_bytes()
    assert heard == sorted(heard)
    assert heard[-1] == weights.stat().st_size
    assert len(list(phone.path(TARGET).parent.iterdir())) == 1


def test_a_broken_cable_costs_only_the_rest(phone: FakePhone, weights: Path) -> None:
    phone.write("break", "1000000")
    heard = copy(Adb(), weights)
    assert phone.path(TARGET).read_bytes() == weights.read_bytes()
    assert 1000000 in heard


def test_a_later_run_goes_on(phone: FakePhone, weights: Path) -> None:
    adb = Adb()
    partial = Path(f"{phone.path(TARGET)}.part-{sha256(weights)[:8]}")
    partial.parent.mkdir(parents=True)
    partial.write_bytes(weights.read_bytes()[:5000])
    assert copy(adb, weights)[0] == 5000
    assert phone.path(TARGET).read_bytes() == weights.read_bytes()
    partial.write_bytes(bytes(9_000_000))  # longer than the file: not a part of it
    assert copy(adb, weights)[0] == 0


def test_a_phone_that_is_gone_is_told(phone: FakePhone, weights: Path) -> None:
    adb = Adb()
    adb.can_write("/sdcard/Android/data/org.minicpmv.app/files")
    phone.write("lost", "")
    with pytest.raises(PhoneError, match=r"0 of 3 MiB.*device 'ABC' not found.*goes on from there"):
        adb.copy(weights, TARGET, sha256(weights), lambda *_: None)
    with pytest.raises(PhoneError, match="`true` failed: error: device 'ABC' not found"):
        adb.shell("true")


def test_what_arrives_damaged_is_removed(phone: FakePhone, weights: Path) -> None:
    adb = Adb()
    assert adb.can_write("/sdcard")
    with pytest.raises(PhoneError, match="arrived damaged and was removed"):
        adb.copy(weights, "/sdcard/w", "0" * 64, lambda *_: None)
    assert list((phone.state / "sdcard").iterdir()) == []
    phone.write("no-sha256sum", "")  # then the app itself checks them
    adb.copy(weights, "/sdcard/w", "0" * 64, lambda *_: None)
    assert (phone.state / "sdcard/w").exists()


def test_space_and_folders(phone: FakePhone) -> None:
    adb = Adb()
    assert adb.free_bytes("/sdcard") > 0
    phone.write("df", "Filesystem 1K-blocks Used Available Use% Mounted\n/dev/x 9 5 4 50% /sdcard")
    assert adb.free_bytes("/sdcard") == 4096
    phone.write("df", "df: nothing")
    with pytest.raises(PhoneError, match="does not say what space is free"):
        adb.free_bytes("/sdcard")
    phone.write("readonly", "/sdcard/Android/data")
    assert not adb.can_write("/sdcard/Android/data/x")
    assert adb.can_write("/data/local/tmp/minicpmv")


def test_without_adb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolError, match=r"adb is not installed.*sudo apt-get install adb"):
        Adb()


def test_the_command(
    phone: FakePhone, apk: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sideload", str(apk), "--bundle", str(bundle.path)]
    assert main([*command, "--json"]) == 0
    assert '"weights": "/sdcard/Android/data/org.minicpmv.app/files"' in capsys.readouterr().out
    assert sha256(phone.path(TARGET)) == sha256(bundle.path / "weights.safetensors")
    calls = (phone.state / "log").read_text().splitlines()
    order = ["install", "force-stop", "cat >>", "am start -n org.minicpmv.app/.MainActivity"]
    found = [next(i for i, call in enumerate(calls) if word in call) for word in order]
    assert found == sorted(found)
    assert main(command) == 0
    assert "on the phone already" in capsys.readouterr().err


def test_the_command_where_the_apps_folder_is_closed(
    phone: FakePhone, apk: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    phone.write("readonly", "/sdcard/Android/data")
    assert main(["sideload", str(apk), "--bundle", str(bundle.path)]) == 0
    assert "weights in /data/local/tmp/minicpmv" in " ".join(capsys.readouterr().err.split())
    weights = phone.path("/data/local/tmp/minicpmv/weights.safetensors")
    assert weights.stat().st_mode & 0o777 == 0o644
    assert weights.parent.stat().st_mode & 0o777 == 0o755


def test_the_command_with_a_full_phone(
    phone: FakePhone, apk: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    phone.write("df", "Filesystem 1K-blocks Used Available Use% Mounted\n/dev/x 9 5 4 50% /sdcard")
    assert main(["sideload", str(apk), "--bundle", str(bundle.path)]) == 2
    assert "4.0 KiB are free below" in capsys.readouterr().err


def test_an_app_takes_the_weights_of_its_own_bundle(
    phone: FakePhone, apk: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(bundle.path, other)
    (other / MANIFEST).write_text((other / MANIFEST).read_text() + "\n")
    assert main(["sideload", str(apk), "--bundle", str(other)]) == 2
    assert "was made of another bundle than" in capsys.readouterr().err
    assert main(["sideload", str(apk)]) == 2
    assert "has no weights inside; say with --bundle" in capsys.readouterr().err
    assert main(["sideload", str(tmp_path / "none.apk")]) == 2
    assert "no such file; expected an APK" in capsys.readouterr().err
    assert not (phone.state / "log").exists()
