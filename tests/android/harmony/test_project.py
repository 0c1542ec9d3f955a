"""`minicpmv harmony`: the project for DevEco Studio, checked by OpenHarmony's own parser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from android.build.builder import PackageError, plan_package
from android.harmony import project
from android.harmony.native_module import ENGINE_LIBRARY, MODULE
from android.harmony.project import BUNDLE_NAME, MANIFEST, HarmonyError, write_project
from convert.bundle.manifest import WEIGHTS, Bundle
from convert.bundle.targets import ABIS
from convert.checkpoint.config import CONFIGS
from convert.cli import main
from convert.support.output_folder import OutputFolderError
from convert.support.progress import silent
from convert.support.versions import VERSION
from quantize.errors import ToolkitError
from tests.support.elf import MACHINES, Elf
from tests.support.once import once

HERE = Path(__file__).parent
MAIN = Path("entry/src/main")


@pytest.fixture(scope="session")
def written(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(folder: Path) -> None:
        write_project(plan_package(bundle, None, embed=False), folder / "project", silent)

    return once(tmp_path_factory, "harmony", make) / "project"


def _node(*arguments: object) -> str:
    node = shutil.which("node")
    assert node is not None, "npm comes with it"
    command = [node, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _json5(packages: Path, path: Path) -> dict[str, Any]:
    """Reads a file with the reference implementation of JSON5."""
    program = (
        "const fs = require('fs'), json5 = require(process.argv[1]);"
        "console.log(JSON.stringify(json5.parse(fs.readFileSync(process.argv[2], 'utf8'))))"
    )
    parsed: dict[str, Any] = json.loads(_node("-e", program, packages / "json5", path))
    return parsed


def test_the_arkts_is_sound(npm_packages: Path) -> None:
    """OpenHarmony's parser, type checker and checker of ArkTS find nothing."""
    assert _node(HERE / "check_arkts.cjs", npm_packages, project.TEMPLATE) == ""


@pytest.mark.parametrize(
    "wrong",
    [
        {
            "const a: any = 1;": "arkts-no-any-unknown",
            "const a = {b: 1};": "arkts-no-untyped-obj-literals",
            "const a: number = 'b';": "not assignable",
            "import { nothing } from '@kit.ArkUI';": "nothing",
        },
        {"const a = ;": "Expression expected"},  # such a file hides other mistakes
    ],
)
def test_wrong_arkts_is_found(npm_packages: Path, tmp_path: Path, wrong: dict[str, str]) -> None:
    shutil.copytree(project.TEMPLATE, tmp_path / "project")
    for number, line in enumerate(wrong):
        (tmp_path / "project" / MAIN / f"ets/core/Wrong{number}.ets").write_text(f"{line}\n")
    found = _node(HERE / "check_arkts.cjs", npm_packages, tmp_path / "project").splitlines()
    for number, said in enumerate(wrong.values()):
        assert any(f"core/Wrong{number}.ets:1: " in line and said in line for line in found), found


def test_its_files(npm_packages: Path, written: Path) -> None:
    """Each file that names others names files, resources and abilities that exist."""
    found = {
        path.relative_to(written).as_posix(): _json5(npm_packages, path)
        for path in sorted(written.rglob("*.json5"))
    }
    app = found["AppScope/app.json5"]["app"]
    assert (app["bundleName"], app["versionName"]) == (BUNDLE_NAME, VERSION)
    assert isinstance(app["versionCode"], int)
    (described,) = found["build-profile.json5"]["modules"]
    assert (written / described["srcPath"]).is_dir()
    module = found[f"{MAIN}/module.json5"]["module"]
    assert module["name"] == described["name"]
    (ability,) = module["abilities"]
    assert module["mainElement"] == ability["name"]
    assert (written / MAIN / ability["srcEntry"]).is_file()
    assert "requestPermissions" not in module
    action = next(s["actions"] for s in ability["skills"] if "uris" in s)
    code = (written / MAIN / "ets/ark/ArkHost.ets").read_text()
    assert re.findall(r"const SEND_DATA = '([^']+)'", code) == action
    for path in written.rglob("*.json"):
        json.loads(path.read_bytes())
    pages = json.loads((written / MAIN / "resources/base/profile/main_pages.json").read_bytes())
    assert all((written / MAIN / f"ets/{page}.ets").is_file() for page in pages["src"])
    types = found["entry/oh-package.json5"]["dependencies"][MODULE].removeprefix("file:")
    assert found[f"{MAIN}/cpp/types/libminicpmv/oh-package.json5"]["name"] == MODULE
    assert (written / "entry" / types / "Index.d.ts").is_file()
    resources = [app["icon"], app["label"], *map(str, ability.values())]
    names = {_resource(written, text) for text in resources if text.startswith("$")}
    assert names == {"icon", "app_name", "app_label", "app_description", "start_window_background"}


