"""Reads an APK's metadata, as Android does."""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

from android.build.tools import ToolError, program, run


@dataclass(frozen=True, kw_only=True)
class ApkInfo:
    """An APK's summary."""

    package: str
    version_name: str
    version_code: int
    min_sdk: int
    target_sdk: int
    size: int  # bytes
    abis: tuple[str, ...]
    permissions: tuple[str, ...]
    schemes: tuple[str, ...]  # signature schemes
    certificate_sha256: str

    @staticmethod
    def read(apk: Path) -> ApkInfo:
        """Reads an APK and verifies its signature.

        Raises:
            ToolError: not an APK, or its signature is invalid.
        """
        if not apk.is_file():
            what = "a folder" if apk.is_dir() else "no such file"
            raise ToolError(f"{apk}: {what}; expected an APK made by `minicpmv apk`")
        badging = run([program("aapt2"), "dump", "badging", str(apk)], f"{apk}: not an APK")
        head = _find(r"package: name='([^']+)' versionCode='(\d+)' versionName='([^']*)'", badging)
        signature = run(
            [program("apksigner"), "verify", "--verbose", "--print-certs", str(apk)],
            f"{apk}: the signature is invalid",
        )
        with zipfile.ZipFile(apk) as archive:
            parts = [name.split("/") for name in archive.namelist() if name.startswith("lib/")]
        return ApkInfo(
            package=head[1],
            version_name=head[3],
            version_code=int(head[2]),
            min_sdk=int(_find(r"sdkVersion:'(\d+)'", badging)[1]),
            target_sdk=int(_find(r"targetSdkVersion:'(\d+)'", badging)[1]),
            size=apk.stat().st_size,
            abis=tuple(sorted({part[1] for part in parts})),
            permissions=tuple(re.findall(r"uses-permission: name='([^']+)'", badging)),
            schemes=tuple(re.findall(r"Verified using (v[\d.]+) scheme [^\n]*: true", signature)),
            certificate_sha256=_find(r"SHA-256 digest: ([0-9a-f]{64})", signature)[1],
        )


def _find(pattern: str, text: str) -> re.Match[str]:
    match = re.search(pattern, text)
    if match is None:
        raise ToolError(f"the APK's metadata lacks {pattern}: {text[:80]!r}")
    return match
