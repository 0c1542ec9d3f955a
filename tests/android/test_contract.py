"""Plays the conversations of `contract/` with both hosts of the page; see its README."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from android.build.builder import PAGE
from convert.checkpoint.config import CONFIGS
from tests.android.contract_hosts import App, PageHost, ProcessHost, Web

CONTRACT = Path(__file__).parent / "contract"
EVENTS = json.loads((CONTRACT / "events.json").read_text("utf-8"))
JOB = EVENTS.pop("job")  # of `state`
PLAYS = sorted(set(CONTRACT.glob("*.json")) - {CONTRACT / "events.json"})
PLAYS_WITH_SLICES = sorted((CONTRACT / "slices").glob("*.json"))


@pytest.fixture(scope="module", params=["app", "web"])
def host(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PageHost]:
    folder = tmp_path_factory.mktemp("host")
    host: PageHost
    if request.param == "app":
        host = App(request.getfixturevalue("java_classpath"), folder)
    else:
        host = Web(folder)
    yield host
    host.close()


@pytest.fixture(scope="module", params=["app", "web"])
def host_with_slices(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PageHost]:
    """A host whose model cuts a picture into up to 9 slices."""
    folder = tmp_path_factory.mktemp("host")
    host: PageHost
    if request.param == "app":
        host = App(request.getfixturevalue("java_classpath"), folder, slices=9)
    else:
        host = Web(folder, "--slices")
    yield host
    host.close()


@pytest.mark.parametrize("path", PLAYS, ids=lambda path: path.stem)
def test_both_hosts_keep_to_it(host: PageHost, path: Path) -> None:
    play = Play(host)
    play.begin()
    for step in json.loads(path.read_text("utf-8")):
        play.do(step)


@pytest.mark.parametrize("path", PLAYS_WITH_SLICES, ids=lambda path: path.stem)
def test_both_hosts_keep_to_it_with_slices(host_with_slices: PageHost, path: Path) -> None:
    test_both_hosts_keep_to_it(host_with_slices, path)


def test_the_bridge_lists_what_events_have() -> None:
    text = (PAGE / "BRIDGE.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", text.partition("## Events")[2], re.M))
    del rows["event"]  # the table's head
    for name, fields in EVENTS.items():
        where = rows[name] if name != "state" else text.partition("`state` always has")[2]
        for field in fields["always"] + fields["perhaps"]:
            assert f"`{field}`" in where, f"{name}: {field}"
    assert set(rows) == {*EVENTS, "back"}  # the phone's button, which no play presses


def test_a_breach_is_found() -> None:
    known: dict[str, Any] = {}
    assert differs({"a": "$x", "b": None, "c": ["*"]}, {"a": 1, "c": [2], "d": 3}, known) is None
    for wanted, found in (
        ({"a": "$x"}, {"a": 2}),
        ({"a": "*"}, {}),
        ({"a": None}, {"a": 0}),
        ({"a": [1]}, {"a": [1, 2]}),
        ({"a": True}, {"a": 1}),
        ({"a": {}}, {"a": 1}),
    ):
        assert differs(wanted, found, known) is not None


class Play:
    """One conversation with a host."""

    def __init__(self, host: PageHost) -> None:
        self._host = host
        self._known: dict[str, Any] = {}  # values of names
        self._said: dict[str, int] = {}  # UTF-16 units of each chat's answer so far

    def begin(self) -> None:
        """Brings the host to where it was at first."""
        for chat in self._idle({})["chats"]:
            self._send({"do": "delete", "chat": chat["id"]})
        for name in ("settings", "drop", "pick", "draft", "open"):
            self._send({"do": name})
        self._idle({"chats": []})

    def do(self, step: Any) -> None:
        """Does a step, or fails."""
        if step == "restart":
            self._host.restart()
        elif "do" in step:
            self._send(step)
        elif "raw" in step:
            assert self._host.send(step["raw"]) != step.get("refused", False) or self._is_silent()
        elif "choose" in step:
            self._host.choose(CONFIGS / "demo" / step["choose"])
        elif "offer" in step:
            self._host.offer(CONFIGS / "demo" / step["offer"])
        elif "idle" in step:
            self._idle(step["idle"], step.get("without"))
        else:
            self._wait({k: v for k, v in step.items() if k != "without"}, step.get("without"))

    def _is_silent(self) -> bool:
        """Tells whether the host does not say which commands it takes."""
        return isinstance(self._host, ProcessHost)

    def _send(self, step: dict[str, Any]) -> None:
        refused = step.get("refused", False)
        command = {k: self._filled(v) for k, v in step.items() if k != "refused"}
        assert self._host.send(json.dumps(command)) != refused or self._is_silent(), step

    def _filled(self, value: Any) -> Any:
        is_name = isinstance(value, str) and value.startswith("$")
        return self._known[value] if is_name else value

    def _idle(
        self, wanted: dict[str, Any], without: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Waits until nothing is under way, whatever was heard before; returns that state."""
        self._send({"do": "hello"})
        while True:
            state = self._wait({"event": "state"}, without)
            is_known = "problem" in state or "model" in state
            if "job" not in state and "answering" not in state and is_known:
                problem = differs(wanted, state, self._known)
                if problem is None:
                    return state

    def _wait(
        self, wanted: dict[str, Any], without: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Returns the first event with these fields."""
        near: list[str] = []
        while True:
            try:
                event = self._host.receive()
            except Exception as error:
                pytest.fail(f"no {wanted}; but {near}: {error!r}")
            self._check(event)
            assert without is None or differs(without, event, dict(self._known)), event
            problem = differs(wanted, event, self._known)
            if problem is None:
                return event
            if event["event"] == wanted["event"]:
                near.append(problem)

    def _check(self, event: dict[str, Any]) -> None:
        """Checks what holds for every event."""
        self._check_fields(EVENTS[event["event"]], {k: v for k, v in event.items() if k != "event"})
        if event.get("job") is not None:
            self._check_fields(JOB, event["job"])
        if event["event"] == "text":
            said = self._said.get(event["chat"], 0)
            assert event["at"] in (0, said), event
            self._said[event["chat"]] = event["at"] + len(event["text"].encode("utf-16-le")) // 2

    @staticmethod
    def _check_fields(fields: dict[str, list[str]], found: dict[str, Any]) -> None:
        names = {name for name, value in found.items() if value is not None}
        assert set(fields["always"]) <= names <= {*fields["always"], *fields["perhaps"]}, found


def differs(wanted: Any, found: Any, known: dict[str, Any]) -> str | None:
    """Says where a value is not what is wanted, or None; gives names their values."""
    names = dict(known)
    problem = _difference(wanted, found, names)
    if problem is None:
        known.update(names)
    return problem


def _difference(wanted: Any, found: Any, names: dict[str, Any]) -> str | None:
    if wanted == "*" or wanted is None:
        return None if (found is None) == (wanted is None) else f"is {found!r}"
    if isinstance(wanted, str) and wanted.startswith("$"):
        return None if names.setdefault(wanted, found) == found else f"{wanted} is {found!r}"
    if isinstance(wanted, dict) and isinstance(found, dict):
        pairs = [(key, value, found.get(key)) for key, value in wanted.items()]
    elif isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        pairs = [(str(i), *both) for i, both in enumerate(zip(wanted, found, strict=True))]
    else:
        is_same = wanted == found and isinstance(wanted, bool) == isinstance(found, bool)
        return None if is_same else f"is {found!r}, not {wanted!r}"
    for key, want, have in pairs:
        problem = _difference(want, have, names)
        if problem is not None:
            return f"{key}: {problem}"
    return None
