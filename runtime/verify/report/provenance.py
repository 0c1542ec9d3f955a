"""What ran where: the machine, versions and hashes that a report is about."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from convert.bundle.manifest import WEIGHTS, Bundle
from convert.bundle.results_file import identity
from convert.checkpoint.reader import Checkpoint
from convert.support.versions import TOOLKIT, package_version
from runtime.engine_client.place import Device
from runtime.engine_client.protocol import Field

_PACKAGES = (TOOLKIT, "torch", "apache-tvm", "apache-tvm-ffi", "numpy")
# What an engine says of itself.
_HELLO = {
    Field.CPU: "processor",
    Field.CPU_FEATURES: "processor features",
    Field.KINDS: "compiled blocks",
    Field.THREADS: "threads",
    Field.MEMORY_BYTES: "memory, bytes",
}


def what_ran(
    bundle: Bundle, checkpoint: Checkpoint, place: Device, hello: Mapping[str, Any], window: int
) -> dict[str, dict[str, Any]]:
    """Returns facts by what they are about; the values are plain JSON.

    Args:
        bundle: that is verified.
        checkpoint: its reference.
        place: where the bundle ran.
        hello: what the engine says of itself.
        window: of all models, tokens.
    """
    manifest, recipe = bundle.manifest, bundle.plan.recipe
    return {
        "engine": {
            "engine": place.engine,
            "where": place.description,
            "target": place.target,
            "program_id": manifest.targets[place.target].program_id,
            **{name: hello[key] for key, name in _HELLO.items() if hello.get(key)},
            "context window, tokens": window,
        },
        "bundle": {
            "path": str(bundle.path),
            "recipe": recipe.scheme.name,
            "method": recipe.method,
            "KV cache": bundle.plan.kv,
            "bits per weight": round(bundle.plan.bits_per_weight, 3),
            "weights, bytes": manifest.files[WEIGHTS].size,
            "weights, SHA-256": manifest.files[WEIGHTS].sha256,
            "manifest, SHA-256": identity(bundle),
            "made from, SHA-256": manifest.source.sha256,
            "made with": ", ".join(f"{name} {number}" for name, number in manifest.tools.items()),
        },
        **what_compared(checkpoint),
    }


def what_compared(checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
    """Returns facts about the reference and this computer; see `what_ran`."""
    return {
        "reference": {
            "path": str(checkpoint.path),
            "computed in": "float32, PyTorch on the CPU",
            "SHA-256": checkpoint.source_hash(),
        },
        "this computer": {
            "system": f"{platform.system()} on {platform.machine()}",
            "python": platform.python_version(),
            **{name: package_version(name) for name in _PACKAGES},
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        },
    }
