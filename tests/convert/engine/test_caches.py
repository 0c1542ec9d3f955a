"""Caches: compiled blocks come back whole or are made anew; what nobody uses goes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from convert.bundle.plan import Recipe, make_plan
from convert.calibrate import store as calibration_store
from convert.calibrate.store import CalibrationStore
from convert.checkpoint.config import ModelConfig
from convert.engine import compile, object_cache
from convert.engine.compile import Target, Variant, compile_blocks
from convert.engine.object_cache import LIST, cached_objects
from convert.support.cache import (
    DAY,
    KEPT_SECONDS,
    CacheError,
    cache_folder,
    kept_entry,
    pinned_file,
    prune,
)
from tests.support.tiny_config import tiny_config

ABOUT = {"module": "text", "versions": {"tvm": "1"}}


class Maker:
    """Stands for the compiler."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, folder: Path) -> None:
        self.times += 1
        (folder / "lib0.o").write_bytes(b"machine code")
        (folder / "devc.o").write_bytes(b"constants")


def objects(home: Path, make: Callable[[Path], None], **about: Any) -> dict[str, bytes]:
    """Returns the objects that come into a fresh folder."""
    folder = home / "objects"
    shutil.rmtree(folder, ignore_errors=True)
    found = cached_objects(ABOUT | about, folder, make, home / "blocks")
    assert [path.parent for path in found] == [folder] * len(found)
    return {path.name: path.read_bytes() for path in found}


MADE = {"devc.o": b"constants", "lib0.o": b"machine code"}


def test_the_same_work_is_done_once(tmp_path: Path) -> None:
    make = Maker()
    assert objects(tmp_path, make) == objects(tmp_path, make) == MADE
    assert make.times == 1
    assert objects(tmp_path, make, module="another") == MADE
    assert objects(tmp_path, make, versions={"tvm": "2"}) == MADE
    assert make.times == 3
    assert len(os.listdir(tmp_path / "blocks")) == 3


