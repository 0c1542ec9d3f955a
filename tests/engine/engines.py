"""Engines for a tiny model: the same blocks in the program, and in a library for Python."""

from __future__ import annotations

import json
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
HOST, PHONE = "host", "android-arm64"
REQUIRES = {HOST: ("x86-64-v3",), PHONE: ("asimd",)}
PHONE_PROGRAM = "phone"  # its program id


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
    _name_phone(bundle)
    return Built(bundle, build_program(bundle, HOST, manifest.targets[HOST].program_id, folder))


def build_program(folder: Path, target_name: str, program_id: str, output: Path) -> Path:
    """Compiles a bundle's blocks, once more for the host, for a static program."""
    import tvm

    from convert.blocks.graph import lower

    bundle, target = Bundle.open(folder), Target.load(target_name)
    module, _ = build_blocks(bundle.config, bundle.plan.recipe.scheme)
    module = module.with_attr("system_lib_prefix", PREFIX)
    triple = target.link.replace("-gnu", "-musl")
    kind = tvm.target.Target(target.tvm | {"mtriple": triple})
    compiled = tvm.relax.build(module, target=kind, relax_pipeline=lower())
    library = BlockLibrary(
        prefix=PREFIX,
        requires=REQUIRES[target_name],
        objects=export_objects(compiled, output / f"objects-{target_name}"),
    )
    program = output / f"engine-{target_name}"
    build_engine(target_name, triple, [library], program, program_id, jobs=1)
    return program


def _name_phone(bundle: Path) -> None:
    """Notes in a bundle that it is for a phone's engine, too."""
    path = bundle / "bundle.json"
    manifest = json.loads(path.read_text())
    phone = manifest["targets"][HOST] | {"program_id": PHONE_PROGRAM}
    manifest["targets"][PHONE] = phone
    path.write_text(json.dumps(manifest))
