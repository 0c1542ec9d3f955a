"""`minicpmv sideload`: installs the app on a phone and pushes the weights."""

from __future__ import annotations

import argparse
import logging
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from android.build.tools import ToolError
from convert.support.streams import print_json

if TYPE_CHECKING:
    from android.build.apk_info import ApkInfo
    from convert.bundle.manifest import Bundle
    from runtime.engine_client.adb import Adb
    from runtime.engine_client.phone_shell import PhoneInfo

NAME = "sideload"
HELP = "install the app on a phone and copy the weights to it"
EXAMPLES = (
    ("install the app and its weights", "minicpmv sideload chat.apk --bundle phone"),
    (
        "install an app that contains its weights, on one of several phones",
        "minicpmv sideload chat.apk --device emulator-5554",
    ),
)
log = logging.getLogger(__name__)
_SPARE_BYTES = 200 << 20  # of storage that stay free on the phone
_SYSTEM_BYTES = 1 << 30  # of memory that the system itself needs
_MANIFEST_IN_APK = "assets/bundle/bundle.json"
_WEIGHTS_IN_APK = "assets/bundle/weights.safetensors"


@dataclass(frozen=True, kw_only=True)
class SideloadConfig:
    """The parsed command line."""

    apk: Path
    bundle: Path | None  # None: the weights are in the APK, or already on the phone
    serial: str | None
    json: bool


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "apk",
        metavar="APK",
        nargs="?",
        type=Path,
        default=Path("chat.apk"),
        help="the app, made by apk (default: %(default)s)",
    )
    add = parser.add_argument_group("installation").add_argument
    add(
        "--bundle",
        metavar="DIR",
        type=Path,
        help="the bundle that the app was made from; needed unless the APK contains the weights",
    )
    add(
        *("--device", "--serial"),
        dest="serial",
        metavar="SERIAL",
        help="serial number of the phone (default: $ANDROID_SERIAL, or the only phone)",
    )
    add = parser.add_argument_group("output").add_argument
    add("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Installs the app, pushes the weights, and starts the app."""
    from android.build.apk_info import ApkInfo
    from android.device.installing import install
    from convert.bundle.manifest import Bundle
    from convert.support.console import Size, messages
    from runtime.engine_client.adb import connect

    config = SideloadConfig(
        **{name: getattr(args, name) for name in SideloadConfig.__dataclass_fields__}
    )
    app = ApkInfo.read(config.apk)
    bundle = None if config.bundle is None else Bundle.open(config.bundle)
    _check_pair(config.apk, bundle)
    adb = connect(config.serial)
    phone = adb.info()
    _say(f"{phone.model}: API {phone.api}, {Size(phone.memory_bytes)} of memory")
    _check_phone(app, phone)
    if bundle is not None:
        _check_memory(bundle, phone)
    with messages().status("installing"):
        install(adb, config.apk, app.package)
        adb.shell(f"am force-stop {app.package}")
    folder = None if bundle is None else _copy_weights(adb, app.package, bundle)
    adb.shell(f"am start -n {app.package}/.MainActivity")
    if config.json:
        about = {"device": adb.serial, "model": phone.model, "api": phone.api}
        print_json({**about, "package": app.package, "weights": folder})
    else:
        where = "" if folder is None else f"; weights in {folder}"
        _say(f"{app.package} {app.version_name} is installed and started{where}")
    return 0


def _say(text: str) -> None:
    from convert.support.console import messages

    messages().print(text, markup=False, soft_wrap=True)


def _check_pair(apk: Path, bundle: Bundle | None) -> None:
    """Checks that the app was built from this bundle: it accepts only its own weights."""
    from convert.bundle.manifest import MANIFEST

    with zipfile.ZipFile(apk) as archive:
        names = set(archive.namelist())
        if _MANIFEST_IN_APK not in names:
            raise ToolError(f"{apk}: not an app made by `minicpmv apk`")
        inside = archive.read(_MANIFEST_IN_APK)
    if bundle is None:
        if _WEIGHTS_IN_APK not in names:
            raise ToolError(f"{apk}: has no embedded weights; give their bundle with --bundle")
    elif inside != (bundle.path / MANIFEST).read_bytes():
        raise ToolError(
            f"{apk}: was not built from {bundle.path}; build it again: minicpmv apk "
            f"{bundle.path} -o {apk}"
        )


def _check_phone(app: ApkInfo, phone: PhoneInfo) -> None:
    from runtime.engine_client.phone_shell import PhoneError

    if phone.api < app.min_sdk:
        raise PhoneError(
            f"{phone.model}: has Android API {phone.api}; the app needs {app.min_sdk} (Android 8)"
        )
    if not set(app.abis) & set(phone.abis):
        raise PhoneError(
            f"{phone.model}: runs {', '.join(phone.abis)}; the app has {', '.join(app.abis)}"
        )


def _check_memory(bundle: Bundle, phone: PhoneInfo) -> None:
    """Warns if the weights do not fit in memory: paging them in again and again is slow."""
    from convert.bundle.manifest import WEIGHTS
    from convert.support.console import Size

    size = bundle.manifest.files[WEIGHTS].size
    if phone.memory_bytes < size + _SYSTEM_BYTES:
        log.warning(
            f"{phone.model} has {Size(phone.memory_bytes)} of memory, and the weights take "
            f"{Size(size)}: the app will be slow, or Android will kill it"
        )


def _copy_weights(adb: Adb, package: str, bundle: Bundle) -> str:
    """Pushes the weights to a folder that the app reads; returns the folder."""
    from android.device.folders import weights_folder
    from convert.bundle.manifest import WEIGHTS
    from convert.support.console import Bars, Size, messages
    from runtime.engine_client.phone_shell import PhoneError

    record = bundle.manifest.files[WEIGHTS]
    with messages().status("looking for the app's folder"):
        folder = weights_folder(adb, package)
    target = f"{folder}/{WEIGHTS}"
    if adb.size(target) == record.size and adb.sha256(target, record.size) == record.sha256:
        _say("the weights are already on the phone")
        return folder
    adb.clear(target, record.sha256)  # weights of another bundle, which the app cannot use
    free, needed = adb.free_bytes(folder), record.size - adb.arrived(target, record.sha256)
    if free < needed + _SPARE_BYTES:
        raise PhoneError(
            f"{adb.serial}: {Size(free)} are free below {folder}; the weights take {Size(needed)}, "
            f"and {Size(_SPARE_BYTES)} must stay free"
        )
    with Bars() as bars:
        adb.push(
            bundle.path / WEIGHTS,
            target,
            lambda done: bars("weights", done, record.size),
            sha256=record.sha256,
        )
    return folder
