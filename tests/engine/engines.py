"""Engines for a tiny model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec import structs

from convert.bundle.kv_cache import FP16
from convert.bundle.manifest import Bundle, FileRecord
from convert.bundle.plan import Recipe, make_plan
from convert.bundle.program import Program
from convert.bundle.targets import HOST, PHONE
from convert.checkpoint.reader import Checkpoint
from convert.conversion.bundle_writer import write_bundle
from convert.engine.program import build_program
from tests.support.conversions import conversion_of
from tests.support.tiny import write_checkpoint


@dataclass(frozen=True)
class Built:
    """A bundle and its engine for this PC."""

    bundle: Path
    program: Program


def build_host_engine(folder: Path, kv: str = FP16, **checkpoint: Any) -> Built:
    """Writes a tiny checkpoint and converts it, with a KV cache of the given format."""
    source = Checkpoint.open(write_checkpoint(folder / "checkpoint", **checkpoint))
    plan = make_plan(source.config, source.untied_head, Recipe.load("q4f16_1"), kv)
    bundle = folder / "bundle"
    bundle.mkdir()
    write_bundle(conversion_of(source, HOST), plan, bundle)
    return Built(bundle, Bundle.open(bundle).program(HOST))


def add_phone(folder: Path, target: str = PHONE) -> None:
    """Adds a phone's engine to a bundle, or that of another target."""
    program = f"engine/{target}"
    opened = Bundle.open(folder)
    identity = build_program(opened.config, opened.plan, target, folder / program, lambda *_: None)
    path = folder / "bundle.json"
    manifest = json.loads(path.read_text())
    manifest["targets"][target] = {"program": program, "program_id": identity}
    manifest["files"][program] = structs.asdict(FileRecord.of(folder / program, lambda _: None))
    path.write_text(json.dumps(manifest))
