"""The emulator of Arm's matrix unit, from a stand-in for Debian's mirror and from the real one."""

from __future__ import annotations

import io
import platform
import tarfile
from pathlib import Path

import pytest

from android.build.emulator import fetch_emulator, lacks_emulator
from android.build.install_tools import main
from android.build.tools import ToolError
from convert.support.cache import CACHE_VARIABLE
from runtime.engine_client import emulator as emulators
from runtime.engine_client.emulator import emulates_sme, emulator, kept_emulator
from tests.support.needs import need_sme

# Like apt-get: `-o` settings first; the sources that it is given must be of the mirror it names.
APT = """#!/bin/sh
sources=
for argument; do case $argument in
-oDir::Etc::sourcelist=*) sources=${argument#*=} ;;
esac; done
echo "$*" | grep -o 'indextargets\\|update\\|download.*' >> "$MACHINE/log"
case "$*" in
*indextargets*) [ -e "$MACHINE/no-mirror" ] || echo file:/mirror/ ;;
*update*) [ "$(cat "$sources")" = 'deb file:/mirror/ trixie main' ] ;;
*download*) cp "$MACHINE/qemu-user.deb" . ;;
esac
"""
# An archive stands for the package.
DPKG = """#!/bin/sh
exec cat "$2"
"""


def _says(version: str) -> bytes:
    return f"#!/bin/sh\necho qemu-aarch64 version {version}\n".encode()


class Machine:
    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.bin = root, root / "bin"
        self.bin.mkdir()
        for name in ("cat", "cp", "grep", "sh"):
            (self.bin / name).symlink_to(f"/bin/{name}")
        self.script("apt-get", APT.encode())
        self.script("dpkg-deb", DPKG.encode())
        self.script(emulators.QEMU_PROGRAM, _says("7.2.22"))
        self.package(_says("10.0.13"))
        monkeypatch.setenv("PATH", str(self.bin))
        monkeypatch.setenv("MACHINE", str(root))
        monkeypatch.setenv(CACHE_VARIABLE, str(root / "cache"))
        self._patch = monkeypatch
        self.is_debian("bookworm")

    def is_debian(self, release: str | None) -> None:
        about = {"ID": "debian", "VERSION_CODENAME": release} if release else {"ID": "fedora"}
        self._patch.setattr(platform, "freedesktop_os_release", lambda: about)

    def script(self, name: str, text: bytes) -> None:
        (self.bin / name).write_bytes(text)
        (self.bin / name).chmod(0o755)

    def package(self, program: bytes, name: str = "./usr/bin/qemu-aarch64") -> None:
        with tarfile.open(self.root / "qemu-user.deb", "w") as archive:
            for member, content in (("./usr/bin/qemu-arm", b"other"), (name, program)):
                about = tarfile.TarInfo(member)
                about.size = len(content)
                archive.addfile(about, io.BytesIO(content))

    def log(self) -> list[str]:
        return (self.root / "log").read_text().splitlines()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_it_is_fetched_once(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert emulator() == str(machine.bin / emulators.QEMU_PROGRAM)
    assert lacks_emulator()
    assert main(["qemu"]) == 0
    assert machine.log() == ["indextargets", "update", "download qemu-user"]
    assert "Downloading an emulator of Arm's matrix unit" in capsys.readouterr().err
    assert emulator() == str(kept_emulator()) and not lacks_emulator()
    assert sorted(path.name for path in kept_emulator().parent.iterdir()) == [
        "qemu-aarch64",
        "qemu-aarch64.sha256",
    ]
    assert main(["qemu"]) == 0
    assert (len(machine.log()), capsys.readouterr().err) == (3, "")


def test_a_damaged_one_is_not_used_and_fetched_again(machine: Machine) -> None:
    kept = fetch_emulator()
    kept.write_bytes(kept.read_bytes()[:-1])
    assert emulator() == str(machine.bin / emulators.QEMU_PROGRAM)
    fetch_emulator()
    assert emulator() == str(kept) and len(machine.log()) == 6


def test_a_new_system_needs_none(machine: Machine) -> None:
    machine.script(emulators.QEMU_PROGRAM, _says("10.0.2"))
    assert main(["qemu"]) == 0
    assert not (machine.root / "log").exists()


def test_where_it_cannot_be_had(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """The rest of the tools is there all the same."""
    machine.is_debian(None)
    with pytest.raises(ToolError, match="it comes from Debian, and this system is another"):
        fetch_emulator()
    assert main(["qemu"]) == 0
    assert "this system is another. Other phones are emulated" in capsys.readouterr().err
    machine.is_debian("bookworm")
    (machine.root / "no-mirror").touch()
    with pytest.raises(ToolError, match="apt knows no mirror of Debian bookworm"):
        fetch_emulator()
    (machine.root / "no-mirror").unlink()
    offline = APT.replace("*update*)", "*update*) echo E: error: no route >&2; exit 100;")
    machine.script("apt-get", offline.encode())
    with pytest.raises(ToolError, match="cannot be fetched: apt-get: E: error: no route"):
        fetch_emulator()
    machine.script("apt-get", APT.encode())
    machine.package(_says("9.2.0"))
    with pytest.raises(ToolError, match="does not run, or is too old"):
        fetch_emulator()
    machine.package(_says("10.0.13"), "./usr/bin/qemu-riscv64")
    with pytest.raises(ToolError, match=r"holds no \./usr/bin/qemu-aarch64"):
        fetch_emulator()
    (machine.root / "qemu-user.deb").write_bytes(b"x" * 2048)
    with pytest.raises(ToolError, match=r"qemu-user\.deb is damaged"):
        fetch_emulator()
    assert not kept_emulator().exists()


def test_the_real_one() -> None:
    assert emulates_sme(need_sme())
