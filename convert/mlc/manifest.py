"""`mlc-package.json`: what a package for MLC-LLM holds, what it was made from, and all hashes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, structs

from convert.bundle.errors import BundleError
from convert.bundle.folder_manifest import CARD, read_object, read_records
from convert.bundle.manifest import BundleSource, FileRecord
from convert.mlc.names import TOKENIZER_JSON
from convert.support.json_text import json_text
from convert.support.output_folder import FolderKind
from convert.support.whole_file import whole_file

MANIFEST = "mlc-package.json"
KIND = FolderKind(
    manifest=MANIFEST,
    format="minicpmv-mlc-package",
    noun="MLC package",
    article="an",
    unlisted=CARD,
)
FORMAT_VERSION = 3


class LibraryRecord(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A compiled library."""

    file: str  # of the package
    mlc_llm: str  # the version that compiled it
    abi: str | None  # the release of apache-tvm whose runtime loads it; None: MLC-LLM's own
    # Memory that a conversation takes beside weights and KV cache; None: MLC-LLM did not say.
    temporary_bytes: int | None = None


class PackageManifest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of `mlc-package.json`."""

    model: Mapping[str, Any]  # the checkpoint's config.json
    quantization: str  # MLC-LLM's name of the format
    recipe: str
    method: str
    pictures: bool
    why_no_tokenizer_json: str | None  # None: there is one, with the ids of tokenizer.model
    parameters: int  # values before quantization
    weights_bytes: int
    source: BundleSource
    libraries: Mapping[str, LibraryRecord]  # by target
    tools: Mapping[str, str]  # versions
    files: Mapping[str, FileRecord]
    # How the tokenizer spells the tags before and behind slices; None: it takes none.
    slice_tags: tuple[str, str] | None = None

    def write(self, folder: Path) -> None:
        """Writes `mlc-package.json`, or replaces it as a whole."""
        raw = {"format": KIND.format, "format_version": FORMAT_VERSION}
        text = json_text(raw | msgspec.to_builtins(self), indent=1) + "\n"
        with whole_file(folder / MANIFEST) as file:
            file.write_text(text, "utf-8")

    @staticmethod
    def read(folder: Path) -> PackageManifest:
        """Reads and checks `mlc-package.json`.

        Raises:
            BundleError: missing, damaged, or not a package of ours.
        """
        path = folder / MANIFEST
        raw = read_object(folder, KIND, FORMAT_VERSION)
        manifest = read_records(path, raw, PackageManifest, _TABLES)
        if (TOKENIZER_JSON in manifest.files) != (manifest.why_no_tokenizer_json is None):
            raise BundleError(f"{path}: damaged: why_no_tokenizer_json contradicts files")
        for target, library in manifest.libraries.items():
            if library.file not in manifest.files:
                raise BundleError(
                    f"{path}: damaged: the library for {target:.80} is not one of its files"
                )
        return manifest

    def with_library(self, target: str, path: Path, record: LibraryRecord) -> None:
        """Adds a compiled library, a file of the package, and writes the manifest.

        Args:
            target: what it was compiled for.
            path: the library.
            record: what is said of it.
        """
        structs.replace(
            self,
            libraries={**self.libraries, target: record},
            files={**self.files, path.name: FileRecord.of(path)},
        ).write(path.parent)


_TABLES: Mapping[str, type[Struct]] = {"libraries": LibraryRecord, "files": FileRecord}
