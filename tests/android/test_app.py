"""Runs the tests of the app on Android's own code; see robolectric.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from android.build.tools import ToolError, fetch, package
from convert.bundle.manifest import Bundle
from tests.android import robolectric
from tests.support.once import once

TESTS = [
    *("StartTest", "PageTest", "PickerTest", "DecoderTest", "EdgesTest", "ThemeTest"),
    *("NotificationTest", "LifeTest", "WorkTest", "BackTest", "ShareTest", "SpeechTest"),
    *("PowerTest", "LentFileTest"),
]
API_TESTS = ["ApiTest"]  # of the variant with a server


@pytest.fixture(scope="session")
def built(tools: None, demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        fetch([*robolectric.libraries(), *map(package, robolectric.SDKS.values())])
    except ToolError as error:
        pytest.skip(str(error))
    bundle = Bundle.open(demo)
    return once(tmp_path_factory, "robolectric", lambda folder: robolectric.build(bundle, folder))


@pytest.mark.parametrize("sdk", robolectric.SDKS)
def test_on_android(built: Path, demo: Path, sdk: int) -> None:
    output = robolectric.run(built, Bundle.open(demo), sdk, [f"app.{name}" for name in TESTS])
    assert "OK (" in output


@pytest.mark.parametrize("sdk", robolectric.SDKS)
def test_the_variant_with_a_server(built: Path, demo: Path, sdk: int) -> None:
    config = robolectric.API_CONFIG
    output = robolectric.run(
        built, Bundle.open(demo), sdk, [f"app.{name}" for name in API_TESTS], config=config
    )
    assert "OK (" in output
