"""`.ci/setup` with a stand-in for Python, so that nothing is downloaded."""

import shutil
import subprocess
from pathlib import Path

import pytest

SETUP = Path(__file__).resolve().parents[1] / ".ci" / "setup"
TOOLS = ("bash", "cat", "cmp", "cp", "dirname", "mkdir", "rm", "touch")
# Files in $STATE say how it behaves.
PYTHON = """#!/usr/bin/env bash
echo "python $*" >>"$STATE/log"
case "$*" in
    *sys.exit*) [ ! -e "$STATE/old" ] ;;
    *ensurepip*) [ -e "$STATE/venv-package" ] ;;
    *%d.%d*) echo 3.11 ;;
    *sys.version*) echo 3.11.2 ;;
    "-m venv --clear .venv") rm -rf .venv; mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
    "-m pip install"*) [ ! -e "$STATE/offline" ] ;;
    "-m android"*) [ ! -e "$STATE/no-tools" ] ;;
esac
"""
APT = """#!/usr/bin/env bash
echo "apt-get $*" >>"$STATE/log"
case "$*" in install*) cp "$STATE/python" "$STATE/bin/python3"; touch "$STATE/venv-package" ;; esac
"""


class Machine:
    """A machine with nothing but what a test puts on it."""

    def __init__(self, root: Path) -> None:
        self.checkout, self.state = root / "checkout", root / "state"
        self.bin = self.state / "bin"
        self.bin.mkdir(parents=True)
        (self.checkout / ".ci").mkdir(parents=True)
        shutil.copy(SETUP, self.checkout / ".ci")
        (self.checkout / "pyproject.toml").write_text("one")
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found is not None, tool
            (self.bin / tool).symlink_to(found)
        self.script(self.state / "python", PYTHON)
        self.script(self.bin / "apt-get", APT)
        self.user(0)

    def script(self, path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o755)

    def user(self, number: int) -> None:
        self.script(self.bin / "id", f"#!/usr/bin/env bash\necho {number}\n")

    def has(self, *names: str) -> None:
        """Puts Python or its Debian package on the machine, or takes it off line."""
        for name in names:
            if name == "python3":
                shutil.copy(self.state / "python", self.bin / name)
            else:
                (self.state / name).touch()

    def run(self, *arguments: str) -> tuple[int, str, list[str]]:
        """Returns the exit code, what was said, and what mattered of the calls."""
        log = self.state / "log"
        log.write_text("")
        done = subprocess.run(
            [str(self.checkout / ".ci" / "setup"), *arguments],
            env={"PATH": str(self.bin), "STATE": str(self.state)},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        calls = [" ".join(line.split()[:4]) for line in log.read_text().splitlines()]
        wanted = ("python -m venv --clear", "python -m pip install", "python -m android", "apt-get")
        return done.returncode, done.stderr, [c for c in calls if c.startswith(wanted)]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


VENV, INSTALL = "python -m venv --clear", "python -m pip install"
TOOLS_FOR_TESTS = "python -m android.build.install_tools apk"


def test_once_and_then_never_again(machine: Machine) -> None:
    machine.has("python3", "venv-package")
    assert machine.run()[::2] == (0, [VENV, INSTALL])
    assert machine.run() == (0, "", [])


def test_again_when_something_changed(machine: Machine) -> None:
    machine.has("python3", "venv-package")
    machine.run()
    (machine.checkout / "pyproject.toml").write_text("two")
    assert machine.run()[::2] == (0, [INSTALL])
    machine.checkout = machine.checkout.rename(machine.checkout.with_name("moved"))
    assert machine.run()[::2] == (0, [VENV, INSTALL])
    (machine.checkout / ".venv" / "bin" / "python").unlink()
    assert machine.run()[::2] == (0, [VENV, INSTALL])


def test_a_half_made_environment_is_made_anew(machine: Machine) -> None:
    machine.has("python3", "venv-package", "offline")
    code, said, _ = machine.run()
    assert code == 2
    assert "pip could not install" in said
    (machine.state / "offline").unlink()
    assert machine.run()[::2] == (0, [VENV, INSTALL])


def test_root_installs_what_debian_left_out(machine: Machine) -> None:
    machine.has("python3")
    code, said, calls = machine.run()
    assert code == 0
    assert "python3.11-venv" in said
    assert calls == ["apt-get update -qq", "apt-get install -qq -y", VENV, INSTALL]


def test_root_installs_python(machine: Machine) -> None:
    code, said, _ = machine.run()
    assert code == 0
    assert "Installing from Debian: python3 python3-venv" in said


def test_others_are_told_the_packages(machine: Machine) -> None:
    machine.user(1000)
    assert machine.run()[0] == 2
    assert "sudo apt-get install python3 python3-venv" in machine.run()[1]
    machine.has("python3")
    assert machine.run()[::2] == (2, [])
    assert "sudo apt-get install python3.11-venv" in machine.run()[1]


def test_an_old_python_is_not_enough(machine: Machine) -> None:
    machine.has("python3", "old")
    code, said, _ = machine.run()
    assert code == 2
    assert "python3 is older than 3.10" in said


def test_for_tests_more_is_installed(machine: Machine) -> None:
    machine.has("python3", "venv-package")
    code, _, calls = machine.run("tests")
    assert (code, calls) == (0, [VENV, INSTALL, TOOLS_FOR_TESTS])
    assert machine.run("tests") == (0, "", [TOOLS_FOR_TESTS])
    machine.has("no-tools")
    assert machine.run("tests")[:2] == (0, "Going on without; the tests that need it skip\n")
    assert machine.run() == (0, "", [])
