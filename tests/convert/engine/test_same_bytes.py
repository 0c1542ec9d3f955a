"""The same model gives the same engine, to the byte: in every process, with an empty cache."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import tvm
from tvm import tirx

from convert.blocks import lowering
from convert.bundle.plan import Recipe, make_plan
from convert.checkpoint.config import ModelConfig
from convert.engine.build import compile_parts
from convert.engine.compile import Target, build_blocks
from convert.support.cache import CACHE_VARIABLE, cache_folder
from tests.bench.convert import ROOT
from tests.support.needs import need_compiler
from tests.support.tiny_config import tiny_config

# The library for the newest processors, with eyes: the one whose instructions came in another order
# in every process, in a function that computes sizes.
SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path
from convert.engine.compile import Target, compile_blocks
from convert.checkpoint.config import ModelConfig
from convert.engine.build import build_engine
from convert.bundle.plan import Recipe, make_plan
from tests.support.tiny_config import tiny_config

folder = Path(sys.argv[1])
config = ModelConfig.from_json(tiny_config())
plan = make_plan(config, True, Recipe.load("q4f16_1"))
target = Target.load("host")
target = replace(target, variants=target.variants[:1])
blocks = compile_blocks(config, plan, target, folder / "objects")
build_engine(target.name, target.link, blocks.libraries, folder / "engine", blocks.program_id)
print(blocks.program_id)
"""


def _engine(folder: Path, number: int) -> tuple[str, bytes]:
    """Builds an engine in a process whose memory, hashes and places are its own."""
    cache, scratch = folder / f"cache {number}", folder / f"scratch-{number * '-'}"
    for made in (cache, scratch):
        made.mkdir(parents=True)
    for path in cache_folder().iterdir():
        if path.name != "blocks":
            (cache / path.name).symlink_to(path)
    environment = {**os.environ, CACHE_VARIABLE: str(cache), "TMPDIR": str(scratch)}
    environment |= {"PYTHONHASHSEED": str(number), "PADDING": "x" * 1009 * number}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.getenv("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder / str(number))],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), (folder / str(number) / "engine").read_bytes()


def test_sizes_are_stored_in_the_order_of_their_slots() -> None:
    config = ModelConfig.from_json(tiny_config())
    variant = Target.load("host").variants[0]
    module, _ = build_blocks(config, make_plan(config, True, Recipe.load("q4f16_1")), variant)
    with tvm.target.Target(variant.tvm):
        lowered = lowering._block_passes()(module)
    shapes = [f for f in lowered.functions.values() if lowering._SHAPES in (f.attrs or ())]
    bodies = [f.body if isinstance(f.body, tirx.SeqStmt) else [f.body] for f in shapes]
    orders = [[int(store.indices[0]) for store in body] for body in bodies]
    assert max(map(len, orders)) > 5, "this model has many sizes"
    assert orders == [sorted(order) for order in orders]


def test_fresh_processes_build_the_same_engine(tmp_path: Path) -> None:
    need_compiler()
    compile_parts("x86_64-linux-musl", lambda *_: None)  # what does not differ from model to model
    identity, engine = _engine(tmp_path, 1)
    assert identity.encode() in engine
    for number in (2, 3):
        again, other = _engine(tmp_path, number)
        assert again == identity
        assert other == engine, "other machine code"
