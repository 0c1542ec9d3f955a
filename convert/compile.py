"""Compiles a model's blocks into one library per target: each distinct block once, at any depth."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm

from convert.blocks import decoder, vision
from convert.blocks.graph import Graph, lower
from convert.config import CONFIGS, ModelConfig
from quantize.errors import ConfigError, ShapeError, ToolkitError
from quantize.layout import LAYOUT_VERSION
from quantize.schemes import GroupScheme

TARGETS = CONFIGS / "target"
_KEYS = {"name", "description", "tvm", "link"}

log = logging.getLogger(__name__)
Progress = Callable[[str], None]


class CompileError(ToolkitError):
    """The blocks' library could not be built on this machine."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """What the blocks are compiled for: `configs/target/NAME.json`."""

    name: str
    description: str
    tvm: dict[str, Any]  # TVM's target
    link: str  # zig's name of the platform

    @staticmethod
    def load(name: str) -> Target:
        """Reads a target by its name.

        Raises:
            ConfigError: no such target, or a missing or unknown key.
        """
        known = sorted(p.stem for p in TARGETS.glob("*.json"))
        if name not in known:
            raise ConfigError(f"target {name!r} is unknown; known: {', '.join(known)}")
        raw = json.loads((TARGETS / f"{name}.json").read_text("utf-8"))
        if set(raw) != _KEYS:
            raise ConfigError(
                f"target {name}: has the keys {', '.join(sorted(raw))}; "
                f"expected {', '.join(sorted(_KEYS))}"
            )
        return Target(**raw)


@dataclass(frozen=True, kw_only=True)
class CompileReport:
    """What was made."""

    target: str
    library: Path
    library_bytes: int
    functions: tuple[str, ...]
    program_id: str  # the same for the same blocks, target, layout and compiler
    seconds: float


def build_blocks(config: ModelConfig, scheme: GroupScheme) -> tuple[Any, tuple[str, ...]]:
    """Makes the Relax module of all blocks of a model, and the names of its functions.

    Raises:
        ShapeError: a width has no whole quantization groups.
    """
    c = config.decoder
    for name in ("hidden_size", "intermediate_size"):
        if getattr(c, name) % scheme.group_size:
            raise ShapeError(
                f"{name} {getattr(c, name)} is not a multiple of {scheme.group_size}, "
                f"the group of {scheme.name}"
            )
    graph = Graph()
    if config.vision is not None and config.resampler is not None:
        vision.vision_embed(graph, config.vision)
        vision.vision_block(graph, config.vision)
        vision.vision_norm(graph, config.vision)
        vision.resampler(graph, config.resampler, config.vision.num_patches)
    decoder.embed(graph, c, scheme)
    decoder.decoder_layer(graph, c, scheme)
    decoder.lm_head(graph, c, scheme)
    return graph.module(), tuple(graph.functions)


def compile_blocks(
    config: ModelConfig,
    target_name: str,
    output: Path,
    on_progress: Progress | None = None,
    *,
    quant: str = "q4f16_1",
) -> CompileReport:
    """Compiles all blocks of a model into the shared library `output`.

    Args:
        config: the model's geometry; its depth does not matter.
        target_name: a file of `configs/target/`.
        output: the file to write.
        on_progress: called with the name of each stage as it begins.
        quant: a recipe of `configs/quant/`.

    Raises:
        ConfigError: an unknown target or recipe.
        ShapeError: the recipe does not fit the geometry.
        CompileError: the library could not be linked.
    """
    report = on_progress or log.debug
    started = time.monotonic()
    target, scheme = Target.load(target_name), GroupScheme.load(quant)
    report("kernels")
    module, functions = build_blocks(config, scheme)
    identity = program_id(module, target)
    report("machine code")
    executable = tvm.relax.build(
        module, target=tvm.target.Target(target.tvm), relax_pipeline=lower()
    )
    report("library")
    output.parent.mkdir(parents=True, exist_ok=True)
    whole = output.with_name(f".{output.name}.partial")

    def link(path: str, objects: Sequence[str], **_: object) -> None:
        link_shared(Path(path), objects, target)

    link.output_format = "so"  # type: ignore[attr-defined]
    try:
        executable.export_library(str(whole), fcompile=link)
        os.replace(whole, output)
    finally:
        whole.unlink(missing_ok=True)
    return CompileReport(
        target=target.name,
        library=output,
        library_bytes=output.stat().st_size,
        functions=functions,
        program_id=identity,
        seconds=time.monotonic() - started,
    )


def program_id(module: Any, target: Target) -> str:
    """Returns the SHA-256 of what the machine code follows from.

    That is the module's text, the target, the weights' layout and the compiler's versions.
    """
    about = {
        "target": target.tvm,
        "layout": LAYOUT_VERSION,
        "tvm": tvm.__version__,
        "llvm": tvm.target.codegen.llvm_version_major(),
    }
    text = json.dumps(about, sort_keys=True) + module.script()
    return hashlib.sha256(text.encode()).hexdigest()


def link_shared(output: Path, objects: Sequence[str], target: Target) -> None:
    """Links objects into a shared library with zig, which brings every platform's linker."""
    command = [sys.executable, "-m", "ziglang", "cc", "-target", target.link, "-shared", "-fPIC"]
    command += ["-O2", "-s", "-o", str(output), *objects]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise CompileError(
            f"{output.name}: zig could not link for {target.link}: {lines[-1]}; "
            "is the package ziglang installed whole?"
        )
