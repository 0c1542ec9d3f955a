"""An engine for a target: the model's blocks compiled, and linked into a program or a library."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from convert.bundle.plan import Plan
from convert.checkpoint.config import ModelConfig
from convert.engine.build import build_engine
from convert.engine.compile import Target, compile_blocks
from convert.engine.prebuild import EnginePrebuild
from convert.engine.toolchain import PROGRAM, Form
from convert.support.phases import Phases
from convert.support.progress import Progress
from convert.support.scratch import scratch_folder

_ENGINES = "build engines"  # a phase


@contextmanager
def compile_ahead(
    targets: Sequence[str], progress: Progress, phases: Phases
) -> Iterator[EnginePrebuild]:
    """Compiles the C++ of the targets' engines while the `with` block does other work."""
    triples = [Target.load(target).link for target in targets]
    with phases.charge_programs_to(_ENGINES), EnginePrebuild(triples, progress) as ahead:
        yield ahead


def build_program(
    config: ModelConfig,
    plan: Plan,
    target: str,
    output: Path,
    progress: Progress,
    phases: Phases | None = None,
    ahead: EnginePrebuild | None = None,
    form: Form = PROGRAM,
) -> str:
    """Compiles a model's blocks and links the engine that holds them; returns its program id.

    Args:
        config: the model's geometry.
        plan: how its matrices are stored.
        target: the name of a file in `configs/target/`.
        output: the file to write.
        progress: receives every stage.
        phases: measures the work.
        ahead: is compiling the target's C++ already.
        form: a program; or a shared library, which has the same program id.

    Raises:
        ToolkitError: the target is unknown, a format has no kernels, or something does not
            compile.
    """
    made_for = Target.load(target)
    phases = phases or Phases()
    with scratch_folder() as objects:
        with phases.measure("compile blocks"):
            blocks = compile_blocks(config, plan, made_for, objects, progress)
        identity = blocks.program_id
        with phases.measure(_ENGINES):
            if ahead is not None:
                ahead.wait(made_for.link)
            build_engine(
                target, made_for.link, blocks.libraries, output, identity, progress, form=form
            )
    return identity
