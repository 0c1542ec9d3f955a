"""The app's logic in ArkTS, in Node: the bridge's contract, weights, names."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from android.build.builder import APP
from android.harmony.native_module import NATIVE
from android.harmony.project import TEMPLATE
from convert.checkpoint.config import CONFIGS
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


def test_an_import_that_broke_off_goes_on(start: Callable[..., ArkTsApp], tmp_path: Path) -> None:
    """Also in another process; another file of the same size is copied from its beginning."""
    app = start(weights=False)
    app.until("error", code="no_weights")
    app.send('{"host": "break", "after": 3000}')
    app.import_weights(app.weights)
    app.until("error", code="file_error")
    app.restart()
    assert app.until("state")["bundle"]["copied_bytes"] == 3000
    other = tmp_path / "same"
    other.write_bytes(app.weights.read_bytes())
    for source, begin in ((app.weights, 3000), (other, 0)):
        app.send('{"host": "break", "after": 1000}')
        app.import_weights(source)
        done = [app.until("progress", stage="import")["done"]]
        app.until("error", code="file_error")
        assert done == [begin]
    app.send('{"host": "break", "after": 6000}')
    app.import_weights(other)
    while "model" not in (state := app.until("state")):
        pass
    assert "copied_bytes" not in state["bundle"]
    assert app.installed.read_bytes() == app.weights.read_bytes()
    assert not list(app.installed.parent.glob("*.partial*"))


def test_an_import_trusts_no_record(start: Callable[..., ArkTsApp]) -> None:
    """What was not certainly on the disk is copied again; damage is found by the hash."""
    app = start(weights=False)
    app.until("error", code="no_weights")
    app.send('{"host": "break", "after": 5000}')
    app.import_weights(app.weights)
    app.until("error", code="file_error")
    partial = app.installed.with_name(f"{app.installed.name}.partial")
    record = partial.with_name(f"{partial.name}.json")
    record.write_text(record.read_text().replace("5000", "2000"))
    partial.write_bytes(app.weights.read_bytes()[:2000] + bytes(3000))
    app.restart()
    assert app.until("state")["bundle"]["copied_bytes"] == 2000
    app.until("error", code="no_weights")  # until then it may be looking at the copy
    partial.write_bytes(bytes(2000))
    app.import_weights(app.weights)
    app.until("error", code="damaged_weights")
    assert not partial.exists() and not record.exists()
    record.write_text("{")
    partial.write_bytes(b"of another app")
    app.import_weights(app.weights)
    while "model" not in app.until("state"):
        pass
    assert app.installed.read_bytes() == app.weights.read_bytes()


def test_pieces_that_a_pc_pushed_are_joined(start: Callable[..., ArkTsApp]) -> None:
    """Only once all are there; those of other weights are removed."""
    app = start(weights=False)
    app.until("error", code="no_weights")
    content = app.weights.read_bytes()
    other = app.push_piece(0, b"other", "0" * 64)
    pieces = [app.push_piece(i, content[i : i + 2000]) for i in (0, 2000, 4000)]
    late = app.push_piece(6000, content[6000:6900])
    app.send('{"do": "retry"}')
    app.until("error", code="no_weights")
    assert all(piece.exists() for piece in pieces) and not other.exists()
    late.write_bytes(content[6000:])
    app.send('{"do": "retry"}')
    while "model" not in (state := app.until("state")):
        pass
    assert state["verified"] == "yes"
    assert app.installed.read_bytes() == content
    assert not [*pieces[0].parent.iterdir()]


def test_joining_goes_on_where_it_broke_off(start: Callable[..., ArkTsApp]) -> None:
    app = start(weights=False)
    app.until("error", code="no_weights")
    content = app.weights.read_bytes()
    pieces = [app.push_piece(i, content[i : i + 2000]) for i in (0, 2000, 4000, 6000)]
    app.send('{"host": "break", "after": 2500}')
    app.send('{"do": "retry"}')
    app.until("error", code="file_error")
    assert pieces[0].read_bytes() == content[:4500]
    assert [piece.exists() for piece in pieces] == [True, False, True, True]
    app.restart()
    while "model" not in app.until("state"):
        pass
    assert app.installed.read_bytes() == content


def test_damaged_pieces_are_removed(start: Callable[..., ArkTsApp]) -> None:
    """And weights that were there stay."""
    app = start()
    while "model" not in app.until("state"):
        pass
    content = app.weights.read_bytes()
    piece = app.push_piece(0, bytes(7000))
    app.send('{"do": "retry"}')
    assert "SHA-256" in app.until("error", code="damaged_weights")["message"]
    assert not piece.exists() and app.installed.read_bytes() == content
    for start_, size in ((100, 6900), (0, 7100)):  # a gap, too much
        piece.unlink(missing_ok=True)
        piece = app.push_piece(start_, bytes(size))
        app.send('{"do": "retry"}')
        while "model" not in app.until("state"):
            pass
        assert piece.exists(), "it is not all of the weights"


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


def test_a_hot_phone_computes_with_half_its_threads(start: Callable[..., ArkTsApp]) -> None:
    """Also an engine that is started meanwhile, and not one request more than changes."""
    app = start()
    while "model" not in app.until("state"):
        pass
    for on in (True, True, False, True):
        app.send(json.dumps({"host": "spare", "on": on}))
    app.send('{"do": "send", "text": "die 1"}')
    app.until("error", code="engine_died")
    while "model" not in app.until("state"):
        pass
    assert [event["threads"] for event in app.asked] == [2, 4, 2, 2]


def test_the_self_check(start: Callable[..., ArkTsApp]) -> None:
    app = start()
    while "model" not in app.until("state"):
        pass
    app.send('{"do": "check"}')
    results = app.until("check")["results"]
    names = ["weights", "engine", "processor", "load", "program", "answer", "memory"]
    assert [result["name"] for result in results] == names
    assert all(result["ok"] for result in results)


def test_a_photo_is_taken_in_the_cache(start: Callable[..., ArkTsApp]) -> None:
    """Where the system's camera writes it; the chat keeps a copy of its own."""
    app = start()
    app.send(json.dumps({"host": "choose", "path": str(CONFIGS / "demo/sample.png")}))
    app.send('{"do": "picture", "camera": true}')
    picture = app.until("picture")["picture"]
    assert (picture["width"], picture["height"]) == (320, 240)
    home = app.installed.parents[2]
    assert app.asked == [{"host": "photo", "file": str(home / "cache/photo")}]
    assert (home / "files/pictures" / picture["id"]).exists()


