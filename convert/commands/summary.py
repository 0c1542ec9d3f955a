"""What `minicpmv convert` prints: settings, the plan before the work, and the result."""

from __future__ import annotations

from rich.console import Console

from convert.bundle.plan import Plan
from convert.pipeline import ConversionSummary
from convert.support.console import Size, print_table

_SHOWN_SECONDS = 0.1  # shorter phases are in the JSON only


def print_plan(console: Console, plan: Plan, *, verbose: bool) -> None:
    """Prints how tensors will be stored, by part or one by one."""
    console.print()
    if verbose:
        header = ["tensor", "format", "shape", "size", "why"]
        rows = [[t.name, t.format, t.rule.shape, Size(t.nbytes), t.why] for t in plan.tensors]
        print_table(console, header, rows)
    else:
        header = ["part", "what", "tensors", "parameters", "format", "size"]
        rows = [
            [g.part, g.why, len(g.tensors), g.parameters, g.format, Size(g.nbytes)]
            for g in plan.groups()
        ]
        print_table(console, header, rows)
    console.print()


def print_summary(console: Console, summary: ConversionSummary) -> None:
    """Prints what was made, and the time and memory that it took."""
    for product in summary.products:
        for key, text in product.shown():
            say(console, key, text)
    for name, phase in summary.phases.items():
        if phase["seconds"] >= _SHOWN_SECONDS:
            spent = (
                f"{phase['seconds']:.1f} s, {phase['processor_seconds']:.1f} s of processor time"
            )
            say(console, name, spent)
    peak = Size(summary.peak_rss_bytes)
    say(console, "took", f"{summary.seconds:.1f} s, peak memory {peak}")


def say(console: Console, key: str, value: object) -> None:
    """Prints a value beside its name."""
    console.print(f"{key:16}{value}", markup=False, soft_wrap=True)
