"""What `minicpmv convert` shows: settings, the plan before the work, and what came of it."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from convert.bundle.plan import Plan
from convert.support.console import Size, print_table

_SHOWN_SECONDS = 0.1  # shorter phases are in the JSON only


def print_plan(console: Console, plan: Plan, *, verbose: bool) -> None:
    """Shows how tensors will be stored: by part, or each of them."""
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


def print_summary(console: Console, summary: dict[str, Any]) -> None:
    """Shows what was made, and what it took."""
    if "tensors" in summary:
        counts = f"{summary['tensors']:,} tensors, {summary['parameters']:,} parameters"
        bits = f"{summary['bits_per_weight']:.2f} bits per weight"
        say(console, "weights", f"{counts}, {Size(summary['weights_bytes'])}, {bits}")
        if summary["resumed_tensors"]:
            say(console, "resumed", f"{summary['resumed_tensors']:,} tensors were there already")
        kv = summary["kv_cache"]
        say(console, "kv cache", f"{kv['format']}, {kv['bytes_per_token']:,} bytes per token")
        say(console, "bundle", Size(summary["bundle_bytes"]))
        for target, program_id in summary["programs"].items():
            say(console, "program", f"{target}: {program_id}")
    if "onnx" in summary:
        onnx = summary["onnx"]
        worst = ", ".join(f"{name} {value:.1e}" for name, value in onnx["differences"].items())
        differs = f"largest difference from the reference, of its scale: {worst}"
        say(console, "onnx", f"{Size(onnx['bytes'])}, {differs}")
    if "mlc" in summary:
        mlc = summary["mlc"]
        bits = f"{mlc['bits_per_weight']:.2f} bits per weight"
        say(console, "mlc package", f"{Size(mlc['bytes'])}, {bits}; text only, without pictures")
        if mlc["library"] is None:
            how = f"mlc_llm is not installed here; to compile it: {mlc['compile_with']}"
        else:
            how = f"compiled by mlc_llm {mlc['mlc_llm']}: {mlc['library']}"
        say(console, "mlc library", how)
    for name, phase in summary["phases"].items():
        if phase["seconds"] >= _SHOWN_SECONDS:
            spent = f"{phase['seconds']:.1f} s, {phase['processor_seconds']:.1f} s of processors"
            say(console, name, spent)
    peak = Size(summary["peak_rss_bytes"])
    say(console, "took", f"{summary['seconds']:.1f} s, peak memory {peak}")


def say(console: Console, key: str, value: object) -> None:
    """Shows a value under its name."""
    console.print(f"{key:16}{value}", markup=False, soft_wrap=True)
