"""Installs an app with adb, and explains why a phone refuses it."""

from __future__ import annotations

import re
from pathlib import Path

from runtime.engine_client.phone_shell import PhoneError, PhoneShell

_SECONDS = 600.0  # enough for a large APK on a slow phone, and for the user to confirm
_DEVELOPER = "in the phone's developer options"
_OTHER_KEY = (
    "an app signed with another key is installed; remove it first: adb uninstall {package} "
    "(this deletes its chats)"
)
# Prefixes of Android's error codes.
_WHY = {
    "FAILED_UPDATE_INCOMPATIBLE": _OTHER_KEY,
    "FAILED_SHARED_USER_INCOMPATIBLE": _OTHER_KEY,
    "FAILED_VERSION_DOWNGRADE": "a newer version is installed; remove it first: adb uninstall "
    "{package} (this deletes its chats)",
    "FAILED_INSUFFICIENT_STORAGE": "the phone has too little free space",
    "FAILED_USER_RESTRICTED": f"the phone does not allow it: enable install via USB {_DEVELOPER}"
    ", and confirm on the phone's screen",
    "FAILED_ABORTED": "the installation was declined on the phone; try again, and allow it",
    "FAILED_NO_MATCHING_ABIS": "the APK has no engine for this phone's processor",
    "FAILED_CPU_ABI_INCOMPATIBLE": "the APK has no engine for this phone's processor",
    "FAILED_OLDER_SDK": "the phone's Android is too old",
    "FAILED_VERIFICATION": f"the phone refused it; disable the verification of apps over USB "
    f"{_DEVELOPER}",
    "FAILED_TEST_ONLY": "the APK is marked as test-only; build it again: minicpmv apk",
    "FAILED_INVALID_APK": "the APK is damaged; build it again: minicpmv apk",
    "PARSE_FAILED": "the APK is damaged, or not signed; build it again: minicpmv apk",
}


def install(adb: PhoneShell, apk: Path, package: str) -> None:
    """Installs an app, or updates an older version of it.

    Args:
        adb: the phone.
        apk: the APK to install.
        package: the app's package name.

    Raises:
        PhoneError: the phone refuses the app; the message says why, if known.
    """
    said = adb.run(f"install {apk.name}", "install", "-r", str(apk), seconds=_SECONDS)
    if said.code == 0 and "Failure" not in said.out:
        return
    failure = re.search(r"INSTALL_((?:PARSE_)?FAILED_\w+)", said.out + said.err)
    if failure is None:
        raise PhoneError(f"{adb.serial}: {apk.name} is not installed: {said.reason}")
    why = next((why for code, why in _WHY.items() if failure[1].startswith(code)), None)
    code = failure[0]
    explained = code if why is None else f"{why.format(package=package)} ({code})"
    raise PhoneError(f"{adb.serial}: {apk.name} is not installed: {explained}")
