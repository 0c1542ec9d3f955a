"""Builds the library for other apps: an AAR, alone or in a Maven repository; no Android SDK.

The same inputs give the same bytes, but for the documentation, which names javadoc's version.
"""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path

from android.build.builder import (
    APP,
    ROOT,
    PackagePlan,
    add_file,
    bundle_assets,
    check_files,
    compile_java,
)
from android.build.notices import third_party_notices
from android.build.tools import java, package, run
from convert.bundle.targets import ABIS
from convert.support.progress import Progress
from convert.support.scratch import scratch_folder
from convert.support.versions import VERSION
from convert.support.whole_file import check_replaceable, whole_file

LIBRARY = ROOT / "library"
GROUP, ARTIFACT = "org.minicpmv", "minicpmv"  # in Maven
ENGINE = "libminicpmv.so"  # as MiniCpmV.java calls it; Android executes only files named so
ASSETS = "assets/minicpmv"
_METADATA = "META-INF/com/android/build/gradle/aar-metadata.properties"
_FORMAT = b"aarFormatVersion=1.0\naarMetadataVersion=1.0\nminCompileSdk=1\n"
_POM = """\
<?xml version="1.0" encoding="UTF-8"?>
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>{group}</groupId>
  <artifactId>{artifact}</artifactId>
  <version>{version}</version>
  <packaging>aar</packaging>
  <name>MiniCPM-V</name>
  <description>Answers questions about pictures, on the phone.</description>
</project>
"""


def build_aar(plan: PackagePlan, output: Path, progress: Progress) -> None:
    """Builds the AAR; writes `output` atomically.

    Args:
        plan: the contents.
        output: the AAR.
        progress: receives every step.

    Raises:
        ToolError: a tool is missing or fails, or a file of the bundle was altered.
        OutputFileError: `output` is no file.
    """
    check_replaceable(output)
    check_files(plan, progress)
    output.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder() as scratch, whole_file(output) as file:
        classes = scratch / "classes"
        progress("compile Java", 0, 1)
        compile_java(
            [LIBRARY / "java"],
            classes,
            package("annotations").fetch(),
            needed=APP / "java",
        )
        progress("compile Java", 1, 1)
        jar = scratch / "classes.jar"
        _pack(jar, _files(classes))
        entries: list[tuple[str, Path | bytes]] = [
            ("AndroidManifest.xml", LIBRARY / "AndroidManifest.xml"),
            ("R.txt", b""),  # no resources
            ("classes.jar", jar),
            ("proguard.txt", LIBRARY / "consumer-rules.pro"),
            (_METADATA, _FORMAT),
            (f"{ASSETS}/notices.txt", third_party_notices().encode()),
            *bundle_assets(plan, ASSETS),
        ]
        for abi in plan.abis:
            entries.append((f"jni/{abi}/{ENGINE}", plan.bundle.program(ABIS[abi]).path))
        progress("pack", 0, 1)
        _pack(file, entries)
        progress("pack", 1, 1)


def write_repository(aar: Path, folder: Path, progress: Progress) -> Path:
    """Adds the AAR to a Maven repository, with its sources and their documentation.

    Args:
        aar: what `build_aar` wrote.
        folder: the repository; other artifacts and versions in it stay.
        progress: receives every step.

    Returns:
        The folder of this version.

    Raises:
        ToolError: javadoc is missing or fails.
    """
    place = folder / GROUP.replace(".", "/") / ARTIFACT / VERSION
    place.mkdir(parents=True, exist_ok=True)
    pom = _POM.format(group=GROUP, artifact=ARTIFACT, version=VERSION)
    with scratch_folder() as scratch:
        progress("document", 0, 1)
        _document(scratch / "javadoc")
        progress("document", 1, 1)
        name = f"{ARTIFACT}-{VERSION}"
        (scratch / "pom").write_text(pom, "utf-8")
        _pack(scratch / "sources.jar", _files(LIBRARY / "java"))
        _pack(scratch / "javadoc.jar", _files(scratch / "javadoc"))
        for source, end in (
            (aar, ".aar"),
            (scratch / "sources.jar", "-sources.jar"),
            (scratch / "javadoc.jar", "-javadoc.jar"),
            (scratch / "pom", ".pom"),  # last: with it the version is there
        ):
            _deploy(source, place / f"{name}{end}")
    return place


def _document(output: Path) -> None:
    jars = [package("android-all").fetch(), package("annotations").fetch()]
    sources = [str(path) for path in sorted((LIBRARY / "java").rglob("*.java"))]
    command = [*java("javadoc"), "-quiet", "-Xdoclint:all,-missing", "-notimestamp", "-public"]
    command += ["-encoding", "UTF-8", "-charset", "UTF-8", "-source", "8", "-d", str(output)]
    command += ["-classpath", ":".join(map(str, jars)), "-sourcepath", str(APP / "java")]
    run([*command, *sources], "the library's documentation cannot be written")


def _deploy(source: Path, output: Path) -> None:
    """Copies a file with the hashes that Maven and Gradle compare."""
    check_replaceable(output)
    with whole_file(output) as file:
        shutil.copyfile(source, file)
    content = source.read_bytes()
    for name in ("sha1", "sha256"):
        digest = hashlib.new(name, content, usedforsecurity=False).hexdigest()
        output.with_name(f"{output.name}.{name}").write_text(digest)


def _files(folder: Path) -> list[tuple[str, Path]]:
    """Lists a folder's files by their names in it."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return [(path.relative_to(folder).as_posix(), path) for path in found]


def _pack(output: Path, entries: Iterable[tuple[str, Path | bytes]]) -> None:
    with zipfile.ZipFile(output, "w") as archive:
        for name, content in sorted(entries, key=lambda entry: entry[0]):
            add_file(archive, name, content)
