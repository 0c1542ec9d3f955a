"""What `chat --web` keeps: chats, pictures, settings; and what the model hears of a chat."""

from __future__ import annotations

import errno
import io
import os
import struct
import time
import uuid
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from convert.bundle.errors import BundleError
from convert.support.scratch import ScratchError
from quantize.errors import ConfigError, ToolkitError
from runtime.engine_client.client import EngineError
from runtime.engine_client.process import Death, EngineDiedError, EngineProcess
from runtime.inputs.defaults import GenerationDefaults
from runtime.inputs.picture_format import PictureError
from runtime.inputs.prompt import PromptError
from runtime.web.chats import ASSISTANT, USER, Chat, ChatStore, Turn
from runtime.web.draft import Draft
from runtime.web.failures import BusyError, InvalidTextError, error_code
from runtime.web.files import data_folder, owned
from runtime.web.jobs import ANSWER, Job, StoppedError
from runtime.web.pictures import Pictures
from runtime.web.settings import RANGES, Settings

FULL = Path("/dev/full")  # answers as a full disk does
full_disk = pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full here")


def question(text: str, picture: str | None = None) -> Turn:
    return Turn(role=USER, text=text, picture=picture)


def answer(text: str) -> Turn:
    return Turn(role=ASSISTANT, text=text, stop="eos", speed={"encode_ms": 1.0})


def heard(*turns: Turn) -> list[str]:
    return [message["content"] for message in Chat("x", list(turns), 0).messages()]


def test_the_model_hears_what_belongs_to_the_latest_picture() -> None:
    turns = [question("a"), answer("b"), question("c", "p"), answer("d"), question("e")]
    assert heard(*turns) == ["c", "d", "e"]
    assert Chat("x", turns, 0).picture() == "p"
    assert heard(*turns[:3]) == ["c"]
    assert heard(*turns[:1]) == ["a"]
    assert Chat("x", [], 0).picture() is None


def test_questions_without_an_answer_are_left_out_but_the_last() -> None:
    turns = [question("a"), question("b"), answer("c"), question("d"), answer(""), question("e")]
    assert heard(*turns) == ["b", "c", "e"]


def test_a_question_takes_the_place_of_all_that_followed() -> None:
    chat = Chat("x", [question("a"), answer("b"), question("c")], 0)
    for place in (-1, 1, 4):
        with pytest.raises(ValueError, match="no question"):
            chat.ask(place, question("z"), 1)
    chat.ask(3, question("d"), 1)
    chat.ask(0, question(" long " * 20), 2)
    assert chat.title == ("long " * 12 + "…")
    assert (len(chat.turns), chat.changed) == (1, 2)


def test_chats_are_read_as_they_were_written(tmp_path: Path) -> None:
    store = ChatStore(tmp_path / "chats")
    first, second = store.create(1), store.create(2)
    first.ask(0, question("圆形 😀", "p"), 3)
    first.answer(answer("b"), 4)
    for chat in (first, second):
        store.save(chat)
    again = ChatStore(tmp_path / "chats")
    assert again.list() == store.list()
    found = again.get(first.name)
    assert found is not None
    assert found.to_json() == first.to_json()
    assert again.pictures() == {"p"}
    again.delete(second.name)
    again.save(second)  # deleted meanwhile
    assert len(list((tmp_path / "chats").iterdir())) == 1


@pytest.mark.parametrize(
    "raw",
    [None, [], {}, {"role": "x", "text": "x"}, {"role": "user"}, {"role": "user", "text": 1}],
)
def test_what_is_no_turn_is_refused(raw: Any) -> None:
    with pytest.raises(ValueError, match="turn"):
        Turn.from_json(raw)


