"""The library with tools that were not made for it: Kotlin's compiler, R8, Maven, Gradle.

Their jars are large, 90 MB in all, so these tests are slow the first time.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from android.build.library import ARTIFACT, GROUP, LIBRARY, write_repository
from android.build.tools import ToolError, fetch, java, package, packages, program, run
from convert.bundle.manifest import Bundle
from convert.support.progress import silent
from convert.support.versions import VERSION
from tests.android import robolectric
from tests.android.test_aar import engine_answer
from tests.support.once import once

pytestmark = pytest.mark.slow
KOTLIN = Path(__file__).parent / "kotlin"
# Copies the dependencies of a project. It is the version that the toolkit's own downloads use.
_MAVEN_COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies"
_MAVEN_PROJECT = """\
<project xmlns="http://maven.apache.org/POM/4.0.0">
<modelVersion>4.0.0</modelVersion>
<groupId>host</groupId><artifactId>app</artifactId><version>1</version><packaging>pom</packaging>
<repositories><repository>
<id>own</id><url>{repository}</url><releases><checksumPolicy>fail</checksumPolicy></releases>
</repository></repositories>
<dependencies><dependency>
<groupId>{group}</groupId><artifactId>{artifact}</artifactId><version>{version}</version>
<type>aar</type>
</dependency></dependencies>
</project>
"""
_GRADLE_PROJECT = """\
repositories {{ maven {{ url uri('{repository}') }} }}
configurations {{ library }}
dependencies {{ library '{group}:{artifact}:{version}@aar' }}
task take(type: Copy) {{ from configurations.library; into file('taken') }}
"""


def _fetch(area: str) -> list[Path]:
    try:
        return fetch(packages((area,)))
    except ToolError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def classes(aar: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("aar")
    with zipfile.ZipFile(aar) as archive:
        archive.extractall(folder, ["classes.jar", "proguard.txt"])
    return folder / "classes.jar"


def _kotlin(source: Path, classes: Path, output: Path) -> subprocess.CompletedProcess[str]:
    """Compiles a file; warnings are errors."""
    jars = [*_fetch("users"), package("annotations").fetch()]
    known = [classes, package("android-all").fetch(), package("kotlin-stdlib").fetch()]
    command = [*java(), "-cp", os.pathsep.join(map(str, jars))]
    command += ["org.jetbrains.kotlin.cli.jvm.K2JVMCompiler", "-no-stdlib", "-no-reflect"]
    command += ["-jvm-target", "1.8", "-Werror", "-cp", os.pathsep.join(map(str, known))]
    command += ["-d", str(output), str(source)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_kotlin_compiles_against_it(classes: Path, tmp_path: Path) -> None:
    """No platform types are left: an answer's parts need no checks."""
    done = _kotlin(KOTLIN / "Ask.kt", classes, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "org/minicpmv/sample/AskKt.class").is_file()


def test_kotlin_refuses_null_where_it_does_not_belong(classes: Path, tmp_path: Path) -> None:
    source = KOTLIN / "Misuse.kt"
    done = _kotlin(source, classes, tmp_path)
    assert done.returncode != 0
    lines = source.read_text("utf-8").splitlines()
    expected = {number for number, line in enumerate(lines, 1) if line.endswith("// error")}
    found = {int(number) for number in re.findall(r"Misuse\.kt:(\d+):\d+: error:", done.stderr)}
    assert found == expected, done.stderr


