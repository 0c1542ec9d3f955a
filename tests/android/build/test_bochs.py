"""The emulator of x86's matrix unit, from a stand-in for Debian's mirror."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from android.build.bochs import fetch_bochs, kept_bochs, lacks_bochs, unpack_bochs
from android.build.install_tools import main
from android.build.tools import ToolError
from tests.android.build.test_emulator import Machine

APT = """#!/bin/sh
for argument; do case $argument in
-oDir::Cache=*) cache=${argument#*=} ;;
esac; done
echo "$*" | grep -o 'indextargets\\|update\\|--download-only.*' >> "$MACHINE/log"
case "$*" in
*indextargets*) echo file:/mirror/ ;;
*install*) cp "$MACHINE/bochs.deb" "$cache/archives" ;;
esac
"""
DPKG = """#!/bin/sh
[ "$1" = --extract ] && cp -r "$MACHINE/tree/." "$3"
"""
# Like the dynamic loader: every program needs one library.
LOADER = """#!/bin/sh
[ "$1 $3" = '--library-path --list' ] || exit 1
echo "	libc.so.6 => ${LIBC:-${0%/*}/libc.so.6} (0x00007f0000000000)"
"""
LIBRARIES = "usr/lib/x86_64-linux-gnu"
FILES = {
    "usr/bin/bochs-bin": "program",
    f"{LIBRARIES}/ld-linux-x86-64.so.2": LOADER,
    f"{LIBRARIES}/libc.so.6": "library",
    f"{LIBRARIES}/libother.so": "of nothing that is kept",
    f"{LIBRARIES}/bochs/plugins/libbx_vga.so": "plugin",
    f"{LIBRARIES}/bochs/plugins/libbx_wx_gui.so": "of a window system",
}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path, monkeypatch)
    made.script("apt-get", APT.encode())
    made.script("dpkg-deb", DPKG.encode())
    (tmp_path / "bochs.deb").touch()
    for name, content in FILES.items():
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        path.chmod(0o755)
    return made


def test_it_is_fetched_once_with_what_it_needs(machine: Machine, tmp_path: Path) -> None:
    assert lacks_bochs()
    fetch_bochs()
    assert machine.log() == ["indextargets", "update", "--download-only install bochs"]
    assert not lacks_bochs() and fetch_bochs() == kept_bochs() and len(machine.log()) == 3
    with tarfile.open(kept_bochs()) as archive:
        kept = set(archive.getnames())
    assert kept == {name for name in FILES if "other" not in name and "wx" not in name}
    here = tmp_path / "here"
    command, environment = unpack_bochs(here)
    assert command[0] == f"{LIBRARIES}/ld-linux-x86-64.so.2"
    assert (here / command[-1]).read_text() == "program"
    assert (here / environment["LTDL_LIBRARY_PATH"] / "libbx_vga.so").is_file()


def test_a_damaged_one_is_fetched_again(machine: Machine) -> None:
    kept = fetch_bochs()
    kept.write_bytes(kept.read_bytes()[:-1])
    assert lacks_bochs()
    fetch_bochs()
    assert not lacks_bochs() and len(machine.log()) == 6


def test_where_it_cannot_be_had(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rest of the tools is there all the same."""
    machine.is_debian(None)
    with pytest.raises(ToolError, match="it comes from Debian, and this system is another"):
        fetch_bochs()
    machine.is_debian("bookworm")
    monkeypatch.setenv("LIBC", "/lib/libc.so.6")
    with pytest.raises(ToolError, match=r"its packages lack libc\.so\.6"):
        fetch_bochs()
    (machine.root / "tree" / "usr/bin/bochs-bin").unlink()
    with pytest.raises(ToolError, match="laid out in another way"):
        fetch_bochs()
    monkeypatch.setattr("android.build.install_tools._install_debian", lambda _: None)
    monkeypatch.setattr("android.build.install_tools.fetch", lambda _: None)
    assert main(["tests"]) == 0
    assert "in another way. A test of AMX skips" in capsys.readouterr().err
    assert not kept_bochs().exists()
