"""A report in the terminal."""

from __future__ import annotations

from rich.console import Console

from convert.support.console import print_table
from runtime.verify.measure.sensitivity import Sensitivity
from runtime.verify.report.report import Report, figure, shown_floor, shown_value

_SHOWN_FAILURES, _SHOWN_ANSWERS, _SHOWN_TENSORS = 12, 24, 8


def print_report(report: Report, console: Console) -> None:
    """Prints warnings, a row for each stage's figures, the answers and the verdict."""

    def say(text: str, style: str | None = None) -> None:
        console.print(text, style=style, markup=False, soft_wrap=True)

    made = f"{report.quantization}, {report.kv_cache} KV cache"
    say(f"bundle     {report.bundle} ({made}, {report.engine})")
    say(f"reference  {report.reference} (float32)")
    for warning in report.warnings:
        say(f"warning    {warning}", "yellow")
    if report.earlier_cases:
        say(f"cases      {report.earlier_cases} of {len(report.answers)} from an earlier run")
    overflow = "more than" if report.longest_prompt > report.window else "within"
    say(f"prompts    at most {report.longest_prompt} tokens, {overflow} the window\n")
    rows = []
    stage = ""
    for check, count in report.shown():
        rows.append(
            [
                check.stage if check.stage != stage else "",
                f"{check.metric}, {check.unit}" if check.unit else check.metric,
                f"{check.name} (worst of {count})" if count > 1 else check.name,
                shown_value(check),
                figure(check.expected),
                figure(check.threshold),
                *([shown_floor(check)] if report.has_noise_floor else []),
                "pass" if check.passed else "FAIL",
            ]
        )
        stage = check.stage
    noise = ["noise floor"] if report.has_noise_floor else []
    print_table(console, ["stage", "figure", "of", "bundle", "expected", "limit", *noise, ""], rows)
    if noise:
        say("noise floor: what the reference itself loses in the checkpoint's 16 bits")
    say("")
    few = len(report.answers) <= _SHOWN_ANSWERS
    shown = [answer for answer in report.answers if few or not answer.same]
    for answer in shown[:_SHOWN_ANSWERS]:
        other = "" if answer.same else f", bundle {answer.bundle!r}"
        say(f"{answer.case}: {answer.question} {answer.reference!r}{other}")
    if not few:
        different = sum(not answer.same for answer in report.answers)
        say(f"{different} of {len(report.answers)} answers differ; see --report or --json")
    say("")
    if report.sensitivity is not None:
        _print_sensitivity(report.sensitivity, console)
    for check in report.failures[:_SHOWN_FAILURES]:
        say(f"failed: {check.stage}: {check.name}, {check.metric}", "red")
    if len(report.failures) > _SHOWN_FAILURES:
        say(f"… and {len(report.failures) - _SHOWN_FAILURES} more; see --json")
    for cause in report.causes:
        say(f"cause: {cause.where}: {cause.why}", "red")
    if report.passed:
        say(f"passed in {report.seconds:.1f} s", "bold green")
    else:
        say(f"failed in: {', '.join(report.failed_stages)}", "bold red")


def _print_sensitivity(found: Sensitivity, console: Console) -> None:
    """Prints what each part costs, which tensors gain most, and the advice."""
    rows = [
        [
            *(part.part, f"{part.tensors}", part.format),
            *(figure(part.kl_nats), figure(part.int8_kl_nats), f"{part.int8_bytes / 1e6:.3g}"),
        ]
        for part in found.parts
    ]
    print_table(console, ["part", "tensors", "format", "KL, nats", "in int8", "MB more"], rows)
    rows = [
        [gain.name, figure(gain.gain_nats), f"{gain.int8_bytes / 1e6:.3g}"]
        for gain in found.tensors[:_SHOWN_TENSORS]
    ]
    print_table(console, ["tensor", "would gain in int8, nats, about", "MB more"], rows)
    file = f"; convert with --quant {found.recipe}" if found.recipe else ""
    console.print(f"advice: {found.advice}{file}\n", markup=False, soft_wrap=True)
