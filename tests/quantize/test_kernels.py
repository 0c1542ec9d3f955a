"""The compiled inner loops: parts for threads, and compilers or folders that do not work."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from quantize import kernels
from quantize.errors import ToolkitError
from quantize.schemes import GroupScheme

SCHEME = GroupScheme.load("small")


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def uncompiled() -> Iterator[None]:
    """The kernels as they are before their first use."""
    kernels._library.cache_clear()
    yield
    kernels._library.cache_clear()


def rounded(weight: Tensor, factor: Tensor) -> tuple[Tensor, ...]:
    inputs, rows = weight.shape
    q = torch.full((inputs, rows), 99, dtype=torch.uint8)
    scale = torch.full((inputs // 32, rows), torch.nan, dtype=torch.float16)
    losses = kernels.round_block(weight, factor, SCHEME, q, scale)
    return q, scale, losses


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("rows", [1, 16, 33, 100])
def test_threads_share_rows(rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(96, rows, generator=generator)
    factor = torch.randn(128, 96, generator=generator)[:96].triu() + 3 * torch.eye(96)
    groups = weight.T.reshape(rows, 3, 32)
    torch.set_num_threads(1)
    expected = (*rounded(weight, factor), kernels.search_scales(groups, SCHEME, None))
    assert expected[0].max() <= 15 and all(bool(part.isfinite().all()) for part in expected[1:])
    for count in (2, 3, 7):
        torch.set_num_threads(count)
        found = (*rounded(weight, factor), kernels.search_scales(groups, SCHEME, None))
        for one, other in zip(expected, found, strict=True):
            assert torch.equal(one, other), count


def test_nothing_to_search() -> None:
    assert kernels.search_scales(torch.empty(0, 3, 32), SCHEME, None).shape == (0, 3, 1)


@pytest.mark.usefixtures("uncompiled")
def test_a_compiler_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_FLAGS", ("--no-such-flag",))
    with pytest.raises(
        ToolkitError, match=r"kernels\.c: zig cannot compile it: .*doctor"
    ) as caught:
        kernels.search_scales(torch.ones(1, 32), SCHEME, None)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("uncompiled")
def test_a_folder_without_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_nothing(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        Path(command[command.index("-o") + 1]).write_bytes(b"")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", compile_nothing)
    with pytest.raises(ToolkitError, match=r"cannot be loaded: .*set TMPDIR"):
        kernels.search_scales(torch.ones(1, 32), SCHEME, None)