DAMAGED = (
    b"", b"{", b"[1]", b"null", b"\xff", b"[" * 100_000, b'{"turns": []}',
    b'{"turns": {}, "changed": 1}', b'{"turns": [], "changed": 1e999}',
    b'{"turns": [], "changed": NaN}', b'{"turns": [], "changed": -Infinity}',
    b'{"turns": [], "changed": "1"}', b'{"turns": [], "changed": true}',
    b'{"turns": [], "changed": -1}', b'{"turns": [], "changed": ' + b"9" * 5000 + b"}",
    b'{"turns": [], "changed": 99999999999999999}', b'{"turns": [], "changed": 1}}',
    b'{"turns": [1], "changed": 1}', b'{"turns": [{"role": "user"}], "changed": 1}',
    b'{"turns": [{"role": "user", "text": "a", "picture": 1}], "changed": 1}',
    b'{"turns": [{"role": "user", "text": "a", "stop": {}}], "changed": 1}',
    b'{"turns": [{"role": "user", "text": "a", "speed": 1e999}], "changed": 1}',
    b'{"turns": [{"role": ["user"], "text": "a"}], "changed": 1}',
    b'{"turns": [{"role": "user", "text": "a\\ud800"}], "changed": 1}',
)  # fmt: skip


@pytest.mark.parametrize("content", DAMAGED, ids=lambda content: repr(content[:60]))
def test_a_damaged_chat_is_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / f"{uuid.uuid4()}.json"
    path.write_bytes(content)
    store = ChatStore(tmp_path)
    assert (store.list(), store.unread) == ([], [path])
    assert path.read_bytes() == content


def test_files_that_are_no_chats_are_left_as_they_are(tmp_path: Path) -> None:
    """A named pipe is not waited for; what a killed server left half written goes."""
    good = ChatStore(tmp_path).create(1)
    ChatStore(tmp_path).save(good)  # of another store: not kept
    store = ChatStore(tmp_path)
    kept = store.create(2)
    store.save(kept)
    os.mkfifo(tmp_path / f"{uuid.uuid4()}.json")
    (tmp_path / f"{uuid.uuid4()}.json").mkdir()
    (tmp_path / f"{kept.name} (copy).json").write_bytes(b"{}")
    (tmp_path / f".{kept.name}.json.0123abcd.partial").write_bytes(b"{")
    again = ChatStore(tmp_path)
    assert len(again.unread) == 3
    assert [chat["id"] for chat in again.list()] == [kept.name]
    assert len(list(tmp_path.iterdir())) == 4


def save(folder: Pictures, content: bytes) -> dict[str, Any]:
    partial = folder.partial()
    partial.write_bytes(content)
    return folder.take(partial)


