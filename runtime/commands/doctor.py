"""`minicpmv doctor`: checks what the toolkit needs, and prints how to install what is missing."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from convert.support.streams import print_json

if TYPE_CHECKING:
    from runtime.doctor.doctor import Diagnosis

NAME = "doctor"
HELP = "check the tools that the commands need, and connected phones"
EXAMPLES = (
    ("check everything", "minicpmv doctor"),
    ("check only what apk and sideload need", "minicpmv doctor apk sideload"),
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "areas",
        metavar="COMMAND",
        nargs="*",
        help="check only what these commands need: convert, verify, chat, apk, sideload, …, or "
        "qemu, mlc, tests (default: all)",
    )
    add = parser.add_argument_group("output").add_argument
    add("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Checks; returns 0 if the commands asked for work, 1 if not."""
    from convert.support.console import messages
    from runtime.doctor.doctor import examine, parse_areas

    areas = parse_areas(args.areas)
    with messages().status("looking"):
        report = examine(areas, needs_phone=bool(args.areas))
    if args.json:
        print_json(report.to_json(), indent=1)
    else:
        _print(report)
    return 0 if report.passed else 1


def _print(report: Diagnosis) -> None:
    from convert.support.console import print_table, results
    from runtime.doctor.checks import OK
    from runtime.doctor.doctor import AREAS, mends

    def say(text: str = "") -> None:
        results().print(text, markup=False, soft_wrap=True)

    rows = [[f.name, f.version or "", f.state, f.what] for f in report.findings]
    print_table(results(), ["what", "version", "state", "for"], rows)
    for fails, title in ((True, "to mend"), (False, "to know")):
        shown = [f for f in report.findings if f.fails == fails and f.state != OK]
        if shown:
            say(f"\n{title}:")
        for finding in shown:
            say(f"  {finding.name}: {finding.detail}")
            if finding.mend is not None:
                say(f"    {finding.mend}")
    commands = mends(report.findings)
    if len(commands) > 1 or any("apt-get" in command for command in commands):
        say("\nall at once:")
        for command in commands:
            say(f"  {command}")
    say()
    width = max(len(AREAS[area]) for area in report.areas)
    for area in report.areas:
        verdict = (
            "works"
            if report.works(area)
            else "does not work: "
            + ", ".join(f.name for f in report.findings if f.fails and area in f.areas)
        )
        say(f"{AREAS[area].ljust(width)}  {verdict}")
