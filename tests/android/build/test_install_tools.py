"""`make android-tools` and the test set-up, with a fake apt-get."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from android.build import tools
from android.build.install_tools import main
from convert.support import cache
from convert.support.cache import CACHE_VARIABLE

APT = """#!/bin/sh
echo "apt-get $*" >> "$MACHINE/log"
[ "$1" = update ] && exit 0
[ ! -e "$MACHINE/offline" ] || exit 100
[ ! -e "$MACHINE/empty" ] || exit 0
for name in $(cat "$MACHINE/brings"); do ln -s /bin/true "$MACHINE/bin/$name"; done
"""
# Like Maven: copies the artifacts that the project lists into the given folder.
MAVEN = """#!/bin/sh
for argument; do case $argument in
--file=*) project=${argument#*=} ;;
-DoutputDirectory=*) folder=${argument#*=} ;;
esac; done
while IFS='<>' read -r _ item _ _ group _ _ _ name _ _ _ version _ _ _ kind _; do
[ "$item" = artifactItem ] || continue
echo "mvn $name" >> "$MACHINE/log"
cp "$MACHINE/jar" "$folder/$name-$version.$kind"
done < "$project"
"""

QEMU = """#!/bin/sh
echo qemu-aarch64 version 10.0.13
"""
SCRIPTS = {"mvn": MAVEN, "apt-get": APT, "qemu-aarch64-static": QEMU}


class Machine:
    """A machine on which only a test's programs are installed."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.bin, self.cache = root, root / "bin", root / "cache"
        self.bin.mkdir()
        self.add(*(program.name for program in tools.programs()))
        for name in ("cat", "cp", "ln", "sh"):
            (self.bin / name).symlink_to(f"/bin/{name}")
        monkeypatch.setenv("PATH", str(self.bin))
        monkeypatch.setenv("MACHINE", str(root))
        monkeypatch.setenv(CACHE_VARIABLE, str(self.cache))
        self._patch = monkeypatch
        self.user(0)

    def user(self, number: int) -> None:
        self._patch.setattr(os, "geteuid", lambda: number)

    def add(self, *names: str) -> None:
        for name in names:
            self.script(name, SCRIPTS.get(name, "#!/bin/sh\n"))

    def script(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def lacks(self, *names: str) -> None:
        """Removes programs, which apt-get then installs."""
        self.add("apt-get")
        (self.root / "brings").write_text(" ".join(names))
        for name in names:
            (self.bin / name).unlink()

    def log(self) -> list[str]:
        path = self.root / "log"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_nothing_is_missing(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sideload", "qemu"]) == 0
    assert capsys.readouterr().err == ""
    assert machine.log() == []


def test_root_installs_what_is_missing(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.lacks("aapt2", "adb", "dexdump")
    assert main(["sideload"]) == 0
    quiet = "-qq -y --no-install-recommends"
    assert machine.log() == ["apt-get update -qq", f"apt-get install {quiet} aapt adb"]
    assert capsys.readouterr().err == "Installing from Debian: aapt adb\n"


@pytest.mark.parametrize("user", [0, 1000])
def test_who_may_not_install_is_told(
    machine: Machine, capsys: pytest.CaptureFixture[str], user: int
) -> None:
    machine.lacks("clang++", "javac", "java")
    machine.user(user)
    if user == 0:
        (machine.bin / "apt-get").unlink()  # another system
    assert main(["apk", "tests"]) == 2
    assert capsys.readouterr().err == (
        "missing: javac, java, clang++. Install: sudo apt-get install default-jdk-headless clang "
        "libclang-rt-dev\n"
    )


def test_debian_cannot_be_reached(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.lacks("adb")
    (machine.root / "offline").touch()
    assert main(["sideload"]) == 2
    assert "adb` failed with exit code 100" in capsys.readouterr().err
    (machine.root / "offline").unlink()
    (machine.root / "empty").touch()
    assert main(["sideload"]) == 2
    assert "installed adb, but still missing: adb" in capsys.readouterr().err


def test_jars_are_checked(
    machine: Machine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (machine.root / "jar").write_text("another jar")
    assert main(["apk"]) == 2
    err = capsys.readouterr().err
    assert "Downloading android-all-14-robolectric-10818077.jar: Android 14's API" in err
    assert "Maven's file does not have the SHA-256 6be2218c" in err
    assert not machine.cache.exists()
    monkeypatch.setattr(cache, "sha256_file", lambda path: tools.package(_name(path)).sha256)
    assert main(["apk"]) == 0
    kept = sorted(path.name for path in (machine.cache / "packages").iterdir())
    wanted = ["android-all-14-robolectric-10818077", "annotations-24.1.0", "dalvik-dx-16.0.1"]
    assert kept == [f"{name}.jar" for name in wanted]
    calls = len(machine.log())
    capsys.readouterr()
    assert main(["apk"]) == 0
    assert (len(machine.log()), capsys.readouterr().err) == (calls, "")


def _name(path: Path) -> str:
    return next(p.name for p in tools.packages() if p.file_name == path.name)


def test_areas_are_known(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["everything"])
    assert "invalid choice: 'everything'" in capsys.readouterr().err
