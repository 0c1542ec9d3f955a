"""The app for Android, which adb installs."""

from __future__ import annotations

from pathlib import Path

from android.build.apk_info import ApkInfo
from android.device.folders import weights_folder
from android.device.installing import install
from android.device.phone_app import PhoneApp
from convert.bundle.manifest import Bundle
from runtime.engine_client.adb import Adb, connect
from runtime.engine_client.phone_shell import PhoneError, PhoneInfo, PhoneShell


class AndroidApp(PhoneApp):
    """An APK."""

    _folder, _made_by = "assets/bundle", "minicpmv apk"

    def __init__(self, path: Path) -> None:
        """Reads an APK. Raises ToolError: it is none, or its signature is invalid."""
        info = ApkInfo.read(path)
        super().__init__(path, info.package, info.version_name, info.abis)
        self._min_sdk = info.min_sdk

    def connect(self, serial: str | None) -> Adb:
        """See `PhoneApp`."""
        return connect(serial)

    def check_system(self, phone: PhoneInfo) -> None:
        """See `PhoneApp`."""
        if phone.api < self._min_sdk:
            raise PhoneError(
                f"{phone.model}: has Android API {phone.api}; the app needs {self._min_sdk} "
                "(Android 8)"
            )

    def install(self, phone: PhoneShell) -> None:
        """See `PhoneApp`."""
        install(phone, self.path, self.package)
        phone.shell(f"am force-stop {self.package}")

    def weights_place(self, phone: PhoneShell) -> tuple[PhoneShell, str]:
        """See `PhoneApp`."""
        return phone, weights_folder(phone, self.package)

    def start(self, phone: PhoneShell) -> None:
        """See `PhoneApp`."""
        phone.shell(f"am start -n {self.package}/.MainActivity")

    def _rebuild(self, bundle: Bundle) -> str:
        return f"minicpmv apk {bundle.path} -o {self.path}"
