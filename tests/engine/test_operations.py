"""The engine's other operations: saved pictures, the self-check, measurements, threads."""

from __future__ import annotations

import json
import os
import resource
import shutil
import stat
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convert.bundle.manifest import Bundle, FileRecord
from convert.bundle.program import Program
from convert.conversion import bundle_writer
from runtime.engine_client.client import LOCAL, EngineClient, EngineError, engine_command
from runtime.engine_client.protocol import ErrorCode, Field, Op, Stage, Tap
from tests.engine.engines import Built
from tests.engine.operations import (
    QUESTIONS,
    WINDOW,
    WatchedEngine,
    add_golden,
    ask,
    every_operation,
    golden_prompt,
)
from tests.engine.test_picture import random_picture

HEADER = struct.Struct("<8sIIIIIIQ")  # of an embeddings file
KEY_BYTES = 8  # before the values of each image


@pytest.fixture(scope="module")
def running(built: Built, engine: list[str | Program]) -> Iterator[WatchedEngine]:
    with WatchedEngine(engine, quiet_seconds=60) as client:
        yield client


@pytest.fixture
def client(built: Built, running: WatchedEngine) -> WatchedEngine:
    """An engine with the bundle freshly loaded."""
    running.load(built.bundle, window=WINDOW)
    return running


