"""The file in which an engine remembers its fastest kinds of blocks, as clients name it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from convert.bundle.manifest import Bundle
from convert.bundle.targets import HOST, PHONE
from runtime.engine_client import places
from runtime.engine_client.client import LOCAL, QEMU, EngineClient
from runtime.engine_client.options import EngineOptions
from runtime.engine_client.places import open_place
from runtime.engine_client.protocol import Field
from tests.support.needs import need_qemu

# Says what it was asked, and that blocks of these kinds compute.
ENGINE = """
import json, sys
kinds, used = json.loads(sys.argv[1]), json.loads(sys.argv[2])
hello = {"event": "hello", "protocol": 1, "threads": 4}
hello |= {} if kinds is None else {"kinds": kinds}
print(json.dumps(hello), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    reply = {"event": "done", "id": asked["id"], "asked": asked, **used}
    print(json.dumps(reply), flush=True)
"""
ONE = {"kinds": {"decode": "i8mm_", "prefill": "i8mm_", "picture": "i8mm_"}}
MIXED = {"kinds": {"decode": "i8mm_", "prefill": "sme_", "picture": "sme_"}}


def loaded(
    folder: Path, kinds: list[str] | None, used: dict[str, Any], file: str | None
) -> tuple[dict[str, Any], str]:
    """Returns the request of a load, and what the client then says of the blocks."""
    engine = folder / "engine.py"
    engine.write_text(ENGINE)
    command = [sys.executable, str(engine), json.dumps(kinds), json.dumps(used)]
    with EngineClient(command, kinds_file=file) as client:
        assert client.about[Field.KINDS] == ""
        line = client.load(Path("bundle"), window=9)
        return line["asked"], client.about[Field.KINDS]


def test_an_engine_before_0_2_0_does_not_get_the_file(tmp_path: Path) -> None:
    asked, said = loaded(tmp_path, None, ONE, "file")
    assert Field.KINDS_FILE not in asked and said == "i8mm_"


def test_other_numbers_of_threads_are_said(tmp_path: Path) -> None:
    usual = {"decode": 4, "prefill": 4, "picture": 4}
    assert loaded(tmp_path, ["i8mm_"], {**ONE, "threads": usual}, "file")[1] == "i8mm_"
    helped = {**ONE, "threads": {**usual, "prefill": 8}}
    said = loaded(tmp_path, ["i8mm_"], helped, "file")[1]
    assert said == "i8mm_ for decode, i8mm_ on 8 threads for prefill, i8mm_ for picture"
    helped["threads"] = dict.fromkeys(usual, 8)
    assert loaded(tmp_path, ["i8mm_"], helped, "file")[1] == "i8mm_ on 8 threads"


def test_an_engine_with_a_choice_gets_the_file(tmp_path: Path) -> None:
    asked, said = loaded(tmp_path, ["sme_", "i8mm_"], MIXED, "file")
    assert asked[Field.KINDS_FILE] == "file"
    assert said == "i8mm_ for decode, sme_ for prefill, sme_ for picture"
    assert Field.KINDS_FILE not in loaded(tmp_path, ["sme_", "i8mm_"], ONE, None)[0]


def file_of(bundle: Bundle, engine: str, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """Returns the file that a place gives its engine."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(places, "EngineClient", lambda *_, **options: given.update(options))
    open_place(bundle, EngineOptions(engine=engine)).start()
    found = given["kinds_file"]
    assert found is None or isinstance(found, str)
    return found


def test_this_pc_keeps_it_in_the_cache(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINICPMV_CACHE", str(tmp_path / "cache"))
    opened = Bundle.open(bundle)
    program_id = opened.manifest.targets[HOST].program_id
    assert file_of(opened, LOCAL, monkeypatch) == str(tmp_path / "cache" / "kinds" / program_id)
    assert (tmp_path / "cache" / "kinds").is_dir()


def test_without_a_cache_there_is_none(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MINICPMV_CACHE", str(tmp_path / "file"))
    assert file_of(Bundle.open(bundle), LOCAL, monkeypatch) is None


def test_a_program_id_that_is_no_hash_names_no_file(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINICPMV_CACHE", str(tmp_path / "cache"))
    opened = Bundle.open(bundle)
    named = structs.replace(opened.manifest.targets[HOST], program_id="../../elsewhere")
    monkeypatch.setitem(opened.manifest.targets, HOST, named)
    assert file_of(opened, LOCAL, monkeypatch) is None
    assert not (tmp_path / "cache").exists()


def test_an_emulator_s_times_mean_nothing(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_qemu()
    opened = Bundle.open(bundle)
    monkeypatch.setitem(opened.manifest.targets, PHONE, opened.manifest.targets[HOST])
    assert file_of(opened, QEMU, monkeypatch) is None
