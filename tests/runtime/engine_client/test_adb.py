"""The client of adb, on a stand-in that fails in the ways that adb fails."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from runtime.engine_client import adb as module
from runtime.engine_client.adb import Adb, AdbError, PhoneAwayError, connect
from tests.support.fake_phone import SERIAL, FakePhone

FOLDER = "/sdcard/Android/data/org.minicpmv.app/files"
TARGET = f"{FOLDER}/it's weights"  # a name that a shell must not take apart


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(bytes(range(256)) * 12000)  # three blocks
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def push(adb: Adb, weights: Path, target: str = TARGET) -> list[int]:
    heard: list[int] = []
    assert adb.can_write(target.rpartition("/")[0])
    adb.push(weights, target, heard.append)
    return heard


@pytest.mark.parametrize(
    ("devices", "problem"),
    [
        ("", "no phone is connected; plug one in and allow USB debugging"),
        ("A\tdevice\nB\tdevice\n", r"2 phones are connected: A, B; choose one with --serial"),
        ("A\tunauthorized\n", r"phone A is not ready \(unauthorized\): it asks whether it trusts"),
        ("A\toffline\n", r"phone A is not ready \(offline\): it does not answer; unplug it"),
        ("A\tno permissions (user in plugdev group; see [http])\n", "may not use its USB port"),
        ("A\trecovery\n", r"not ready \(recovery\): it is in recovery mode"),
        ("A\tsomething new\n", r"not ready \(something new\): try again"),
    ],
)
def test_phones_that_cannot_be_used(phone: FakePhone, devices: str, problem: str) -> None:
    phone.write("devices", devices)
    with pytest.raises(AdbError, match=problem):
        connect()


def test_the_phone_is_chosen_by_its_serial(
    phone: FakePhone, monkeypatch: pytest.MonkeyPatch
) -> None:
    phone.write("devices", "A\tdevice\nB\tdevice\nC\toffline\n")
    assert connect("B").serial == "B"
    monkeypatch.setenv("ANDROID_SERIAL", "A")
    assert connect().serial == "A"
    assert connect("B").serial == "B"
    with pytest.raises(AdbError, match="phone D is not connected; `adb devices` lists A, B, C"):
        connect("D")
    with pytest.raises(AdbError, match=r"C is not ready \(offline\): it does not answer"):
        connect("C")


def test_a_missing_adb_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AdbError, match=r"adb is not installed.*sudo apt-get install adb"):
        connect()


@pytest.mark.parametrize(
    "noise",
    [
        "* daemon not running; starting now at tcp:5037\n* daemon started successfully",
        "adb server version (39) doesn't match this client (41); killing...\n"
        "* daemon started successfully",
        "adb server is out of date.  killing...\n* daemon started successfully *",
    ],
)
def test_what_adb_says_of_its_server_is_not_the_phones(phone: FakePhone, noise: str) -> None:
    phone.write("noise", noise)
    adb = connect()
    phone.write("noise", noise)
    assert adb.info().model == "Pixel"
    phone.write("noise", noise)
    assert adb.free_bytes("/sdcard") == 1 << 40


def test_a_server_that_does_not_start(phone: FakePhone) -> None:
    phone.write("server", "* failed to start daemon\nerror: cannot connect to daemon")
    with pytest.raises(AdbError, match="failed: error: cannot connect to daemon; try `adb kill-s"):
        connect()


def test_what_a_phone_is(phone: FakePhone) -> None:
    info = connect().info()
    assert (info.model, info.api, info.abis) == ("Pixel", 26, ("arm64-v8a", "armeabi-v7a"))
    assert info.memory_bytes == 8000000 * 1024
    phone.write("getprop.ro.build.version.sdk", "\n")
    with pytest.raises(AdbError, match="does not say which Android"):
        connect().info()


def test_space_and_folders(phone: FakePhone) -> None:
    adb = connect()
    phone.free(4096)
    assert adb.free_bytes("/sdcard") == 4096
    phone.write("df", "df: nothing")
    with pytest.raises(AdbError, match="does not say what space is free below /sdcard"):
        adb.free_bytes("/sdcard")
    phone.write("readonly", "/sdcard/Android/data")
    assert not adb.can_write("/sdcard/Android/data/x")
    assert adb.can_write("/data/local/tmp/minicpmv")


def test_a_file_arrives(phone: FakePhone, weights: Path) -> None:
    heard = push(connect(), weights)
    assert phone.path(TARGET).read_bytes() == weights.read_bytes()
    assert heard == sorted(heard)
    assert heard[-1] == weights.stat().st_size
    assert len(heard) > 3, "it is told on the way"
    assert [path.name for path in phone.path(FOLDER).iterdir()] == ["it's weights"]


def test_an_empty_file_arrives(phone: FakePhone, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    connect().push(tmp_path / "empty", "/sdcard/empty")
    assert phone.path("/sdcard/empty").read_bytes() == b""


def test_a_broken_cable_costs_only_the_rest(phone: FakePhone, weights: Path) -> None:
    phone.write("break", "1000000")
    heard = push(connect(), weights)
    assert phone.path(TARGET).read_bytes() == weights.read_bytes()
    assert 1000000 in heard


def test_a_later_run_goes_on(phone: FakePhone, weights: Path) -> None:
    adb = connect()
    partial = Path(f"{phone.path(TARGET)}.part-{sha256(weights)[:8]}")
    partial.parent.mkdir(parents=True)
    partial.write_bytes(weights.read_bytes()[:5000])
    assert adb.arrived(TARGET, sha256(weights)) == 5000
    assert push(adb, weights)[0] == 5000
    assert phone.path(TARGET).read_bytes() == weights.read_bytes()
    partial.write_bytes(bytes(9_000_000))  # longer than the file: not a part of it
    assert push(adb, weights)[0] == 0


def test_room_is_made_for_a_file(phone: FakePhone, weights: Path) -> None:
    adb = connect()
    assert adb.can_write(FOLDER)
    mine = f"it's weights.part-{sha256(weights)[:8]}"
    for name in ("it's weights", "it's weights.part-01234567", mine, "other"):
        (phone.path(FOLDER) / name).touch()
    adb.clear(TARGET, sha256(weights))
    assert sorted(path.name for path in phone.path(FOLDER).iterdir()) == [mine, "other"]


def test_a_phone_that_is_gone_is_told(phone: FakePhone, weights: Path) -> None:
    adb = Adb(SERIAL, away_seconds=0.0)
    phone.write("lost", "")
    for work in (lambda: adb.push(weights, TARGET), lambda: adb.shell("true")):
        with pytest.raises(
            PhoneAwayError, match=r"within 0 s: error: device 'ABC' not found; look"
        ):
            work()


def test_a_phone_that_is_full_keeps_nothing(phone: FakePhone, weights: Path) -> None:
    phone.write("full", "2000000")
    with pytest.raises(AdbError, match=r"No space left on device; the phone is full.*was removed"):
        push(connect(), weights)
    assert list(phone.path(FOLDER).iterdir()) == []
    assert sum("cat >>" in call for call in phone.calls()) == 1, "another try would not help"


def test_what_arrives_damaged_is_removed(phone: FakePhone, weights: Path) -> None:
    adb = connect()
    with pytest.raises(AdbError, match=r"weights.safetensors: altered: its SHA-256 is not 00000"):
        adb.push(weights, "/sdcard/w", sha256="0" * 64)  # it was wrong before
    phone.program("sha256sum", f"echo {'1' * 64}  it")
    with pytest.raises(AdbError, match="arrived damaged and was removed"):
        adb.push(weights, "/sdcard/w")
    assert list(phone.path("/sdcard").iterdir()) == []
    phone.program("sha256sum", "exit 127")  # a phone without it: who reads the file must check
    adb.push(weights, "/sdcard/w", sha256="0" * 64)
    assert phone.path("/sdcard/w").exists()


def test_a_hash_from_outside_names_no_other_folder(phone: FakePhone, weights: Path) -> None:
    phone.program("sha256sum", "exit 127")
    connect().push(weights, "/sdcard/w", sha256="/../../x'; touch /sdcard/y")
    assert [path.name for path in phone.path("/sdcard").iterdir()] == ["w"]


def test_a_phone_that_does_not_answer(
    phone: FakePhone, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phone.write("hangs", "")
    with pytest.raises(AdbError, match="ABC: install took too long; is the phone still connected"):
        Adb(SERIAL).run("install", "install", seconds=0.3)
    monkeypatch.setattr(module, "QUICK_SECONDS", 0.3)
    with pytest.raises(AdbError, match="`adb devices` does not answer; try `adb kill-server`"):
        connect()
    problem = Adb(SERIAL)._append(weights, 0, TARGET, lambda count: None)
    assert problem == "the phone takes nothing any more"


def test_an_adb_that_does_not_start(
    phone: FakePhone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin" / "adb").write_text("no program")
    with pytest.raises(AdbError, match="adb: does not start: Exec format error"):
        connect()


@pytest.mark.parametrize("what", ["before", "after"])
def test_a_script_whose_answer_is_lost_is_run_again(phone: FakePhone, what: str) -> None:
    """adb ends it with code 0, and without a word."""
    adb = connect()
    phone.write("sdcard/a", "12345")
    phone.cut(("stat", what, 3))
    assert adb.size("/sdcard/a") == 5
    assert adb.size("/sdcard/b") is None
    phone.cut(("mkdir -p", what, 2), ("df -k", what, 1))
    assert adb.can_write(FOLDER)
    assert adb.free_bytes("/sdcard") == 1 << 40
    phone.cut(("getprop", what, 4))
    assert adb.info().model == "Pixel"


def test_a_file_that_was_moved_already_has_arrived(phone: FakePhone, weights: Path) -> None:
    phone.cut(("mv ", "after", 2))
    push(connect(), weights)
    assert phone.path(TARGET).read_bytes() == weights.read_bytes()
    assert [path.name for path in phone.path(FOLDER).iterdir()] == ["it's weights"]


def test_nothing_is_sent_twice(phone: FakePhone, weights: Path) -> None:
    """Not even if the phone is away when its part is to be measured."""
    total = weights.stat().st_size
    adb = connect()
    assert adb.can_write(FOLDER)
    partial = Path(f"{phone.path(TARGET)}.part-{sha256(weights)[:8]}")
    partial.write_bytes(weights.read_bytes()[:1000000])
    phone.cut(("stat", "before", 3), ("cat >> ", "before", 2), ("stat", "after", 2))
    heard: list[int] = []
    adb.push(weights, TARGET, heard.append)
    assert phone.path(TARGET).read_bytes() == weights.read_bytes()
    assert (min(heard), max(heard)) == (1000000, total)


def test_a_copy_goes_on_as_long_as_it_moves(phone: FakePhone, weights: Path) -> None:
    """A cable that breaks at every half megabyte: six times, twice as many as idle tries."""
    adb, real = connect(), module.Adb._append
    assert adb.can_write(FOLDER)

    def breaks(self: Adb, local: Path, start: int, remote: str, on_bytes: module.OnBytes) -> str:
        phone.write("break", "500000")
        return real(self, local, start, remote, on_bytes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.Adb, "_append", breaks)
        adb.push(weights, TARGET)
    assert phone.path(TARGET).read_bytes() == weights.read_bytes()


def test_a_part_that_still_grows_is_waited_for(
    phone: FakePhone, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a cut connection had brought to the phone is written after the answer is lost."""
    content, adb = weights.read_bytes(), connect()
    partial = Path(f"{phone.path(TARGET)}.part-{sha256(weights)[:8]}")
    assert adb.can_write(FOLDER)
    late = [content[1000000:1200000], content[1200000:1300000]]

    def sleep(seconds: float) -> None:
        if seconds == module._SETTLE_SECONDS and late:
            with partial.open("ab") as file:
                file.write(late.pop(0))

    monkeypatch.setattr(module.time, "sleep", sleep)
    phone.write("break", "1000000")
    heard: list[int] = []
    adb.push(weights, TARGET, heard.append)
    assert 1300000 in heard and 1000000 not in heard
    assert phone.path(TARGET).read_bytes() == content


def test_a_phone_that_stays_away_is_named(phone: FakePhone, weights: Path) -> None:
    adb = Adb(SERIAL, away_seconds=0.0)
    phone.cut(("cat >> ", "before", 10**6))
    with pytest.raises(PhoneAwayError) as told:
        adb.push(weights, TARGET)
    message = str(told.value)
    assert message.startswith("ABC: went away, and did not come back within 0 s: error: device off")
    assert "look at the cable" in message and "`adb devices` lists it" in message
    assert "goes on with what has arrived" in message and "\n" not in message


def test_a_shell_that_never_ends_by_itself(phone: FakePhone) -> None:
    """The phone is there all the time: some tries, and adb's own words."""
    phone.write("fails", "shell error: closed")
    with pytest.raises(AdbError, match="`true` failed: error: closed") as told:
        connect().shell("true")
    assert not isinstance(told.value, PhoneAwayError)