def test_more_threads_give_the_same_answers(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every operation, with one thread and with more."""
    results = []
    for threads in (1, 2, 5):
        monkeypatch.setenv("TVM_NUM_THREADS", str(threads))
        folder = tmp_path / str(threads)
        folder.mkdir()
        with WatchedEngine(engine_command(LOCAL, built.program)) as client:
            assert client.hello[Field.THREADS] == threads
            results.append(every_operation(client, built.bundle, folder))
    assert results[0] == results[1] == results[2]


def test_hello_names_the_machine(running: WatchedEngine) -> None:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    assert running.hello[Field.CPU] == names[0]
    lines = Path("/proc/meminfo").read_text().splitlines()
    memory = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal"))
    assert running.hello[Field.MEMORY_BYTES] == memory


def test_a_saved_picture_answers_as_the_encoded(
    client: WatchedEngine, built: Built, tmp_path: Path
) -> None:
    """Including in another run of the engine."""
    path = tmp_path / "embeddings"
    image = client.image(random_picture(70, 40))[Field.IMAGE]
    client.save_image(image, path)
    answer = client.chat(ask(QUESTIONS[0]), image=image, max_new_tokens=10)
    content = path.read_bytes()
    magic, version, length, *grid, tokens, width, _ = HEADER.unpack_from(content)
    assert (magic, version, grid) == (b"MCPMVEMB", 2, [0, 0])
    manifest = Bundle.open(built.bundle).manifest
    identity = (manifest.targets["host"].program_id, manifest.files["weights.safetensors"].sha256)
    assert content[HEADER.size :][:length].decode() == " ".join(identity)
    images = content[HEADER.size + length :]
    assert any(images[:KEY_BYTES])
    values = np.frombuffer(images[KEY_BYTES:], "<f4").reshape(tokens, width)
    assert values.shape == (9, 256) and np.ptp(values) > 0.1
    assert [p.name for p in tmp_path.iterdir()] == ["embeddings"], "no half-written file"
    client.load(built.bundle, window=WINDOW)  # evicts the picture
    for remembered in (False, True):
        line = client.restore_image(path)
        assert (line[Field.IMAGE], line[Field.REMEMBERED]) == (image, remembered)
    again = client.chat(ask(QUESTIONS[0]), image=image, max_new_tokens=10)
    assert again.ids == answer.ids


def test_damaged_embeddings_are_refused(
    client: WatchedEngine, built: Built, tmp_path: Path
) -> None:
    path = tmp_path / "embeddings"
    client.save_image(client.image(random_picture(20, 40))[Field.IMAGE], path)
    whole = path.read_bytes()
    contents = [b"", whole[:40], whole[:-1], whole + b"\0", bytes(len(whole))]
    for place in (0, 8, 12, 16, 24, 28, 32, 45, 200, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        contents.append(bytes(damaged))
    for content in contents:
        path.write_bytes(content)
        client.refuses(ErrorCode.INVALID_EMBEDDINGS, Op.RESTORE_IMAGE, path=str(path))
    for other in (tmp_path, tmp_path / "missing", Path("/dev/zero")):
        client.refuses(ErrorCode.INVALID_EMBEDDINGS, Op.RESTORE_IMAGE, path=str(other))
    path.write_bytes(whole)
    assert client.restore_image(path)[Field.REMEMBERED]


def test_embeddings_of_other_weights_are_refused(
    client: WatchedEngine, built: Built, tmp_path: Path
) -> None:
    path, image = tmp_path / "embeddings", client.image(random_picture(20, 40))[Field.IMAGE]
    client.save_image(image, path)
    other = add_golden(built.bundle, tmp_path / "other", [])
    manifest = json.loads((other / "bundle.json").read_text())
    manifest["files"]["weights.safetensors"]["sha256"] = "0" * 64
    (other / "bundle.json").write_text(json.dumps(manifest))
    client.load(other, window=WINDOW)
    with pytest.raises(EngineError, match="other weights") as error:
        client.restore_image(path)
    assert error.value.code == ErrorCode.INVALID_EMBEDDINGS


def test_a_picture_that_cannot_be_saved(client: WatchedEngine, tmp_path: Path) -> None:
    image = client.image(random_picture(20, 40))[Field.IMAGE]
    for path in (tmp_path, tmp_path / "missing" / "embeddings"):
        client.refuses(ErrorCode.FILE_ERROR, Op.SAVE_IMAGE, image=image, path=str(path))
    client.refuses(ErrorCode.INVALID_REQUEST, Op.SAVE_IMAGE, path=str(tmp_path / "embeddings"))
    client.refuses(
        ErrorCode.UNKNOWN_PICTURE, Op.SAVE_IMAGE, image="0", path=str(tmp_path / "embeddings")
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("op", [Op.SAVE_IMAGE, Op.TAP])
def test_only_regular_files_are_replaced(
    client: WatchedEngine, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, op: str
) -> None:
    """A file keeps its permissions, a link leads where it led, a pipe stays a pipe."""
    where, fields = Field.PATH, {Field.IMAGE: client.image(random_picture(20, 40))[Field.IMAGE]}
    if op == Op.TAP:
        values = tmp_path_factory.mktemp("input") / "values"
        values.write_bytes(bytes(4 * 256))
        where, fields = Field.OUTPUT, {Field.WHAT: Tap.LOGITS, Field.INPUT: str(values)}
    pipe, nowhere, device = tmp_path / "pipe", tmp_path / "nowhere", tmp_path / "device"
    os.mkfifo(pipe)
    nowhere.symlink_to(tmp_path / "missing")
    device.symlink_to("/dev/null")
    for path in (pipe, nowhere, device):
        client.refuses(ErrorCode.FILE_ERROR, op, **fields, **{where: str(path)})
    assert stat.S_ISFIFO(pipe.lstat().st_mode) and stat.S_ISCHR(device.stat().st_mode)
    assert not nowhere.exists()
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_bytes(bytes(1 << 20))
    file.chmod(0o640)
    link.symlink_to(file.name)
    line = client.request(op, {**fields, where: str(link)})
    assert link.is_symlink() and stat.S_IMODE(file.stat().st_mode) == 0o640
    if op == Op.TAP:
        assert file.stat().st_size == 4 * np.prod(line[Field.SHAPE])
    else:
        assert file.read_bytes().startswith(b"MCPMVEMB")
    assert {p.name for p in tmp_path.iterdir()} == {"pipe", "nowhere", "device", "file", "link"}


def test_self_check(client: WatchedEngine, built: Built, tmp_path: Path) -> None:
    golden_picture = client.image(random_picture(33, 21, seed=5))[Field.IMAGE]
    pictured = client.chat(ask(QUESTIONS[0]), image=golden_picture, max_new_tokens=8)
    plain = client.chat(ask(QUESTIONS[1]), max_new_tokens=8)
    prompts = [
        golden_prompt(QUESTIONS[0], "golden.picture", pictured.ids),
        golden_prompt(QUESTIONS[1], None, plain.ids),
    ]
    client.load(add_golden(built.bundle, tmp_path / "golden", prompts), window=WINDOW)
    kept = [client.image(random_picture(9, 9, seed))[Field.IMAGE] for seed in range(8)]
    before = client.chat(ask(QUESTIONS[0]), image=kept[0], max_new_tokens=8)
    heard: list[tuple[str, int, int]] = []
    line = client.self_check(lambda *progress: heard.append(progress))
    assert line[Field.PASSED] and line[Field.PEAK_RSS_BYTES] > 1 << 20
    assert [(c[Field.QUESTION], c[Field.TEXT], c[Field.PASSED]) for c in line[Field.CHECKS]] == [
        (QUESTIONS[0], pictured.text, True),
        (QUESTIONS[1], plain.text, True),
    ]
    assert all(c[Field.EXPECTED] == c[Field.TEXT] for c in line[Field.CHECKS])
    assert heard == [(Stage.SELF_CHECK, done, 2) for done in range(3)]
    after = client.chat(ask(QUESTIONS[0]), image=kept[0], max_new_tokens=8)
    assert after.ids == before.ids and after.statistics[Field.REUSED_TOKENS] == 0
    for image in kept:
        assert client.chat(ask(QUESTIONS[1]), image=image, max_new_tokens=1).ids


def test_a_converted_bundle_checks_itself(
    client: WatchedEngine, built: Built, tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(built.bundle, folder)
    bundle_writer.add_golden(folder, Bundle.open(folder).manifest, lambda *_: None)
    client.load(folder, window=WINDOW)
    line = client.self_check()
    assert line[Field.PASSED] and len(line[Field.CHECKS]) > 1


def test_self_check_finds_altered_weights(
    client: WatchedEngine, built: Built, tmp_path: Path
) -> None:
    """A file of the right size with altered bytes is loaded: loading does not check hashes."""
    answer = client.chat(ask(QUESTIONS[0]), max_new_tokens=8)
    folder = add_golden(
        built.bundle, tmp_path / "altered", [golden_prompt(QUESTIONS[0], None, answer.ids)]
    )
    weights = folder / "weights.safetensors"
    content = np.frombuffer(weights.read_bytes(), np.uint8).copy()
    content[8 + int(content[:8].view("<u8")[0]) :] ^= 0x11
    weights.write_bytes(content)
    client.load(folder, window=WINDOW)
    line = client.self_check()
    assert not line[Field.PASSED]
    check = line[Field.CHECKS][0]
    assert check[Field.EXPECTED] == answer.text != check[Field.TEXT]


def test_golden_prompts_that_are_none(client: WatchedEngine, built: Built, tmp_path: Path) -> None:
    folder = add_golden(built.bundle, tmp_path / "golden", [])
    client.load(folder, window=WINDOW)
    client.refuses(ErrorCode.INVALID_BUNDLE, Op.SELF_CHECK)
    good = golden_prompt(QUESTIONS[0], None, [1])
    golden: dict[str, Any] = {"format": "minicpmv-golden", "format_version": 2}
    golden |= {"tolerance": 0.5, "prompts": [good]}
    wrong: list[dict[str, Any]] = [
        golden | {"format": "zip"},
        golden | {"format_version": 1},
        golden | {"tolerance": "0.5"},
        golden | {"more": 1},
        golden | {"prompts": "none"},
        golden | {"prompts": [good | {"ids": [-1]}]},
        golden | {"prompts": [good | {"messages": []}]},
        golden | {"prompts": [good | {"max_new_tokens": 0}]},
        golden | {"prompts": [good | {"image": "missing"}]},
        golden | {"prompts": [good | {"image": "../golden/golden.picture"}]},
    ]
    for content in ("", "[", *map(json.dumps, wrong)):
        _write_listed(folder, "golden.json", content)
        client.load(folder, window=WINDOW)
        client.refuses(ErrorCode.INVALID_BUNDLE, Op.SELF_CHECK)
    (folder / "golden.json").write_text("altered")
    client.refuses(ErrorCode.INVALID_BUNDLE, Op.SELF_CHECK)
    _write_listed(folder, "golden.json", json.dumps(golden))
    client.load(folder, window=WINDOW)
    assert not client.self_check()[Field.PASSED]
    client.refuses(ErrorCode.INVALID_REQUEST, Op.SELF_CHECK, bundle="other")


def _write_listed(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content)
    manifest = json.loads((folder / "bundle.json").read_text())
    manifest["files"][name] = {
        "size": len(content.encode()),
        "sha256": FileRecord.of(folder / name, lambda _: None).sha256,
    }
    (folder / "bundle.json").write_text(json.dumps(manifest))


def test_bandwidth(client: WatchedEngine) -> None:
    before = client.memory("VmRSS")
    line = client.bandwidth(64 << 20)
    assert line[Field.BYTES] == 64 << 20
    assert line[Field.MS] > 0
    assert line[Field.LAUNCH_US] > 0
    assert client.memory("VmHWM") > 64 << 20, "the pages are really there"
    assert client.memory("VmRSS") < before + (32 << 20), "and given back"
    for size in (0, -1, (1 << 20) - 1, (1 << 30) + 1, 2**62, 1.5):
        client.refuses(ErrorCode.INVALID_REQUEST, Op.BANDWIDTH, bytes=size)


def test_profile(client: WatchedEngine, built: Built) -> None:
    """Every kernel that ran since the last profile, and no more time than elapsed."""
    assert client.profile() == []
    started = time.perf_counter()
    client.chat(ask(QUESTIONS[0]), max_new_tokens=3)
    passed = (time.perf_counter() - started) * 1000
    kernels = {kernel[Field.NAME]: kernel for kernel in client.profile()}
    assert 0 < sum(kernel[Field.MS] for kernel in kernels.values()) <= passed
    layers = Bundle.open(built.bundle).config.decoder.num_hidden_layers
    stored = next(v for name, v in kernels.items() if "rotate_and_store" in name)
    assert stored[Field.CALLS] % layers == 0
    (head,) = (v for name, v in kernels.items() if "linear_q4_501x256" in name)
    assert head[Field.ROWS] == head[Field.CALLS], "only a chunk's last token gets logits"
    assert not any("vision" in name or "word_attention" in name for name in kernels), "no picture"
    assert client.profile() == []
    client.load(built.bundle, window=WINDOW)
    client.chat(ask(QUESTIONS[0]), max_new_tokens=2)
    assert client.profile() == [], "a model that was loaded anew is not measured"


def test_too_little_memory(built: Built) -> None:
    """It is a named error, and the loaded bundle stays."""
    with EngineClient(engine_command(LOCAL, built.program)) as client:
        client.load(built.bundle, window=WINDOW)
        pid = client._process.pid
        address_space = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * 4096
        limit = address_space + (64 << 20)
        resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))
        for op, fields in (
            (Op.BANDWIDTH, {Field.BYTES: 1 << 30}),
            (Op.LOAD, {Field.BUNDLE: str(built.bundle), Field.WINDOW: 1 << 20}),
        ):
            with pytest.raises(EngineError) as error:
                client.request(op, fields)
            assert error.value.code == ErrorCode.OUT_OF_MEMORY
        assert client.chat(ask(QUESTIONS[0]), max_new_tokens=2).ids
