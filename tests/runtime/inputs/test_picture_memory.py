"""What decoding a large picture takes of memory, and what it keeps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.support.web import ROOT

MEASURE = """
import sys, threading
from pathlib import Path
from runtime.inputs.memory import give_back_memory
from runtime.inputs.picture import open_picture

def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))

def decode():
    open_picture(Path(sys.argv[1]))

before = memory("VmRSS")
thread = threading.Thread(target=decode)
thread.start()
thread.join()
give_back_memory()
print(memory("VmHWM") - before, memory("VmRSS") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc here")
@pytest.mark.parametrize(
    ("mode", "kind", "times"), [("RGB", "PNG", 4), ("RGBA", "PNG", 8), ("RGB", "JPEG", 4)]
)
def test_memory_of_a_large_picture(tmp_path: Path, mode: str, kind: str, times: int) -> None:
    """Pillow has 4 bytes a pixel; a second copy only where colours are mixed with white."""
    path = tmp_path / "large"
    Image.new(mode, (7000, 6000), "red").save(path, kind)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    peak, kept = map(int, done.stdout.split())
    assert peak < times * 7000 * 6000 + (50 << 20)
    assert kept < 20 << 20
