"""Whoever only uses a bundle does not load PyTorch, which takes seconds and hundreds of MiB."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import openai
from PIL import Image

from tests.support.web import ROOT, WebServer

# An import of it fails.
PROGRAM = (
    "import sys; sys.modules['torch'] = None; "
    "from convert.cli import main; sys.exit(main(sys.argv[1:]))"
)
COMMAND = (sys.executable, "-c", PROGRAM)


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_the_reference_needs_it(bundle: Path) -> None:
    """Or the others would tell nothing."""
    done = run("chat", bundle, "--prompt", "hello", "--engine", "reference")
    assert "torch" in done.stderr and done.returncode != 0


def test_chat(bundle: Path, tmp_path: Path) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "picture.png")
    options = ("--image", tmp_path / "picture.png", "--max-new-tokens", 3, "--json")
    done = run("chat", bundle, "--prompt", "hello", *options)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["statistics"]["generated_tokens"] <= 3


def test_serve(bundle: Path, tmp_path: Path) -> None:
    with WebServer((*COMMAND, "serve", str(bundle), "--port", "0"), tmp_path) as server:
        client = openai.OpenAI(base_url=f"{server.origin}/v1", api_key="x", max_retries=0)
        (name,) = (model.id for model in client.models.list())
        asked = client.chat.completions.create(
            model=name, messages=[{"role": "user", "content": "hello"}], max_tokens=3
        )
        assert asked.usage is not None and asked.usage.completion_tokens <= 3


def test_bench(bundle: Path) -> None:
    done = run("bench", bundle, "--rounds", 1, "--json")
    assert done.returncode == 0, done.stderr


def test_the_page(bundle: Path, tmp_path: Path) -> None:
    command = (*COMMAND, "chat", str(bundle), "--web", "--no-open")
    with WebServer(command, tmp_path) as server, server.listen() as events:
        assert "model" in events.until_idle()
