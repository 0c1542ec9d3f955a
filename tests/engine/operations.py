"""Runs every operation of the engine's protocol, for tests that watch the engine meanwhile."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import structs
from PIL import Image

from convert.bundle.manifest import WEIGHTS, FileRecord
from runtime.engine_client import protocol
from runtime.engine_client.client import EngineAnswer, EngineClient, EngineError, Line
from runtime.engine_client.protocol import ErrorCode, Field, Op, Stop, Tap
from runtime.inputs.picture_file import write_picture_file
from runtime.inputs.prompt import Message
from tests.engine.handover import handing_over
from tests.engine.test_picture import random_picture

WINDOW = 160
QUESTIONS = ("What colour is the shape?", "图片里有几个圆形？")
BANDWIDTH_BYTES = 1 << 20
PATCH = 14  # pixels, of the tiny models
# What has been generated becomes ever more likely, so that EOS never comes. Without it, a random
# model's answer ends after a tenth of a second, before a cancel that a busy machine delays.
REPEATING = {"repetition_penalty": 0.01}
ENDLESS_TOKENS = 1_000_000
# Errors that no request can cause: they depend on the machine, the process, the model's numbers,
# or a bug.
UNREACHABLE = {
    *(ErrorCode.UNSUPPORTED_CPU, ErrorCode.OUT_OF_MEMORY),
    *(ErrorCode.INVALID_LOGITS, ErrorCode.INTERNAL, ErrorCode.ALREADY_RUNNING),
}


class WatchedEngine(EngineClient):
    """An engine client that records operations and errors."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.operations: set[str] = set()
        self.errors: set[str] = set()
        self.max_slices = 0  # of the loaded model
        super().__init__(*arguments, **options)

    def request(self, op: str, *arguments: Any, **options: Any) -> Line:
        self.operations.add(op)
        return super().request(op, *arguments, **options)

    def cancel(self) -> None:
        self.operations.add(Op.CANCEL)
        super().cancel()

    def refuses(self, code: str, op: str, **fields: Any) -> None:
        """Checks that a request fails with an error code."""
        try:
            self.request(op, fields)
        except EngineError as error:
            assert error.code == code, (op, error.code, str(error))
            assert str(error)
            self.errors.add(code)
        else:
            raise AssertionError(f"{op} was not refused: {fields}")

    def send_raw(self, data: bytes) -> None:
        """Sends raw bytes that the client would not send."""
        stdin = self._process._process.stdin
        assert stdin is not None
        self._process._write(stdin.fileno(), memoryview(data))

    def memory(self, name: str) -> int:
        """Returns a memory figure of the process in bytes; for example VmRSS, VmHWM."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith(f"{name}:"))
        return int(line.split()[1]) * 1024


def ask(*turns: str) -> list[Message]:
    roles = ("user", "assistant")
    return [Message(role=roles[i % 2], content=text) for i, text in enumerate(turns)]


def add_golden(
    source: Path,
    folder: Path,
    prompts: list[dict[str, Any]],
    tolerance: float = 0.5,
    picture: Image.Image | None = None,
) -> Path:
    """Copies a bundle and adds golden prompts and a picture for them."""
    shutil.copytree(source, folder)
    write_picture_file(folder / "golden.picture", picture or random_picture(33, 21, seed=5))
    golden: dict[str, Any] = {"format": "minicpmv-golden", "format_version": 2}
    golden |= {"tolerance": tolerance, "prompts": prompts}
    (folder / "golden.json").write_text(json.dumps(golden))
    manifest = json.loads((folder / "bundle.json").read_text())
    for name in ("golden.json", "golden.picture"):
        manifest["files"][name] = structs.asdict(FileRecord.of(folder / name, lambda _: None))
    (folder / "bundle.json").write_text(json.dumps(manifest))
    return folder


def golden_prompt(question: str, image: str | None, ids: list[int]) -> dict[str, Any]:
    asked = {"messages": ask(question), "image": image, "max_new_tokens": 8}
    return {**asked, "ids": ids, "steps": []}


def every_operation(client: WatchedEngine, bundle: Path, folder: Path) -> list[Any]:
    """Runs every operation and provokes every error that a client can.

    Args:
        client: an engine without a bundle.
        bundle: its bundle, without golden prompts.
        folder: an empty folder for files.

    Returns:
        What must be the same in every engine of this model.
    """
    client.refuses(ErrorCode.NOT_LOADED, Op.RESET)
    client.refuses(ErrorCode.INVALID_BUNDLE, Op.LOAD, bundle=str(folder), window=WINDOW)
    client.max_slices = client.load(bundle, window=WINDOW)[Field.MAX_SLICES]
    client.refuses(ErrorCode.NO_GOLDEN, Op.SELF_CHECK)
    _load_lent_weights(client, bundle)
    results: list[Any] = [*_text(client), *_pictures(client, folder), *_taps(client)]
    golden = add_golden(
        bundle,
        folder / "golden",
        [
            golden_prompt(QUESTIONS[0], "golden.picture", [1, 2]),
            golden_prompt(QUESTIONS[1], None, results[0]),
        ],
    )
    client.load(golden, window=WINDOW)
    checks = client.self_check()[Field.CHECKS]
    assert [check[Field.PASSED] for check in checks] == [False, True]
    assert client.bandwidth(BANDWIDTH_BYTES)[Field.MS] > 0
    assert client.profile() == []
    assert client.use_threads(1) == 1
    _errors(client, golden, folder)
    missing = {name for name in _names(Op) if name not in client.operations}
    assert not missing, f"operations not covered: {missing}"
    missing = _names(ErrorCode) - UNREACHABLE - client.errors
    assert not missing, f"errors not covered: {missing}"
    return [*results, [check[Field.TEXT] for check in checks]]


def _load_lent_weights(client: WatchedEngine, bundle: Path) -> None:
    with (bundle / WEIGHTS).open("rb") as weights, handing_over(client, weights.fileno()):
        client.request(Op.LOAD, {"bundle": str(bundle), "window": WINDOW, "receive_weights": True})


def _text(client: WatchedEngine) -> list[Any]:
    """Chats and tokenizes; the first result is the answer to the second question."""
    greedy = client.chat(ask(QUESTIONS[1]), max_new_tokens=8)
    sampling: Mapping[str, Any] = {"do_sample": True, "temperature": 1.5, "seed": 1}
    sampled = client.chat(ask(QUESTIONS[0]), max_new_tokens=8, options=sampling)
    assert client.chat(ask(QUESTIONS[0]), max_new_tokens=2, options={"do_sample": True}).ids
    stopped = client.chat(ask(QUESTIONS[1]), max_new_tokens=8, options={"stop": [greedy.text[1:3]]})
    assert stopped.stop == Stop.STOP_STRING
    answer = cancelled_answer(client)
    assert answer.stop == Stop.CANCELLED
    client.reset()
    ids = client.request(Op.TOKENIZE, {"text": QUESTIONS[1]})[Field.IDS]
    assert client.request(Op.DETOKENIZE, {"ids": ids})[Field.TEXT] == QUESTIONS[1]
    prompt = client.request(Op.TOKENIZE, {"messages": ask(*QUESTIONS[:1]), "image_tokens": 9})
    return [greedy.ids, greedy.text, sampled.ids, stopped.text, ids, prompt[Field.IDS]]


def cancelled_answer(client: EngineClient) -> EngineAnswer:
    """Asks for an endless answer and cancels it from another thread."""
    heard = threading.Event()

    def cancel() -> None:
        heard.wait(60)
        client.cancel()

    helper = threading.Thread(target=cancel)
    helper.start()
    answer = client.chat(
        ask(QUESTIONS[0]),
        max_new_tokens=ENDLESS_TOKENS,
        options=REPEATING,
        on_text=lambda _: heard.set(),
    )
    helper.join()
    return answer


def _pictures(client: WatchedEngine, folder: Path) -> list[Any]:
    """Encodes a picture, evicts it, restores it from a file, and asks about it."""
    picture = random_picture(80, 90)
    image = client.image(picture)[Field.IMAGE]
    assert client.image(picture)[Field.REMEMBERED]
    answer = client.chat(ask(QUESTIONS[0]), image=image, max_new_tokens=8)
    client.save_image(image, folder / "embeddings")
    client.save_image(image, folder / "embeddings")  # replaces it
    assert client.restore_image(folder / "embeddings")[Field.REMEMBERED]
    for seed in range(8):
        client.image(random_picture(10, 10, seed))
    client.refuses(
        ErrorCode.UNKNOWN_PICTURE,
        Op.CHAT,
        messages=ask(QUESTIONS[0]),
        image=image,
        max_new_tokens=1,
    )
    restored = client.restore_image(folder / "embeddings")
    assert (restored[Field.IMAGE], restored[Field.REMEMBERED]) == (image, False)
    turns = [QUESTIONS[0], answer.text, QUESTIONS[1]]
    second = client.chat(ask(*turns), image=image, max_new_tokens=8)
    assert second.statistics[Field.REUSED_TOKENS] > 0
    return [image, answer.ids, second.ids]


def _taps(client: WatchedEngine) -> list[Any]:
    """Runs every stage; the numbers differ between processors."""
    picture = random_picture(20, 30)
    width, height = map(int, client.tap(Tap.CUT, picture)[0])
    pixels = client.tap(Tap.PREPROCESS, picture)
    assert pixels.shape == (3, height, width)
    sides: dict[str, Any] = {}
    patches: dict[str, Any] = {}
    if client.max_slices:
        sides = {Field.WIDTH: width, Field.HEIGHT: height}
        patches = {Field.COLUMNS: width // PATCH, Field.ROWS: height // PATCH}
    x = client.tap(Tap.VISION_EMBED, pixels, sides)
    x = client.tap(Tap.VISION_BLOCK, x, {"index": 0})
    tokens = client.tap(Tap.RESAMPLER, client.tap(Tap.VISION_NORM, x), patches)
    embedded = client.tap(Tap.EMBED, [1, 2, 3])
    hidden = client.tap(Tap.LAYERS, embedded, {"window": WINDOW, "pinned": 4})
    logits = client.tap(Tap.LOGITS, hidden[-1])
    assert all(np.isfinite(values).all() for values in (tokens, logits))
    return [tokens.shape, logits.shape]


def _errors(client: WatchedEngine, bundle: Path, folder: Path) -> None:
    client.refuses(ErrorCode.INVALID_REQUEST, "sing")
    client.refuses(ErrorCode.INVALID_PICTURE, Op.IMAGE, path=str(folder))
    client.refuses(ErrorCode.INVALID_EMBEDDINGS, Op.RESTORE_IMAGE, path=str(folder / "missing"))
    image = client.image(random_picture(10, 10))[Field.IMAGE]
    client.refuses(ErrorCode.FILE_ERROR, Op.SAVE_IMAGE, image=image, path=str(folder))
    tap = {"what": Tap.LOGITS, "input": str(folder / "missing"), "output": str(folder / "output")}
    client.refuses(ErrorCode.FILE_ERROR, Op.TAP, **tap)
    long = ask("colour " * WINDOW)
    client.refuses(ErrorCode.PROMPT_TOO_LONG, Op.CHAT, messages=long, max_new_tokens=1)
    _refuses_lines(client)
    _refuses_another_program(client, bundle, folder)
    _cancels_while_waiting(client)


def _refuses_lines(client: WatchedEngine) -> None:
    """Checks that invalid lines are answered without an id."""
    for line, code in (
        (b'{"op": "r\xff"}\n', ErrorCode.INVALID_TEXT),
        (b"x" * (protocol.LINE_LIMIT + 1) + b"\n", ErrorCode.INVALID_REQUEST),
    ):
        client.send_raw(line)
        client.refuses(code, Op.RESET)  # receives the reply to the previous line
        client.reset()


def _refuses_another_program(client: WatchedEngine, bundle: Path, folder: Path) -> None:
    other = folder / "other"
    shutil.copytree(bundle, other)
    manifest = json.loads((other / "bundle.json").read_text())
    for target in manifest["targets"].values():
        target["program_id"] = "0"
    (other / "bundle.json").write_text(json.dumps(manifest))
    client.refuses(ErrorCode.OTHER_PROGRAM, Op.LOAD, bundle=str(other), window=WINDOW)


def _cancels_while_waiting(client: WatchedEngine) -> None:
    """Checks that a cancel also ends a queued request before it starts."""
    chat = {"messages": ask(QUESTIONS[0]), "max_new_tokens": ENDLESS_TOKENS, **REPEATING}
    endless = {Field.OP: Op.CHAT, Field.ID: "nobody's", **chat}
    waiting = {Field.OP: Op.BANDWIDTH}
    lines = [json.dumps(line).encode() + b"\n" for line in (endless, waiting)]
    client.send_raw(b"".join(lines))
    client.cancel()
    client.refuses(ErrorCode.CANCELLED, Op.RESET)  # receives the reply to the second line
    client.reset()


def _names(names: type) -> set[str]:
    return {value for key, value in vars(names).items() if key.isupper()}
