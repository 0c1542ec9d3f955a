"""The program headers of 64-bit little-endian ELF files."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

LOAD, DYNAMIC, INTERPRETER = 1, 2, 3
NEEDED = 1  # the tag of a library's name in the dynamic section
MACHINES = {62: "x86_64", 183: "aarch64"}


@dataclass(frozen=True)
class Segment:
    """A program header: a part of the file that the kernel maps, or a note."""

    kind: int
    offset: int
    address: int
    file_bytes: int
    alignment: int


@dataclass(frozen=True)
class Elf:
    """The parts of a program that the kernel reads."""

    machine: str
    kind: int  # 2: at a fixed address, 3: anywhere
    segments: tuple[Segment, ...]
    sections: tuple[int, ...]  # their types
    needed: int  # libraries

    @staticmethod
    def read(path: Path) -> Elf:
        """Parses a file."""
        data = path.read_bytes()
        assert data[:6] == b"\x7fELF\x02\x01"
        kind, machine, _, _, at, sections_at, _, _, size, count, section_size, sections = (
            struct.unpack_from("<HHIQQQIHHHHH", data, 16)
        )
        segments = []
        for i in range(count):
            p_type, _, offset, address, _, file_bytes, _, alignment = struct.unpack_from(
                "<IIQQQQQQ", data, at + i * size
            )
            segments.append(Segment(p_type, offset, address, file_bytes, alignment))
        types = [
            struct.unpack_from("<II", data, sections_at + i * section_size)[1]
            for i in range(sections)
        ]
        needed = 0
        for segment in segments:
            if segment.kind == DYNAMIC:
                tags = struct.iter_unpack("<QQ", data[segment.offset :][: segment.file_bytes])
                needed += sum(tag == NEEDED for tag, _ in tags)
        return Elf(MACHINES[machine], kind, tuple(segments), tuple(types), needed)
