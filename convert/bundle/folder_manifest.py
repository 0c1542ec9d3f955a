"""What every manifest of ours is checked for: the JSON that describes a folder and its files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from convert.bundle.errors import BundleError
from convert.support.output_folder import FolderKind, UnlistedFile
from convert.support.strict_json import load_json

ANOTHER_VERSION = (  # of the toolkit made it, or somebody altered it; what mends both:
    "made by another version of this toolkit, or altered: convert the checkpoint again"
)
CARD = UnlistedFile(
    "README.md",
    "<!-- Written by minicpmv; `minicpmv convert` and `minicpmv verify --card` replace it. -->",
)
T = TypeVar("T", bound=Struct)


def require_folder(path: Path, kind: FolderKind) -> None:
    """Raises BundleError unless a path is a folder, which one of this kind has to be."""
    if not path.is_dir():
        what = "a file" if path.exists() else "no such folder"
        raise BundleError(f"{path}: {what}; expected {kind.article} {kind.noun}'s folder")


def read_object(folder: Path, kind: FolderKind, version: int) -> dict[str, Any]:
    """Reads a folder's manifest without its format and version, which are checked.

    Args:
        folder: which the manifest describes.
        kind: of the folder.
        version: of the format, the only one that is read.

    Raises:
        BundleError: missing, not JSON, of another format or version.
    """
    path, what = folder / kind.manifest, f"{kind.article} {kind.noun}"
    try:
        raw = load_json(path)
    except OSError as error:
        raise BundleError(
            f"{path}: cannot be read: {error.strerror or error}; is {folder} {what}, made by "
            "`minicpmv convert`?"
        ) from error
    except ValueError as error:
        raise BundleError(f"{path}: damaged: not JSON: {error}") from error
    if not isinstance(raw, dict) or raw.pop("format", None) != kind.format:
        raise BundleError(f"{path}: not {what}'s manifest: its format is not {kind.format}")
    found = raw.pop("format_version", None)
    if found != version or type(found) is not int:
        raise BundleError(
            f"{path}: format version {found!r:.40}; this toolkit reads {version}; "
            "convert the checkpoint again"
        )
    return raw


def read_records(
    path: Path, raw: Mapping[str, Any], kind: type[T], tables: Mapping[str, type[Struct]]
) -> T:
    """Checks a manifest's content.

    Args:
        path: the manifest, for messages.
        raw: what `read_object` returned.
        kind: what it is to be.
        tables: the kinds of records by the key of their table.

    Raises:
        BundleError: a missing or unknown key, or a value of another type; it is named.
    """
    for table, record in tables.items():
        entries = raw.get(table)
        if isinstance(entries, dict):  # each on its own, so that the error names it
            for name, entry in entries.items():
                _convert(f"{path}: {table}: {name:.80}", entry, record)
    return _convert(str(path), raw, kind)


def check_file(manifest: Path, name: str, size: int, noun: str) -> None:
    """Checks that a listed file lies in the manifest's folder, is no link, and has its size.

    Args:
        manifest: that lists it.
        name: as it is listed.
        size: bytes.
        noun: what messages call the folder.

    Raises:
        BundleError: it is not so.
    """
    where = f"{manifest}: file name {name!r:.80}"
    parts = PurePosixPath(name).parts
    plain = name == "/".join(parts) and not {"/", "..", "."} & set(parts)
    if not parts or not plain or re.search(r"[\\:\x00-\x1f]", name):
        raise BundleError(f"{where}; expected a plain path inside the {noun}")
    path = manifest.parent
    for part in parts:
        path = path / part
        if path.is_symlink():
            raise BundleError(f"{path}: a link; the {noun} must hold its files itself")
    if not path.is_file():
        raise BundleError(f"{path}: missing, though {manifest.name} lists it")
    found = path.stat().st_size
    if found != size:
        problem = "truncated" if found < size else "altered"
        raise BundleError(
            f"{path}: {problem}: it has {found:,} bytes, {manifest.name} says {size:,}"
        )


def _convert(where: str, raw: Any, kind: type[T]) -> T:
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise BundleError(f"{where}: {error}; {ANOTHER_VERSION}") from error
