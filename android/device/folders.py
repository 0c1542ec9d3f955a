"""Finds the folder on a phone from which the app reads weights that a PC pushes."""

from __future__ import annotations

from runtime.engine_client.phone_shell import PhoneError, PhoneShell

# Where the app looks; the second is for phones on which a PC cannot write to an app's folder.
_OWN, _SHARED = "/sdcard/Android/data/{package}/files", "/data/local/tmp/minicpmv"
_TRIES = 50  # of looking for the folder, one every 0.2 s


def weights_folder(adb: PhoneShell, package: str) -> str:
    """Returns a folder that this PC can write to and the app can read.

    The app makes its own folder, which then belongs to it: a folder that the PC makes can be closed
    to the app. So after a fresh installation the app is started once.

    Raises:
        PhoneError: this PC can write to none of them.
    """
    own = _OWN.format(package=package)
    if _is_made(adb, own, package) and adb.can_write(own):
        return own
    if not adb.can_write(_SHARED):
        raise PhoneError(f"{adb.serial}: can write neither to {own} nor to {_SHARED}")
    adb.shell(f"chmod 755 {_SHARED}")  # so that the app can read it
    return _SHARED


def _is_made(adb: PhoneShell, folder: str, package: str) -> bool:
    """Returns whether the app's folder exists; starts the app if it does not."""
    if adb.try_shell(f"[ -d {folder} ]") is not None:
        return True
    if adb.try_shell(f"am start -n {package}/.MainActivity") is None:
        return False
    look = f"for i in $(seq {_TRIES}); do [ -d {folder} ] && exit; sleep 0.2; done; exit 1"
    is_made = adb.try_shell(look) is not None
    adb.shell(f"am force-stop {package}")
    return is_made
