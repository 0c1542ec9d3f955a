"""The toolkit's version stands in one place; everything else reads it there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from packaging.version import Version
from setuptools.config.pyprojecttoml import apply_configuration
from setuptools.dist import Distribution

from convert import cli
from convert.support.versions import TOOLKIT, VERSION, package_version

ROOT = Path(__file__).resolve().parents[1]
PLACE = "convert/support/versions.py"


def test_the_package_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    packaged = apply_configuration(Distribution(), ROOT / "pyproject.toml").metadata
    assert packaged.version == VERSION == str(Version(VERSION)) == package_version(TOOLKIT)


def test_the_command_line_has_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"minicpmv {VERSION}\n"


def test_the_changelog_begins_with_it() -> None:
    headings = re.findall("^## (.*)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    version = Version(VERSION)
    title = f"{version.base_version} (unreleased)" if version.is_devrelease else VERSION
    assert headings[0] == title
    assert headings[1:] == sorted(headings[1:], key=Version, reverse=True)


def test_no_other_file_repeats_it() -> None:
    listed = subprocess.run(["git", "-C", str(ROOT), "grep", "-lIF", VERSION], capture_output=True)
    if listed.returncode > 1:
        pytest.skip("not a git checkout")
    # A release's number also heads the change log.
    assert set(listed.stdout.decode().split()) - {"CHANGELOG.md"} == {PLACE}
