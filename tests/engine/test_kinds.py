"""Which kinds of blocks compute: those that a file names, or that are measured and remembered.

The engine for emulators of Android runs on a PC, too, and holds two kinds whose float sums differ
in their last bits: with SSE there is no fused multiplication.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convert.bundle.manifest import Bundle
from runtime.engine_client.client import LOCAL, EngineClient, engine_command
from runtime.engine_client.protocol import Field, Op, Tap
from tests.engine.engines import Built, add_phone
from tests.engine.operations import WINDOW
from tests.support.once import once

TARGET = "android-x86_64"
FAST, SLOW = "avx2_", "sse_"
WORKS = (Field.DECODE, Field.PREFILL, Field.PICTURE)
LAYERS = {Field.PER_LAYER: False, Field.WINDOW: WINDOW, Field.PINNED: 4}  # options of the tap


@pytest.fixture(scope="module")
def emulators(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Built:
    def make(folder: Path) -> None:
        shutil.copytree(built.bundle, folder / "bundle")
        add_phone(folder / "bundle", TARGET)

    bundle = once(tmp_path_factory, "emulators", make) / "bundle"
    return Built(bundle, Bundle.open(bundle).program(TARGET))


@pytest.fixture
def start(
    emulators: Built, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[EngineClient, dict[str, str]]]]:
    """Starts engines, which load the bundle; returns one and the kinds that compute."""
    running: list[EngineClient] = []

    def begin(file: Path | None, threads: int = 2) -> tuple[EngineClient, dict[str, str]]:
        monkeypatch.setenv("TVM_NUM_THREADS", str(threads))
        kinds_file = None if file is None else str(file)
        client = EngineClient(engine_command(LOCAL, emulators.program), kinds_file=kinds_file)
        running.append(client)
        return client, client.load(emulators.bundle, window=WINDOW)[Field.KINDS]

    yield begin
    for client in running:
        client.close()


def write_choices(file: Path, *choices: tuple[str, int]) -> None:
    """Replaces the last line of a file that an engine wrote: kinds and numbers of threads."""
    lines = file.read_text().splitlines()
    words = " ".join(f"{kind} {threads}" for kind, threads in choices)
    file.write_text("\n".join([*lines[:-1], words, ""]))


def write_kinds(file: Path, *kinds: str) -> None:
    """Does so for an engine with two threads."""
    write_choices(file, *((kind, 2) for kind in kinds))


def kinds_in(file: Path) -> list[str]:
    """Returns what a file says of each kind of work."""
    words = file.read_text().splitlines()[5].split()
    assert words[1::2] == ["2"] * len(WORKS)
    return words[::2]


def results(client: EngineClient, bundle: Path) -> dict[str, Any]:
    """Returns what each kind of work gives."""
    config = Bundle.open(bundle).config
    assert config.vision is not None
    rng = np.random.default_rng(5)
    width = config.decoder.hidden_size
    rows = rng.standard_normal((9, width)).astype(np.float32)
    patches = rng.standard_normal((config.vision.num_patches, config.vision.embed_dim))
    return {
        Field.DECODE: client.tap(Tap.LAYERS, rows[None, :1], LAYERS),
        Field.PREFILL: client.tap(Tap.LAYERS, rows[None], LAYERS),
        Field.PICTURE: client.tap(Tap.VISION_BLOCK, patches.astype(np.float32), {Field.INDEX: 0}),
    }


def test_without_a_file_the_first_computes(start: Any) -> None:
    client, kinds = start(None)
    assert client.hello[Field.KINDS] == [FAST, SLOW]
    assert kinds == dict.fromkeys(WORKS, FAST) and client.about[Field.KINDS] == FAST


def test_each_work_has_its_kind(start: Any, emulators: Built, tmp_path: Path) -> None:
    file = tmp_path / "kinds"
    start(file)
    pure = {}
    for kind in (FAST, SLOW):
        write_kinds(file, kind, kind, kind)
        client, kinds = start(file)
        assert set(kinds.values()) == {kind}
        pure[kind] = results(client, emulators.bundle)
    for work in WORKS:
        assert np.any(pure[FAST][work] != pure[SLOW][work]), "nothing tells the kinds apart"
    for odd in WORKS:
        wanted = {work: SLOW if work == odd else FAST for work in WORKS}
        write_kinds(file, *wanted.values())
        client, kinds = start(file)
        assert kinds == wanted
        assert client.about[Field.KINDS] == ", ".join(f"{k} for {w}" for w, k in wanted.items())
        found = results(client, emulators.bundle)
        for work in WORKS:
            np.testing.assert_array_equal(found[work], pure[wanted[work]][work], work)


def test_a_measurement_is_remembered(start: Any, tmp_path: Path) -> None:
    file = tmp_path / "kinds"
    client, kinds = start(file)
    assert set(kinds) == set(WORKS) and set(kinds.values()) <= {FAST, SLOW}
    lines = file.read_text().splitlines()
    assert lines[1:4] == [client.hello[Field.PROGRAM_ID], client.hello[Field.CPU], "2 "]
    assert lines[4].split() == [FAST, SLOW] and kinds_in(file) == list(kinds.values())
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["kinds"]
    before = file.stat().st_ino
    assert start(file)[1] == kinds and file.stat().st_ino == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[:-3],
        lambda text: text + "more\n",
        lambda text: text.replace("\n2 \n", "\n3 \n"),
        lambda text: text.replace(f"{FAST} 2", f"{FAST} 1"),
        lambda text: text.replace(f"{FAST} 2", f"{FAST}"),
        lambda text: text.rpartition(FAST)[0] + "avx512_\n",
        lambda text: "0" + text,
        lambda text: text + "\n" * 5000,
        lambda text: text.replace(FAST, "\udcff"),
    ],
)
def test_what_a_file_says_of_something_else_is_measured_anew(
    damage: Callable[[str], str], start: Any, tmp_path: Path
) -> None:
    file = tmp_path / "kinds"
    start(file)
    write_kinds(file, SLOW, SLOW, FAST)
    right = file.read_text()
    file.write_bytes(damage(right).encode(errors="surrogateescape"))
    kinds = start(file)[1]
    assert file.read_text().splitlines()[:5] == right.splitlines()[:5]
    assert kinds_in(file) == list(kinds.values())


def test_another_number_of_threads_is_measured(start: Any, tmp_path: Path) -> None:
    file = tmp_path / "kinds"
    for threads in (1, 2):
        client, _ = start(file, threads)
        assert file.read_text().splitlines()[3] == f"{threads} "
        assert client.hello[Field.THREADS] == threads


def test_with_fewer_threads_nothing_is_remembered(
    start: Any, emulators: Built, tmp_path: Path
) -> None:
    """What is measured while a phone is hot does not hold afterwards."""
    client, _ = start(None)
    fields = {Field.BUNDLE: str(emulators.bundle), Field.WINDOW: WINDOW}
    fields[Field.KINDS_FILE] = str(tmp_path / "kinds")
    for threads in (1, 2):
        client.use_threads(threads)
        assert set(client.request(Op.LOAD, fields)[Field.KINDS].values()) <= {FAST, SLOW}
        assert (tmp_path / "kinds").exists() == (threads == 2)


def test_a_file_that_cannot_be_written_costs_only_time(start: Any, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("folder", "pipe", "link", "no folder/kinds"):
        kinds = start(tmp_path / name)[1]
        assert set(kinds) == set(WORKS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "link", "pipe"]
