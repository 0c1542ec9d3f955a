"""Members of Java classes, read from class files and from dexdump's output for an APK."""

from __future__ import annotations

import re
import struct
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

# Sizes of constants by tag, bytes. Strings are not listed: they store their own length.
_TEXT, _CLASS, _WIDE = 1, 7, (5, 6)
_SIZES = {3: 4, 4: 4, 5: 8, 6: 8, 7: 2, 8: 2, 9: 4, 10: 4, 11: 4, 12: 4, 15: 3, 16: 2, 18: 4}
_CALL = re.compile(
    r"\|[0-9a-f]+: (?:invoke-\w+|[si](?:get|put))[\w/-]* .*?(\[*L[^;]+;)\.([\w$<>]+):(\S+) //"
)


_OF_ANY_OBJECT = {  # Android's jars do not contain Java's own classes
    ("<init>", "()V"),
    ("equals", "(Ljava/lang/Object;)Z"),
    ("getClass", "()Ljava/lang/Class;"),
    ("hashCode", "()I"),
    ("notify", "()V"),
    ("notifyAll", "()V"),
    ("toString", "()Ljava/lang/String;"),
    ("wait", "()V"),
    ("wait", "(J)V"),
}


@dataclass(frozen=True)
class Member:
    """A reference to a method or field."""

    owner: str  # a class, with slashes
    name: str
    type: str  # a descriptor

    def __str__(self) -> str:
        return f"{self.owner}.{self.name}:{self.type}"


@dataclass
class JavaClass:
    """Its own members, and its parents."""

    parents: list[str] = field(default_factory=list)  # the superclass first
    members: set[tuple[str, str]] = field(default_factory=set)  # names and types


class Jar:
    """The classes of a jar, read on demand."""

    def __init__(self, path: Path) -> None:
        self._archive = zipfile.ZipFile(path)
        self._names = set(self._archive.namelist())
        self._read: dict[str, JavaClass] = {}

    def get(self, name: str) -> JavaClass | None:
        if f"{name}.class" not in self._names:
            return None
        if name not in self._read:
            self._read[name] = parse_class(self._archive.read(f"{name}.class"))
        return self._read[name]


def parse_class(data: bytes) -> JavaClass:
    """Reads a class file: names of parents, methods and fields."""
    assert data[:4] == b"\xca\xfe\xba\xbe"
    (count,) = struct.unpack_from(">H", data, 8)
    constants: dict[int, bytes | int] = {}
    at, index = 10, 1
    while index < count:
        tag = data[at]
        if tag == _TEXT:
            (size,) = struct.unpack_from(">H", data, at + 1)
            constants[index] = data[at + 3 : at + 3 + size]
            at += 3 + size
        else:
            if tag == _CLASS:
                (constants[index],) = struct.unpack_from(">H", data, at + 1)
            at += 1 + _SIZES[tag]
        index += 2 if tag in _WIDE else 1

    def text(number: int) -> str:
        value = constants[number]
        return value.decode() if isinstance(value, bytes) else text(value)

    _, _, parent, interfaces = struct.unpack_from(">HHHH", data, at)
    at += 8
    parents = [parent, *struct.unpack_from(f">{interfaces}H", data, at)]
    at += 2 * interfaces
    found = JavaClass([text(number) for number in parents if number])
    for _ in range(2):  # fields, then methods
        (members,) = struct.unpack_from(">H", data, at)
        at += 2
        for _ in range(members):
            _, name, kind, attributes = struct.unpack_from(">HHHH", data, at)
            at += 8
            found.members.add((text(name), text(kind)))
            for _ in range(attributes):
                (size,) = struct.unpack_from(">I", data, at + 2)
                at += 6 + size
    return found


def classes_in(dump: str) -> dict[str, JavaClass]:
    """Parses the classes of a dex file from the output of `dexdump -d`."""
    found: dict[str, JavaClass] = {}
    for part in re.split(r"^Class #\d+", dump, flags=re.MULTILINE)[1:]:
        name = re.search(r"Class descriptor  : 'L([^;]+);'", part)
        assert name is not None
        parents = re.findall(r"Superclass        : 'L([^;]+);'", part)
        interfaces = part.partition("Interfaces        -")[2].partition("Static fields")[0]
        parents += re.findall(r"'L([^;]+);'", interfaces)
        members = re.findall(
            r"      name          : '([^']+)'\n      type          : '([^']+)'", part
        )
        found[name[1]] = JavaClass(parents, set(members))
    return found


def references_in(dump: str) -> set[Member]:
    """Returns every method and field that the code uses, except those of arrays."""
    found = (Member(owner, name, kind) for owner, name, kind in _CALL.findall(dump))
    return {Member(m.owner[1:-1], m.name, m.type) for m in found if not m.owner.startswith("[")}


def is_there(member: Member, ours: dict[str, JavaClass], jar: Jar) -> bool:
    """Tells whether a class has a member, its own or inherited.

    Of Java's own classes, which are not in the jar, all is believed, Object aside.
    """
    if member.owner.startswith("java/"):
        return True
    found = ours.get(member.owner) or jar.get(member.owner)
    if found is None:
        return False
    key = (member.name, member.type)
    if key in found.members:
        return True
    for number, parent in enumerate(found.parents):
        if parent == "java/lang/Object":
            if key in _OF_ANY_OBJECT:
                return True
        elif parent.startswith("java/"):
            if number == 0:
                return True
        elif is_there(Member(parent, *key), ours, jar):
            return True
    return False


def code_of(dump: str) -> list[str]:
    """Returns the instructions of every method."""
    return re.split(r"^[0-9a-f]+: +\|\[[0-9a-f]+\] ", dump, flags=re.MULTILINE)[1:]
