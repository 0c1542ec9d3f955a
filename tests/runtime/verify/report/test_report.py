"""verify's report: a page that fetches nothing, in a real browser, and the same as data."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from quantize.errors import ConfigError
from runtime.verify.cases import Case
from runtime.verify.check import Cause, Check
from runtime.verify.measure.answers import AnswerComparison
from runtime.verify.measure.logits import Positions, Sums
from runtime.verify.report.folder import CASES, DATA, PAGE, ReportError, ReportFolder
from runtime.verify.report.page.plots import cosine_curve, kl_histogram, sqnr_curve
from runtime.verify.report.page.render import render
from runtime.verify.report.report import Report, TensorFormat
from tests.support.screen import Screen

if TYPE_CHECKING:
    from playwright.sync_api import Browser

HOSTILE = '</script><script>window.hacked = 1</script><img src="http://localhost:9/x">'
SIZES = {"phone": (320, 568), "desktop": (1200, 900)}


def check(stage: str, name: str, value: float, **more: Any) -> Check:
    expected, limit = more.pop("expected", 40.0), more.pop("limit", 39.0)
    detail = {"cosine": 0.999, "expected_cosine": 0.9991}
    noise = None if stage == "weights" else 48.25
    return Check(stage, name, "SQNR", "dB", value, expected, limit, True, detail, noise)


def positions(count: int) -> Positions:
    sums = Sums((0.01,) * count, count - 1, 5 * count - 3, 2.0)
    return Positions(count, 4, 1.9, sums, sums)


def report(*, good: bool) -> Report:
    """A report with every kind of thing in it; without good luck, the worst of each."""
    names = [f"vision.blocks.{i}.a.fairly.long.name.qkv.weight" for i in range(12)]
    checks = [check("weights", name, 60 - i) for i, name in enumerate(names)]
    checks += [check("vision encoder", f"block {i}", 50 - i) for i in range(3)]
    checks += [check("decoder layers", f"layer {i}", 45 - i) for i in range(4)]
    checks += [check("decoder layers", "layer 4", math.inf, expected=math.inf)]
    answers = [
        AnswerComparison(
            "picture 1, zh", "这是什么颜色？", "红。", "红。", "红。", ["红", "。"], ["红", "。"]
        )
    ]
    if not good:
        checks += [check("decoder layers", "layer 5", value) for value in (math.nan, -math.inf)]
        long = "a word " * 40
        answers += [
            AnswerComparison(
                "b", HOSTILE, "红色", "红蓝", "", ["红", "色"], ["红", "<0xE8>", "<0x93>", "<0x9D>"]
            ),
            AnswerComparison(
                "c", long, "Yes, it is", "Yes", "", ["▁Yes", ",", "▁it", "▁is"], ["▁Yes"]
            ),
        ]
    return Report(
        bundle="/tmp/" + "a-long-name/" * 12 + ("" if good else HOSTILE),
        reference="/tmp/checkpoint",
        quantization="q4f16_1",
        kv_cache="int8",
        engine="local",
        window=1024,
        longest_prompt=90,
        checks=checks,
        answers=answers,
        seconds=12.25,
        causes=[] if good else [Cause("decoder layer 5", "its kernel says something else")],
        warnings=[] if good else [f"another reference {HOSTILE}"],
        tensors=[
            TensorFormat(name, "q8" if i % 2 else "f32", [96 * (12 - i), 64], 4.5 + i, "why")
            for i, name in enumerate(names)
        ],
        positions={"image": positions(64), "text": positions(20), "answer": positions(9)},
        ran={"engine": {"processor": "a name", "processor features": ["avx2", "vnni"]}},
    )


@pytest.fixture
def show(browser: Browser, tmp_path: Path) -> Iterator[Callable[..., Screen]]:
    """Opens a report's page from its file."""
    pytest.importorskip("matplotlib")
    screens: list[Screen] = []
    fetched: list[str] = []

    def begin(found: Report, size: str, scheme: Any = "light") -> Screen:
        picture = Image.new("RGB", (40, 30), "red")
        case = Case("picture 1, zh", ({"role": "user", "content": "?"},), picture.copy)
        path = tmp_path / f"{size}-{scheme}.html"
        path.write_text(render(found, [case]), "utf-8")
        width, height = SIZES[size]
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme
        )
        screen = Screen(context.new_page())
        screens.append(screen)
        screen.page.on("request", lambda request: fetched.append(request.url))
        screen.page.on("console", lambda message: screen.errors.append(message.text))
        screen.page.goto(path.as_uri())
        return screen

    yield begin
    for screen in screens:
        screen.page.context.close()
        assert screen.errors == []
    assert [url for url in fetched if not url.startswith(("file:", "data:"))] == []


def shoot(screen: Screen, name: str, folder: Path) -> None:
    folder = Path(os.environ.get("MINICPMV_SCREENSHOTS") or folder / "screenshots")
    screen.page.screenshot(path=folder / f"{name}.png", full_page=True)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page(show: Callable[..., Screen], size: str, scheme: str, tmp_path: Path) -> None:
    for good in (True, False):
        screen = show(report(good=good), size, scheme)
        page = screen.page
        verdict = page.locator("h1")
        assert ("Passed" if good else "Failed") in verdict.inner_text()
        box = verdict.bounding_box()
        assert box is not None and box["y"] < 150, "the verdict comes first"
        assert page.evaluate("document.documentElement.scrollWidth") == SIZES[size][0]
        shoot(screen, f"report-{size}-{scheme}-{'passed' if good else 'failed'}", tmp_path)
        ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
        assert len(ids) == len(set(ids))
        assert page.locator("figure svg").count() == 7
        ink = page.evaluate("getComputedStyle(document.querySelector('figure svg text')).fill")
        assert ink == page.evaluate("getComputedStyle(document.body).color")
        light = sum(map(int, ink[4:-1].split(","))) > 380
        assert light == (scheme == "dark"), "text in plots is as readable as all other"


