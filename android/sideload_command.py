"""`minicpmv sideload`: installs the app on a phone and puts the weights beside it."""

from __future__ import annotations

import argparse
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from android.tools import ToolError

if TYPE_CHECKING:
    from android.adb import Adb, PhoneInfo
    from android.apk_info import ApkInfo
    from convert.bundle import Bundle

NAME = "sideload"
HELP = "install the app on a phone, and put the weights beside it"
_SPARE_BYTES = 200 << 20  # that stay free on the phone
_MANIFEST_IN_APK = "assets/bundle/bundle.json"
_WEIGHTS_IN_APK = "assets/bundle/weights.safetensors"
# Where the app looks; the second for phones on which a PC may not write into an app's folder.
_FOLDERS = ("/sdcard/Android/data/{package}/files", "/data/local/tmp/minicpmv")


@dataclass(frozen=True, kw_only=True)
class SideloadConfig:
    """What the command line says."""

    apk: Path
    bundle: Path | None  # None: the weights are in the APK, or on the phone already
    device: str | None
    json: bool


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    add = parser.add_argument
    add("apk", metavar="APK", nargs="?", type=Path, default=Path("chat.apk"), help="the app")
    add("--bundle", metavar="DIR", type=Path, help="the bundle that it was made of")
    add("--device", metavar="SERIAL", help="which phone, where several are connected")
    add("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Installs, copies, starts."""
    from android.adb import Adb
    from android.apk_info import ApkInfo
    from convert.bundle import Bundle
    from convert.console import Size, messages

    config = SideloadConfig(
        **{name: getattr(args, name) for name in SideloadConfig.__dataclass_fields__}
    )
    app = ApkInfo.read(config.apk)
    bundle = None if config.bundle is None else Bundle.open(config.bundle)
    _check_pair(config.apk, bundle)
    adb = Adb(config.device)
    phone = adb.info()
    _say = messages().print
    _say(f"{phone.model}: API {phone.api}, {Size(phone.memory_bytes)} of memory", markup=False)
    _check_phone(app, phone)
    with messages().status("installing"):
        adb.install(config.apk, app.package)
        adb.shell(f"am force-stop {app.package}")
    folder = None if bundle is None else _copy_weights(adb, app.package, bundle)
    adb.shell(f"am start -n {app.package}/.MainActivity")
    if config.json:
        about = {"device": adb.serial, "model": phone.model, "api": phone.api}
        print(json.dumps({**about, "package": app.package, "weights": folder}))
    else:
        where = "" if folder is None else f"; weights in {folder}"
        _say(f"{app.package} {app.version_name} is installed and started{where}", markup=False)
    return 0


def _check_pair(apk: Path, bundle: Bundle | None) -> None:
    """An app takes the weights of its own bundle only."""
    from convert.bundle import MANIFEST

    with zipfile.ZipFile(apk) as archive:
        names = set(archive.namelist())
        if _MANIFEST_IN_APK not in names:
            raise ToolError(f"{apk}: not an app made by `minicpmv apk`")
        inside = archive.read(_MANIFEST_IN_APK)
    if bundle is None:
        if _WEIGHTS_IN_APK not in names:
            raise ToolError(f"{apk}: has no weights inside; say with --bundle where they are")
    elif inside != (bundle.path / MANIFEST).read_bytes():
        raise ToolError(
            f"{apk}: was made of another bundle than {bundle.path}; make it anew: minicpmv apk "
            f"{bundle.path} -o {apk}"
        )


def _check_phone(app: ApkInfo, phone: PhoneInfo) -> None:
    from android.adb import PhoneError

    if phone.api < app.min_sdk:
        raise PhoneError(
            f"{phone.model}: has Android API {phone.api}; the app needs {app.min_sdk} (Android 8)"
        )
    if not set(app.abis) & set(phone.abis):
        raise PhoneError(
            f"{phone.model}: runs {', '.join(phone.abis)}; the app has {', '.join(app.abis)}"
        )


def _copy_weights(adb: Adb, package: str, bundle: Bundle) -> str:
    """Puts the weights where the app finds them; returns the folder."""
    from android.adb import PhoneError
    from convert.bundle import WEIGHTS
    from convert.console import Bars, Size, messages

    record = bundle.manifest.files[WEIGHTS]
    folders = [folder.format(package=package) for folder in _FOLDERS]
    folder = next((folder for folder in folders if adb.can_write(folder)), None)
    if folder is None:
        raise PhoneError(f"{adb.serial}: can write neither to {folders[0]} nor to {folders[1]}")
    target = f"{folder}/{WEIGHTS}"
    if adb.size(target) == record.size and adb.sha256(target) == record.sha256:
        messages().print("the weights are on the phone already", markup=False)
        return folder
    free = adb.free_bytes(folder)
    if free < record.size + _SPARE_BYTES:
        raise PhoneError(
            f"{adb.serial}: {Size(free)} are free below {folder}; the weights take "
            f"{Size(record.size)}, and {Size(_SPARE_BYTES)} must stay free"
        )
    if folder == folders[1]:
        adb.shell(f"chmod 755 {folder}")  # an app may read there what everybody may
    with Bars() as bars:
        adb.copy(
            bundle.path / WEIGHTS,
            target,
            record.sha256,
            lambda done, total: bars("weights", done, total),
        )
    return folder
