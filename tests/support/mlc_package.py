"""An MLC package, read as MLC-LLM reads it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np


def read_params(folder: Path) -> dict[str, np.ndarray]:
    """Returns a package's parameters by MLC-LLM's names."""
    params = {}
    for shard in json.loads((folder / "tensor-cache.json").read_text())["records"]:
        data = (folder / shard["dataPath"]).read_bytes()
        assert len(data) == shard["nbytes"]
        for record in shard["records"]:
            part = data[record["byteOffset"] : record["byteOffset"] + record["nbytes"]]
            params[record["name"]] = np.frombuffer(part, record["dtype"]).reshape(record["shape"])
    return params
