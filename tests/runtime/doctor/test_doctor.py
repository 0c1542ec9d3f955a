"""`minicpmv doctor` on machines that lack things, with stand-ins on the PATH."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from android.build import tools
from convert.cli import main
from convert.support.cache import CACHE_VARIABLE
from runtime.doctor import checks
from runtime.doctor.checks import BROKEN, LATER, MISSING, NOTE, OK, OLD, Finding
from runtime.doctor.doctor import AREAS, COMMANDS, DoctorError, examine, mends, parse_areas
from runtime.doctor.python_checks import check_python, check_zig
from runtime.engine_client import emulator
from tests.support.fake_phone import FakePhone, fake_phone

ROOT = Path(__file__).resolve().parents[3]

SAYS = {
    "javac": "javac 17.0.15",
    "java": 'openjdk version "17.0.15" 2025-04-15',
    "javadoc": "javadoc 17.0.15",
    "keytool": " -genkeypair         Generates a key pair",
    "mvn": "\033[1mApache Maven 3.8.7\033[m",
    "aapt2": "Android Asset Packaging Tool (aapt) 2.19-debian",
    "zipalign": "Zip alignment utility",
    "apksigner": "0.9",
    "adb": "Android Debug Bridge version 1.0.41",
    "qemu-aarch64-static": "qemu-aarch64 version 7.2.22 (Debian)",
    "dexdump": "dexdump E] No file specified",
    "clang++": "Debian clang version 14.0.6",
    "npm": "11.19.1",
    "chromium": "Chromium 156.0.8078.79 built on Debian",
}


class Machine:
    """A machine with the programs that a test puts on it."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bin, self.cache = root / "programs", root / "cache"
        self.bin.mkdir()
        self._patch = monkeypatch
        for name, text in SAYS.items():
            # Half of them speak on stderr and end with an error, as some really do.
            self.program(name, f"echo '{text}' >&2; exit 2" if len(name) % 2 else f"echo '{text}'")
        monkeypatch.setenv("PATH", str(self.bin))
        monkeypatch.setenv(CACHE_VARIABLE, str(self.cache))
        monkeypatch.setenv("HF_HOME", str(root / "hub"))
        self.requires("rich>=13.7")

    def program(self, name: str, script: str) -> None:
        (self.bin / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.bin / name).chmod(0o755)

    def requires(self, *requirements: str) -> None:
        self._patch.setattr(metadata, "requires", lambda name: list(requirements))

    def find(self, name: str) -> Finding:
        (found,) = checks.check_programs([p for p in tools.programs() if p.name == name])
        return found


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_every_program_has_a_stand_in() -> None:
    assert {p.name for p in tools.programs()} == set(SAYS)


def test_it_starts_without_what_it_checks() -> None:
    """Doctor says that PyTorch is broken; it must not end of that itself."""
    code = "import runtime.doctor.doctor as doctor, sys\n"
    code += "print([name for name in ('torch', 'tvm', 'numpy', 'onnx') if name in sys.modules])"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_programs_that_work(machine: Machine) -> None:
    found = checks.check_programs(tools.programs())
    assert {f.name: f.detail for f in found if f.state != OK} == {}
    versions = {f.name: f.version for f in found}
    assert (versions["javac"], versions["mvn"], versions["zipalign"]) == ("17.0.15", "3.8.7", None)


@pytest.mark.parametrize(
    ("name", "script", "state", "detail"),
    [
        ("javac", "echo javac 1.8.0", OLD, "is 1.8.0; 9 or later is needed"),
        ("mvn", "echo Apache Maven 3.0.5", OLD, "is 3.0.5; 3.2.5 or later is needed"),
        ("aapt2", "echo libc.so.6: not found >&2; exit 127", BROKEN, "aapt2 does not say what it"),
        ("apksigner", "exit 1", BROKEN, "does not say what it is: nothing"),
        ("zipalign", "kill -SEGV $$", BROKEN, "does not say what it is: nothing"),
    ],
)
def test_programs_that_do_not_work(
    machine: Machine, name: str, script: str, state: str, detail: str
) -> None:
    machine.program(name, script)
    found = machine.find(name)
    assert (found.state, found.fails) == (state, True)
    assert found.detail is not None and detail in found.detail
    assert found.mend is not None and found.mend.startswith("sudo apt-get install")
    assert ("--reinstall" in found.mend) == (state == BROKEN)


