"""The APK, taken apart by the tools that Android's makers check APKs with."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import subprocess
import zipfile
from pathlib import Path

import pytest

from android.apk_info import ApkInfo
from android.builder import PAGE, ApkError, build_apk, build_unsigned, plan_apk, version_code
from android.signing import Key, debug_key, own_key
from android.tools import ToolError, package, run
from convert.bundle import Bundle
from convert.cli import main
from quantize.errors import BundleError
from tests.engine.elf import Elf

LIMIT = 4 << 20  # bytes of an APK without weights


def test_what_android_reads(apk: Path) -> None:
    info = ApkInfo.read(apk)
    assert (info.package, info.min_sdk, info.target_sdk) == ("org.minicpmv.app", 26, 34)
    assert info.abis == ("arm64-v8a",)
    assert info.schemes == ("v2", "v3")
    assert {p.rpartition(".")[2] for p in info.permissions} == {
        "FOREGROUND_SERVICE",
        "FOREGROUND_SERVICE_DATA_SYNC",
        "POST_NOTIFICATIONS",
    }
    assert info.size < LIMIT
    badging = run(["aapt2", "dump", "badging", str(apk)], "")
    assert "launchable-activity: name='org.minicpmv.app.MainActivity'" in badging
    assert "locales: '--_--' 'zh'" in badging
    tree = run(["aapt2", "dump", "xmltree", "--file", "AndroidManifest.xml", str(apk)], "")
    assert re.search(r"extractNativeLibs\(0x[0-9a-f]+\)=true", tree)
    assert not re.search(r"debuggable|usesCleartextTraffic", tree)


def test_what_lies_in_it(apk: Path, bundle: Bundle) -> None:
    with zipfile.ZipFile(apk) as archive:
        names = set(archive.namelist())
        assert (
            archive.read("lib/arm64-v8a/libengine.so")
            == bundle.program("android-arm64").read_bytes()
        )
        for path in PAGE.glob("*.js"):
            assert archive.read(f"assets/page/{path.name}") == path.read_bytes()
        notices = archive.read("assets/page/notices.txt").decode()
        assert "assets/bundle/weights.safetensors" not in names
        assert {"assets/bundle/bundle.json", "assets/bundle/tokenizer.model"} <= names
        assert not any("BRIDGE" in name or "engine/" in name for name in names)
        assert archive.getinfo("resources.arsc").compress_type == zipfile.ZIP_STORED
    for owner in ("apache-tvm", "SentencePiece", "musl", "Protocol Buffers", "LLVM libc++"):
        assert owner in notices
    run(["zipalign", "-c", "4", str(apk)], "not aligned")


def test_classes(apk: Path, tmp_path: Path) -> None:
    """Everything that the manifest and the page name is there; Android has what they call."""
    with zipfile.ZipFile(apk) as archive:
        archive.extract("classes.dex", tmp_path)
    dump = run(["dexdump", "-d", str(tmp_path / "classes.dex")], "")
    classes = set(re.findall(r"Class descriptor  : 'L([^;]+);'", dump))
    for name in ("App", "MainActivity", "WorkService", "PhotoProvider", "Bridge", "PageClient"):
        assert f"org/minicpmv/app/{name}" in classes
    assert "invoke-custom" not in dump  # what Android 8 does not know
    called = set(re.findall(r"\{[^}]*\}, L(android/[\w/$]+);\.(\w+):", dump))
    assert len(called) > 50
    with zipfile.ZipFile(package("android-all").fetch()) as jar:
        known = set(jar.namelist())
    assert {name for name, _ in called if f"{name}.class" not in known} == set()


def test_the_engine_in_it_answers(apk: Path, tmp_path: Path, bundle: Bundle) -> None:
    """As Android does: unpacked, then run as it is, here by qemu."""
    with zipfile.ZipFile(apk) as archive:
        archive.extract("lib/arm64-v8a/libengine.so", tmp_path)
    engine = tmp_path / "lib/arm64-v8a/libengine.so"
    engine.chmod(0o755)
    elf = Elf.read(engine)
    assert elf.machine == "aarch64"
    assert elf.needed == 0
    assert all(s.alignment >= 16384 for s in elf.segments if s.kind == 1)
    done = subprocess.run(
        ["qemu-aarch64-static", str(engine)], input=b"", capture_output=True, check=True
    )
    hello = json.loads(done.stdout.splitlines()[0])
    assert (hello["event"], hello["target"]) == ("hello", "android-arm64")


def test_same_inputs_same_bytes(bundle: Bundle, tmp_path: Path) -> None:
    digests = set()
    for name in ("one.apk", "two.apk"):
        build_unsigned(plan_apk(bundle, None, embed=False), tmp_path / name, _quiet)
        digests.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(digests) == 1


def test_embedded_weights(bundle: Bundle, tmp_path: Path) -> None:
    build_unsigned(plan_apk(bundle, None, embed=True), tmp_path / "apk", _quiet)
    with zipfile.ZipFile(tmp_path / "apk") as archive:
        weights = archive.getinfo("assets/bundle/weights.safetensors")
    assert weights.compress_type == zipfile.ZIP_STORED
    assert weights.file_size == (bundle.path / "weights.safetensors").stat().st_size


def test_an_apk_for_what_the_bundle_lacks(bundle: Bundle) -> None:
    with pytest.raises(ApkError, match="unknown ABI; known: arm64-v8a, x86_64"):
        plan_apk(bundle, ["mips"], embed=False)
    with pytest.raises(BundleError, match="no program for target 'android-x86_64'"):
        plan_apk(bundle, ["x86_64"], embed=False)
    other = Bundle.open(bundle.path)
    host = {"host": next(iter(bundle.manifest.targets.values()))}
    other.manifest = dataclasses.replace(bundle.manifest, targets=host)
    with pytest.raises(ApkError, match="only for host; convert again with --target host,android"):
        plan_apk(other, None, embed=False)


def test_keys(bundle: Bundle, key: Key, apk: Path, tmp_path: Path) -> None:
    assert debug_key(key.keystore.parent) == key  # made once
    with pytest.raises(ToolError, match="no such keystore"):
        own_key(tmp_path / "none", None, None)
    wrong = Key(keystore=key.keystore, alias=None, password="pass:wrong")
    with pytest.raises(ToolError, match=r"chat2\.apk: cannot be signed"):
        build_apk(
            plan_apk(bundle, None, embed=False), wrong, tmp_path / "chat2.apk", _quiet, password=""
        )
    assert list(tmp_path.iterdir()) == []


def _quiet(stage: str, done: int, total: int) -> None:
    """Shows nothing."""


def test_missing_tools_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolError, match=r"aapt2 is not installed.*sudo apt-get install aapt"):
        ApkInfo.read(Path(__file__))


def test_packages_are_fetched_by_maven(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wanted = package("junit")
    maven = tmp_path / "bin" / "mvn"
    maven.parent.mkdir()
    monkeypatch.setenv("PATH", str(maven.parent), prepend=":")
    maven.write_text("#!/bin/sh\necho '[ERROR] no such place' >&2\nexit 1\n")
    maven.chmod(0o755)
    with pytest.raises(ToolError, match=r"junit-4\.13\.2\.jar: Maven could not.*no such place"):
        wanted.fetch(tmp_path)
    maven.write_text(
        '#!/bin/sh\nfor a; do case "$a" in -DoutputDirectory=*) '
        f'echo other > "${{a#*=}}/{wanted.file_name}";; esac; done\n'
    )
    with pytest.raises(ToolError, match="did not bring the file with SHA-256 8e495b"):
        wanted.fetch(tmp_path)
    assert not (tmp_path / "packages").exists()


def test_version_codes_grow() -> None:
    versions = ["0.0.0", "0.1.0", "0.1.1", "0.2.0", "1.0.0", "1.10.0"]
    codes = [version_code(v) for v in versions]
    assert codes == sorted(set(codes))
    assert codes[0] == 1


def test_the_command_refuses(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["apk", str(tmp_path / "none")]) == 2
    assert "no such folder; expected a bundle's folder" in capsys.readouterr().err
