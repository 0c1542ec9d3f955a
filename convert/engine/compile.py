"""Compiles a model's blocks for a target: each distinct block once, at any depth."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import tvm

from convert.blocks import decoder, vision
from convert.blocks.graph import Graph
from convert.blocks.lowering import build
from convert.blocks.matrix_formats import Formats
from convert.blocks.processors import products
from convert.bundle.plan import Plan
from convert.checkpoint.config import CONFIGS, ModelConfig
from convert.engine.build import BlockLibrary, export_objects
from convert.engine.object_cache import cached_objects
from convert.support.cache import cache_folder
from convert.support.hashing import hash_sources, sha256_file
from convert.support.progress import Progress, silent
from quantize.errors import ConfigError
from quantize.layout import LAYOUT_VERSION

TARGETS = CONFIGS / "target"
# Sources that decide a module's machine code: its kernels, the passes, the writing of objects.
_SOURCES = ("convert/blocks/*.py", "convert/engine/compile.py", "convert/engine/build.py")

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The blocks for one kind of processor."""

    name: str
    requires: tuple[str, ...]  # names of runtime/engine/cpu_features.cc
    products: str  # a name of convert/blocks/products.py
    tvm: dict[str, Any]  # TVM's target


@dataclass(frozen=True, kw_only=True)
class Target:
    """A platform that programs are compiled for: `configs/target/NAME.json`."""

    name: str
    description: str
    link: str  # zig's name of the platform
    variants: tuple[
        Variant, ...
    ]  # the best first; a program uses the first that its processor can run

    @staticmethod
    def names() -> tuple[str, ...]:
        """Lists all targets."""
        return tuple(sorted(p.stem for p in TARGETS.glob("*.json")))

    @staticmethod
    def load(name: str) -> Target:
        """Reads a target by its name.

        Raises:
            ConfigError: no such target, or a missing or unknown key.
        """
        if name not in Target.names():
            raise ConfigError(f"target {name!r} is unknown; known: {', '.join(Target.names())}")
        raw = json.loads((TARGETS / f"{name}.json").read_text("utf-8"))
        _check_keys(f"target {name}", raw, Target)
        for variant in raw["variants"]:
            _check_keys(f"target {name}: a variant", variant, Variant)
            variant["requires"] = tuple(variant["requires"])
        return Target(**{**raw, "variants": tuple(Variant(**v) for v in raw["variants"])})


@dataclass(frozen=True, kw_only=True)
class CompiledBlocks:
    """A model's blocks, compiled for a target."""

    program_id: str  # see `program_id`
    libraries: tuple[BlockLibrary, ...]


def build_blocks(config: ModelConfig, plan: Plan, variant: Variant) -> tuple[Any, tuple[str, ...]]:
    """Makes the Relax module of all blocks of a model, and the names of its functions.

    Raises:
        ConfigError: the variant names unknown products, or the plan's formats have no kernels.
    """
    c, formats = config.decoder, Formats(plan)
    graph = Graph(products(variant.products))
    if config.vision is not None and config.resampler is not None:
        vision.vision_embed(graph, config.vision, formats)
        vision.vision_block(graph, config.vision, formats)
        vision.vision_norm(graph, config.vision)
        vision.resampler(graph, config.resampler, config.vision.most_patches, formats)
        if config.vision.slices is not None:
            vision.key_positions(graph, config.resampler, formats)
    decoder.embed(graph, c, formats)
    decoder.decoder_layer(graph, c, formats, plan.kv)
    decoder.lm_head(graph, c, formats)
    return graph.module(), tuple(graph.functions)


def compile_blocks(
    config: ModelConfig,
    plan: Plan,
    target: Target,
    folder: Path,
    progress: Progress = silent,
) -> CompiledBlocks:
    """Compiles all blocks of a model into objects for an engine, once per kind of processor.

    Args:
        config: the model's geometry; its depth matters only where layers' formats differ.
        plan: how its matrices are stored.
        target: the platform.
        folder: gets the objects.
        progress: receives each stage as it begins.

    Raises:
        ConfigError: see `build_blocks`.
        CacheError: the cache of compiled blocks cannot be written.
    """
    sources = hash_sources(CONFIGS.parent, _SOURCES)
    libraries = []
    for variant in target.variants:
        progress(f"kernels, {variant.name} for {target.name}", 0, 0)
        module, _ = build_blocks(config, plan, variant)
        prefix = f"{variant.name}_"
        about = {
            "module": module.script(),
            "prefix": prefix,
            "target": variant.tvm,
            "versions": _compiler(),
            "sources": sources,
        }
        objects = cached_objects(
            about,
            folder / variant.name,
            partial(_compile, module, variant, target.name, progress),
            cache_folder() / "blocks",
        )
        libraries.append(BlockLibrary(prefix=prefix, requires=variant.requires, objects=objects))
    return CompiledBlocks(program_id=program_id(libraries, target), libraries=tuple(libraries))


def _compile(module: Any, variant: Variant, target: str, progress: Progress, folder: Path) -> None:
    """Writes a module's objects into a folder."""
    progress(f"machine code, {variant.name} for {target}", 0, 0)
    linked = module.with_attr("system_lib_prefix", f"{variant.name}_")
    export_objects(build(linked, variant.tvm), folder)


def _compiler() -> dict[str, Any]:
    return {"tvm": tvm.__version__, "llvm": tvm.target.codegen.llvm_version_major()}


def program_id(libraries: Sequence[BlockLibrary], target: Target) -> str:
    """Returns the SHA-256 of a program's blocks: of their contents, not of how they were made.

    It covers the bytes of all objects, the processors that each library is for, the target and the
    version of the weights' layout.
    """
    blocks = [
        {
            "prefix": library.prefix,
            "requires": library.requires,
            "objects": {path.name: sha256_file(path) for path in library.objects},
        }
        for library in libraries
    ]
    about = {"target": target.name, "link": target.link, "layout": LAYOUT_VERSION}
    return hashlib.sha256(
        json.dumps(about | {"blocks": blocks}, sort_keys=True).encode()
    ).hexdigest()


def _check_keys(where: str, raw: dict[str, Any], kind: type) -> None:
    expected = sorted(field.name for field in fields(kind))
    if sorted(raw) != expected:
        raise ConfigError(
            f"{where}: has the keys {', '.join(sorted(raw))}; expected {', '.join(expected)}"
        )
