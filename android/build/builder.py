"""Builds the APK from sources: javac, dx, aapt2, zipalign, apksigner; no Android SDK.

The build is reproducible up to the signature: the same inputs give the same bytes.
"""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from packaging.version import Version

from android.build.app_manifest import MANIFEST as APP_MANIFEST
from android.build.app_manifest import app_manifest
from android.build.notices import third_party_notices
from android.build.phones import MIN_SDK, TARGET_SDK
from android.build.signing import Key, sign
from android.build.tools import ToolError, java, package, program, run
from convert.bundle.manifest import MANIFEST, WEIGHTS, Bundle, FileRecord
from convert.bundle.targets import ABIS, PHONE
from convert.checkpoint.config import CONFIGS
from convert.support.progress import Progress
from convert.support.scratch import scratch_folder
from convert.support.versions import VERSION
from convert.support.whole_file import check_replaceable, whole_file

ROOT = Path(__file__).parents[1]
APP, PAGE = ROOT / "app", ROOT / "page"
ENGINE = "libengine.so"  # Android unpacks and executes only files named like libraries
EMBED_LIMIT = 1 << 30  # bytes; some phones do not install larger APKs
JAVA_LEVEL = "8"  # the newest level that dx supports
_RELEASE = 100  # the end of a release's version code; development versions are below
_DATE = (1981, 1, 1, 0, 0, 0)  # the date of every file in the APK
_CONFIGS = ("openai_fields.json", "setting_ranges.json")  # that the app reads
_PAGE_SUFFIXES = {".html", ".css", ".js", ".svg", ".txt"}


class PackageError(ToolError):
    """A package of this bundle, such as an APK, cannot be built."""


@dataclass(frozen=True, kw_only=True)
class PackagePlan:
    """The contents of a package: an APK, an AAR, or a project for HarmonyOS."""

    bundle: Bundle
    abis: tuple[str, ...]
    embed: bool  # include the weights
    api: bool = False  # the variant with a server for other apps

    def __post_init__(self) -> None:
        """Checks that the bundle has all engines, and that the weights can be embedded."""
        for abi in self.abis:
            if abi not in ABIS:
                raise PackageError(f"ABI {abi!r:.40} is unknown; known: {', '.join(ABIS)}")
            self.bundle.program(ABIS[abi])
        size = (self.bundle.path / WEIGHTS).stat().st_size
        if self.embed and size > EMBED_LIMIT:
            raise PackageError(
                f"{self.bundle.path / WEIGHTS}: {size / 2**20:,.0f} MiB is too large for --embed, "
                f"whose limit is {EMBED_LIMIT >> 20:,} MiB; `minicpmv sideload` pushes the weights "
                "separately"
            )


def plan_package(
    bundle: Bundle, abis: Sequence[str] | None, *, embed: bool, api: bool = False
) -> PackagePlan:
    """Chooses the ABIs: the requested ones, or all that the bundle has engines for.

    Raises:
        PackageError: the bundle has no engine for phones.
        BundleError: it has none for a requested ABI.
    """
    if abis is None:
        abis = [abi for abi, target in ABIS.items() if target in bundle.manifest.targets]
        if not abis:
            raise PackageError(
                f"{bundle.path}: has no engine for phones, only for "
                f"{', '.join(bundle.manifest.targets)}; convert again with --target "
                f"{','.join([*bundle.manifest.targets, PHONE])}"
            )
    return PackagePlan(bundle=bundle, abis=tuple(abis), embed=embed, api=api)