def test_the_sample_works_when_r8_has_shrunk_it(
    classes: Path,
    sample: Path,
    demo: Path,
    tmp_path: Path,
) -> None:
    """With the library's own rules, and the app's as aapt2 writes them for its manifest."""
    _fetch("users")
    folder = tmp_path / "shrunk"
    shutil.copytree(sample, folder, symlinks=True)
    app = {path for path in (folder / "classes").rglob("Sample*.class") if "Test" not in path.stem}
    packed = tmp_path / "app.jar"
    with zipfile.ZipFile(packed, "w") as archive:
        for path in app:
            archive.write(path, path.relative_to(folder / "classes"))
            path.unlink()
    rules = tmp_path / "app.pro"
    manifest = LIBRARY / "sample" / "AndroidManifest.xml"
    android = str(package("android-all").fetch())
    command = [program("aapt2"), "link", "-I", android, "-o", str(tmp_path / "app.apk")]
    run([*command, "--manifest", str(manifest), "--proguard", str(rules)], "no rules")
    shrunk = folder / "libraries" / "minicpmv.jar"
    before = _methods(classes)
    home = Path(program("java")).resolve().parents[1]
    command = [*java(), "-cp", str(package("r8").fetch()), "com.android.tools.r8.R8", "--classfile"]
    command += ["--release", "--lib", android, "--lib", str(home), "--pg-conf", str(rules)]
    command += ["--pg-conf", str(classes.parent / "proguard.txt"), "--output", str(shrunk)]
    run([*command, str(classes), str(packed)], "R8 fails")
    assert len(_methods(shrunk)) < len(before), "it removes what the sample does not call"
    assert "org/minicpmv/core/MiniCpmV.class" not in zipfile.ZipFile(shrunk).namelist()
    bundle = Bundle.open(demo)
    answer = engine_answer(bundle)
    newest = max(robolectric.SDKS)
    output = robolectric.run(folder, bundle, newest, ["sample.SampleTest"], answer=answer)
    assert "OK (2 tests)" in output


def _methods(jar: Path) -> list[str]:
    """Lists what a jar's classes have."""
    with zipfile.ZipFile(jar) as archive:
        names = [name for name in archive.namelist() if name.endswith(".class")]
    listed = run(["javap", "-p", *(f"jar:{jar.as_uri()}!/{name}" for name in names)], "no classes")
    return [line for line in listed.splitlines() if line.endswith(";")]


@pytest.fixture(scope="module")
def repository(aar: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(folder: Path) -> None:
        write_repository(aar, folder, silent)

    return once(tmp_path_factory, "aar-repository", make)


def _fill(template: str, repository: Path) -> str:
    names = {"group": GROUP, "artifact": ARTIFACT, "version": VERSION}
    return template.format(repository=repository.as_uri(), **names)


def test_maven_resolves_it(repository: Path, aar: Path, tmp_path: Path) -> None:
    """Also its hashes: a wrong one is refused."""
    copy = tmp_path / "repository"
    shutil.copytree(repository, copy)
    project, taken = tmp_path / "pom.xml", tmp_path / "taken"
    project.write_text(_fill(_MAVEN_PROJECT, copy))
    command = [program("mvn"), "--batch-mode", "--quiet", f"--file={project}", _MAVEN_COPY]
    kept = f"-Dmaven.repo.local={tmp_path / 'kept'}"
    try:
        run([*command, kept, f"-DoutputDirectory={taken}"], "Maven does not resolve it")
    except ToolError as error:
        if GROUP in str(error):
            raise
        pytest.skip(f"Maven cannot fetch its own parts: {error}")
    (found,) = taken.iterdir()
    assert found.read_bytes() == aar.read_bytes()
    shutil.rmtree(tmp_path / "kept" / GROUP.replace(".", "/"))
    (wrong,) = copy.rglob("*.aar.sha1")
    wrong.write_text("0" * 40)
    with pytest.raises(ToolError, match=r"[Cc]hecksum"):
        run([*command, kept, f"-DoutputDirectory={taken}"], "Maven refuses it")


def test_gradle_resolves_it(repository: Path, aar: Path, tmp_path: Path) -> None:
    """By its coordinates; Debian's Gradle has no plugin for Android, so it builds no app."""
    if shutil.which("gradle") is None:
        pytest.skip("gradle is not installed; Debian's package gradle has it")
    (tmp_path / "build.gradle").write_text(_fill(_GRADLE_PROJECT, repository))
    (tmp_path / "settings.gradle").touch()
    home = tmp_path / "home"
    command = ["gradle", "--offline", "--no-daemon", "--quiet", "--gradle-user-home", str(home)]
    run([*command, "take"], "Gradle does not resolve it", folder=tmp_path)
    (found,) = (tmp_path / "taken").iterdir()
    assert found.read_bytes() == aar.read_bytes()
