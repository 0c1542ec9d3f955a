"""A bundle for the fake engine: only the parts that the app reads."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from convert.bundle.manifest import GENERATION, MANIFEST, WEIGHTS
from runtime.inputs.defaults import DEFAULTS

FAKE_ENGINE = Path(__file__).parent / "fake_engine.py"


def fake_bundle(folder: Path, *, slices: int | None = None) -> Path:
    """Writes the bundle and returns its folder.

    Args:
        folder: does not exist yet.
        slices: into how many the model cuts a picture at most; None: it cuts none.
    """
    folder.mkdir()
    weights = b"weights" * 1000
    (folder / WEIGHTS).write_bytes(weights)
    generation = DEFAULTS.read_bytes()
    (folder / GENERATION).write_bytes(generation)
    manifest = {
        "architecture": "MiniCPMV",
        "source": {"path": "demo", "sha256": "", "demo": True},
        "quantization": {"name": "q4f16_1"},
        "targets": {"host": {"program": "engine/host", "program_id": "program"}},
        "files": {
            WEIGHTS: {"size": len(weights), "sha256": hashlib.sha256(weights).hexdigest()},
            GENERATION: {"size": len(generation), "sha256": ""},
        },
        "model": {} if slices is None else {"slice_mode": True, "max_slice_nums": slices},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder
