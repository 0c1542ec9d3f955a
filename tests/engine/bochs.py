"""A bare x86-64 machine with AMX: Bochs, started with a program and data in its memory.

There is no system in between: Bochs lacks what Linux needs to permit AMX (XFD). A boot ROM reads
the disk into memory, turns on 64-bit mode and jumps to the program.
"""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

BASE = 0x200000  # where the disk's content comes to lie
_MEMORY = 64 << 20
_STACK = BASE  # downwards
_ROM = 0xFFFF0000  # and to the end of 4 GiB
_GDT = 0x400  # in the ROM
_BEGIN, _END = b"<<<<", b">>>>"
_SECTOR, _CHUNK = 512, 256 * 512  # a command reads a chunk
_CYLINDER = 16 * 63 * _SECTOR
_SECONDS = 120
_SETTINGS = """
cpu: model=sapphire_rapids, count=1, ips=50000000, reset_on_triple_fault=0
memory: guest={memory}, host={memory}
romimage: file=rom
vgaromimage: file=vga
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=disk, path=disk, mode=flat, cylinders={cylinders}, heads=16, spt=63
display_library: rfb, options="timeout=0"
pci: enabled=0
panic: action=fatal
log: log
clock: sync=none
port_e9_hack: enabled=1
"""


def run_bare(
    command: list[str], environment: dict[str, str], program: Path, data: bytes, folder: Path
) -> bytes:
    """Runs a program on the machine; returns what it writes to port 0xE9.

    Args:
        command: starts Bochs in `folder`.
        environment: what it needs.
        program: a static ELF file for BASE; its entry gets the address of `data`.
        data: comes to lie in memory behind it.
        folder: where Bochs lies; for the machine's files, too.
    """
    image, entry = _flat(program.read_bytes())
    at = _up(BASE + len(image), 4096)
    image = image.ljust(at - BASE, b"\0") + data
    tables = _up(BASE + len(image), 4096)
    image = image.ljust(tables - BASE, b"\0") + _page_tables(tables)
    end = BASE + _up(len(image), _CHUNK)
    assert end < _MEMORY
    cylinders = -(-(end - BASE) // _CYLINDER)
    (folder / "disk").write_bytes(image.ljust(cylinders * _CYLINDER, b"\0"))
    (folder / "rom").write_bytes(_rom((end - BASE) // _SECTOR, tables, entry, at))
    (folder / "vga").write_bytes(_vga_rom())
    (folder / "settings").write_text(_SETTINGS.format(memory=_MEMORY >> 20, cylinders=cylinders))
    done = subprocess.run(
        [*command, "-q", "-f", "settings"],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=_SECONDS,
        check=False,
    )
    _, begun, rest = done.stdout.partition(_BEGIN)
    result, ended, _ = rest.rpartition(_END)
    log = (folder / "log").read_text()
    assert begun and ended, f"{done.returncode}: {log[-2000:]}\n{done.stderr[-2000:].decode()}"
    return result


def _up(value: int, step: int) -> int:
    return -(-value // step) * step


def _flat(program: bytes) -> tuple[bytes, int]:
    """Returns what a program's loaded segments hold from BASE on, and its entry's address."""
    entry, headers = struct.unpack_from("<QQ", program, 24)
    (count,) = struct.unpack_from("<H", program, 56)
    image = bytearray()
    for i in range(count):
        kind, _, offset, address, _, stored, size = struct.unpack_from(
            "<IIQQQQQ", program, headers + 56 * i
        )
        if kind == 1:
            image += bytes(max(address - BASE + size - len(image), 0))
            image[address - BASE : address - BASE + stored] = program[offset : offset + stored]
    return bytes(image), entry


def _page_tables(at: int) -> bytes:
    """Maps the first GiB and the ROM to themselves."""
    present, large = 3, 0x83
    tables = [[0] * 512 for _ in range(4)]
    tables[0][0] = at + 0x1000 | present
    tables[1][0], tables[1][3] = at + 0x2000 | present, at + 0x3000 | present
    tables[2] = [i << 21 | large for i in range(512)]
    tables[3][511] = 0xFFE00000 | large
    return b"".join(struct.pack("<512Q", *table) for table in tables)


def _rom(sectors: int, tables: int, entry: int, data: int) -> bytes:
    """Makes the ROM of 64 KiB; the processor begins 16 bytes before its end, in 16-bit mode."""
    code = bytearray()

    def add(instructions: str, *words: int) -> None:
        code.extend(bytes.fromhex(instructions) + b"".join(struct.pack("<I", w) for w in words))

    def back(jump: int, to: int) -> None:
        code.extend([jump, to - len(code) - 2 & 255])

    add("fa fc 2e 66 0f 01 16")  # cli; cld; lgdt cs:[…]
    code.extend(struct.pack("<H", _GDT + 0x28))
    add("0f 20 c0 0c 01 0f 22 c0")  # cr0: protected mode
    add("66 ea", _ROM + len(code) + 8)  # jmp 10:here
    code.extend(b"\x10\0")
    add("66 b8 18 00 8e d8 8e c0 8e d0")  # ds, es, ss = 18
    add("bf", BASE)  # mov edi
    add("31 db")  # ebx: the first sector
    chunk = len(code)
    add("66 ba f7 01 ec a8 80 75 fb")  # wait until the disk is not busy
    add("66 ba f2 01 b0 00 ee 42 88 d8 ee 42 88 f8 ee 42 89 d8 c1 e8 10 ee 42 b0 e0 ee")  # which
    add("42 b0 20 ee bd 00 01 00 00")  # read 256 sectors
    sector = len(code)
    add("66 ba f7 01 ec a8 08 74 fb")  # wait until the disk has data
    add("66 ba f0 01 b9 80 00 00 00 f3 6d 4d")  # rep insd; dec ebp
    back(0x75, sector)
    add("81 c3 00 01 00 00 81 fb", sectors)  # ebx += 256; is it the end?
    back(0x72, chunk)
    add("b8", tables)
    add("0f 22 d8 b8 a0 00 00 00 0f 22 e0")  # cr3; cr4: PAE, PGE
    add("b9 80 00 00 c0 0f 32 0d 00 01 00 00 0f 30")  # EFER: long mode
    add("b8 11 00 00 80 0f 22 c0")  # cr0: paging
    add("ea", _ROM + len(code) + 7)  # jmp 20:here
    code.extend(b"\x20\0")
    add("bc", _STACK)
    add("bf", data)
    add("b8", entry)
    add("ff d0")  # call rax
    rom = bytearray(code.ljust(0x10000, b"\xff"))
    flat = 0x00CF9B000000FFFF, 0x00CF93000000FFFF, 0x00AF9B000000FFFF  # code, data, 64-bit code
    struct.pack_into("<5Q", rom, _GDT, 0, 0, *flat)
    struct.pack_into("<HI", rom, _GDT + 0x28, 0x27, _ROM + _GDT)
    rom[0xFFF0:0xFFF3] = b"\xe9\x0d\0"  # jmp to the ROM's begin
    return bytes(rom)


def _vga_rom() -> bytes:
    """Makes a ROM that returns, with the right sum: Bochs wants one."""
    rom = bytearray(512)
    rom[:4] = b"\x55\xaa\x01\xcb"
    rom[511] = -sum(rom) & 255
    return bytes(rom)
