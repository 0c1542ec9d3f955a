"""Collects the licences of third-party code in the APK from the installed packages."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

from android.build.tools import ToolError
from convert.engine.units import SENTENCEPIECE
from convert.support.versions import TOOLKIT, package_version

_WHEELS = (TOOLKIT, "apache-tvm", "apache-tvm-ffi")
_ZIG = {  # parts that zig links into a static program
    "musl": "lib/libc/musl/COPYRIGHT",
    "LLVM libc++": "lib/libcxx/LICENSE.TXT",
    "LLVM libc++abi": "lib/libcxxabi/LICENSE.TXT",
    "Zig": "LICENSE",
}
_SENTENCEPIECE = {
    "SentencePiece": "LICENSE",
    "Abseil": "third_party/absl/LICENSE",
    "Darts-clone": "third_party/darts_clone/LICENSE",
    "Protocol Buffers": "third_party/protobuf-lite/LICENSE",
}


def third_party_notices() -> str:
    """Returns all licences, each text once, under the names of the projects that use it.

    Raises:
        ToolError: an installed package lacks its licence.
        BuildError: SentencePiece's sources are not available.
    """
    owners: dict[str, list[str]] = {}
    for name, text in _licences():
        owners.setdefault(text.strip(), []).append(name)
    parts = [f"{', '.join(names)}\n\n{text}\n" for text, names in owners.items()]
    return f"\n{'=' * 72}\n\n".join(parts)


def _licences() -> Iterator[tuple[str, str]]:
    for name in _WHEELS:
        package = distribution(name)
        files = [f for f in package.files or [] if f.name in ("LICENSE", "NOTICE")]
        if not files:
            raise ToolError(f"{name} is installed without its licence, which the APK must include")
        for file in files:
            yield f"{name} {package_version(name)}", Path(str(file.locate())).read_text("utf-8")
    zig = importlib.util.find_spec("ziglang")
    if zig is None or zig.origin is None:
        raise ToolError("ziglang is not installed; its licences are part of the APK")
    for name, path in _ZIG.items():
        yield name, _read(Path(zig.origin).parent / path)
    with SENTENCEPIECE.unpacked() as sources:
        for name, path in _SENTENCEPIECE.items():
            yield name, _read(sources / "sentencepiece" / path)


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise ToolError(
            f"{path}: {error.strerror}; the APK must include this licence. Reinstall the package"
        ) from error
