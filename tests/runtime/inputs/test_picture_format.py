"""One safe decoder for all: formats that are refused never reach their decoders."""

from __future__ import annotations

import ast
import base64
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from convert.calibrate.samples import CalibrationError, read_samples
from runtime.eval import mmbench
from runtime.inputs.picture import MAX_PIXELS, open_picture
from runtime.inputs.picture_format import ADVICE, TAKEN, PictureError, picture_format
from runtime.web.pictures import Pictures
from tests.support.eval_data import mmbench_row, write_mmbench
from tests.support.web import ROOT

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 30 20\n%%EndComments\nshowpage\n%%EOF\n"
REFUSED = {
    "GIF": b"GIF89a\1\0\1\0",
    "PostScript": POSTSCRIPT,
    "PDF": b"%PDF-1.7\n",
    "PSD": b"8BPS\0\1",
    "ICO": b"\0\0\1\0\1\0",
    "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n",
    "JPEG XL": b"\xff\x0a\xfa\x1f",
    "AVIF": b"\0\0\0\x1cftypavif\0\0\0\0",
}


def encoded(kind: str, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, (30, 20)).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("name", REFUSED)
def test_formats_that_are_refused_are_named(name: str) -> None:
    with pytest.raises(PictureError) as error:
        open_picture(REFUSED[name])
    assert str(error.value) == f"{name} pictures are not supported; {ADVICE}"


@pytest.mark.parametrize("kind", ["GIF", "EPS", "PDF", "ICO", "JPEG2000", "AVIF", "PPM", "TGA"])
def test_whole_files_that_pillow_could_decode_are_refused(kind: str) -> None:
    try:
        content = encoded(kind)
    except (KeyError, OSError) as error:
        pytest.skip(f"this Pillow cannot write {kind}: {error}")
    with pytest.raises(PictureError, match=r"choose a JPEG, PNG or WebP$"):
        open_picture(content)


@pytest.mark.parametrize("kind", TAKEN)
def test_formats_that_are_taken(kind: str) -> None:
    content = encoded(kind)
    assert picture_format(content[:32]) == kind
    assert open_picture(content).size == (30, 20)


@pytest.fixture
def ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that Pillow would start for PostScript; leaves a file when it is."""
    started, programs = tmp_path / "started", tmp_path / "programs"
    programs.mkdir()
    program = programs / "gs"
    program.write_text(f"#!/bin/sh\ntouch '{started}'\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    return started


def _chat(folder: Path) -> None:
    from convert.cli import main
    from tests.support.tiny import write_checkpoint

    checkpoint = write_checkpoint(folder / "checkpoint")
    arguments = ["chat", str(checkpoint), "--image", str(folder / "photo.png"), "--prompt", "What?"]
    assert main([*arguments, "--engine", "reference"]) == 2
    raise PictureError("as the command line said")


def _python(folder: Path) -> None:
    from runtime.sessions.chat import OmniLMMChat
    from tests.support.tiny import write_checkpoint

    image = base64.b64encode((folder / "photo.png").read_bytes())
    question = json.dumps([{"role": "user", "content": "What?"}])
    chat = OmniLMMChat(write_checkpoint(folder / "checkpoint"), device="cpu")
    chat.chat({"image": image, "question": question})


def _eval(folder: Path) -> None:
    image = base64.b64encode((folder / "photo.png").read_bytes()).decode()
    rows = [mmbench_row(1, image=image)]
    mmbench.read(write_mmbench(folder / "dev.tsv", rows)).items[0].open()


def _calibrate(folder: Path) -> None:
    line = json.dumps({"image": "photo.png", "question": "What?"})
    (folder / "samples.jsonl").write_text(line, "utf-8")
    read_samples(folder / "samples.jsonl", pictures=True, skip_bad=False)


def _web(folder: Path) -> None:
    pictures = Pictures(folder / "pictures")
    pictures.take((folder / "photo.png").rename(pictures.partial()))


@pytest.mark.parametrize("see", [_chat, _python, _eval, _calibrate, _web])
def test_postscript_starts_no_program(
    see: Callable[[Path], None], tmp_path: Path, ghostscript: Path
) -> None:
    (tmp_path / "photo.png").write_bytes(POSTSCRIPT + b" " * 60)
    with pytest.raises((PictureError, CalibrationError)):
        see(tmp_path)
    assert not ghostscript.exists()


def _opens(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and ast.unparse(node) == "Image.open"


def test_no_other_code_decodes() -> None:
    """What is refused is refused everywhere, since there is one call."""
    found = [
        path.relative_to(ROOT).as_posix()
        for folder in ("android", "convert", "quantize", "runtime")
        for path in (ROOT / folder).rglob("*.py")
        if any(map(_opens, ast.walk(ast.parse(path.read_bytes()))))
    ]
    assert found == ["runtime/inputs/picture.py"]


@pytest.mark.parametrize(
    ("kind", "size", "options", "said"),
    [
        ("WebP", (9000, 9000), {"method": 0}, "larger than the 80,000,000 pixels .* of a WebP"),
        ("JPEG", (11_500, 11_500), {"progressive": True}, "130,000,000 .* of a progressive JPEG"),
        ("TIFF", (11_500, 11_500), {"compression": "tiff_lzw"}, "130,000,000 pixels .* of a TIFF"),
    ],
)
def test_decoders_that_take_more_memory_get_fewer_pixels(
    kind: str, size: tuple[int, int], options: dict[str, object], said: str
) -> None:
    assert size[0] * size[1] < MAX_PIXELS
    file = io.BytesIO()
    Image.new("L", size).save(file, kind, **options)
    with pytest.raises(PictureError, match=said):
        open_picture(file.getvalue())
