"""Doctor's tests: a phone that is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.fake_phone import FakePhone, fake_phone


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakePhone:
    return fake_phone(tmp_path, monkeypatch)
