"""Engines for a tiny model: the same blocks in the program, and in a library for Python."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.bundle import Bundle, Source
from convert.checkpoint import Checkpoint
from convert.compile import Target, build_blocks
from convert.engine_build import BlockLibrary, build_engine, export_objects
from convert.pipeline import write_bundle
from convert.plan import Recipe, make_plan
from tests.tiny import write_checkpoint

PREFIX = "blocks_"
HOST = "host"


@dataclass(frozen=True)
class Built:
    """A bundle whose library Python can run, and the engine of the same program."""

    bundle: Path
    program: Path


def build_host_engine(folder: Path, **checkpoint: Any) -> Built:
    """Writes a tiny checkpoint, converts it, and links an engine with its blocks."""
    source = Checkpoint.open(write_checkpoint(folder / "checkpoint", **checkpoint))
    plan = make_plan(source.config, source.untied_head, Recipe.load("q4f16_1"))
    bundle = folder / "bundle"
    bundle.mkdir()
    about = Source(path=str(source.path), sha256=source.source_hash(), demo=False)
    manifest = write_bundle(source, about, plan, (HOST,), bundle, lambda *_: None)
    program_id = manifest.targets[HOST].program_id
    program = build_program(Bundle.open(bundle), folder, program_id)
    return Built(bundle, program)


def build_program(bundle: Bundle, folder: Path, program_id: str) -> Path:
    """Compiles a bundle's blocks once more, for a static program."""
    import tvm

    from convert.blocks.graph import lower

    module, _ = build_blocks(bundle.config, bundle.plan.recipe.scheme)
    module = module.with_attr("system_lib_prefix", PREFIX)
    target = Target.load(HOST).tvm | {"mtriple": "x86_64-linux-musl"}
    compiled = tvm.relax.build(module, target=tvm.target.Target(target), relax_pipeline=lower())
    library = BlockLibrary(
        prefix=PREFIX,
        requires=("x86-64-v3",),
        objects=export_objects(compiled, folder / "objects"),
    )
    program = folder / "engine"
    build_engine(HOST, "x86_64-linux-musl", [library], program, program_id, jobs=1)
    return program
