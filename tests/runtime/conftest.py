from __future__ import annotations

from pathlib import Path

import pytest
import torch

from convert import cli
from tests.support.needs import need_host_engine
from tests.support.once import once
from tests.support.tiny import random_state, write_checkpoint
from tests.support.tiny_config import tiny_config


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose layers outweigh its tied embedding: it does not just repeat."""
    config = tiny_config(scale_emb=1, scale_depth=12)
    state = random_state(config, seed=4)
    state["llm.model.embed_tokens.weight"] *= 4
    state["llm.lm_head.weight"] *= 4

    def make(folder: Path) -> None:
        write_checkpoint(folder / "checkpoint", config=config, state=state, dtype=torch.float32)

    return once(tmp_path_factory, "checkpoint", make) / "checkpoint"


@pytest.fixture(scope="session")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its bundle, with the engine for this PC. Tests do not change it."""
    need_host_engine()

    def make(folder: Path) -> None:
        command = ["convert", str(checkpoint), "-o", str(folder / "bundle"), "--target", "host"]
        assert cli.main([*command, "--quant", "q4f16_1"]) == 0

    return once(tmp_path_factory, "bundle", make) / "bundle"
