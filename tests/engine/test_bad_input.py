"""Bad input is refused with a code and a message; the bundle stays loaded and usable."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from convert.bundle.program import Program
from runtime.engine_client.client import EngineError
from runtime.engine_client.protocol import ErrorCode, Field, Op, Tap
from runtime.inputs.picture_file import HEADER, MAGIC, VERSION, write_picture_file
from tests.engine.engines import Built
from tests.engine.operations import QUESTIONS, WINDOW, WatchedEngine, ask
from tests.engine.test_picture import random_picture
from tests.support.tiny_tokenizer import wrong_tokenizers

PIXELS = bytes(3 * 4 * 5)
GOOD = (MAGIC, VERSION, 4, 5, 0)


@pytest.fixture(scope="module")
def running(built: Built, engine: list[str | Program]) -> Iterator[WatchedEngine]:
    with WatchedEngine(engine, quiet_seconds=60) as client:
        client.load(built.bundle, window=WINDOW)
        yield client


@pytest.fixture
def client(running: WatchedEngine) -> Iterator[WatchedEngine]:
    yield running
    assert running.chat(ask(QUESTIONS[0]), max_new_tokens=1).ids, "the next request works"


@pytest.mark.parametrize(
    ("header", "pixels"),
    [
        ((MAGIC, VERSION, 0, 0, 0), b""),
        ((MAGIC, VERSION, 0, 0, 0), PIXELS),
        ((MAGIC, VERSION, 0, 5, 0), b""),
        ((MAGIC, VERSION, 4, 0, 0), b""),
        (GOOD, b""),
        (GOOD, PIXELS[:-1]),
        (GOOD, PIXELS + b"\0"),
        ((MAGIC, VERSION, 2**32 - 1, 2**32 - 1, 0), PIXELS),
        ((MAGIC, VERSION, 2**31, 2**31, 0), b""),
        ((MAGIC, 2, 4, 5, 0), PIXELS),
        ((MAGIC, VERSION, 4, 5, 1), PIXELS),
        ((b"MCPMVEMB", VERSION, 4, 5, 0), PIXELS),
    ],
)
def test_pictures(
    client: WatchedEngine, tmp_path: Path, header: tuple[Any, ...], pixels: bytes
) -> None:
    path = tmp_path / "picture"
    path.write_bytes(HEADER.pack(*header) + pixels)
    client.refuses(ErrorCode.INVALID_PICTURE, Op.IMAGE, path=str(path))
    path.write_bytes(HEADER.pack(*header)[:10])
    client.refuses(ErrorCode.INVALID_PICTURE, Op.IMAGE, path=str(path))
    path.write_bytes(HEADER.pack(*GOOD) + PIXELS)
    assert client.request(Op.IMAGE, {Field.PATH: str(path)})[Field.IMAGE]


@pytest.mark.parametrize(
    "field",
    [
        *('"temperature": -1', '"temperature": 1e999', '"temperature": NaN', '"top_p": -0.1'),
        *('"top_p": 1.5', '"top_k": -5', '"top_k": 1.5', '"repetition_penalty": -1'),
        *('"seed": -1', '"max_new_tokens": -1', '"max_new_tokens": 99999999999999999999'),
    ],
)
def test_numbers(client: WatchedEngine, field: str) -> None:
    message = '{"role": "user", "content": "What?"}'
    rest = "" if "max_new_tokens" in field else ', "max_new_tokens": 1'
    line = f'{{"op": "chat", "do_sample": true, "messages": [{message}], {field}{rest}}}\n'
    client.send_raw(line.encode())
    client.refuses(ErrorCode.INVALID_REQUEST, Op.RESET)  # receives the previous line's reply
    client.reset()


def test_texts(client: WatchedEngine) -> None:
    for data in (b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe4\xb8"):
        client.send_raw(b'{"op": "tokenize", "text": "' + data + b'"}\n')
        client.refuses(ErrorCode.INVALID_TEXT, Op.RESET)
    client.reset()


@pytest.mark.parametrize("pictured", [False, True])
def test_prompts_longer_than_the_window(client: WatchedEngine, pictured: bool) -> None:
    image = client.image(random_picture(20, 20))[Field.IMAGE] if pictured else None
    fields = {"messages": ask("colour " * WINDOW), "image": image, "max_new_tokens": 1}
    client.refuses(ErrorCode.PROMPT_TOO_LONG, Op.CHAT, **fields)


@pytest.mark.parametrize("name", ["weights.safetensors", "tokenizer.model"])
def test_files_of_bundles(client: WatchedEngine, built: Built, tmp_path: Path, name: str) -> None:
    """Truncated, longer, missing, a folder, and garbage of the right size."""
    folder = tmp_path / "bundle"
    shutil.copytree(built.bundle, folder)
    path = folder / name
    whole = path.read_bytes()
    contents = [whole[:-1], whole + b"\0", b"", whole[: len(whole) // 2]]
    for content in [*contents, b"\xff" * len(whole)]:
        path.write_bytes(content)
        client.refuses(ErrorCode.INVALID_BUNDLE, Op.LOAD, bundle=str(folder), window=WINDOW)
    path.unlink()
    client.refuses(ErrorCode.INVALID_BUNDLE, Op.LOAD, bundle=str(folder), window=WINDOW)
    path.mkdir()
    client.refuses(ErrorCode.INVALID_BUNDLE, Op.LOAD, bundle=str(folder), window=WINDOW)


@pytest.mark.parametrize("which", wrong_tokenizers())
def test_tokenizers(client: WatchedEngine, built: Built, tmp_path: Path, which: str) -> None:
    """Invalid tokenizers that the manifest lists with the right size and hash."""
    folder = tmp_path / "bundle"
    shutil.copytree(built.bundle, folder)
    content, says = wrong_tokenizers()[which]
    (folder / "tokenizer.model").write_bytes(content)
    manifest = json.loads((folder / "bundle.json").read_text())
    manifest["files"]["tokenizer.model"]["size"] = len(content)
    (folder / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(EngineError, match=rf"tokenizer\.model: .*({says})") as caught:
        client.load(folder, window=WINDOW)
    assert caught.value.code == ErrorCode.INVALID_BUNDLE


@pytest.mark.parametrize("name", ["bundle.json", "weights.safetensors", "tokenizer.model"])
def test_a_pipe_in_a_bundle(client: WatchedEngine, built: Built, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(built.bundle, folder)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    client.refuses(ErrorCode.INVALID_BUNDLE, Op.LOAD, bundle=str(folder), window=WINDOW)


def test_pipes_and_devices_as_files(client: WatchedEngine, tmp_path: Path) -> None:
    """Opening a pipe would block until its other end opens; reading a device might never end."""
    pipe, floats = tmp_path / "pipe", tmp_path / "floats"
    os.mkfifo(pipe)
    floats.write_bytes(bytes(4 * 256))
    for path in (str(pipe), "/dev/zero"):
        client.refuses(ErrorCode.INVALID_PICTURE, Op.IMAGE, path=path)
        client.refuses(ErrorCode.INVALID_EMBEDDINGS, Op.RESTORE_IMAGE, path=path)
        stage = {Field.WHAT: Tap.LOGITS, Field.OUTPUT: str(tmp_path / "out")}
        client.refuses(ErrorCode.FILE_ERROR, Op.TAP, **stage, input=path)
        client.refuses(
            ErrorCode.FILE_ERROR, Op.TAP, **stage | {"input": str(floats), "output": path}
        )


@pytest.mark.parametrize(
    "change",
    [
        {"patch_size": 7},
        {"patch_size": "14"},
        {"patch_size": 2**40},
        {"image_size": 55},
        {"slice_mode": True},
        {"slice_mode": False},
        {"eos_token_id": 501},
        {"eos_token_id": -1},
        {"num_hidden_layers": 10**9},
        {"hidden_size": 2**62},
        {"rope_theta": "1e400"},
        {"rope_theta": 0},
    ],
)
def test_numbers_of_a_model(
    client: WatchedEngine, built: Built, tmp_path: Path, change: dict[str, Any]
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(built.bundle, folder)
    manifest = json.loads((folder / "bundle.json").read_text())
    model = manifest["model"]
    for given in ({"patch_size": 14}, {"patch_size": None}):  # both are valid
        (folder / "bundle.json").write_text(json.dumps(manifest | {"model": model | given}))
        client.load(folder, window=WINDOW)
    text = json.dumps(manifest | {"model": model | change}).replace('"1e400"', "1e400")
    (folder / "bundle.json").write_text(text)
    client.refuses(ErrorCode.INVALID_BUNDLE, Op.LOAD, bundle=str(folder), window=WINDOW)
    huge = text.replace('"vocab_size": 501', '"vocab_size": 5' + "0" * 5000)
    (folder / "bundle.json").write_text(huge)
    client.refuses(ErrorCode.INVALID_BUNDLE, Op.LOAD, bundle=str(folder), window=WINDOW)


def test_manifests(client: WatchedEngine, built: Built, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(built.bundle, folder)
    manifest = json.loads((folder / "bundle.json").read_text())
    files = manifest["files"]
    changes: list[tuple[dict[str, Any], str]] = [
        ({"format_version": 1}, ErrorCode.INVALID_BUNDLE),
        ({"kv_cache": "int4"}, ErrorCode.INVALID_BUNDLE),
        ({"kv_cache": None}, ErrorCode.INVALID_BUNDLE),
        ({"format_version": "2"}, ErrorCode.INVALID_BUNDLE),
        ({"format": "zip"}, ErrorCode.INVALID_BUNDLE),
        ({"targets": {}}, ErrorCode.OTHER_PROGRAM),
        ({"files": {}}, ErrorCode.INVALID_BUNDLE),
        ({"files": files | {"weights.safetensors": {"size": 1}}}, ErrorCode.INVALID_BUNDLE),
        ({"files": files | {"more": {"size": -1}}}, ErrorCode.INVALID_BUNDLE),
    ]
    for change, code in changes:
        (folder / "bundle.json").write_text(json.dumps(manifest | change))
        client.refuses(code, Op.LOAD, bundle=str(folder), window=WINDOW)
    for content in (b"", b"{", b"\xff", b"[" * 100_000, b"null"):
        (folder / "bundle.json").write_bytes(content)
        client.refuses(ErrorCode.INVALID_BUNDLE, Op.LOAD, bundle=str(folder), window=WINDOW)
    picture = tmp_path / "picture"
    write_picture_file(picture, random_picture(10, 10))
    assert client.request(Op.IMAGE, {Field.PATH: str(picture)})[Field.IMAGE], "the model stays"