def test_programs_that_are_missing_or_no_programs(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    (machine.bin / "adb").unlink()
    found = machine.find("adb")
    assert (found.state, found.mend) == (MISSING, "sudo apt-get install adb")
    (machine.bin / "npm").write_text("")
    (machine.bin / "npm").write_bytes(b"\x7fELF\x02\x01 of another machine")
    found = machine.find("npm")
    assert found.state == BROKEN
    assert found.detail == f"{machine.bin}/npm does not start: Exec format error"
    machine.program("mvn", "exec /bin/sleep 100")
    monkeypatch.setattr("convert.support.ask._SECONDS", 0.2)
    assert machine.find("mvn").detail == f"{machine.bin}/mvn does not answer"


def test_debians_packages_are_mended_at_once(machine: Machine) -> None:
    for name in ("javac", "java", "clang++"):
        (machine.bin / name).unlink()
    found = checks.check_programs(tools.programs())
    together = "sudo apt-get install default-jdk-headless clang libclang-rt-dev"
    assert mends(found) == [together]
    machine.program("adb", "exit 1")
    other = Finding(name="x", what="", areas=(), state=MISSING, mend="make setup")
    found = [*checks.check_programs(tools.programs()), other]
    assert mends(found) == [
        together.replace("install", "install --reinstall").replace(
            "jdk-headless", "jdk-headless adb"
        ),
        "make setup",
    ]


def test_jars(machine: Machine) -> None:
    junit = tools.package("junit")
    found = checks.check_package(junit)
    assert (found.state, found.fails) == (LATER, False)
    junit.kept().parent.mkdir(parents=True)
    junit.kept().write_bytes(b"half a jar")
    assert "damaged and will be replaced" in str(checks.check_package(junit).detail)


def test_an_emulator_of_sme(machine: Machine) -> None:
    found = checks.check_emulator(("qemu",))
    assert (found.state, found.version, found.fails) == (NOTE, "7.2.22", False)
    assert "without SME only; `python -m android.build.install_tools qemu`" in str(found.detail)
    kept = emulator.kept_emulator()
    kept.parent.mkdir(parents=True)
    kept.write_text("half of it")
    assert "damaged" in str(checks.check_emulator(("qemu",)).detail)
    kept.write_text("#!/bin/sh\necho qemu-aarch64 version 10.0.13\n")
    kept.chmod(0o755)
    kept.with_suffix(".sha256").write_text(hashlib.sha256(kept.read_bytes()).hexdigest())
    found = checks.check_emulator(("qemu",))
    assert (found.state, found.version) == (OK, "10.0.13")
    kept.unlink()
    (machine.bin / "qemu-aarch64-static").unlink()
    assert checks.check_emulator(("qemu",)).version is None


def test_the_cache(machine: Machine) -> None:
    objects, source = checks.check_cache(("convert",))
    assert (objects.state, objects.version, source.state) == (OK, "0, 0 MiB", LATER)
    folder = machine.cache / "tvm-x86"
    folder.mkdir(parents=True)
    (folder / "damaged.o").write_bytes(b"object")
    (folder / "damaged.sha256").write_text("0" * 64)
    objects, _ = checks.check_cache(("convert",))
    assert (objects.state, objects.fails) == (NOTE, False)
    assert objects.detail == "1 of 1 are damaged; they are compiled again when needed"
    for name, digest in (("whole", hashlib.sha256(b"code").hexdigest()), ("other", "0" * 64)):
        entry = machine.cache / "blocks" / name
        entry.mkdir(parents=True)
        (entry / "lib0.o").write_bytes(b"code")
        (entry / "objects.json").write_text(json.dumps({"lib0.o": digest}))
    objects, _ = checks.check_cache(("convert",))
    assert objects.detail == "2 of 3 are damaged; they are compiled again when needed"
    (machine.cache / "packages").mkdir()
    (machine.cache / "packages" / checks.SENTENCEPIECE.file_name).write_bytes(b"half of it")
    _, source = checks.check_cache(("convert",))
    assert (source.state, source.fails) == (LATER, False)
    assert "damaged and will be replaced" in str(source.detail)


def test_a_cache_that_cannot_be_written(machine: Machine, tmp_path: Path) -> None:
    machine.cache.write_text("a file")
    objects, _ = checks.check_cache(("convert",))
    assert (objects.state, objects.mend) == (BROKEN, f"export {CACHE_VARIABLE}=/another/folder")


def test_checkpoints_are_counted(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "hub" / "hub").mkdir(parents=True)
    (tmp_path / "hub" / "hub" / "blob").write_bytes(bytes(3 << 20))
    assert checks.check_cache(("convert",))[-1].version == "3 MiB"


def test_python_packages(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modules = {
        "good": "",
        "crashes": "import os; os.kill(os.getpid(), 11)",
        "raises": "raise ImportError('libfoo.so.1: not found')",
        "leaves": "raise SystemExit(3)",
        "later": "print('hello from a module')",
    }
    for name, code in modules.items():
        (tmp_path / f"{name}.py").write_text(code)
        about = tmp_path / f"{name}-1.2.3.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2.3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    machine.requires(
        *(f"{name}>=1.2" for name in modules),
        "Good==1.2.4",
        "later>=1.10",
        "nowhere>=1",
        'pytest>=1; extra == "dev"',
        'elsewhere>=1; sys_platform == "plan9"',
        'elsewhere>=1; sys_platform == "plan9" and extra == "dev"',
    )
    found = check_python(("chat",), ())
    assert [(f.name, f.state) for f in found] == [
        ("good", OK),
        ("crashes", BROKEN),
        ("raises", BROKEN),
        ("leaves", BROKEN),
        ("later", OK),
        ("Good", OLD),
        ("later", OLD),
        ("nowhere", MISSING),
    ]
    details = {f.name: f.detail for f in found if f.fails}
    assert details["crashes"] == "cannot be imported: ends Python with exit code -11"
    assert details["raises"] == "cannot be imported: ImportError: libfoo.so.1: not found"
    assert details["leaves"] == "cannot be imported: SystemExit: 3"
    assert details["Good"] == "is 1.2.3; Good==1.2.4 is needed"
    by_name = {f.name: f for f in found}
    assert str(by_name["nowhere"].mend).endswith("-m pip install 'nowhere>=1'")
    assert str(by_name["raises"].mend).endswith("--force-reinstall --no-deps 'raises>=1.2'")
    tests = [f.name for f in check_python(("chat",), ("tests",)) if f.areas == ("tests",)]
    assert tests == ["pytest"]


@pytest.mark.parametrize(
    ("requirement", "state"),
    [
        ("good ~= 1.2", OK),
        ("good>1,<2,!=1.5", OK),
        ("good[extra]>=1.2.3", OK),
        ("good==1.2.*", OK),
        ("good<1.2.3", OLD),
        ("good>=1.10", OLD),
        ("good", OK),
    ],
)
def test_every_kind_of_requirement(
    requirement: str,
    state: str,
    machine: Machine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "good.py").touch()
    about = tmp_path / "good-1.2.3.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: good\nVersion: 1.2.3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    machine.requires(requirement)
    (found,) = check_python(("chat",), ())
    assert (found.name, found.state) == ("good", state)


def test_our_own_requirements_are_understood() -> None:
    found = check_python(("chat",), ("tests",))
    assert {f.name: f.detail for f in found if f.fails} == {}
    assert {"torch", "apache-tvm", "pytest"} <= {f.name for f in found}


def test_without_the_toolkit_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", requires)
    (found,) = check_python(("chat",), ())
    assert (found.state, found.mend) == (MISSING, "make setup")


def test_a_compiler_that_does_not_run(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_zig(("convert",)).state == OK
    machine.program("python", "echo no module named ziglang >&2; exit 1")
    machine.requires("ziglang==0.17.0")
    monkeypatch.setattr(sys, "executable", str(machine.bin / "python"))
    found = check_zig(("convert",))
    assert (found.state, found.detail) == (BROKEN, "its output: no module named ziglang")
    assert str(found.mend).endswith("--force-reinstall --no-deps ziglang==0.17.0")


def test_processors(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(checks, "_cpu_flags", lambda: {"sse4_2", "f16c"})
    host, browser = checks.check_machine(("chat",))
    assert (host.state, browser.state) == (NOTE, NOTE)
    assert "lacks avx2, fma; bundles run with --engine qemu, adb or hdc only" in str(host.detail)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert "is for Linux x86_64" in str(checks.check_machine(("chat",))[0].detail)


def test_areas() -> None:
    assert parse_areas([]) == ("convert", "chat", "apk", "sideload", "qemu")
    assert parse_areas(["sideload", "verify"]) == ("chat", "sideload")
    assert parse_areas(["tests"]) == tuple(area for area in AREAS if area != "hdc")
    assert set(COMMANDS.values()) <= set(AREAS)
    with pytest.raises(
        DoctorError, match="'apx' is not a command or area; expected one of convert, chat"
    ):
        parse_areas(["apx"])


def doctor(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = main(["doctor", *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_the_command(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    code, report = doctor(capsys, "apk")
    assert (code, report["works"]) == (0, {"apk": True})
    (machine.bin / "aapt2").unlink()
    code, report = doctor(capsys, "apk", "qemu")
    assert (code, report["passed"]) == (1, False)
    assert report["works"] == {"apk": False, "qemu": True}
    assert main(["doctor", "apk", "qemu"]) == 1
    out = capsys.readouterr().out
    assert "aapt2: not on the PATH\n    sudo apt-get install aapt\n" in out
    assert "apk            does not work: aapt2\n--engine qemu  works\n" in out
    assert main(["doctor", "qemu"]) == 0
    assert main(["doctor", "everything"]) == 2
    assert "'everything' is not a command" in capsys.readouterr().err


@pytest.fixture
def phone_machine(machine: Machine, phone: FakePhone) -> FakePhone:
    """With the stand-in for adb; its phone's shell needs a program of this PC."""
    (machine.bin / "cat").symlink_to("/bin/cat")
    (machine.bin / "adb").unlink()
    phone.adb_says(SAYS["adb"])
    return phone


def phones(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[list[str]]]:
    code, report = doctor(capsys, *words)
    found = [f for f in report["findings"] if f["what"] == "a phone"]
    return code, [[f["name"], f["state"], f["detail"] or f["version"]] for f in found]


def test_phones(phone_machine: FakePhone, capsys: pytest.CaptureFixture[str]) -> None:
    assert phones(capsys, "sideload") == (0, [["ABC", OK, "Pixel, API 26, arm64-v8a, 7.6 GiB"]])
    phone_machine.write("getprop.ro.build.version.sdk", "24")
    problem = "has Android API 24; the app needs 26 (Android 8)"
    assert phones(capsys, "sideload") == (1, [["ABC", MISSING, problem]])
    phone_machine.write("getprop.ro.build.version.sdk", "30")
    phone_machine.abis("armeabi-v7a")
    assert phones(capsys, "sideload")[1][0][2].startswith("runs armeabi-v7a; the app is for arm64")
    phone_machine.abis("arm64-v8a")
    phone_machine.write("devices", "ABC\tdevice\nDEF\tunauthorized\n")
    code, (good, other) = phones(capsys, "sideload")
    assert (code, good[:2], other[:2]) == (0, ["ABC", OK], ["DEF", NOTE])
    assert (
        other[2] == "not ready (unauthorized): it asks whether it trusts this PC; answer on "
        "its screen"
    )
    phone_machine.write("devices", "")
    code, ((name, state, detail),) = phones(capsys, "sideload")
    assert (code, name, state) == (1, "phone", MISSING)
    assert detail.startswith("none is connected; plug one in")
    phone_machine.write("server", "cannot connect to daemon")
    code, ((_, state, detail),) = phones(capsys, "sideload")
    assert (code, state) == (1, BROKEN)
    assert "cannot connect to daemon" in detail


def test_a_phone_is_no_tool(phone_machine: FakePhone, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever asks of everything may have left the phone in another room."""
    phone_machine.write("devices", "")
    report = examine(("sideload",), needs_phone=False)
    assert report.passed
    phone_machine.write("devices", "ABC\tdevice")
    phone_machine.write("lost", "")
    (found,) = [f for f in examine(("sideload",), needs_phone=False).findings if f.name == "ABC"]
    assert (found.state, found.fails) == (NOTE, False)
    assert "device 'ABC' not found" in str(found.detail)


def test_hdc_and_its_devices(
    machine: Machine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Only for who asks: few have a board."""
    assert "hdc" not in parse_areas([]) and "hdc" not in parse_areas(["tests"])
    code, report = doctor(capsys, "hdc")
    (missing,) = [f for f in report["findings"] if f["name"] == "hdc"]
    assert (code, missing["state"], missing["mend"]) == (1, MISSING, None)
    assert missing["detail"].startswith("not on the PATH; it is in the folder toolchains of OpenH")
    (machine.bin / "cat").symlink_to("/bin/cat")
    board = fake_phone(tmp_path, monkeypatch, "hdc")
    board.write("version", "Ver: 3.1.0e")
    code, report = doctor(capsys, "hdc")
    found = {f["name"]: (f["state"], f["version"]) for f in report["findings"]}
    assert (code, found["hdc"]) == (0, (OK, "3.1.0"))
    assert found["ABC"] == (OK, "Pixel, API 26, arm64-v8a, 7.6 GiB")
    board.abis("armeabi-v7a")
    code, report = doctor(capsys, "hdc")
    (device,) = [f for f in report["findings"] if f["name"] == "ABC"]
    assert (code, device["state"]) == (1, MISSING)
    assert "runs armv7l; the engine is for" in device["detail"]
    board.write("devices", "")
    code, report = doctor(capsys, "hdc")
    (device,) = [f for f in report["findings"] if f["what"] == "an OpenHarmony device"]
    assert (code, device["state"]) == (1, MISSING)
    assert device["detail"].startswith("none is connected; plug one in")
