"""The files of an app, which arrive in pieces; `test_sideload.py` has what adb's copies share."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.engine_client import hdc_app
from runtime.engine_client.hdc_app import PIECES, HdcApp
from runtime.engine_client.phone_shell import PhoneAwayError, PhoneError
from tests.support.fake_phone import SERIAL, FakePhone, fake_phone

APP, FOLDER = "org.minicpmv.app", "data/storage/el2/base/haps/entry/files/bundle"
TARGET = f"{FOLDER}/weights.safetensors"


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakePhone:
    monkeypatch.setattr(hdc_app, "PIECE_BYTES", 1000)
    phone = fake_phone(tmp_path, monkeypatch, "hdc")
    pieces(phone).parent.mkdir(parents=True)
    return phone


@pytest.fixture
def files() -> HdcApp:
    return HdcApp(SERIAL, APP)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"weights" * 900)  # six pieces and a half
    return path


def pieces(phone: FakePhone) -> Path:
    return phone.state / "apps" / APP / FOLDER / PIECES


def sent(phone: FakePhone) -> int:
    return sum("file send" in call for call in phone.calls())


def test_pieces(phone: FakePhone, files: HdcApp, weights: Path) -> None:
    heard: list[int] = []
    files.push(weights, TARGET, heard.append)
    assert heard == [0, 1000, 2000, 3000, 4000, 5000, 6000, 6300]
    found = {path.name.partition("-")[2]: path.read_bytes() for path in pieces(phone).iterdir()}
    ordered = sorted(found, key=int)
    assert ordered == ["0", "1000", "2000", "3000", "4000", "5000", "6000"]
    assert b"".join(found[start] for start in ordered) == weights.read_bytes()
    assert sent(phone) == 7
    files.push(weights, TARGET)
    assert sent(phone) == 0


def test_a_broken_cable_costs_a_piece(phone: FakePhone, files: HdcApp, weights: Path) -> None:
    phone.write("break", "2500")
    files.push(weights, TARGET)
    assert sum(path.stat().st_size for path in pieces(phone).iterdir()) == 6300
    assert sent(phone) == 8


def test_a_later_run_goes_on(phone: FakePhone, files: HdcApp, weights: Path) -> None:
    """A damaged piece is sent again; what the app had begun to join is not."""
    files.push(weights, TARGET)
    (damaged,) = pieces(phone).glob("*-3000")
    damaged.write_bytes(bytes(1000))
    (half,) = pieces(phone).glob("*-4000")
    half.write_bytes(bytes(10))
    (first,) = pieces(phone).glob("*-0")
    first.write_bytes(weights.read_bytes()[:2500])
    for name in ("1000", "2000"):
        next(pieces(phone).glob(f"*-{name}")).unlink()
    assert files.arrived(TARGET, first.name.partition("-")[0]) == 2500 + 1000 + 10 + 1300
    phone.calls()
    files.push(weights, TARGET)
    starts = {int(path.name.partition("-")[2]) for path in pieces(phone).iterdir()}
    assert starts == {0, 2000, 3000, 4000, 5000, 6000}
    assert sent(phone) == 3
    assert first.stat().st_size == 2500, "it is not begun anew"
    assert damaged.read_bytes() == weights.read_bytes()[3000:4000]


def test_a_first_piece_that_is_too_long_is_none(
    phone: FakePhone, files: HdcApp, weights: Path
) -> None:
    files.push(weights, TARGET)
    (first,) = pieces(phone).glob("*-0")
    first.write_bytes(bytes(9000))
    files.push(weights, TARGET)
    assert first.stat().st_size == 1000


def test_a_piece_that_arrives_damaged(phone: FakePhone, files: HdcApp, weights: Path) -> None:
    phone.program("sha256sum", f"echo {'1' * 64}  it")
    with pytest.raises(PhoneError, match="arrived damaged and was removed; try another cable"):
        files.push(weights, TARGET)
    assert list(pieces(phone).iterdir()) == []
    phone.program("sha256sum", "exit 127")  # a phone without it: the app checks
    files.push(weights, TARGET)
    assert len(list(pieces(phone).iterdir())) == 7


def test_a_phone_that_is_full_keeps_nothing(phone: FakePhone, files: HdcApp, weights: Path) -> None:
    phone.write("full", "2500")
    with pytest.raises(
        PhoneError, match=r"no space left on device; the phone is full.*was removed"
    ):
        files.push(weights, TARGET)
    assert list(pieces(phone).iterdir()) == []


def test_a_phone_that_takes_nothing(phone: FakePhone, files: HdcApp, weights: Path) -> None:
    phone.write("fails", "file [E005000] it is not known why")
    with pytest.raises(PhoneError, match=r"0 of 0 MiB .*not known why; the same command goes on"):
        files.push(weights, TARGET)


def test_a_phone_that_stays_away_is_named(phone: FakePhone, weights: Path) -> None:
    phone.cut(("file send", "before", 10**6))
    with pytest.raises(PhoneAwayError, match="went away, and did not come back within 0 s"):
        HdcApp(SERIAL, APP, away_seconds=0.0).push(weights, TARGET)


def test_a_hash_from_outside_names_no_other_folder(
    phone: FakePhone, files: HdcApp, weights: Path
) -> None:
    with pytest.raises(PhoneError, match="altered: its SHA-256 is not"):
        files.push(weights, TARGET, sha256="/../../x'; touch y")
    assert [path.name for path in pieces(phone).parent.iterdir()] == [PIECES]
    assert list(pieces(phone).iterdir()) == []


def test_an_app_without_files(phone: FakePhone, files: HdcApp) -> None:
    assert files.is_shown()
    other = HdcApp(SERIAL, "org.other.app")
    assert not other.is_shown()
    with pytest.raises(PhoneError, match=r"ABC: org.other.app: .*\[E003001\] Invalid bundle name"):
        other.shell("true")
    with pytest.raises(PhoneError, match=r"signed for debugging .*\[E005101\] Invalid bundle name"):
        other.send_file(Path(__file__), "x")


def test_a_phone_that_is_too_old(phone: FakePhone, files: HdcApp) -> None:
    phone.write("fails", "shell [E003004] Device does not support this shell option")
    with pytest.raises(PhoneError, match=r"too old for files of apps; import the weights in the a"):
        files.shell("true")
