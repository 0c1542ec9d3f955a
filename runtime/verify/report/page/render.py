"""Fills the page's template with a report."""

from __future__ import annotations

import base64
import hashlib
import io
import math
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from PIL import Image

from runtime.inputs.picture_format import PictureError
from runtime.verify.cases import Case
from runtime.verify.check import Check
from runtime.verify.measure.answers import AnswerComparison
from runtime.verify.report.folder import DATA, MARK
from runtime.verify.report.page.pipeline import pipeline
from runtime.verify.report.page.plots import cosine_curve, kl_histogram, sqnr_curve
from runtime.verify.report.report import Report, figure, shown_floor, shown_value

_FOLDER = Path(__file__).parent
# Stages that are rows of layers, with what their plots are called.
_CURVES = {
    "vision encoder": ("vision", "Vision encoder, block by block"),
    "decoder layers": ("decoder", "Decoder, layer by layer"),
}
_PICTURE_SIZE = 112  # pixels, the longer side
_PICTURES = 200  # on a page; each has some 3 KB
_OPEN_ANSWERS = 24  # more that are the same are folded away
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_CHINESE = re.compile(r"[\u3400-\u9fff]")


def render(report: Report, cases: Sequence[Case]) -> str:
    """Returns the page: one HTML file that fetches nothing.

    Args:
        report: what was found.
        cases: whose pictures are shown beside their answers.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "bound": lambda value: f"{value:.2g}",
        "figure": figure,
        "floor": shown_floor,
        "value": shown_value,
        "language": _language,
        "product": math.prod,
    }
    style, script = ((_FOLDER / n).read_text("utf-8") for n in ("style.css", "script.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    same = [_answer(answer) for answer in report.answers if answer.same]
    page: str = environment.get_template("template.html").render(
        report=report,
        mark=Markup(MARK),
        data_file=DATA,
        style=Markup(style),
        script=Markup(script),
        script_hash=digest,
        pipeline=pipeline(report),
        curves=_curves(report),
        histograms={
            kind: Markup(kl_histogram(f"kl-{kind}", found))
            for kind, found in report.positions.items()
        },
        different=[_answer(answer) for answer in report.answers if not answer.same],
        same=same,
        fold_same=len(same) > _OPEN_ANSWERS,
        pictures=_pictures(report, cases),
        tensors=_tensors(report),
    )
    return page


def _curves(report: Report) -> list[dict[str, Any]]:
    curves = []
    for stage, (name, title) in _CURVES.items():
        checks = [c for c in report.checks if c.stage == stage and c.metric == "SQNR"]
        if checks:
            plots = [
                ("SQNR: higher is better", Markup(sqnr_curve(f"{name}-sqnr", checks))),
                ("1 - cosine: lower is better", Markup(cosine_curve(f"{name}-cosine", checks))),
            ]
            curves.append({"title": title, "checks": checks, "plots": plots})
    return curves


def _answer(answer: AnswerComparison) -> dict[str, Any]:
    first = answer.first_difference
    return {
        "case": answer.case,
        "question": answer.question,
        "given": answer.given,
        "same": answer.same,
        "reference": _spans(answer.reference, answer.reference_pieces, first),
        "bundle": _spans(answer.bundle, answer.bundle_pieces, first),
    }


def _spans(text: str, pieces: Sequence[str], first: int | None) -> list[tuple[str, bool]]:
    """Cuts an answer into what stands before, in and after the first token that differs.

    Pieces that are bytes of one character stay together: half a character cannot be shown.
    """
    if first is None:
        return [(text, False)]
    units: list[tuple[str, bool]] = []
    start = 0
    while start < len(pieces):
        end = start + 1
        if _BYTE.fullmatch(pieces[start]):
            while end < len(pieces) and _BYTE.fullmatch(pieces[end]):
                end += 1
            content = bytes(int(piece[3:5], 16) for piece in pieces[start:end])
            shown = content.decode("utf-8", errors="replace")
        else:
            shown = pieces[start].replace("▁", " ")
        units.append((shown, start <= first < end))
        start = end
    if first == len(pieces):
        units.append(("(ends here)", True))
    before = "".join(shown for shown, _ in units[: [mark for _, mark in units].index(True)])
    marked = next(shown for shown, mark in units if mark)
    after = "".join(shown for shown, _ in units)[len(before) + len(marked) :]
    return [(before.lstrip(), False), (marked, True), (after, False)]


def _pictures(report: Report, cases: Sequence[Case]) -> dict[str, str]:
    """Returns small copies of the cases' pictures, as data URLs by the case's name."""
    asked = {answer.case for answer in report.answers}
    shown = (case for case in cases if case.name in asked and case.picture is not None)
    urls = {}
    for case in islice(shown, _PICTURES):
        try:
            picture = case.open()
        except PictureError:  # gone since it was looked at
            continue
        if picture is not None:
            urls[case.name] = _data_url(picture)
    return urls


def _data_url(picture: Image.Image) -> str:
    small = picture.copy()
    small.thumbnail((_PICTURE_SIZE, _PICTURE_SIZE))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=70)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _tensors(report: Report) -> list[dict[str, Any]]:
    """Returns the tensors with what storing them lost."""
    checks: dict[str, Check] = {c.name: c for c in report.checks if c.stage == "weights"}
    return [{"tensor": tensor, "check": checks[tensor.name]} for tensor in report.tensors]


def _language(text: str) -> str:
    """Returns the language in which a text is to be read aloud."""
    return "zh" if _CHINESE.search(text) else "en"