def _only(folder: Path) -> Path:
    (entry,) = folder.iterdir()
    return entry


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: (entry / "lib0.o").write_bytes(b"machine cod3"),
        lambda entry: (entry / "lib0.o").unlink(),
        lambda entry: (entry / LIST).unlink(),
        lambda entry: (entry / LIST).write_text("{"),
        lambda entry: (entry / LIST).write_text("{}"),
        lambda entry: (entry / LIST).write_text("[5]"),
        lambda entry: (entry / LIST).write_text('["lib0.o"]'),
        lambda entry: (entry / LIST).write_text('"lib0.o"'),
        lambda entry: (entry / LIST).write_text("[" * 100_000),
        lambda entry: (entry / LIST).write_bytes(b"\xff{}"),
        lambda entry: ((entry / "lib0.o").unlink(), (entry / "lib0.o").mkdir()),
        lambda entry: (shutil.rmtree(entry), entry.write_text("a file")),
        lambda entry: (shutil.rmtree(entry), entry.symlink_to("nowhere")),
    ],
)
def test_what_is_damaged_is_made_anew(
    damage: Callable[[Path], Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make = Maker()
    objects(tmp_path, make)
    damage(_only(tmp_path / "blocks"))
    assert objects(tmp_path, make) == objects(tmp_path, make) == MADE
    assert make.times == 2
    entry = _only(tmp_path / "blocks")
    assert caplog.messages == [f"{entry}: damaged; compiled again"]


def test_what_is_gone_is_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make = Maker()
    objects(tmp_path, make)
    shutil.rmtree(_only(tmp_path / "blocks"))
    assert objects(tmp_path, make) == MADE
    assert (make.times, caplog.messages) == (2, [])


def test_another_process_may_be_faster(tmp_path: Path) -> None:
    other = Maker()

    def make(folder: Path) -> None:
        other(folder)
        objects(tmp_path, other)  # the same entry appears meanwhile

    assert objects(tmp_path, make) == MADE
    assert len(os.listdir(tmp_path / "blocks")) == 1


def test_what_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "lib0.o").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        objects(tmp_path, fail)
    assert not os.listdir(tmp_path / "blocks")


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "blocks").write_text("a file")
    with pytest.raises(CacheError, match=r"blocks: cannot be written: .*MINICPMV_CACHE"):
        objects(tmp_path, Maker())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_full_or_foreign_cache_is_named(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever writes into the cache says where, why, and what to do."""
    cache = tmp_path / "cache"
    digest = hashlib.sha256(b"whole").hexdigest()

    def fetch(folder: Path) -> Path:
        (folder / "package").write_bytes(b"whole")
        return folder / "package"

    store = CalibrationStore(cache / "calibrations", {})
    for name in ("replace", "mkdir"):
        real = getattr(os, name)

        def refuse(*paths: Any, real: Any = real, **options: Any) -> None:
            inside = [path for path in paths if str(path).startswith(str(cache))]
            if inside:
                raise OSError(number, os.strerror(number), inside[-1])
            real(*paths, **options)

        monkeypatch.setattr(os, name, refuse)
    monkeypatch.setattr(Path, "mkdir", lambda path, **_: os.mkdir(path))
    writers: list[Callable[[], object]] = [
        lambda: cached_objects(ABOUT, tmp_path / "objects", Maker(), cache / "blocks"),
        lambda: kept_entry(cache / "entries", "name", 1000),
        lambda: pinned_file(cache / "packages" / "package", digest, fetch),
        lambda: CalibrationStore(cache / "other", {}),
        lambda: store.save("layer-000", {}, {"norm": torch.ones(4)}),
    ]
    why = re.escape(os.strerror(number))
    for write in writers:
        with pytest.raises(CacheError, match=rf"^{cache}/.*: {why}; .*MINICPMV_CACHE"):
            write()


def test_a_cache_that_is_only_read_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EROFS, "read-only")

    make = Maker()
    objects(tmp_path, make)
    package = tmp_path / "package"
    package.write_bytes(b"whole")
    for name in ("replace", "utime", "unlink"):
        monkeypatch.setattr(os, name, refuse)
    digest = hashlib.sha256(b"whole").hexdigest()
    assert pinned_file(package, digest, lambda folder: folder) == package
    assert (objects(tmp_path, make), make.times) == (MADE, 1)


def test_a_damaged_package_is_fetched_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fetch(folder: Path) -> Path:
        fetched.append(folder)
        (folder / "package").write_bytes(b"whole")
        return folder / "package"

    fetched: list[Path] = []
    path, digest = tmp_path / "packages" / "package", hashlib.sha256(b"whole").hexdigest()
    for content in (None, b"whole", b"whOle", b""):
        if content is not None:
            path.write_bytes(content)
        assert pinned_file(path, digest, fetch).read_bytes() == b"whole"
    assert len(fetched) == 3
    assert caplog.messages == [f"{path}: damaged; fetched again"] * 2
    assert os.listdir(path.parent) == ["package"]


def test_a_cache_without_a_home_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINICPMV_CACHE", "~nobody-of-this-name/cache")
    with pytest.raises(CacheError, match=r"^~nobody.*let MINICPMV_CACHE name a folder"):
        cache_folder()


def test_blocks_are_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stand_in(module: Any, variant: Variant, target: str, progress: Any, folder: Path) -> None:
        compiled.append(variant.name)
        (folder / "lib0.o").write_text(f"{variant.name} of {module.script()}")

    monkeypatch.setenv("MINICPMV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(compile, "_compile", stand_in)
    target = Target.load("android-arm64")
    names = [variant.name for variant in target.variants]
    compiled: list[str] = []
    identities = []
    for i, width in enumerate((256, 256, 512)):
        config = ModelConfig.from_json(tiny_config(decoder_only=True, hidden_size=width))
        plan = make_plan(config, False, Recipe.load("q4f16_1"))
        blocks = compile_blocks(config, plan, target, tmp_path / str(i))
        identities.append(blocks.program_id)
        texts = [path.read_text() for library in blocks.libraries for path in library.objects]
        assert [text.split()[0] for text in texts] == names
    assert compiled == names * 2
    assert identities[0] == identities[1] != identities[2]


def entry(home: Path, name: str, age: float, size: int = 1000) -> Path:
    """Makes a cache's entry that was used `age` seconds ago."""
    folder = home / name
    folder.mkdir(parents=True)
    (folder / "data").write_bytes(bytes(size))
    for path in (folder / "data", folder):
        os.utime(path, (time.time() - age,) * 2)
    return folder


def test_the_oldest_go_until_the_rest_fits(tmp_path: Path) -> None:
    for days in (2, 3, 4, 5):
        entry(tmp_path, f"{days} days", days * DAY, 100_000)
    removed = prune(tmp_path, 250_000)
    assert sorted(path.name for path in removed) == ["4 days", "5 days"]
    assert sorted(os.listdir(tmp_path)) == ["2 days", "3 days"]


def test_what_is_not_used_for_long_goes_what_is_at_work_stays(tmp_path: Path) -> None:
    entry(tmp_path, "old", KEPT_SECONDS + DAY)
    entry(tmp_path, "at work", 60, 100_000)
    (tmp_path / "file").write_text("loose")
    os.utime(tmp_path / "file", (0, 0))
    prune(tmp_path, 10)
    assert os.listdir(tmp_path) == ["at work"]


def test_calibrations_have_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration_store, "MOST_BYTES", 10_000)
    for days in (2, 3):
        entry(tmp_path, f"{days} days", days * DAY, 8_000)
    store = CalibrationStore(tmp_path, {"checkpoint": "new"})
    store.save("layer-000", {}, {"norm": torch.ones(4)})
    assert sorted(os.listdir(tmp_path)) == sorted([store.folder.name, "2 days"])
    again = CalibrationStore(tmp_path, {"checkpoint": "new"}).finish()
    np.testing.assert_array_equal(again.replaced("norm"), np.ones(4, np.float32))


def test_compiled_blocks_have_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_cache, "MOST_BYTES", 10_000)
    for days in (2, 3):
        entry(tmp_path / "blocks", f"{days} days", days * DAY, 8_000)
    objects(tmp_path, Maker())
    left = {path.name: path for path in (tmp_path / "blocks").iterdir()}
    assert len(left) == 2 and "2 days" in left
    (new,) = (path for name, path in left.items() if name != "2 days")
    assert set(json.loads((new / LIST).read_text())) == set(MADE)
