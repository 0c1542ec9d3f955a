"""Installs an app through adb, and explains why a phone refuses it."""

from __future__ import annotations

import re
from pathlib import Path

from runtime.engine_client.adb import Adb, AdbError

_SECONDS = 600.0  # an embedded APK on a slow phone, with its owner asked on the screen
_DEVELOPER = "in the phone's developer options"
# Android's codes, by how they begin.
_WHY = {
    "FAILED_UPDATE_INCOMPATIBLE": "an app of another key is installed; remove it first: "
    "adb uninstall {package} (its chats go with it)",
    "FAILED_SHARED_USER_INCOMPATIBLE": "an app of another key is installed; remove it first: "
    "adb uninstall {package} (its chats go with it)",
    "FAILED_VERSION_DOWNGRADE": "a newer version is installed; remove it first: adb uninstall "
    "{package} (its chats go with it)",
    "FAILED_INSUFFICIENT_STORAGE": "the phone has too little free space",
    "FAILED_USER_RESTRICTED": f"the phone does not allow it: allow installing over USB {_DEVELOPER}"
    ", and answer on its screen",
    "FAILED_ABORTED": "somebody said no on the phone's screen; try again, and allow it",
    "FAILED_NO_MATCHING_ABIS": "the APK has no engine for this phone's processor",
    "FAILED_CPU_ABI_INCOMPATIBLE": "the APK has no engine for this phone's processor",
    "FAILED_OLDER_SDK": "the phone's Android is too old",
    "FAILED_VERIFICATION": f"the phone refused it; switch the verification of apps over USB off "
    f"{_DEVELOPER}",
    "FAILED_TEST_ONLY": "the APK is marked as a test; make it anew: minicpmv apk",
    "FAILED_INVALID_APK": "the APK is damaged; make it anew: minicpmv apk",
    "PARSE_FAILED": "the APK is damaged, or not signed; make it anew: minicpmv apk",
}


def install(adb: Adb, apk: Path, package: str) -> None:
    """Installs an app, over an older version of it.

    Args:
        adb: the phone.
        apk: what to install.
        package: the app's name.

    Raises:
        AdbError: the phone refuses; says why, as far as it is known.
    """
    said = adb.run(f"install {apk.name}", "install", "-r", str(apk), seconds=_SECONDS)
    if said.code == 0 and "Failure" not in said.out:
        return
    failure = re.search(r"INSTALL_((?:PARSE_)?FAILED_\w+)", said.out + said.err)
    if failure is None:
        raise AdbError(f"{adb.serial}: {apk.name} is not installed: {said.reason}")
    why = next((why for code, why in _WHY.items() if failure[1].startswith(code)), None)
    code = failure[0]
    explained = code if why is None else f"{why.format(package=package)} ({code})"
    raise AdbError(f"{adb.serial}: {apk.name} is not installed: {explained}")
