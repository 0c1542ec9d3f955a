"""C++ and Python use the same protocol names."""

from __future__ import annotations

import ast
import re

from convert.engine.units import ENGINE
from runtime.engine_client import protocol
from runtime.engine_client.protocol import ErrorCode, Event, Field, Op, Stage, Stop, Tap

NAMESPACES = {
    "op": Op,
    "event": Event,
    "stage": Stage,
    "stop": Stop,
    "tap": Tap,
    "field": Field,
    "error_code": ErrorCode,
}


def _header_names() -> dict[str, dict[str, str]]:
    """Returns the constants of each namespace in the headers, by their Python names."""
    text = "".join((ENGINE / name).read_text("utf-8") for name in ("protocol.h", "error.h"))
    found: dict[str, dict[str, str]] = {}
    for name, body in re.findall(
        r"namespace (\w+) \{\n((?:(?!namespace).)*?)\}  // names", text, re.S
    ):
        pairs = re.findall(r"constexpr char k(\w+)\[\] =\s*(\".*?\");", body)
        found[name] = {_python_name(key): ast.literal_eval(value) for key, value in pairs}
    return found


def _python_name(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).upper()


def test_names_are_the_same() -> None:
    header = _header_names()
    for namespace, names in NAMESPACES.items():
        mirrored = {key: value for key, value in vars(names).items() if key.isupper()}
        assert header[namespace] == mirrored, namespace
    assert set(NAMESPACES) == {name for name, names in header.items() if names}


def test_numbers_are_the_same() -> None:
    text = (ENGINE / "protocol.h").read_text("utf-8")
    assert f"kVersion = {protocol.VERSION};" in text
    assert f"kLineLimit = {protocol.LINE_LIMIT >> 20} << 20;" in text


def test_the_documentation_has_every_name() -> None:
    text = (ENGINE / "PROTOCOL.md").read_text("utf-8")
    for names in NAMESPACES.values():
        for key, value in vars(names).items():
            if key.isupper():
                assert f"`{value}`" in text or f'"{value}"' in text, value
