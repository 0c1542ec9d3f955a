"""The app for HarmonyOS NEXT, which hdc installs once DevEco Studio has built and signed it."""

from __future__ import annotations

import json
import re
import time
import zipfile
from pathlib import Path
from typing import Any

from android.build.tools import ToolError
from android.device.phone_app import PhoneApp
from convert.bundle.manifest import Bundle
from runtime.engine_client.hdc import Hdc, connect
from runtime.engine_client.hdc_app import HdcApp
from runtime.engine_client.phone_shell import PhoneError, PhoneInfo, PhoneShell

SUFFIX = ".hap"
PROJECT = "AppScope/app.json5"  # by which a project is known
BUILT = "entry/build/default/outputs/default/entry-default-signed.hap"  # in a project
_SECONDS = 600.0  # to install it
_TRIES = 50  # of looking for the app's files, with a pause between
_PAUSE = 0.2  # s
_DESCRIPTION = "module.json"
_LARGEST_DESCRIPTION = 1 << 20  # bytes
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.]{0,127}")  # of an app, a module, an ability
_DONE = "successfully"
_SIGN = (
    "in DevEco Studio, have it signed automatically while this phone is connected, and run it once"
)
# By parts of what the phone's bundle manager says.
_WHY = {
    "sign info inconsistent": "an app signed with another key is installed; remove it first: "
    "hdc uninstall {package} (this deletes its chats)",
    "downgrade": "a newer version is installed; remove it first: hdc uninstall {package} (this "
    "deletes its chats)",
    "insufficient disk": "the phone has too little free space",
    "native so failed": "the HAP has no engine for this phone's processor",
    "older sdk": "the phone's system is too old",
    "permission denied": f"it is signed for release; {_SIGN}",
    "signature": f"the phone does not accept its signature; {_SIGN}",
}
_LOCKED = "10106102"


class HarmonyApp(PhoneApp):
    """A HAP."""

    _folder, _made_by = "resources/rawfile/bundle", "minicpmv harmony"

    def __init__(self, path: Path) -> None:
        """Reads a HAP, or the one in a project.

        Raises:
            ToolError: it is none, or DevEco Studio has not built the project.
        """
        if path.is_dir():
            if not (path / BUILT).is_file():
                raise ToolError(
                    f"{path}: has no {BUILT}; open the folder in DevEco Studio, sign the app, and "
                    "run it once"
                )
            path = path / BUILT
        described, names = _read(path)
        app, module = described["app"], described["module"]
        abis = {name.split("/")[1] for name in names if name.startswith("libs/")}
        super().__init__(path, app["bundleName"], app["versionName"], tuple(sorted(abis)))
        self._ability = module["mainElement"]
        self._files = f"data/storage/el2/base/haps/{module['name']}/files"

    def connect(self, serial: str | None) -> Hdc:
        """See `PhoneApp`."""
        return connect(serial)

    def check_system(self, phone: PhoneInfo) -> None:
        """See `PhoneApp`; the phone says it when it installs the app."""

    def install(self, phone: PhoneShell) -> None:
        """See `PhoneApp`."""
        said = phone.run(
            f"install {self.path.name}", "install", "-r", str(self.path), seconds=_SECONDS
        )
        if _DONE not in said.out:
            words = re.findall(r"error: *([^\n]+)", said.out) or [said.reason]
            reason = words[-1].strip()
            why = next((why for part, why in _WHY.items() if part in reason), None)
            explained = reason if why is None else f"{why.format(package=self.package)} ({reason})"
            raise PhoneError(f"{phone.serial}: {self.path.name} is not installed: {explained}")
        self._end(phone)

    def weights_place(self, phone: PhoneShell) -> tuple[PhoneShell, str]:
        """See `PhoneApp`."""
        files = HdcApp(phone.serial, self.package)
        if not files.is_shown():
            self.start(phone)
            tries = iter(range(_TRIES))
            while not files.is_shown() and next(tries, None) is not None:
                time.sleep(_PAUSE)
            self._end(phone)
        folder = f"{self._files}/bundle"
        files.shell(f"mkdir -p {folder}")
        return files, folder

    def start(self, phone: PhoneShell) -> None:
        """See `PhoneApp`."""
        said = phone.shell(f"aa start -a {self._ability} -b {self.package}")
        if _DONE not in said:
            reason = " ".join(said.split())
            if _LOCKED in said:
                reason = f"unlock the phone's screen, and try again ({reason})"
            raise PhoneError(f"{phone.serial}: {self.package} does not start: {reason}")

    def _end(self, phone: PhoneShell) -> None:
        phone.shell(f"aa force-stop {self.package}")

    def _rebuild(self, bundle: Bundle) -> str:
        return f"minicpmv harmony {bundle.path} -o FOLDER, then run it in DevEco Studio"


def _read(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Returns a HAP's description, as far as it is used, and the names of its files.

    Raises:
        ToolError: it is not one.
    """
    expected = "expected a HAP that DevEco Studio built from `minicpmv harmony`'s project"
    if not path.is_file():
        raise ToolError(f"{path}: no such file; {expected}")
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if archive.getinfo(_DESCRIPTION).file_size > _LARGEST_DESCRIPTION:
                raise ToolError(f"{path}: its {_DESCRIPTION} is too large; {expected}")
            described = json.loads(archive.read(_DESCRIPTION))
        used = {
            "app": {name: str(described["app"][name]) for name in ("bundleName", "versionName")},
            "module": {name: str(described["module"][name]) for name in ("name", "mainElement")},
        }
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError, OSError) as error:
        raise ToolError(f"{path}: not a HAP: {error}; {expected}") from error
    for value in (used["app"]["bundleName"], *used["module"].values()):
        if not _NAME.fullmatch(value):  # they stand in scripts
            raise ToolError(f"{path}: its {_DESCRIPTION} has the name {value!r:.40}; {expected}")
    return used, names