def encoded(kind: str, picture: Image.Image, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b'{"text": 3, "chat": 4, "picture": {}}', b'{"text": "a\\ud83d"}', b"\xff"],
)
def test_a_damaged_draft_is_an_empty_one(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "draft.json"
    path.write_bytes(content)
    draft = Draft(path)
    assert (draft.chat, draft.text, draft.picture) == (None, "", None)
    draft.set_text("new")
    draft.set_picture({"id": "p", "width": 1, "height": 2})
    again = Draft(path)
    assert (again.text, again.picture) == ("new", {"id": "p", "width": 1, "height": 2})
    again.asked("chat")
    assert (Draft(path).chat, Draft(path).text, Draft(path).picture) == ("chat", "", None)


def test_a_draft_on_a_full_disk_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user asks all the same."""

    def fail(path: Path, value: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("runtime.web.draft.write_json", fail)
    draft = Draft(tmp_path / "draft.json")
    draft.set_text("new")
    assert draft.text == "new"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_pictures_that_are_taken(tmp_path: Path, kind: str) -> None:
    pictures = Pictures(tmp_path / "pictures")
    red = Image.new("RGB", (2560, 20), "red")
    kept = save(pictures, encoded(kind, red))
    assert (kept["width"], kept["height"]) == (2560, 20)
    assert pictures.has(kept["id"])
    with Image.open(pictures.small(kept["id"])) as small:
        assert small.size == (1280, 10)
    fresh = Pictures(tmp_path / "pictures")
    if kind != "JPEG" and kind != "WEBP":
        assert fresh.open(kept["id"]).tobytes() == red.tobytes()  # whole, as it came
    fresh.keep_only({kept["id"]})
    assert fresh.has(kept["id"])
    mine = tmp_path / "pictures" / "notes.txt"
    mine.write_text("not a picture of ours")
    (tmp_path / "pictures" / str(uuid.uuid4())).mkdir()
    fresh.keep_only(set())
    assert not fresh.has(kept["id"]) and mine.exists()
    assert len(list((tmp_path / "pictures").iterdir())) == 2


def test_pictures_are_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    kept = save(Pictures(tmp_path), encoded("JPEG", Image.new("RGB", (60, 40)), exif=exif))
    assert (kept["width"], kept["height"]) == (40, 60)


def chunk(name: bytes, content: bytes) -> bytes:
    """Returns a chunk of a PNG."""
    crc = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)


def huge_png() -> bytes:
    """A PNG that says it is larger than what is decoded."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (encoded("GIF", Image.new("RGB", (9, 9))), "GIF pictures are not supported"),
        (b"\0\0\0\x18ftypheic" + b"\0" * 99, "HEIC"),
        (b"\0\0\0\x18ftypmif1" + b"\0" * 99, "HEIC"),
        (encoded("JPEG", Image.effect_noise((99, 99), 50))[:-500], "decoded"),
        (encoded("PNG", Image.new("RGB", (9, 9)))[:40], "decoded"),
        (huge_png(), "200,000,000 pixels"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
        (b"", "not a picture"),
        (b"\0\0\0\x1cftypavif" + b"\0" * 99, "AVIF pictures are not supported"),
    ],
)
def test_pictures_that_are_refused(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(PictureError, match=said):
        save(Pictures(tmp_path), content)
    assert list(tmp_path.iterdir()) == []


@full_disk
def test_a_full_disk_leaves_nothing_by_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = Pictures(tmp_path / "pictures")
    partial = pictures.partial()
    partial.write_bytes(encoded("PNG", Image.new("RGB", (9, 9))))
    pictures.small(partial.stem).symlink_to(FULL)
    with pytest.raises(OSError, match="No space left") as caught:
        pictures.take(partial)
    assert error_code(caught.value) == "no_space"
    assert list((tmp_path / "pictures").iterdir()) == []
    store = ChatStore(tmp_path / "chats")
    chat = store.create(1)
    chat.ask(0, question("one"), 1)
    store.save(chat)
    (path,) = (tmp_path / "chats").iterdir()
    before = path.read_bytes()
    monkeypatch.setattr("convert.support.whole_file.secrets.token_hex", lambda count: "0")
    path.with_name(f".{path.name[:40]}.0.partial").symlink_to(FULL)
    chat.answer(answer("two"), 2)
    with pytest.raises(OSError, match="No space left"):
        store.save(chat)
    assert path.read_bytes() == before
    assert list((tmp_path / "chats").iterdir()) == [path]


def test_settings(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    settings = Settings(path, GenerationDefaults.load(), 1024)
    assert settings.options(7).seed == 7
    wrong = {"temperature": float("nan"), "top_p": 1.5, "top_k": 1.5, "window": True, "x": 1}
    settings.choose({**wrong, "threads": "2", "language": "fr", "do_sample": 1})
    assert settings.all() == Settings(path, GenerationDefaults.load(), 1024).all()
    for name, given in RANGES.items():
        for value in (given["min"], given["max"]):
            settings.choose({name: value})
            settings.choose({name: given["min"] - 1})
            settings.choose({name: given["max"] + 1})
            assert settings.all()[name] == value
    settings.reset()
    settings.choose({"do_sample": False, "max_new_tokens": 5.0, "language": "zh"})
    again = Settings(path, GenerationDefaults.load(), 1024)
    assert again.all()["language"] == "zh"
    assert again.options(7).max_new_tokens == 5
    assert not again.options(7).do_sample
    again.reset()
    assert again.all()["language"] == "system"
    for damaged in ("{", "[1]", '{"window": 1e400}', '{"window": NaN}', "[" * 100_000):
        path.write_text(damaged)
        assert Settings(path, GenerationDefaults.load(), 99).all()["window"] == 99


def test_the_folder_is_this_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "relative"):  # which the standard says to ignore
        monkeypatch.setenv("XDG_DATA_HOME", value)
        assert data_folder() == tmp_path / ".local/share/minicpmv/web"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    folder = data_folder()
    assert folder == tmp_path / "data/minicpmv/web"
    with owned(folder):
        assert folder.stat().st_mode & 0o077 == 0
        with pytest.raises(ConfigError, match="another"), owned(folder):
            pass
    with owned(folder):
        pass


def test_errors_have_the_codes_that_the_page_explains(caplog: pytest.LogCaptureFixture) -> None:
    cause = PromptError("too long")
    cause.__cause__ = EngineError("invalid_text", "x")
    assert error_code(InvalidTextError("x")) == "invalid_text"
    codes = {
        "invalid_text": cause,
        "engine_died": EngineDiedError("x"),
        "engine_killed": EngineDiedError("x", Death.KILLED),
        "no_space": OSError(errno.ENOSPC, "x"),
        "invalid_picture": PictureError("x"),
        "prompt_too_long": PromptError("x"),
        "invalid_bundle": BundleError("x"),
        "busy": BusyError("x"),
        "unknown": ToolkitError("x"),
        "file_error": OSError("x"),
        "out_of_memory": MemoryError(),
    }
    assert {code: error_code(error) for code, error in codes.items()} == {c: c for c in codes}
    assert error_code(ScratchError("x")) == "no_space"
    assert not caplog.records
    assert error_code(KeyError("x")) == "internal"


@pytest.mark.parametrize(
    ("script", "seconds", "death"),
    [
        ("kill -KILL $$", 60, Death.KILLED),
        ("kill -SEGV $$", 60, Death.CRASHED),
        ("kill -ABRT $$", 60, Death.CRASHED),
        ("kill -SYS $$", 60, Death.FORBIDDEN),
        ("kill -TERM $$", 60, Death.DIED),
        ("exit 3", 60, Death.DIED),
        ("echo what; read line", 60, Death.CRASHED),
        ("read line", 0, Death.SILENT),
    ],
)
def test_how_an_engine_ended_is_known(script: str, seconds: float, death: Death) -> None:
    engine = EngineProcess(["sh", "-c", script], name="engine", environment={})
    start = time.monotonic()
    with pytest.raises(EngineDiedError, match=r"engine: (has|sent)") as caught:
        engine.receive(lambda: start + seconds)
    engine.close()
    assert error_code(caught.value) == death.value


def test_an_engine_that_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(EngineDiedError, match="does not start") as caught:
        EngineProcess([str(tmp_path / "none")], name=None, environment={})
    assert error_code(caught.value) == "no_engine"


def test_every_death_is_explained_by_the_page() -> None:
    java = "android/app/java/org/minicpmv/core/EngineException.java"
    codes = (Path(__file__).resolve().parents[3] / java).read_text("utf-8")
    assert all(f'"{death.value}"' in codes for death in Death)


def test_a_job_tells_every_percent_and_stops() -> None:
    events: list[dict[str, Any]] = []
    job = Job(ANSWER, "x", events.append)
    for done in range(0, 1001):
        job.advance("encode", done, 1000)
    assert [event["done"] for event in events] == list(range(0, 1001, 10))
    job.check()
    job.stop()
    with pytest.raises(StoppedError):
        job.check()


def test_a_job_tells_the_grid_while_a_picture_is_encoded() -> None:
    events: list[dict[str, Any]] = []
    job = Job(ANSWER, "x", events.append)
    for stage, grid in (
        ("decode", None),
        ("encode", (3, 2)),
        ("prefill", (3, 2)),
        ("encode", None),
    ):
        job.advance_picture(grid, stage, 1, 2)
    assert [event.get("grid") for event in events] == [None, (3, 2), None, None]
    job.advance_picture((3, 2), "encode", 2, 2)
    assert job.to_json()["grid"] == (3, 2)
    job.advance("load", 0, 0)
    assert "grid" not in job.to_json()
