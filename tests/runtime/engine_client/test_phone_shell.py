"""A phone's shell and files, on stand-ins for adb and hdc that fail as those do."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from runtime.engine_client import adb, hdc, phone_shell
from runtime.engine_client.phone_shell import PhoneAwayError, PhoneError, PhoneShell
from tests.support.fake_phone import SERIAL, FakePhone, fake_phone

FOLDER = "/sdcard/Android/data/org.minicpmv.app/files"
TARGET = f"{FOLDER}/it's weights"  # a name that a shell must not take apart

TYPES = {"adb": adb.Adb, "hdc": hdc.Hdc}
SENDS = {"adb": "cat >> ", "hdc": "file send"}  # in the call that brings a file
ASKS = {"adb": "getprop", "hdc": "param get"}
GONE = {"adb": "error: device 'ABC' not found", "hdc": "hdc does not list it"}
AWAY = {"adb": "error: device off", "hdc": "hdc does not list it"}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(bytes(range(256)) * 12000)  # three blocks
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def push(shell: PhoneShell, weights: Path, target: str = TARGET) -> list[int]:
    heard: list[int] = []
    assert shell.can_write(target.rpartition("/")[0])
    shell.push(weights, target, heard.append)
    return heard


@pytest.fixture(params=["adb", "hdc"])
def phone(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> FakePhone:
    monkeypatch.setattr(hdc, "PIECE_BYTES", 500_000)
    return fake_phone(tmp_path, monkeypatch, request.param)


@pytest.fixture
def shell(phone: FakePhone) -> PhoneShell:
    return {"adb": adb, "hdc": hdc}[phone.tool].connect()


def test_space_and_folders(phone: FakePhone, shell: PhoneShell) -> None:
    phone.free(4096)
    assert shell.free_bytes("/sdcard") == 4096
    phone.write("df", "df: nothing")
    with pytest.raises(PhoneError, match="does not say what space is free below /sdcard"):
        shell.free_bytes("/sdcard")
    phone.write("readonly", "/sdcard/Android/data")
    assert not shell.can_write("/sdcard/Android/data/x")
    assert shell.can_write("/data/local/tmp/minicpmv")


def test_a_file_arrives(phone: FakePhone, shell: PhoneShell, weights: Path) -> None:
    heard = push(shell, weights)
    assert phone.path(TARGET).read_bytes() == weights.read_bytes()
    assert heard == sorted(heard)
    assert heard[-1] == weights.stat().st_size
    assert len(heard) > 3, "it is told on the way"
    assert [path.name for path in phone.path(FOLDER).iterdir()] == ["it's weights"]


def test_an_empty_file_arrives(phone: FakePhone, shell: PhoneShell, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    shell.push(tmp_path / "empty", "/sdcard/empty")
    assert phone.path("/sdcard/empty").read_bytes() == b""


def test_a_broken_cable_costs_only_the_rest(
    phone: FakePhone, shell: PhoneShell, weights: Path
) -> None:
    phone.write("break", "1000000")
    heard = push(shell, weights)
    assert phone.path(TARGET).read_bytes() == weights.read_bytes()
    assert 1000000 in heard


def test_a_later_run_goes_on(phone: FakePhone, shell: PhoneShell, weights: Path) -> None:
    partial = Path(f"{phone.path(TARGET)}.part-{sha256(weights)[:8]}")
    partial.parent.mkdir(parents=True)
    partial.write_bytes(weights.read_bytes()[:5000])
    assert shell.arrived(TARGET, sha256(weights)) == 5000
    assert push(shell, weights)[0] == 5000
    assert phone.path(TARGET).read_bytes() == weights.read_bytes()
    partial.write_bytes(bytes(9_000_000))  # longer than the file: not a part of it
    assert push(shell, weights)[0] == 0


def test_room_is_made_for_a_file(phone: FakePhone, shell: PhoneShell, weights: Path) -> None:
    assert shell.can_write(FOLDER)
    mine = f"it's weights.part-{sha256(weights)[:8]}"
    for name in ("it's weights", "it's weights.part-01234567", mine, "other"):
        (phone.path(FOLDER) / name).touch()
    shell.clear(TARGET, sha256(weights))
    assert sorted(path.name for path in phone.path(FOLDER).iterdir()) == [mine, "other"]


def test_a_phone_that_is_gone_is_told(phone: FakePhone, weights: Path) -> None:
    shell = TYPES[phone.tool](SERIAL, away_seconds=0.0)
    phone.write("lost", "")
    for work in (lambda: shell.push(weights, TARGET), lambda: shell.shell("true")):
        with pytest.raises(PhoneAwayError, match=f"within 0 s: {GONE[phone.tool]}; look"):
            work()


def test_a_phone_that_is_full_keeps_nothing(
    phone: FakePhone, shell: PhoneShell, weights: Path
) -> None:
    phone.write("full", "2000000")
    with pytest.raises(PhoneError, match=r"o space left on device; the phone is full.*was removed"):
        push(shell, weights)
    assert list(phone.path(FOLDER).iterdir()) == []
    tries = {"adb": 1, "hdc": 5}[phone.tool]  # pieces of it
    assert sum(SENDS[phone.tool] in call for call in phone.calls()) == tries, (
        "another try would not help"
    )


def test_what_arrives_damaged_is_removed(
    phone: FakePhone, shell: PhoneShell, weights: Path
) -> None:
    with pytest.raises(PhoneError, match=r"weights.safetensors: altered: its SHA-256 is not 00000"):
        shell.push(weights, "/sdcard/w", sha256="0" * 64)  # it was wrong before
    phone.program("sha256sum", f"echo {'1' * 64}  it")
    with pytest.raises(PhoneError, match="arrived damaged and was removed"):
        shell.push(weights, "/sdcard/w")
    assert list(phone.path("/sdcard").iterdir()) == []
    phone.program("sha256sum", "exit 127")  # a phone without it: who reads the file must check
    shell.push(weights, "/sdcard/w", sha256="0" * 64)
    assert phone.path("/sdcard/w").exists()


def test_a_hash_from_outside_names_no_other_folder(
    phone: FakePhone, shell: PhoneShell, weights: Path
) -> None:
    phone.program("sha256sum", "exit 127")
    shell.push(weights, "/sdcard/w", sha256="/../../x'; touch /sdcard/y")
    assert [path.name for path in phone.path("/sdcard").iterdir()] == ["w"]


@pytest.mark.parametrize("what", ["before", "after"])
def test_a_script_whose_answer_is_lost_is_run_again(
    phone: FakePhone, shell: PhoneShell, what: str
) -> None:
    """The tool ends it with code 0, and without a word."""
    phone.write("sdcard/a", "12345")
    phone.cut(("stat", what, 3))
    assert shell.size("/sdcard/a") == 5
    assert shell.size("/sdcard/b") is None
    phone.cut(("mkdir -p", what, 2), ("df -k", what, 1))
    assert shell.can_write(FOLDER)
    assert shell.free_bytes("/sdcard") == 1 << 40
    phone.cut((ASKS[phone.tool], what, 4))
    assert shell.info().model == "Pixel"


def test_a_file_that_was_moved_already_has_arrived(
    phone: FakePhone, shell: PhoneShell, weights: Path
) -> None:
    phone.cut(("mv ", "after", 2))
    push(shell, weights)
    assert phone.path(TARGET).read_bytes() == weights.read_bytes()
    assert [path.name for path in phone.path(FOLDER).iterdir()] == ["it's weights"]


def test_nothing_is_sent_twice(phone: FakePhone, shell: PhoneShell, weights: Path) -> None:
    """Not even if the phone is away when its part is to be measured."""
    total = weights.stat().st_size
    assert shell.can_write(FOLDER)
    partial = Path(f"{phone.path(TARGET)}.part-{sha256(weights)[:8]}")
    partial.write_bytes(weights.read_bytes()[:1000000])
    phone.cut(("stat", "before", 3), (SENDS[phone.tool], "before", 2), ("stat", "after", 2))
    heard: list[int] = []
    shell.push(weights, TARGET, heard.append)
    assert phone.path(TARGET).read_bytes() == weights.read_bytes()
    assert (min(heard), max(heard)) == (1000000, total)


def test_a_copy_goes_on_as_long_as_it_moves(
    phone: FakePhone, shell: PhoneShell, weights: Path
) -> None:
    """A cable that breaks at every half megabyte: six times, twice as many as idle tries."""
    real = type(shell)._append
    assert shell.can_write(FOLDER)

    def breaks(
        self: PhoneShell, local: Path, start: int, remote: str, on_bytes: phone_shell.OnBytes
    ) -> str:
        phone.write("break", "500000")
        return real(self, local, start, remote, on_bytes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(shell), "_append", breaks)
        shell.push(weights, TARGET)
    assert phone.path(TARGET).read_bytes() == weights.read_bytes()


def test_a_part_that_still_grows_is_waited_for(
    phone: FakePhone, shell: PhoneShell, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a cut connection had brought to the phone is written after the answer is lost."""
    content = weights.read_bytes()
    partial = Path(f"{phone.path(TARGET)}.part-{sha256(weights)[:8]}")
    assert shell.can_write(FOLDER)
    late = [content[1000000:1200000], content[1200000:1300000]]

    def sleep(seconds: float) -> None:
        if seconds == phone_shell._SETTLE_SECONDS and late:
            with partial.open("ab") as file:
                file.write(late.pop(0))

    monkeypatch.setattr(phone_shell.time, "sleep", sleep)
    phone.write("break", "1000000")
    heard: list[int] = []
    shell.push(weights, TARGET, heard.append)
    whole_pieces = {"adb": 0, "hdc": 1}[phone.tool]  # that end there
    assert 1300000 in heard and heard.count(1000000) == whole_pieces
    assert phone.path(TARGET).read_bytes() == content


def test_a_phone_that_stays_away_is_named(phone: FakePhone, weights: Path) -> None:
    shell = TYPES[phone.tool](SERIAL, away_seconds=0.0)
    phone.cut((SENDS[phone.tool], "before", 10**6))
    with pytest.raises(PhoneAwayError) as told:
        shell.push(weights, TARGET)
    message = str(told.value)
    assert message.startswith("ABC: went away, and did not come back within 0 s: ")
    assert AWAY[phone.tool] in message
    assert "look at the cable" in message and f"`{shell.listing}` lists it" in message
    assert "goes on with what has arrived" in message and "\n" not in message
