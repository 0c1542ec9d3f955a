"""The app's API as a process: its Java on this PC, with the fake engine in place of a model.

    python -m tests.support.phone_api CLASSPATH KEY [--slices]

It prints its address, and ends at Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any

from android.build.tools import java
from convert.bundle.manifest import WEIGHTS
from convert.checkpoint.config import CONFIGS
from convert.support.versions import VERSION
from tests.android.bundle import FAKE_ENGINE, fake_bundle
from tests.support.serve_stand_in import NAME

SLICES = 9  # into how many the model cuts a picture at most


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("classpath")
    parser.add_argument("key")
    parser.add_argument("--slices", action="store_true", help="the model cuts pictures")
    args = parser.parse_args()
    home = Path(os.environ["XDG_DATA_HOME"])
    bundle = fake_bundle(home / "bundle", slices=SLICES if args.slices else None)
    shutil.copy(bundle / WEIGHTS, home / "weights")
    files = home / "app" / "files"
    files.mkdir(parents=True)
    choices = {"on": True, "port": 0, "token": args.key}
    (files / "api.json").write_text(json.dumps(choices))
    (files / "settings.json").write_text(json.dumps({"max_slices": SLICES}))
    command = [*java(), "-Djava.awt.headless=true", f"-Dconfigs={CONFIGS}", f"-Dversion={VERSION}"]
    command += [f"-Dapi={NAME}", "-cp", args.classpath, "org.minicpmv.desktop.FakeHost"]
    command += [str(home / "app"), str(bundle), str(home / "weights")]
    command += [sys.executable, str(FAKE_ENGINE)]
    pipe = subprocess.PIPE
    app = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, start_new_session=True)
    assert app.stdin is not None and app.stdout is not None
    try:
        print(_address(app.stdout), flush=True)
        threading.Thread(target=app.stdout.read, daemon=True).start()
        app.wait()
    except KeyboardInterrupt:
        app.stdin.close()
        sys.exit(app.wait())


def _address(events: IO[str]) -> str:
    """Waits until the model is loaded and the server runs; returns its address."""
    for line in events:
        event: dict[str, Any] = json.loads(line)
        address = event.get("api", {}).get("address")
        if address is not None and "model" in event and "job" not in event:
            return str(address)
    raise AssertionError("the app has ended")


if __name__ == "__main__":
    main()