def test_what_went_wrong_is_said_and_text_stays_text(show: Callable[..., Screen]) -> None:
    screen = show(report(good=False), "phone")
    page = screen.page
    assert "decoder layer 5: its kernel says" in page.inner_text("header")
    assert "another reference </script>" in page.inner_text(".warning")
    assert page.evaluate("window.hacked") is None
    assert HOSTILE in page.inner_text("#answers ~ .answers")
    assert page.locator(".answer.different mark").all_text_contents() == [
        "first difference: 色",
        "first difference: 蓝",
        "first difference: ,",
        "first difference: (ends here)",
    ]
    assert page.get_attribute(".answer:not(.different) .question", "lang") == "zh"
    assert page.eval_on_selector(".answer img", "e => e.naturalWidth") == 40
    assert page.locator("#answers ~ .note").inner_text().startswith("1 of 3 greedy answers")
    assert page.locator(".pipeline .not-ok .stage").all_text_contents() == ["decoder layers"]


def test_tensors_are_sorted_by_click_and_by_key(show: Callable[..., Screen]) -> None:
    screen = show(report(good=True), "phone")
    page = screen.page

    def column(index: int) -> list[str]:
        rows = page.locator(f".sortable tbody tr > :nth-child({index})")
        return rows.all_inner_texts()

    before = column(5)
    button = page.get_by_role("button", name="SQNR, dB")
    heading = page.locator(".sortable th", has=button)
    button.click()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert column(5) == sorted(before, key=float) != before
    button.press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    assert column(5) == sorted(before, key=float, reverse=True)
    page.get_by_role("button", name="Shape").press("Space")
    assert [int(shape.split(" × ")[0]) for shape in column(3)] == [96 * i for i in range(1, 13)]
    page.get_by_role("button", name="Tensor").click()
    assert column(1)[1].startswith("vision.blocks.1."), "10 comes behind 9"
    assert page.locator("[aria-sort]").count() == 1


def test_the_same_figures_are_the_same_plot() -> None:
    pytest.importorskip("matplotlib")
    checks = report(good=False).checks
    for draw, figures in ((sqnr_curve, checks), (cosine_curve, checks), (kl_histogram, None)):
        drawn = {draw("name", figures or positions(3)) for _ in range(2)}  # type: ignore[arg-type]
        (svg,) = drawn
        assert svg.startswith("<svg") and "var(--ink)" in svg
        assert "#0" not in svg.replace("#000000", ""), "no colour is left that stands for another"


def test_the_data_is_json_and_whole() -> None:
    found = report(good=False)
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert data["format"] == "minicpmv-verify-report"
    assert data["passed"] is False
    assert [c["value"] for c in data["checks"]][-3:] == ["inf", "nan", "-inf"]
    assert data["causes"] == [{"where": "decoder layer 5", "why": "its kernel says something else"}]
    assert [answer["first_difference"] for answer in data["answers"]] == [None, 1, 1]
    assert data["answers"][1]["bundle_pieces"] == ["红", "<0xE8>", "<0x93>", "<0x9D>"]
    assert sum(data["positions"]["image"]["bundle"]["histogram"]) == 64
    assert data["perplexity"]["text"]["reference"] == pytest.approx(math.exp(1.9 / 4), abs=1e-6)
    assert data["tensors"][1]["bits"] == 5.5
    assert data["warnings"] == found.warnings


def test_a_report_replaces_only_a_report(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found, folder = report(good=True), ReportFolder(tmp_path / "new" / "report")
    for _ in range(2):
        folder.write(render(found, []), found.to_json())
    (folder.path / "notes.txt").write_text("mine")
    folder.write(render(found, []), found.to_json())
    assert {f.name for f in folder.path.iterdir()} == {PAGE, DATA, "notes.txt"}
    for name in (PAGE, DATA):
        other = tmp_path / name.partition(".")[0]
        other.mkdir()
        (other / name).write_text("{}")
        with pytest.raises(ReportError, match=f"{name}: not a report of verify"):
            ReportFolder(other)
        assert (other / name).read_text() == "{}"
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / PAGE).symlink_to(folder.path / PAGE)
    (tmp_path / "file").touch()
    for path, words in (("link", "not a report"), ("file", "no folder")):
        with pytest.raises(ReportError, match=words):
            ReportFolder(tmp_path / path)


def test_what_came_there_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    folder = ReportFolder(tmp_path)
    (tmp_path / PAGE).write_text("somebody's")
    with pytest.raises(ReportError, match="not a report"):
        folder.write("ours", {})
    assert {f.name for f in tmp_path.iterdir()} == {PAGE}
    assert (tmp_path / PAGE).read_text() == "somebody's"


def test_without_matplotlib_it_says_so_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match="pip install matplotlib"):
        ReportFolder(tmp_path / "report")
    assert not (tmp_path / "report").exists()
    assert CASES not in os.listdir(tmp_path)
