"""The app uses the engine's names: `Protocol.java` and `EngineException.java`."""

from __future__ import annotations

import re

import pytest

from android.build.builder import APP
from runtime.engine_client import protocol
from runtime.engine_client.protocol import ErrorCode, Event, Field, Op

CORE = APP / "java" / "org" / "minicpmv" / "core"
NAMESPACES = {"Op": Op, "Event": Event, "Field": Field}
_CONSTANT = re.compile(r"static final String (\w+) = \"(\w+)\";")


def _declared() -> dict[str, dict[str, str]]:
    """Returns the constants of each class in `Protocol.java`."""
    text = (CORE / "Protocol.java").read_text("utf-8")
    classes = re.findall(r"static final class (\w+) \{(.*?)\n  \}", text, re.S)
    return {name: dict(_CONSTANT.findall(body)) for name, body in classes}


def _sources() -> str:
    paths = set(CORE.glob("*.java")) - {CORE / "Protocol.java"}
    return "\n".join(path.read_text("utf-8") for path in sorted(paths))


def test_the_names_are_the_engines() -> None:
    declared = _declared()
    assert set(declared) == set(NAMESPACES)
    for namespace, names in NAMESPACES.items():
        known = {key: value for key, value in vars(names).items() if key.isupper()}
        assert declared[namespace].items() <= known.items(), namespace
    text = (CORE / "Protocol.java").read_text("utf-8")
    assert f"int VERSION = {protocol.VERSION};" in text


def test_every_name_is_used() -> None:
    used = _sources()
    for namespace, names in _declared().items():
        for name in names:
            assert re.search(rf"\b{namespace}\.{name}\b", used), f"{namespace}.{name}"


@pytest.mark.parametrize("name", ["Engine", "EngineManager", "Benchmark"])
def test_requests_are_made_of_names(name: str) -> None:
    """What goes to the engine and comes from it is not spelled out a second time."""
    source = (CORE / f"{name}.java").read_text("utf-8")
    assert re.findall(r'\brequest\(\s*"\w+"', source) == []
    assert re.findall(r'\.opt\w*\("\w+"', source) == []


def test_error_codes_are_the_engines_or_the_apps() -> None:
    known = {key: value for key, value in vars(ErrorCode).items() if key.isupper()}
    text = (CORE / "EngineException.java").read_text("utf-8")
    engine, _, app = text.partition("// The app's codes:")
    codes = dict(_CONSTANT.findall(engine))
    assert codes
    assert codes.items() <= known.items()
    assert not set(dict(_CONSTANT.findall(app)).values()) & set(known.values())
