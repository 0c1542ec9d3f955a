"""The bundle: a folder that `bundle.json` describes; read here, and checked completely."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from convert.bundle.errors import BundleError
from convert.bundle.folder_manifest import (
    ANOTHER_VERSION,
    CARD,
    check_file,
    read_object,
    read_records,
    require_folder,
)
from convert.bundle.plan import Plan, Recipe, make_plan
from convert.bundle.program import Program
from convert.bundle.weights_file import WeightsFile
from convert.checkpoint.config import ModelConfig
from convert.support.hashing import feed
from convert.support.json_text import json_text
from convert.support.output_folder import FolderKind
from convert.support.progress import Progress, silent
from convert.support.regular_file import open_regular
from quantize.errors import ToolkitError

FORMAT_VERSION = 2
MANIFEST, WEIGHTS = "bundle.json", "weights.safetensors"
TOKENIZER, GENERATION = "tokenizer.model", "generation.json"
GOLDEN, GOLDEN_PICTURE = "golden.json", "golden.picture"  # for the engine's self-check
KIND = FolderKind(manifest=MANIFEST, format="minicpmv-bundle", noun="bundle", unlisted=CARD)


class FileRecord(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file's size and hash."""

    size: int  # bytes
    sha256: str

    @staticmethod
    def of(path: Path, progress: Callable[[int], None] | None = None) -> FileRecord:
        """Measures a file.

        Args:
            path: the file.
            progress: receives the number of bytes of each block that was read.
        """
        digest = hashlib.sha256()
        with open_regular(path) as file:
            size = feed(file, digest, on_block=progress)
        return FileRecord(size=size, sha256=digest.hexdigest())


