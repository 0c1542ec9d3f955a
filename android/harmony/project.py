"""Writes the project for DevEco Studio: ArkTS, the page, the engine as a library, the module."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from android.build.builder import PackagePlan, assets, check_files, version_code
from android.build.tools import ToolError
from android.harmony.native_module import ENGINE_LIBRARY, MODULE, build_module
from convert.bundle.targets import ABIS
from convert.engine.compile import Target
from convert.engine.program import build_program
from convert.engine.toolchain import LIBRARY
from convert.support.output_folder import FolderKind, OutputFolder
from convert.support.progress import Progress
from convert.support.versions import VERSION

TEMPLATE = Path(__file__).parent / "project"
MANIFEST = "minicpmv.json"  # lists the files, so that a later run may replace them
KIND = FolderKind(manifest=MANIFEST, format="minicpmv-harmony", noun="project for DevEco Studio")
BUNDLE_NAME = "org.minicpmv.app"  # the app's; AppScope/app.json5 has it
LIBRARIES, RAW_FILES = "entry/libs", "entry/src/main/resources/rawfile"
_APP = "AppScope/app.json5"


class HarmonyError(ToolError):
    """A project cannot be written for this bundle."""


@dataclass(frozen=True, kw_only=True)
class ProjectReport:
    """What was written."""

    files: int
    bytes: int


def write_project(plan: PackagePlan, output: Path, progress: Progress) -> ProjectReport:
    """Writes the project; `output` appears whole or not at all.

    Args:
        plan: the contents; the weights are not among them.
        output: the folder.
        progress: receives every step.

    Raises:
        ToolkitError: the output holds other files, a file of the bundle was altered, the bundle was
            made by another version, or something does not compile.
    """
    place = OutputFolder(output, KIND)
    check_files(plan, progress)
    with place as folder:
        shutil.copytree(TEMPLATE, folder, dirs_exist_ok=True)
        _set_version(folder / _APP)
        for name, content in _raw_files(plan):
            path = folder / RAW_FILES / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
        for abi in plan.abis:
            _build_libraries(plan, abi, folder / LIBRARIES / abi, progress)
        written = sorted(path for path in folder.rglob("*") if path.is_file())
        sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in written}
        manifest = {"format": KIND.format, "version": VERSION, "files": sizes}
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        place.commit()
    return ProjectReport(files=len(sizes) + 1, bytes=sum(sizes.values()))


def _raw_files(plan: PackagePlan) -> Iterator[tuple[str, Path | bytes]]:
    """Lists what the app reads: the page, settings, the bundle's small files."""
    for name, content in assets(plan):
        yield name.removeprefix("assets/"), content


def _build_libraries(plan: PackagePlan, abi: str, folder: Path, progress: Progress) -> None:
    """Links the engine and the module for a kind of processor."""
    bundle, target = plan.bundle, ABIS[abi]
    engine = folder / ENGINE_LIBRARY
    identity = build_program(bundle.config, bundle.plan, target, engine, progress, form=LIBRARY)
    wanted = bundle.manifest.targets[target].program_id
    if identity != wanted:
        raise HarmonyError(
            f"{bundle.path}: its program for {target} is {wanted[:16]}…, but minicpmv {VERSION} "
            f"builds {identity[:16]}…, whose weights differ; convert the checkpoint again"
        )
    build_module(Target.load(target).link, engine, folder / MODULE, progress)


def _set_version(path: Path) -> None:
    """Writes the toolkit's version into the app's file."""
    text = path.read_text("utf-8")
    for key, value in (
        ("versionCode", str(version_code(VERSION))),
        ("versionName", f'"{VERSION}"'),
    ):
        text, count = re.subn(rf'"{key}": [^,\n]+,.*', f'"{key}": {value},', text)
        assert count == 1, f"{path.name} has one {key}"
    path.write_text(text, "utf-8")
