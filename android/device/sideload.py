"""`minicpmv sideload`: installs the app on a phone and pushes the weights."""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from convert.support.streams import print_json

if TYPE_CHECKING:
    from android.device.phone_app import PhoneApp
    from convert.bundle.manifest import Bundle
    from runtime.engine_client.phone_shell import PhoneInfo, PhoneShell

NAME = "sideload"
HELP = "install the app on a phone and copy the weights to it"
EXAMPLES = (
    ("install the app and its weights", "minicpmv sideload chat.apk --bundle phone"),
    (
        "the same on HarmonyOS NEXT, on one of several phones; DevEco Studio has run the project",
        "minicpmv sideload project --bundle phone --device 192.168.0.9:5555",
    ),
)
log = logging.getLogger(__name__)
_SPARE_BYTES = 200 << 20  # of storage that stay free on the phone
_SYSTEM_BYTES = 1 << 30  # of memory that the system itself needs


@dataclass(frozen=True, kw_only=True)
class SideloadConfig:
    """The parsed command line."""

    app: Path
    bundle: Path | None  # None: the weights are in the app, or already on the phone
    serial: str | None
    json: bool


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "app",
        metavar="APP",
        nargs="?",
        type=Path,
        default=Path("chat.apk"),
        help="the app: an APK that apk made, for adb; or for HarmonyOS NEXT, with hdc, a HAP that "
        "DevEco Studio built, or the project that harmony wrote and DevEco Studio built "
        "(default: %(default)s)",
    )
    add = parser.add_argument_group("installation").add_argument
    add(
        "--bundle",
        metavar="DIR",
        type=Path,
        help="the bundle that the app was made from; needed unless the app contains the weights",
    )
    add(
        *("--device", "--serial"),
        dest="serial",
        metavar="SERIAL",
        help="serial number of the phone, for hdc its connect key (default: for adb "
        "$ANDROID_SERIAL, or the only phone)",
    )
    add = parser.add_argument_group("output").add_argument
    add("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Installs the app, pushes the weights, and starts the app."""
    from convert.bundle.manifest import Bundle
    from convert.support.console import Size, messages

    config = SideloadConfig(
        **{name: getattr(args, name) for name in SideloadConfig.__dataclass_fields__}
    )
    app = read_app(config.app)
    bundle = None if config.bundle is None else Bundle.open(config.bundle)
    app.check_bundle(bundle)
    phone = app.connect(config.serial)
    info = phone.info()
    _say(f"{info.model}: API {info.api}, {Size(info.memory_bytes)} of memory")
    app.check_phone(info)
    if bundle is not None:
        _check_memory(bundle, info)
    with messages().status("installing"):
        app.install(phone)
    folder = None if bundle is None else _copy_weights(app, phone, bundle)
    app.start(phone)
    if config.json:
        about = {"device": phone.serial, "model": info.model, "api": info.api}
        print_json({**about, "package": app.package, "weights": folder})
    else:
        where = "" if folder is None else f"; weights in {folder}"
        _say(f"{app.package} {app.version} is installed and started{where}")
    return 0


def read_app(path: Path) -> PhoneApp:
    """Reads an app; its kind says which phones it is for.

    Raises:
        ToolError: it is not one of ours.
    """
    from android.device.android_app import AndroidApp
    from android.device.harmony_app import PROJECT, SUFFIX, HarmonyApp

    is_harmony = path.suffix == SUFFIX or (path / PROJECT).is_file()
    return HarmonyApp(path) if is_harmony else AndroidApp(path)


def _say(text: str) -> None:
    from convert.support.console import messages

    messages().print(text, markup=False, soft_wrap=True)


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


def _copy_weights(app: PhoneApp, phone: PhoneShell, bundle: Bundle) -> str:
    """Pushes the weights to a folder from which the app takes them; returns the folder."""
    from convert.bundle.manifest import WEIGHTS
    from convert.support.console import Bars, Size, messages
    from runtime.engine_client.phone_shell import PhoneError

    record = bundle.manifest.files[WEIGHTS]
    with messages().status("looking for the app's folder"):
        files, folder = app.weights_place(phone)
    target = f"{folder}/{WEIGHTS}"
    if files.size(target) == record.size and files.sha256(target, record.size) == record.sha256:
        _say("the weights are already on the phone")
        return folder
    files.clear(target, record.sha256)  # weights of another bundle, which the app cannot use
    free, needed = files.free_bytes(folder), record.size - files.arrived(target, record.sha256)
    if free < needed + _SPARE_BYTES:
        raise PhoneError(
            f"{phone.serial}: {Size(free)} are free below {folder}; the weights take "
            f"{Size(needed)}, and {Size(_SPARE_BYTES)} must stay free"
        )
    with Bars() as bars:
        files.push(
            bundle.path / WEIGHTS,
            target,
            lambda done: bars("weights", done, record.size),
            sha256=record.sha256,
        )
    return folder
