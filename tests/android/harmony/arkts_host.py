"""The ArkTS app's logic as a process that tests talk to, with the fake engine."""

from __future__ import annotations

import hashlib
import json
import queue
import shutil
import sys
from pathlib import Path
from typing import Any

from convert.bundle.manifest import WEIGHTS
from convert.checkpoint.config import CONFIGS
from runtime.engine_client.hdc_app import PIECES
from tests.android.bundle import FAKE_ENGINE, fake_bundle
from tests.android.contract_hosts import ProcessHost

SCRIPT = Path(__file__).with_name("node_host.cjs")


class ArkTsApp(ProcessHost):
    """`node_host.cjs` with the fake engine."""

    def __init__(
        self, packages: Path, folder: Path, *, weights: bool = True, slices: int | None = None
    ) -> None:
        """Args: packages: of npm. folder: for all that it keeps. weights: whether they are there.
        slices: see `fake_bundle`.
        """
        bundle = fake_bundle(folder / "bundle", slices=slices)
        self.weights = bundle / WEIGHTS
        self.installed = folder / "app" / "files" / "bundle" / WEIGHTS
        if weights:
            self.installed.parent.mkdir(parents=True)
            shutil.copy(self.weights, self.installed)
        super().__init__(host_command(packages, folder / "app", bundle))

    def import_weights(self, path: Path) -> None:
        """Chooses a file of weights, as the user does."""
        self.send(json.dumps({"host": "choose", "path": str(path)}))
        self.send(json.dumps({"do": "import"}))

    def push_piece(self, start: int, content: bytes, hash_: str | None = None) -> Path:
        """Leaves a piece of weights where `minicpmv sideload` does; returns its file."""
        short = (hash_ or hashlib.sha256(self.weights.read_bytes()).hexdigest())[:8]
        path = self.installed.with_name(PIECES) / f"{short}-{start}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def until(self, name: str, **fields: Any) -> dict[str, Any]:
        """Returns the next event with a name and fields."""
        others: list[dict[str, Any]] = []
        while True:
            try:
                event = self.receive()
            except queue.Empty:
                raise AssertionError(f"no {name} {fields} came, but {others}") from None
            if event["event"] == name and all(event.get(k) == v for k, v in fields.items()):
                return event
            others.append(event)


def host_command(packages: Path, folder: Path, bundle: Path) -> list[str]:
    """Returns how to start the logic. Args: packages: of npm. folder: for all that it keeps."""
    node = shutil.which("node")
    assert node is not None, "npm comes with it"
    paths = [SCRIPT, packages, folder, bundle, CONFIGS, sys.executable, FAKE_ENGINE]
    return [node, *map(str, paths)]