class BundleSource(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The checkpoint that a bundle was made from."""

    path: str  # a folder, a hub id, or a demo's name
    sha256: str  # as `Checkpoint.source_hash` computes it
    demo: bool


class TargetRecord(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One engine."""

    program: str  # the engine: a file name in the bundle
    program_id: str


class TensorRecord(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One artifact tensor, before tiling and packing."""

    format: str  # a key of convert.bundle.plan.FORMATS
    shape: list[int]
    nbytes: int  # as stored, tiles padded


class Manifest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of `bundle.json`."""

    architecture: str
    model: Mapping[str, Any]  # the checkpoint's config.json
    quantization: Mapping[str, Any]  # the recipe
    kv_cache: str  # a key of convert.bundle.kv_cache.KV_FORMATS
    source: BundleSource
    targets: Mapping[str, TargetRecord]
    tensors: Mapping[str, TensorRecord]
    tools: Mapping[str, str]  # versions
    files: Mapping[str, FileRecord]

    def write(self, folder: Path) -> None:
        """Writes `bundle.json`: the same bytes for the same content."""
        raw = {"format": KIND.format, "format_version": FORMAT_VERSION}
        raw |= msgspec.to_builtins(self)
        text = json_text(raw, indent=1) + "\n"
        (folder / MANIFEST).write_text(text, "utf-8")

    @staticmethod
    def read(folder: Path) -> Manifest:
        """Reads and checks `bundle.json`.

        Raises:
            BundleError: missing, not JSON, another format or version, missing or unknown keys.
        """
        raw = read_object(folder, KIND, FORMAT_VERSION)
        return read_records(folder / MANIFEST, raw, Manifest, _TABLES)


_TABLES: Mapping[str, type[Struct]] = {
    "targets": TargetRecord,
    "tensors": TensorRecord,
    "files": FileRecord,
}


class Bundle:
    """An open bundle; `open` checks everything except the files' hashes."""

    def __init__(
        self, path: Path, manifest: Manifest, config: ModelConfig, plan: Plan, weights: WeightsFile
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.config = config
        self.plan = plan
        self._weights = weights

    @staticmethod
    def open(path: str | Path) -> Bundle:
        """Opens a bundle; checks the manifest, the files' sizes, and every tensor's name and shape.

        Raises:
            BundleError: not a bundle, or one that is truncated, altered or foreign; it names the
                file and what is wrong.
        """
        path = Path(path)
        require_folder(path, KIND)
        manifest = Manifest.read(path)
        for name, record in manifest.files.items():
            check_file(path / MANIFEST, name, record.size, KIND.noun)
        for needed in (WEIGHTS, GENERATION, *(t.program for t in manifest.targets.values())):
            if needed not in manifest.files:
                raise BundleError(f"{path / MANIFEST}: files lacks {needed}")
        config, plan = _plan_of(path / MANIFEST, manifest)
        weights = WeightsFile(path / WEIGHTS)
        if weights.specs() != plan.stored:
            wrong = _first_difference(weights, plan)
            raise BundleError(f"{weights.path}: tensor {wrong} is not as {MANIFEST} describes it")
        return Bundle(path, manifest, config, plan, weights)

    def weights(self) -> WeightsFile:
        """Returns read-only views of the stored tensors, mapped into memory."""
        return self._weights

    @property
    def tokenizer(self) -> Path | None:
        """The SentencePiece model; None if a decoder-only bundle has none."""
        return self.path / TOKENIZER if TOKENIZER in self.manifest.files else None

    @property
    def generation(self) -> Path:
        """The generation defaults."""
        return self.path / GENERATION

    def program(self, target: str) -> Program:
        """Returns the engine of a target.

        Raises:
            BundleError: the bundle was not made for it.
        """
        if target not in self.manifest.targets:
            raise BundleError(
                f"{self.path}: holds no program for target {target!r}, only for "
                f"{', '.join(self.manifest.targets)}; convert again with --target {target}"
            )
        name = self.manifest.targets[target].program
        return Program(self.path / name, self.manifest.files[name].sha256)

    def verify_hashes(self, progress: Progress = silent) -> None:
        """Reads every file and compares its hash with the manifest's.

        Args:
            progress: receives the bytes read.

        Raises:
            BundleError: a file is not what was written.
        """
        total = sum(record.size for record in self.manifest.files.values())
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            progress("hash the bundle", done, total)

        for name, record in self.manifest.files.items():
            found = FileRecord.of(self.path / name, advance)
            if found != record:
                raise BundleError(
                    f"{self.path / name}: altered: its SHA-256 is {found.sha256[:12]}…, the "
                    f"manifest says {record.sha256[:12]}…; convert the checkpoint again"
                )


def tensor_records(plan: Plan) -> dict[str, TensorRecord]:
    """Returns the manifest's table of tensors."""
    return {
        tensor.name: TensorRecord(
            format=tensor.format, shape=list(tensor.rule.shape), nbytes=tensor.nbytes
        )
        for tensor in plan.tensors
    }


def _plan_of(path: Path, manifest: Manifest) -> tuple[ModelConfig, Plan]:
    """Derives from the manifest what the weights file must hold."""
    try:
        config = ModelConfig.from_json(manifest.model)
        untied_head = "llm.head" in manifest.tensors
        recipe = Recipe.from_json(manifest.quantization)
        plan = make_plan(config, untied_head, recipe, manifest.kv_cache)
    except ToolkitError as error:
        raise BundleError(f"{path}: {error}; {ANOTHER_VERSION}") from error
    if config.architecture != manifest.architecture:
        raise BundleError(
            f"{path}: architecture is {manifest.architecture!r:.40}, but its model says "
            f"{config.architecture!r}"
        )
    expected = tensor_records(plan)
    if manifest.tensors != expected:
        names = [*expected, *manifest.tensors]
        wrong = next(n for n in names if manifest.tensors.get(n) != expected.get(n))
        raise BundleError(
            f"{path}: tensor {wrong} does not follow from its model and recipe; {ANOTHER_VERSION}"
        )
    return config, plan


def _first_difference(weights: WeightsFile, plan: Plan) -> str:
    pairs = zip_longest(weights.specs(), plan.stored)
    found, expected = next(pair for pair in pairs if pair[0] != pair[1])
    spec = expected or found
    assert spec is not None, "one of the two is longer"
    return spec.name