def build_apk(
    plan: PackagePlan, key: Key, output: Path, progress: Progress, *, password: str
) -> None:
    """Builds and signs the APK; writes `output` atomically.

    Args:
        plan: the contents.
        key: the signing key.
        output: the APK.
        progress: receives every step.
        password: of the keystore, if `key` reads it from stdin; else empty.

    Raises:
        ToolError: a tool is missing or fails.
        OutputFileError: `output` is no file.
    """
    check_replaceable(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(f".{output.name}.partial-", output.parent) as scratch:
        unsigned, signed = scratch / "unsigned.apk", scratch / output.name
        build_unsigned(plan, unsigned, progress)
        progress("sign", 0, 0)
        sign(unsigned, key, signed, password=password or None)
        with whole_file(output) as file:
            shutil.move(signed, file)  # a link may lead to another disk
    progress("sign", 1, 1)


def build_unsigned(plan: PackagePlan, output: Path, progress: Progress) -> None:
    """Builds the unsigned APK.

    Raises:
        ToolError: a tool is missing or fails, or a file of the bundle was altered.
    """
    check_files(plan, progress)
    with scratch_folder() as scratch:
        classes, dexed = scratch / "classes", scratch / "classes.dex"
        progress("link resources", 0, 1)
        link_resources(scratch, api=plan.api)
        progress("link resources", 1, 1)
        progress("compile Java", 0, 1)
        compile_java([APP / "java", scratch / "generated"], classes)
        progress("compile Java", 1, 1)
        progress("translate for Android", 0, 1)
        dex(classes, dexed)
        progress("translate for Android", 1, 1)
        packed = scratch / "packed.apk"
        with zipfile.ZipFile(packed, "w") as archive:
            entries = sorted(_entries(plan, scratch))
            for done, (where, content) in enumerate(entries):
                progress("pack", done, len(entries))
                add_file(archive, where, content)
            progress("pack", len(entries), len(entries))
        run(
            [program("zipalign"), "-f", "4", str(packed), str(output)], "the APK: cannot be aligned"
        )


def link_resources(folder: Path, *, api: bool = False) -> None:
    """Compiles manifest and resources: `resources.apk`, and Java with their ids in `generated`.

    Args:
        folder: gets them.
        api: for the variant with a server.

    Raises:
        ToolError: aapt2 is missing, or does not accept them.
    """
    aapt2, compiled = program("aapt2"), folder / "resources.zip"
    name, manifest = VERSION, folder / APP_MANIFEST
    manifest.write_text(app_manifest(APP, api=api), "utf-8")
    run(
        [aapt2, "compile", "--dir", str(APP / "res"), "-o", str(compiled)],
        "the app's resources do not compile",
    )
    command = [
        aapt2,
        "link",
        "-I",
        str(package("android-all").fetch()),
        "-o",
        str(folder / "resources.apk"),
    ]
    command += ["--manifest", str(manifest), "--no-version-vectors"]
    command += ["--min-sdk-version", str(MIN_SDK), "--target-sdk-version", str(TARGET_SDK)]
    command += ["--version-name", name, "--version-code", str(version_code(name))]
    command += ["--java", str(folder / "generated")]
    command.append("--warn-manifest-validation")  # Debian's aapt2 is older than <queries>
    run([*command, str(compiled)], "the app's resources do not link")


def compile_java(
    sources: Sequence[Path], output: Path, *classpath: Path, needed: Path | None = None
) -> None:
    """Compiles every Java file in folders against Android's API.

    Args:
        sources: the folders.
        output: gets the classes.
        classpath: jars beside Android's.
        needed: a folder of which only those classes are compiled that the sources use.

    Raises:
        ToolError: a source does not compile.
    """
    output.mkdir(parents=True)
    files = sorted(str(path) for folder in sources for path in folder.rglob("*.java"))
    jars = [package("android-all").fetch(), *classpath]
    command = [*java("javac"), "--release", JAVA_LEVEL, "-encoding", "UTF-8", "-g:source,lines"]
    command += ["-Xlint:all,-options,-serial,-deprecation,-classfile,-path", "-Werror"]
    command += ["-proc:none", "-d", str(output)]
    command += ["-implicit:none"] if needed is None else ["-sourcepath", str(needed)]
    command += ["-classpath", os.pathsep.join(map(str, jars)), *files]
    run(command, "the app's Java does not compile")


def dex(classes: Path, output: Path) -> None:
    """Translates compiled classes to Android's bytecode (DEX).

    Raises:
        ToolError: a class uses features that Android lacks.
    """
    command = [*java(), "-cp", str(package("dalvik-dx").fetch())]
    command += ["com.android.dx.command.Main", "--dex", f"--min-sdk-version={MIN_SDK}"]
    run([*command, f"--output={output}", str(classes)], "the app's classes cannot be translated")


def assets(plan: PackagePlan) -> Iterator[tuple[str, Path | bytes]]:
    """Lists the files that the app reads: names in the APK, and files or their contents."""
    for path in PAGE.iterdir():
        if path.suffix in _PAGE_SUFFIXES:
            yield f"assets/page/{path.name}", path
    for name in _CONFIGS:
        yield f"assets/configs/{name}", CONFIGS / name
    yield "assets/page/notices.txt", third_party_notices().encode()
    yield from bundle_assets(plan, "assets/bundle")


def bundle_assets(plan: PackagePlan, folder: str) -> Iterator[tuple[str, Path | bytes]]:
    """Lists the bundle's files that are packaged, as `assets` does."""
    yield f"{folder}/{MANIFEST}", plan.bundle.path / MANIFEST
    for name in _packaged(plan):
        yield f"{folder}/{name}", plan.bundle.path / name


def version_code(name: str) -> int:
    """Returns the version number that Android compares; an update must have a higher one.

    A development version is below its release: 1.3.0.dev0 is 1030001, 1.3.0 is 1030100.
    """
    version = Version(name)
    stage = _RELEASE if version.dev is None else version.dev + 1
    assert 1 <= stage <= _RELEASE and version.pre is None, f"{name}: no version of ours"
    return (version.major * 100 + version.minor) * 10_000 + version.micro * 100 + stage


def _entries(plan: PackagePlan, scratch: Path) -> Iterator[tuple[str, Path | bytes]]:
    """Lists the entries of the APK: names, and files or their contents."""
    with zipfile.ZipFile(scratch / "resources.apk") as linked:
        for name in linked.namelist():
            yield name, linked.read(name)
    yield "classes.dex", scratch / "classes.dex"
    for abi in plan.abis:
        yield f"lib/{abi}/{ENGINE}", plan.bundle.program(ABIS[abi]).path
    yield from assets(plan)


def check_files(plan: PackagePlan, progress: Progress) -> None:
    """Checks the packaged files against the bundle's manifest, which is packaged with them."""
    manifest = plan.bundle.manifest
    names = [*_packaged(plan), *(manifest.targets[ABIS[abi]].program for abi in plan.abis)]
    for done, name in enumerate(sorted(names)):
        progress("check the bundle", done, len(names))
        if FileRecord.of(plan.bundle.path / name) != manifest.files[name]:
            raise PackageError(
                f"{plan.bundle.path / name}: altered: its SHA-256 is not the manifest's; convert "
                "the checkpoint again"
            )
    progress("check the bundle", len(names), len(names))


def _packaged(plan: PackagePlan) -> set[str]:
    """Returns the bundle's files that become assets; engines go to `lib` instead."""
    manifest = plan.bundle.manifest
    packaged = set(manifest.files) - {target.program for target in manifest.targets.values()}
    return packaged if plan.embed else packaged - {WEIGHTS}


def add_file(archive: zipfile.ZipFile, name: str, content: Path | bytes) -> None:
    """Adds a file, without metadata of this machine or the current time."""
    info = zipfile.ZipInfo(name, _DATE)
    info.create_system, info.external_attr = 0, 0
    # Android maps the resource table; weights hardly compress and are copied out faster stored.
    stored = name == "resources.arsc" or name.endswith(WEIGHTS)
    info.compress_type = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
    with _source(content) as source, archive.open(info, "w") as target:
        while block := source(1 << 20):
            target.write(block)


@contextmanager
def _source(content: Path | bytes) -> Iterator[Callable[[int], bytes]]:
    if isinstance(content, bytes):
        blocks = iter((content, b""))
        yield lambda _: next(blocks)
    else:
        with content.open("rb") as file:
            yield file.read
