"""Whether a phone's slowest cores help is measured for each kind of work, and remembered.

The emulator reads what lies below its prefix in place of the system's files: here, that some cores
are slower than others.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.engine_client.client import QEMU, EngineClient, engine_command
from runtime.engine_client.protocol import Field, Tap
from tests.engine.engines import Built
from tests.engine.operations import WINDOW
from tests.engine.test_kinds import LAYERS, WORKS, write_choices
from tests.engine.test_threads import await_sleep, computed

ALL = len(os.sched_getaffinity(0))
FAST = ALL - ALL // 2
KIND = "neon_"  # the only one of the processor that is emulated here

Start = Callable[[Path | None], tuple[EngineClient, dict[str, Any]]]

pytestmark = pytest.mark.skipif(FAST == ALL, reason="needs two cores")


@pytest.fixture
def start(phone_built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts engines, which load the bundle; returns one and the load's answer."""
    for i, number in enumerate(sorted(os.sched_getaffinity(0))):
        folder = tmp_path / f"prefix/sys/devices/system/cpu/cpu{number}/cpufreq"
        folder.mkdir(parents=True)
        (folder / "cpuinfo_max_freq").write_text("2400000\n" if i < FAST else "1800000\n")
    (tmp_path / "prefix/proc").mkdir()
    (tmp_path / "prefix/proc/cpuinfo").write_text("processor : 0\n")  # an old emulator has the PC's
    monkeypatch.setenv("QEMU_LD_PREFIX", str(tmp_path / "prefix"))
    monkeypatch.delenv("TVM_NUM_THREADS", raising=False)
    running: list[EngineClient] = []

    def begin(file: Path | None) -> tuple[EngineClient, dict[str, Any]]:
        command = engine_command(QEMU, phone_built.program, cpu="cortex-a53")
        client = EngineClient(command, kinds_file=None if file is None else str(file))
        running.append(client)
        return client, client.load(phone_built.bundle, window=WINDOW)

    yield begin
    for client in running:
        client.close()


def busy(client: EngineClient, rows: int) -> set[int]:
    """Returns which threads compute the layers for so many tokens."""
    await_sleep(client)
    before = computed(client)
    client.tap(Tap.LAYERS, np.ones((1, rows, 256), np.float32), LAYERS)
    await_sleep(client)
    spent = zip(before, computed(client), strict=True)
    return {number for number, (old, new) in enumerate(spent) if new > old}


def test_without_a_file_they_do_not_help(start: Start) -> None:
    client, loaded = start(None)
    assert client.hello[Field.KINDS] == [KIND]
    assert client.hello[Field.THREADS] == FAST
    assert loaded[Field.THREADS] == dict.fromkeys(WORKS, FAST)
    assert client.about[Field.KINDS] == KIND


def test_a_measurement_is_remembered(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "kinds"
    threads = start(file)[1][Field.THREADS]
    assert set(threads) == set(WORKS) and set(threads.values()) <= {FAST, ALL}
    lines = file.read_text().splitlines()
    assert lines[3].split() == [str(FAST), str(ALL)]
    assert lines[5].split() == [word for n in threads.values() for word in (KIND, str(n))]
    before = file.stat().st_ino
    assert start(file)[1][Field.THREADS] == threads and file.stat().st_ino == before


def test_each_work_has_its_threads(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "kinds"
    start(file)
    for threads in ((FAST, ALL, ALL), (ALL, FAST, FAST)):
        write_choices(file, *((KIND, number) for number in threads))
        client, loaded = start(file)
        assert list(loaded[Field.THREADS].values()) == list(threads)
        assert f"on {ALL} threads for" in client.about[Field.KINDS]
        decode, prefill = busy(client, 1), busy(client, 9)
        assert (prefill - decode) if threads[0] == FAST else (decode - prefill)