def _resource(written: Path, text: str) -> str:
    """Returns the name of a resource, which exists."""
    kind, name = text[1:].split(":")
    folders = [written / "AppScope/resources/base", written / MAIN / "resources/base"]
    if kind == "media":
        assert Image.open(folders[0] / f"media/{name}.png").size == (512, 512)
        return name
    files = [folder / f"element/{kind}.json" for folder in folders]
    values = [v for f in files if f.exists() for v in json.loads(f.read_bytes())[kind]]
    assert name in {value["name"] for value in values}
    return name


def test_both_languages(written: Path) -> None:
    texts = {}
    for folder in ("base", "zh_CN"):
        path = written / MAIN / "resources" / folder / "element/string.json"
        texts[folder] = {v["name"]: v["value"] for v in json.loads(path.read_bytes())["string"]}
    assert texts["base"].keys() == texts["zh_CN"].keys()
    assert texts["base"]["app_description"] != texts["zh_CN"]["app_description"]


def test_its_content(written: Path, bundle: Bundle) -> None:
    """The page, the bundle without weights and engines, the libraries of each processor."""
    raw = written / project.RAW_FILES
    carried = {path.name for path in (raw / "bundle").iterdir()}
    engines = {target.program for target in bundle.manifest.targets.values()}
    assert carried == {*bundle.manifest.files, "bundle.json"} - engines - {WEIGHTS}
    for name in carried:
        assert (raw / "bundle" / name).read_bytes() == (bundle.path / name).read_bytes()
    assert (raw / "page/index.html").is_file() and (raw / "page/notices.txt").is_file()
    ranges = "setting_ranges.json"
    assert (raw / "configs" / ranges).read_bytes() == (CONFIGS / ranges).read_bytes()
    assert sorted(path.name for path in (written / project.LIBRARIES).iterdir()) == sorted(ABIS)
    for abi, machine in (("arm64-v8a", "aarch64"), ("x86_64", "x86_64")):
        assert machine in MACHINES.values()
        for name in (MODULE, ENGINE_LIBRARY):
            assert Elf.read(written / project.LIBRARIES / abi / name).machine == machine
        engine = (written / project.LIBRARIES / abi / ENGINE_LIBRARY).read_bytes()
        assert bundle.manifest.targets[ABIS[abi]].program_id.encode() in engine
    listed = json.loads((written / MANIFEST).read_bytes())["files"]
    files = {p.relative_to(written).as_posix() for p in written.rglob("*") if p.is_file()}
    assert {*listed, MANIFEST} == files


def test_the_command(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It replaces its own project, but none that has files of others in it."""
    output = tmp_path / "project"
    command = ["harmony", str(bundle.path), "-o", str(output), "--abi", "arm64-v8a"]
    assert main([*command, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["abis"] == ["arm64-v8a"] and said["project"] == str(output)
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert f"minicpmv sideload {output} --bundle {bundle.path}" in shown
    (output / "local.properties").write_text("of DevEco Studio")
    assert main(command) == 2
    assert "holds local.properties" in capsys.readouterr().err
    assert (output / "local.properties").is_file()


def test_wrong_input(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_package(bundle, ["arm64-v8a"], embed=False)
    taken = tmp_path / "taken"
    taken.write_text("a file")
    with pytest.raises(OutputFolderError, match="not a folder"):
        write_project(plan, taken, silent)
    with pytest.raises(PackageError, match="unknown"):
        plan_package(bundle, ["armeabi"], embed=False)
    monkeypatch.setattr(project, "build_program", lambda *_, **__: "another" * 8)
    with pytest.raises(HarmonyError, match=r"its program for android-arm64 is .* convert"):
        write_project(plan, tmp_path / "other", silent)
    altered = tmp_path / "bundle"
    shutil.copytree(bundle.path, altered)
    (altered / "generation.json").write_bytes(b"{}" + b" " * 10)
    with pytest.raises(ToolkitError, match=r"generation\.json"):
        write_project(plan_package(Bundle.open(altered), None, embed=False), taken / "x", silent)
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []
