"""A bundle for the fake engine: only the parts that the app reads."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from convert.bundle.manifest import GENERATION, MANIFEST, WEIGHTS

FAKE_ENGINE = Path(__file__).parent / "fake_engine.py"


def fake_bundle(folder: Path) -> Path:
    """Writes the bundle and returns its folder."""
    folder.mkdir()
    weights = b"weights" * 1000
    (folder / WEIGHTS).write_bytes(weights)
    (folder / GENERATION).write_text('{"window": 1024, "sets": {}}')
    manifest = {
        "architecture": "MiniCPMV",
        "source": {"path": "demo", "sha256": "", "demo": True},
        "quantization": {"name": "q4f16_1"},
        "targets": {"host": {"program": "engine/host", "program_id": "program"}},
        "files": {
            WEIGHTS: {"size": len(weights), "sha256": hashlib.sha256(weights).hexdigest()},
            GENERATION: {"size": 28, "sha256": ""},
        },
    }
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder
