"""The library for other apps: its content, and the sample app on Android's own code."""

from __future__ import annotations

import hashlib
import re
import xml.etree.ElementTree as ET
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from android.build.builder import APP, compile_java, dex, link_resources, plan_package
from android.build.library import ARTIFACT, ENGINE, GROUP, LIBRARY, build_aar, write_repository
from android.build.phones import MIN_SDK
from android.build.tools import run
from convert.bundle.manifest import WEIGHTS, Bundle
from convert.bundle.targets import ABIS
from convert.cli import main
from convert.support.progress import silent
from convert.support.versions import VERSION
from runtime.engine_client.client import LOCAL, EngineClient, engine_command
from runtime.engine_client.protocol import Field
from runtime.inputs.prompt import Message
from tests.android import robolectric

LIMIT = 5 << 20  # bytes; two engines
QUESTION = "What colour is the shape?"  # the sample's
SAMPLE_LINES = 100


def engine_answer(bundle: Bundle) -> str:
    """Returns what the engine answers the sample's question."""
    with EngineClient(engine_command(LOCAL, bundle.program("host"))) as client:
        client.load(bundle.path, window=1024)
        image = client.image(Image.open(robolectric.SAMPLE))[Field.IMAGE]
        turns = [Message(role="user", content=QUESTION)]
        return client.chat(turns, image=image, max_new_tokens=100).text


@pytest.mark.parametrize("sdk", robolectric.SDKS)
def test_on_android(sample: Path, demo: Path, sdk: int) -> None:
    """The sample app and each method, against the AAR's classes and files.

    The expected answer is the engine's about the same picture decoded by Pillow.
    """
    bundle = Bundle.open(demo)
    answer = engine_answer(bundle)
    tests = ["sample.SampleTest", "sample.LibraryTest", "sample.LibraryPowerTest"]
    assert "OK (" in robolectric.run(sample, bundle, sdk, tests, answer=answer)


def test_the_content(aar: Path, bundle: Bundle) -> None:
    """The names are Android's for archives of this kind."""
    assert aar.stat().st_size < LIMIT
    with zipfile.ZipFile(aar) as archive:
        assert archive.testzip() is None
        names = set(archive.namelist())
        engines = {name for name in names if name.startswith("jni/")}
        assert engines == {f"jni/{abi}/{ENGINE}" for abi in ABIS}
        for abi, target in ABIS.items():
            program = bundle.program(target).path.read_bytes()
            assert archive.read(f"jni/{abi}/{ENGINE}") == program
        files = {
            name.removeprefix("assets/minicpmv/") for name in names if name.startswith("assets/")
        }
        programs = {target.program for target in bundle.manifest.targets.values()}
        packaged = set(bundle.manifest.files) - programs - {WEIGHTS}
        assert files == {*packaged, "bundle.json", "notices.txt"}
        other = names - engines - {f"assets/minicpmv/{name}" for name in files}
        assert other == {
            *("AndroidManifest.xml", "R.txt", "classes.jar", "proguard.txt"),
            "META-INF/com/android/build/gradle/aar-metadata.properties",
        }
        manifest = ET.fromstring(archive.read("AndroidManifest.xml"))
        assert [element.tag for element in manifest] == ["uses-sdk"], "no permission, no component"
        android = "{http://schemas.android.com/apk/res/android}"
        assert manifest[0].get(f"{android}minSdkVersion") == str(MIN_SDK)


def test_the_classes(aar: Path, tmp_path: Path) -> None:
    """Those that the library uses, none of the app; what they need is Android's."""
    with zipfile.ZipFile(aar) as archive:
        archive.extract("classes.jar", tmp_path)
    jar = tmp_path / "classes.jar"
    with zipfile.ZipFile(jar) as archive:
        names = [name for name in archive.namelist() if "$" not in name]
    assert {name.rpartition("/")[0] for name in names} == {
        "org/minicpmv/core",
        "org/minicpmv/system",
    }
    assert "org/minicpmv/core/MiniCpmV.class" in names
    assert "org/minicpmv/core/Assistant.class" not in names
    public = run(["javap", "-cp", str(jar), "-public", "org.minicpmv.core.MiniCpmV"], "")
    methods = re.findall(r"(\w+)\(.*\) ?(?:throws [\w.]+)?;", public)
    assert sorted(methods) == ["cancel", "chat", "close", "open", "setGreedy", "setMaxNewTokens"]
    missing = run(["jdeps", "--ignore-missing-deps", "-verbose:package", str(jar)], "")
    assert "org.minicpmv.app" not in missing
    verbose = run(["javap", "-cp", str(jar), "-v", "org.minicpmv.core.MiniCpmV"], "")
    assert "org.jetbrains.annotations.Nullable" in verbose, "Kotlin reads it"
    # Phones' bytecode, from the same translator as the app's.
    dex(jar, tmp_path / "classes.dex")


def test_the_app_is_built_on_the_same_classes(aar: Path, apk: Path, tmp_path: Path) -> None:
    """All that the library has of the app's sources, byte for byte; the app adds its own."""
    link_resources(tmp_path)
    compile_java([APP / "java", tmp_path / "generated"], tmp_path / "classes")
    with zipfile.ZipFile(aar) as archive:
        archive.extract("classes.jar", tmp_path)
    with zipfile.ZipFile(apk) as archive:
        archive.extract("classes.dex", tmp_path)
    installed = run(["dexdump", str(tmp_path / "classes.dex")], "")
    own = {path.stem for path in (LIBRARY / "java").rglob("*.java")}
    shared = 0
    with zipfile.ZipFile(tmp_path / "classes.jar") as archive:
        for name in archive.namelist():
            if name.rpartition("/")[2].removesuffix(".class").partition("$")[0] in own:
                continue
            assert archive.read(name) == (tmp_path / "classes" / name).read_bytes(), name
            assert f"'L{name.removesuffix('.class')};'" in installed
            shared += 1
    assert shared > len(own)


def test_a_second_build_gives_the_same_bytes(aar: Path, bundle: Bundle, tmp_path: Path) -> None:
    build_aar(plan_package(bundle, None, embed=False), tmp_path / "again.aar", silent)
    assert (tmp_path / "again.aar").read_bytes() == aar.read_bytes()


def test_the_repository(aar: Path, tmp_path: Path) -> None:
    """What a Maven repository has of a version; the hashes are those that Maven compares."""
    repository = tmp_path / "repository"
    place = write_repository(aar, repository, silent)
    name = f"{ARTIFACT}-{VERSION}"
    ends = (".aar", ".pom", "-sources.jar", "-javadoc.jar")
    hashes = {f"{name}{end}.{kind}" for end in ends for kind in ("sha1", "sha256")}
    assert {path.name for path in place.iterdir()} == {f"{name}{end}" for end in ends} | hashes
    for end in ends:
        content = (place / f"{name}{end}").read_bytes()
        digest = (place / f"{name}{end}.sha1").read_text()
        assert digest == hashlib.sha1(content, usedforsecurity=False).hexdigest()
    with zipfile.ZipFile(place / f"{name}-sources.jar") as archive:
        assert "org/minicpmv/core/MiniCpmV.java" in archive.namelist()
    with zipfile.ZipFile(place / f"{name}-javadoc.jar") as archive:
        page = archive.read("org/minicpmv/core/MiniCpmV.html").decode()
    assert "useLegacyPackaging" in page and "setMaxNewTokens" in page
    model = ET.parse(place / f"{name}.pom").getroot()
    maven = "{http://maven.apache.org/POM/4.0.0}"
    assert [model.findtext(f"{maven}{tag}") for tag in ("groupId", "packaging")] == [GROUP, "aar"]


def test_the_command(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, maven = tmp_path / "minicpmv.aar", tmp_path / "maven"
    command = ["aar", str(bundle.path), "-o", str(output), "--abi", "arm64-v8a"]
    assert main([*command, "--maven", str(maven)]) == 0
    said = capsys.readouterr().out
    assert f"{GROUP}:{ARTIFACT}:{VERSION}" in said and "arm64-v8a" in said
    with zipfile.ZipFile(output) as archive:
        assert f"jni/x86_64/{ENGINE}" not in archive.namelist()
    assert main(["aar", str(bundle.path), "-o", str(tmp_path)]) == 2
    assert "expected the name of an AAR" in capsys.readouterr().err
    assert main([*command[:-1], "mips"]) == 2
    assert "'mips' is unknown" in capsys.readouterr().err


def test_the_sample_is_short() -> None:
    (source,) = (LIBRARY / "sample" / "java").rglob("*.java")
    assert len(source.read_text("utf-8").splitlines()) < SAMPLE_LINES
