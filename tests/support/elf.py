"""The program headers of 64-bit little-endian ELF files."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

LOAD, DYNAMIC, INTERPRETER = 1, 2, 3
# Tags of the dynamic section: a library's name, the table of names, text that is relocated, what
# runs when the file is loaded, flags.
NEEDED, NAMES, TEXT_RELOCATIONS, STARTS, FLAGS = 1, 5, 22, 25, 30
TEXT_RELOCATIONS_FLAG = 4
SYMBOLS = 11  # the type of the section of dynamic symbols
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
    needed: tuple[str, ...]  # libraries
    relocates_text: bool
    starts: bool  # it has functions that run when it is loaded
    exports: tuple[str, ...]  # names that other files find
    imports: tuple[str, ...]  # names that it finds in other files

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
        sections_read = [
            struct.unpack_from("<IIQQQQ", data, sections_at + i * section_size)
            for i in range(sections)
        ]
        tags = [
            tag
            for segment in segments
            if segment.kind == DYNAMIC
            for tag in struct.iter_unpack("<QQ", data[segment.offset :][: segment.file_bytes])
        ]
        names = _file_offset(dict(tags).get(NAMES, 0), segments)

        def name(at: int) -> str:
            return data[names + at : data.index(b"\0", names + at)].decode()

        exports, imports = [], []
        for _, kind_of_section, _, _, offset, length in sections_read:
            if kind_of_section == SYMBOLS:
                for at, _, _, section, _, _ in struct.iter_unpack(
                    "<IBBHQQ", data[offset:][:length]
                ):
                    (exports if section else imports).append(name(at))
        return Elf(
            machine=MACHINES[machine],
            kind=kind,
            segments=tuple(segments),
            sections=tuple(section[1] for section in sections_read),
            needed=tuple(name(value) for tag, value in tags if tag == NEEDED),
            relocates_text=any(
                tag == TEXT_RELOCATIONS or (tag == FLAGS and value & TEXT_RELOCATIONS_FLAG)
                for tag, value in tags
            ),
            starts=any(tag == STARTS for tag, _ in tags),
            exports=tuple(exports),
            imports=tuple(imports),
        )


def _file_offset(address: int, segments: list[Segment]) -> int:
    """Returns where in the file the contents of an address are."""
    for segment in segments:
        if segment.kind == LOAD and 0 <= address - segment.address < segment.file_bytes:
            return address - segment.address + segment.offset
    return 0
