from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.faulty_engines import Verified


@pytest.fixture(scope="session")
def models(bundle: Path) -> Verified:
    """The models that verify compares, loaded once."""
    return Verified(bundle)


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle that a test may change."""
    return shutil.copytree(bundle, tmp_path / "bundle")
