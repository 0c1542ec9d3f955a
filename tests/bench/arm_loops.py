"""Reads arm64 assembly: finds innermost loops, counts what they load and multiply."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from quantize.errors import ToolkitError

ITERATIONS = 200  # that llvm-mca simulates
_LABEL = re.compile(r"^\s*(\.?[\w$]+):")
_CONDITIONS = "eq|ne|lt|le|gt|ge|lo|hi|hs|ls|mi|pl|cc|cs"
_BRANCH = re.compile(rf"^\s+(?:b|b\.?(?:{_CONDITIONS})|cbn?z|tbn?z)\s+(?:.*,\s*)?(\.?[\w$]+)\s*$")
_REGISTER_BYTES = {"q": 16, "d": 8, "s": 4, "h": 2, "b": 1, "x": 8, "w": 4}
_VECTOR_BYTES = {"16b": 16, "8h": 16, "4s": 16, "2d": 16, "8b": 8, "4h": 8, "2s": 8, "1d": 8}
_FEATURES = "+dotprod,+i8mm,+fullfp16,+bf16"
_NUMBER = re.compile(r"^\s*\.inst\s+(0x[0-9a-f]+)", re.M)
_DOTS = ("sdot", "udot", "usdot")
_TILES = ("smmla", "ummla", "usmmla")
_LONGS = ("smull", "smull2", "smlal", "smlal2", "umull", "umull2", "umlal", "umlal2")
_WORDS = ("mul", "mla")


@dataclass(frozen=True)
class Loop:
    """An innermost loop: its instructions, its own branch the last."""

    lines: tuple[str, ...]

    @property
    def multiply_adds(self) -> int:
        """Products of bytes, or of words that were bytes, in one pass."""
        return sum(_multiply_adds(line) for line in self.lines)

    @property
    def loaded_bytes(self) -> int:
        """Bytes loaded in one pass, spilled registers included."""
        return sum(_loaded_bytes(line) for line in self.lines)


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """What llvm-mca says of a loop."""

    instructions: int  # per pass
    cycles: float  # per pass


def function(assembly: str, name: str) -> str:
    """Returns the part of a file from a function's label to its end.

    Raises:
        ToolkitError: there is no such function.
    """
    found = re.search(rf"^{re.escape(name)}:.*?^\.?Lfunc_end\d+:", assembly, re.M | re.S)
    if found is None:
        raise ToolkitError(f"{name}: not in the assembly")
    return found[0]


def loops(assembly: str) -> Iterator[Loop]:
    """Yields the innermost loops that multiply bytes, in the order of the text."""
    return (loop for loop in innermost(assembly) if loop.multiply_adds)


def innermost(assembly: str) -> Iterator[Loop]:
    """Yields all innermost loops, in the order of the text."""
    lines, spans = _spans(assembly)
    for span in spans:
        if _is_innermost(span, spans):
            yield Loop(tuple(_instructions(lines, *span)))


def around(assembly: str, passes: int) -> Iterator[Loop]:
    """Yields the loops around the innermost ones that multiply bytes.

    Each pass of such a loop goes through its inner loop `passes` times, and equal ones are one.
    """
    lines, spans = _spans(assembly)
    seen = set()
    for span in spans:
        first, last = span
        inner = list(_instructions(lines, first, last))
        outer = [(a, b) for a, b in spans if a <= first and b >= last and (a, b) != span]
        if not (outer and _is_innermost(span, spans) and Loop(tuple(inner)).multiply_adds):
            continue
        a, b = min(outer, key=lambda one: one[1] - one[0])
        before, after = _instructions(lines, a, first - 1), _instructions(lines, last + 1, b)
        loop = Loop((*before, *inner * passes, *after))
        if loop not in seen:
            seen.add(loop)
            yield loop


def disassembled(file: Path, program: str) -> str:
    """Returns an object's instructions as assembly in which every address is a label.

    Args:
        file: the object.
        program: llvm-objdump.

    Raises:
        ToolkitError: it cannot be read.
    """
    command = [program, "--disassemble", "--no-show-raw-insn", f"--mattr={_FEATURES}", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        problem = (done.stderr.strip().splitlines() or ["no message"])[0]
        raise ToolkitError(f"{program}: {problem}")
    text = re.sub(r"^[0-9a-f]+ <(\w+)>:", r"\1:", done.stdout, flags=re.M)
    text = re.sub(r"\b0x([0-9a-f]+) <[^>]*>", r".L\1", text)
    text = re.sub(r"^ *([0-9a-f]+):\s+(.*)$", r".L\1:\n \2", text, flags=re.M)
    return re.sub(r"^$", ".Lfunc_end0:", f"{text}\n", flags=re.M)


def _spans(assembly: str) -> tuple[list[str], list[tuple[int, int]]]:
    """Returns the lines, and the first and the last one of every loop."""
    lines = [_bare(line) for line in assembly.splitlines()]
    seen: dict[str, int] = {}
    spans = []
    for i, line in enumerate(lines):
        label, branch = _LABEL.match(line), _BRANCH.match(line)
        if label:
            seen[label[1]] = i
        elif branch:
            target = branch[1][:-1] if re.fullmatch(r"\d+b", branch[1]) else branch[1]
            if target in seen:
                spans.append((seen[target], i))
    return lines, spans


def _is_innermost(span: tuple[int, int], spans: Sequence[tuple[int, int]]) -> bool:
    return not any(a >= span[0] and b <= span[1] and (a, b) != span for a, b in spans)


def _instructions(lines: Sequence[str], first: int, last: int) -> Iterator[str]:
    return (line for line in lines[first : last + 1] if _is_instruction(line))


@cache
def analyse(loop: Loop, program: str, processor: str) -> Analysis:
    """Simulates a loop with llvm-mca.

    Args:
        loop: what to simulate.
        program: llvm-mca.
        processor: a name that it knows.

    Raises:
        ToolkitError: it cannot; its first error says why.
    """
    # Branches leave the simulated text, so where they go does not matter.
    text = "\n".join(re.sub(r"\s\d+[bf]$", " elsewhere", line) for line in loop.lines)
    command = [program, "-mtriple=aarch64", f"-mcpu={processor}", f"-iterations={ITERATIONS}"]
    command += [f"-mattr={_FEATURES}"]
    done = subprocess.run(command, input=text + "\n", capture_output=True, text=True, check=False)
    totals = dict(re.findall(r"^(Instructions|Total Cycles):\s+(\d+)", done.stdout, re.M))
    if len(totals) < 2:
        problem = (done.stderr.strip().splitlines() or ["no message"])[0]
        raise ToolkitError(f"{program} -mcpu={processor}: {problem}")
    return Analysis(
        instructions=int(totals["Instructions"]) // ITERATIONS,
        cycles=int(totals["Total Cycles"]) / ITERATIONS,
    )


def decoded(assembly: str, program: str) -> str:
    """Writes `.inst` out: llama.cpp states newer instructions as numbers.

    Args:
        assembly: the text.
        program: llvm-mc, of the same version as llvm-mca.

    Raises:
        ToolkitError: a number is no instruction.
    """
    numbers = list(dict.fromkeys(_NUMBER.findall(assembly)))
    if not numbers:
        return assembly
    little_endian = (int(number, 16).to_bytes(4, "little") for number in numbers)
    text = "\n".join(" ".join(f"0x{byte:02x}" for byte in word) for word in little_endian)
    command = [program, "--disassemble", "-triple=aarch64", f"-mattr={_FEATURES}"]
    done = subprocess.run(command, input=text + "\n", capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.strip() and "\t.text" not in line]
    if done.returncode or len(lines) != len(numbers):
        problem = (done.stderr.strip().splitlines() or ["no message"])[0]
        raise ToolkitError(f"{program}: {problem}")
    meaning = dict(zip(numbers, lines, strict=True))
    return _NUMBER.sub(lambda found: meaning[found[1]], assembly)


def _bare(line: str) -> str:
    return re.sub(r"\s*(//|@|;\s).*", "", line.replace("\t", " ")).rstrip()


def _is_instruction(line: str) -> bool:
    text = line.strip()
    return bool(text) and not text.startswith((".", "#")) and not _LABEL.match(line)


def _multiply_adds(line: str) -> int:
    parts = line.split()
    name, operands = parts[0], " ".join(parts[1:])
    if name in _DOTS:
        return 16 if ".4s" in operands else 8
    if name in _TILES:
        return 32
    if (name in _LONGS or name in _WORDS) and operands.partition(",")[0].endswith(".8h"):
        return 8
    return 0


def _loaded_bytes(line: str) -> int:
    parts = line.split()
    name, operands = parts[0], " ".join(parts[1:])
    if name in ("ldr", "ldur", "ldp", "ldnp"):
        bytes_ = _REGISTER_BYTES.get(operands[:1], 0)
        return bytes_ * (2 if name in ("ldp", "ldnp") else 1)
    if re.fullmatch(r"ld[1-4]r?", name):
        registers = operands.partition("}")[0].count("v")
        one = re.search(r"\.\d*([bhsd])\s*\}\s*\[", operands)  # into one lane
        if name.endswith("r"):
            one = re.search(r"\.\d*([bhsd])", operands)
        if one is not None:
            return registers * _REGISTER_BYTES[one[1]]
        arrangement = re.search(r"\.(\w+)", operands)
        assert arrangement is not None
        return registers * _VECTOR_BYTES[arrangement[1]]
    return 0
