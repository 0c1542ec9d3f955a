"""An app that `minicpmv sideload` brings to a phone, whichever kind of phone it is for."""

from __future__ import annotations

import zipfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from android.build.tools import ToolError
from convert.bundle.manifest import MANIFEST, WEIGHTS, Bundle
from runtime.engine_client.phone_shell import PhoneError, PhoneInfo, PhoneShell


class PhoneApp(ABC):
    """A file with an app of ours in it."""

    _folder: ClassVar[str]  # of the bundle in the file
    _made_by: ClassVar[str]

    def __init__(self, path: Path, package: str, version: str, abis: tuple[str, ...]) -> None:
        """Args: path: the file. package: the app's name on a phone. version, abis: of the app."""
        self.path, self.package, self.version, self.abis = path, package, version, abis

    @abstractmethod
    def connect(self, serial: str | None) -> PhoneShell:
        """Finds the phone. Raises PhoneError: it cannot be used, or there are several."""

    @abstractmethod
    def check_system(self, phone: PhoneInfo) -> None:
        """Raises PhoneError: the phone's system does not run the app."""

    @abstractmethod
    def install(self, phone: PhoneShell) -> None:
        """Installs the app and ends it. Raises PhoneError: the phone refuses; says why."""

    @abstractmethod
    def weights_place(self, phone: PhoneShell) -> tuple[PhoneShell, str]:
        """Returns whose files a folder is of, and the folder, from which the app takes weights.

        Raises:
            PhoneError: there is none to which this PC can write.
        """

    @abstractmethod
    def start(self, phone: PhoneShell) -> None:
        """Starts the app. Raises PhoneError: it does not start."""

    def check_bundle(self, bundle: Bundle | None) -> None:
        """Checks that the app was built from a bundle: it accepts only its own weights.

        Raises:
            ToolError: it was not; or there is no bundle, and the app has no weights of its own.
        """
        with zipfile.ZipFile(self.path) as archive:
            names = set(archive.namelist())
            if f"{self._folder}/{MANIFEST}" not in names:
                raise ToolError(f"{self.path}: not an app made by `{self._made_by}`")
            inside = archive.read(f"{self._folder}/{MANIFEST}")
        if bundle is None:
            if f"{self._folder}/{WEIGHTS}" not in names:
                raise ToolError(
                    f"{self.path}: has no embedded weights; give their bundle with --bundle"
                )
        elif inside != (bundle.path / MANIFEST).read_bytes():
            raise ToolError(
                f"{self.path}: was not built from {bundle.path}; build it again: "
                f"{self._rebuild(bundle)}"
            )

    def check_phone(self, phone: PhoneInfo) -> None:
        """Checks that a phone runs the app.

        Raises:
            PhoneError: its system or its processor does not.
        """
        self.check_system(phone)
        if not set(self.abis) & set(phone.abis):
            raise PhoneError(
                f"{phone.model}: runs {', '.join(phone.abis)}; the app has {', '.join(self.abis)}"
            )

    @abstractmethod
    def _rebuild(self, bundle: Bundle) -> str:
        """Returns how the app is built from a bundle."""
