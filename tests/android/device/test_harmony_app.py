"""`minicpmv sideload` to HarmonyOS NEXT: what only hdc and HAPs have."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from android.build.tools import ToolError
from android.device import harmony_app
from android.device.harmony_app import BUILT, PROJECT, HarmonyApp
from android.device.sideload import read_app
from android.harmony.project import BUNDLE_NAME, TEMPLATE
from convert.bundle.manifest import MANIFEST
from runtime.engine_client.hdc_app import HdcApp
from runtime.engine_client.phone_shell import PhoneError
from tests.android.bundle import fake_bundle
from tests.android.device.test_sideload import HARMONY_FILES, write_hap
from tests.support.fake_phone import FakePhone, fake_phone


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakePhone:
    monkeypatch.setattr(harmony_app, "_PAUSE", 0.0)
    monkeypatch.setattr(harmony_app, "_TRIES", 1)
    return fake_phone(tmp_path, monkeypatch, "hdc")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return fake_bundle(tmp_path / "bundle")


@pytest.fixture
def app(bundle: Path, tmp_path: Path) -> HarmonyApp:
    return HarmonyApp(write_hap(tmp_path / "chat.hap", bundle))


def test_the_order(phone: FakePhone, app: HarmonyApp) -> None:
    """The app is started once, for its files to be shown, and ended while they are copied."""
    hdc = app.connect(None)
    app.install(hdc)
    files, folder = app.weights_place(hdc)
    assert isinstance(files, HdcApp) and folder == HARMONY_FILES
    app.start(hdc)
    words = ("install -r", "force-stop", "aa start -a EntryAbility -b org.minicpmv.app", "mkdir")
    install, stop, start, make = words
    found = [word for call in phone.calls() for word in words if word in call]
    assert found == [install, stop, start, stop, make, start]
    app.weights_place(hdc)
    assert not [call for call in phone.calls() if "aa " in call], "they are shown already"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("install sign info inconsistent.", r"hdc uninstall org\.minicpmv\.app \(this deletes"),
        ("signature verification failed due to not trusted app source.", "accept its signature"),
        ("no signature file.", "accept its signature; in DevEco Studio, have it signed auto"),
        ("install failed due to insufficient disk memory.", "too little free space"),
        ("install parse native so failed.", "no engine for this phone's processor"),
        ("install failed due to older sdk version in the device.", "system is too old"),
        ("install permission denied.", "signed for release"),
        ("something new.", "something new"),
    ],
)
def test_installing_fails(phone: FakePhone, app: HarmonyApp, words: str, said: str) -> None:
    phone.write("install", f"error: failed to install bundle.\ncode:9568000\nerror: {words}")
    with pytest.raises(PhoneError, match=f"ABC: chat.hap is not installed: .*{said}"):
        app.install(app.connect(None))


def test_an_app_that_does_not_start(phone: FakePhone, app: HarmonyApp) -> None:
    hdc = app.connect(None)
    phone.write(
        "aa", "error: failed to start ability.\nError Code:10106102  Error Message: locked\n"
    )
    with pytest.raises(
        PhoneError, match="does not start: unlock the phone's screen, and try again"
    ):
        app.weights_place(hdc)
    phone.write("aa", "error: failed to start ability.\n")
    with pytest.raises(PhoneError, match=r"does not start: error: failed to start ability\."):
        app.start(hdc)


def test_an_app_that_is_not_signed_for_debugging(phone: FakePhone, app: HarmonyApp) -> None:
    phone.write("release", "")
    with pytest.raises(PhoneError, match=r"signed for debugging .*\(\[E003001\] Invalid bundle n"):
        app.weights_place(app.connect(None))


def test_a_project_is_taken_for_its_hap(bundle: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    (project / PROJECT).parent.mkdir(parents=True)
    (project / PROJECT).write_text((TEMPLATE / PROJECT).read_text())
    with pytest.raises(
        ToolError, match=r"project: has no .*signed\.hap; open the folder in DevEco"
    ):
        read_app(project)
    write_hap(project / BUILT, bundle)
    app = read_app(project)
    assert (app.path, app.package) == (project / BUILT, BUNDLE_NAME)
    assert app.abis == ("arm64-v8a",)


def test_files_that_are_no_haps(bundle: Path, tmp_path: Path) -> None:
    hap = tmp_path / "x.hap"
    with pytest.raises(ToolError, match=r"no such file; expected a HAP"):
        read_app(hap)
    hap.write_text("no HAP")
    with pytest.raises(ToolError, match=r"x\.hap: not a HAP: "):
        read_app(hap)
    for content in (b"[]", b"{", b'{"app": {}}', b"\xff", b'{"app": 1}'):
        with zipfile.ZipFile(hap, "w") as archive:
            archive.writestr("module.json", content)
        with pytest.raises(ToolError, match=r"x\.hap: not a HAP: "):
            read_app(hap)
    with zipfile.ZipFile(hap, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("module.json", bytes(2 << 20))
    with pytest.raises(ToolError, match="too large"):
        read_app(hap)
    write_hap(hap, bundle, mainElement="x; rm -rf /")
    with pytest.raises(ToolError, match="has the name 'x; rm -rf /'"):
        read_app(hap)
    with zipfile.ZipFile(write_hap(hap, bundle), "a") as archive:
        archive.writestr("assets", b"")
    other = tmp_path / "other.hap"
    with zipfile.ZipFile(hap) as old, zipfile.ZipFile(other, "w") as new:
        for name in old.namelist():
            if not name.endswith(MANIFEST):
                new.writestr(name, old.read(name))
    with pytest.raises(ToolError, match="not an app made by `minicpmv harmony`"):
        read_app(other).check_bundle(None)
