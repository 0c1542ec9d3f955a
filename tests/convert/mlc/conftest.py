"""What the tests with MLC-LLM itself share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from convert import pipeline
from convert.conversion.config import MlcOptions
from runtime.doctor.mlc_checks import SOURCE_VARIABLE


@pytest.fixture(scope="session")
def source() -> Path:
    """The checkout of mlc-llm that the user names."""
    if (named := os.environ.get(SOURCE_VARIABLE)) is None:
        pytest.skip(f"{SOURCE_VARIABLE} names no checkout of mlc-llm")
    return Path(named)


@pytest.fixture(scope="session")
def package(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo, compiled by that checkout for Android and for this machine."""
    folder = tmp_path_factory.mktemp("mlc") / "package"
    pipeline.convert(
        None, folder, target=("mlc-android", "mlc-host"), mlc=MlcOptions(source=source)
    )
    return folder
