"""What is measured beside other work, and what comes of it."""

from __future__ import annotations

import shutil

import pytest

from quantize.errors import ToolkitError
from tests.bench import load
from tests.bench.load import Rows, Took


def test_a_row_has_the_share_of_the_speed_that_is_kept() -> None:
    rows = Rows()
    for wall, processors in ((20.0, 6.0), (30.0, 5.0), (40.0, 8.0)):
        rows.add({"work": Took(10.0, 5.0)}, {"work": Took(wall, processors)})
    wall_row, processors_row = rows.all()
    assert wall_row.ratios == [10 / 20, 10 / 30, 10 / 40]
    assert wall_row.reached is True, "three times as long is allowed"
    assert processors_row.ratios == [5 / 6, 1, 5 / 8]
    assert processors_row.reached is True
    rows.add({"work": Took(10.0, 5.0)}, {"work": Took(41.0, 9.0)})
    assert [row.reached for row in rows.all()] == [False, False]


def test_without_the_program_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(ToolkitError, match="apt-get install stress-ng"), load.other_work():
        raise AssertionError