def test_a_text_is_shared(start: Callable[..., ArkTsApp]) -> None:
    app = start()
    app.send(json.dumps({"do": "share", "text": "it's 中文"}))
    app.send(json.dumps({"do": "share", "text": "\ud800"}))
    app.until("error", code="invalid_text")
    assert app.asked == [{"host": "share", "text": "it's 中文"}]
    assert {"camera", "share"} <= {*app.until("state")["can"]}


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


def test_the_speed_of_the_last_seconds(npm_packages: Path) -> None:
    """As on Android (`Rate.java`): of ten seconds, in one stage, once a second has passed."""
    program = """
      const [packages, file, reports] = process.argv.slice(1);
      const ts = require(packages + '/ohos-typescript');
      const source = require('fs').readFileSync(file, 'utf8');
      const options = {module: ts.ModuleKind.CommonJS, target: ts.ScriptTarget.ES2021};
      const found = {};
      const text = ts.transpileModule(source, {compilerOptions: options}).outputText;
      new Function('exports', text)(found);
      const rate = new found.Rate();
      console.log(JSON.stringify(JSON.parse(reports).map(([stage, time, done]) => {
        rate.add(stage, time, done);
        return rate.perSecond();
      })));
    """
    reports = [
        ("import", 0, 0),
        ("import", 500, 100),
        ("import", 2000, 200),
        ("import", 11000, 2000),
        ("verify", 12000, 50),
        ("verify", 13000, 150),
    ]
    node = shutil.which("node")
    assert node is not None, "npm comes with it"
    command = [node, "-e", program, npm_packages, CORE / "Rate.ets", json.dumps(reports)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) == [0, 0, 100, 200, 0, 100]


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
