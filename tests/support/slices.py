"""A checkpoint of MiniCPM-V 2.0's layout: the demo's weights, in a configuration with slices."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from convert.checkpoint.config import CONFIGS

DEMO = CONFIGS / "demo"
# The demo's tokenizer has reserved pieces below 101 only.
SLICES = {
    "slice_mode": True,
    "max_slice_nums": 9,
    "scale_resolution": 448,
    "patch_size": 14,
    "slice_start_token_id": 99,
    "slice_end_token_id": 100,
    "max_position_embeddings": 4096,
}


# For a tiny model: an image has 3 x 3 patches, and the tests' tokenizer has reserved pieces here.
TINY_SLICES = SLICES | {
    "scale_resolution": 42,
    "slice_start_token_id": 98,
    "slice_end_token_id": 99,
    "max_position_embeddings": None,
}


def slices_config(**overrides: Any) -> dict[str, Any]:
    """Returns its `config.json`; an override of None removes its key."""
    demo = json.loads((DEMO / "config.json").read_text("utf-8"))
    return {k: v for k, v in (demo | SLICES | overrides).items() if v is not None}


def write_slices_checkpoint(path: Path, **overrides: Any) -> Path:
    """Writes the folder and returns it."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(slices_config(**overrides), indent=2), "utf-8")
    for name in ("model.safetensors", "tokenizer.model"):
        shutil.copyfile(DEMO / name, path / name)
    return path
