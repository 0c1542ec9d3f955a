"""The app's logic in ArkTS, in Node: the bridge's contract, weights, names."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from android.build.builder import APP
from android.harmony.native_module import NATIVE
from android.harmony.project import TEMPLATE
from runtime.engine_client import protocol
from tests.android.harmony.arkts_host import ArkTsApp
from tests.android.test_contract import PLAYS, PLAYS_WITH_SLICES, Play

CORE = TEMPLATE / "entry/src/main/ets/core"
TYPES = TEMPLATE / "entry/src/main/cpp/types/libminicpmv/Index.d.ts"


@pytest.fixture(scope="module")
def host(npm_packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ArkTsApp]:
    app = ArkTsApp(npm_packages, tmp_path_factory.mktemp("host"))
    yield app
    app.close()


@pytest.fixture(scope="module")
def host_with_slices(
    npm_packages: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ArkTsApp]:
    app = ArkTsApp(npm_packages, tmp_path_factory.mktemp("host"), slices=9)
    yield app
    app.close()


@pytest.fixture
def start(npm_packages: Path, tmp_path: Path) -> Iterator[Callable[..., ArkTsApp]]:
    """Starts an app of the test's own."""
    started: list[ArkTsApp] = []

    def begin(**options: bool) -> ArkTsApp:
        started.append(ArkTsApp(npm_packages, tmp_path, **options))
        return started[-1]

    yield begin
    for app in started:
        app.close()


@pytest.mark.parametrize("path", PLAYS, ids=lambda path: path.stem)
def test_it_keeps_to_the_contract(host: ArkTsApp, path: Path) -> None:
    play = Play(host)
    play.begin()
    # An engine in the app's process ends alone only if it returns.
    for step in json.loads(path.read_text("utf-8").replace("engine_killed", "engine_died")):
        play.do(step)


@pytest.mark.parametrize("path", PLAYS_WITH_SLICES, ids=lambda path: path.stem)
def test_it_keeps_to_the_contract_with_slices(host_with_slices: ArkTsApp, path: Path) -> None:
    test_it_keeps_to_the_contract(host_with_slices, path)


def test_weights_are_imported(start: Callable[..., ArkTsApp]) -> None:
    """Another file is refused by its size, a damaged one by its hash; the right one is loaded."""
    app = start(weights=False)
    app.until("error", code="no_weights")
    other = app.weights.with_name("other")
    other.write_bytes(b"other")
    app.import_weights(other)
    assert "has 5 bytes; the app needs 7000" in app.until("error", code="wrong_weights")["message"]
    damaged = app.weights.with_name("damaged")
    damaged.write_bytes(b"W" + app.weights.read_bytes()[1:])
    app.import_weights(damaged)
    assert "SHA-256" in app.until("error", code="damaged_weights")["message"]
    assert not app.installed.exists()
    app.import_weights(app.weights)
    while "model" not in (state := app.until("state")):
        pass
    assert state["verified"] == "yes" and "problem" not in state
    assert app.installed.read_bytes() == app.weights.read_bytes()


def test_pushed_weights_are_verified(start: Callable[..., ArkTsApp]) -> None:
    """They are hashed once, in the background; damaged ones are not used."""
    app = start()
    while app.until("state")["verified"] != "yes":
        pass
    app.restart()
    while "model" not in (state := app.until("state")):
        pass
    assert state["verified"] == "yes"
    app.close()
    app.installed.write_bytes(b"W" + app.installed.read_bytes()[1:])
    app.installed.with_name("weights.verified").unlink()
    app.restart()
    app.until("error", code="damaged_weights")
    state = app.until("state")
    assert state["problem"]["code"] == "damaged_weights" and "model" not in state


def test_the_self_check(start: Callable[..., ArkTsApp]) -> None:
    app = start()
    while "model" not in app.until("state"):
        pass
    app.send('{"do": "check"}')
    results = app.until("check")["results"]
    names = ["weights", "engine", "processor", "load", "program", "answer", "memory"]
    assert [result["name"] for result in results] == names
    assert all(result["ok"] for result in results)


def test_pictures_of_other_formats(start: Callable[..., ArkTsApp], tmp_path: Path) -> None:
    app = start()
    for content, said in (
        (b"GIF89a" + bytes(20), "GIF pictures are not supported; choose a JPEG, PNG or WebP"),
        (bytes(4) + b"ftypheic" + bytes(9), "HEIC and AVIF pictures are not supported"),
        (b"", "not a picture that can be decoded"),
    ):
        path = tmp_path / "picture"
        path.write_bytes(content)
        app.choose(path)
        assert said in app.until("error", code="invalid_picture")["message"]
    assert list((app.installed.parents[1] / "pictures").iterdir()) == []


def test_a_damaged_chat_is_left_untouched(start: Callable[..., ArkTsApp]) -> None:
    app = start()
    app.close()
    chats = app.installed.parents[1] / "chats"
    (chats / "damaged.json").write_text("{")
    app.restart()
    while "model" not in app.until("state"):
        pass
    assert (chats / "damaged.json").read_text() == "{"


def test_the_names_are_the_protocols() -> None:
    """Requests, fields and error codes exist elsewhere under the same names."""
    code = (CORE / "Model.ets").read_text() + (CORE / "Engine.ets").read_text()
    ops = set(re.findall(r"(?:request|\.encode)\('(\w+)'", code)) | {"cancel"}
    assert ops <= {value for name, value in vars(protocol.Op).items() if name.isupper()}
    java = (APP / "java/org/minicpmv/core/EngineException.java").read_text("utf-8")
    codes = set(re.findall(r"= '(\w+)';", (CORE / "Failure.ets").read_text()))
    assert codes <= set(re.findall(r'= "(\w+)";', java))


def test_the_module_is_declared() -> None:
    """What ArkTS sees is what the C++ exports."""
    exported = re.findall(
        r'Export<\w+>\(env, exports, "(\w+)"\)', (NATIVE / "module.cc").read_text()
    )
    assert exported == re.findall(r"export const (\w+):", TYPES.read_text())
