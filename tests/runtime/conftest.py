from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from convert import cli
from convert.bundle.targets import is_host
from tests.support.tiny import random_state, tiny_config, write_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose layers outweigh its tied embedding: it does not just repeat."""
    config = tiny_config(scale_emb=1, scale_depth=12)
    state = random_state(config, seed=4)
    state["llm.model.embed_tokens.weight"] *= 4
    state["llm.lm_head.weight"] *= 4
    folder = tmp_path_factory.mktemp("models") / "checkpoint"
    return write_checkpoint(folder, config=config, state=state, dtype=torch.float32)


@pytest.fixture(scope="session")
def bundle(checkpoint: Path) -> Path:
    """Its bundle, with the engine for this PC. Tests do not change it."""
    if not is_host():
        pytest.skip("the host engine is for Linux on x86-64")
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("ziglang is not installed; it compiles the engine")
    folder = checkpoint.with_name("bundle")
    assert cli.main(["convert", str(checkpoint), "-o", str(folder), "--target", "host"]) == 0
    return folder
