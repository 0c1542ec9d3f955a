"""Answers as Markdown: what is drawn, whole and in pieces, and what hostile text cannot do."""

from __future__ import annotations

import mimetypes
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from android.build.builder import PAGE
from tests.android.phone import ORIGIN, content_policy

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

Draw = Callable[..., str]
# Draws the text in growing pieces, and returns the HTML without what only styles it.
_DRAW = """async ([text, step]) => {
    const {MarkdownView} = await import('./markdown.js');
    const element = document.createElement('div');
    const view = new MarkdownView(element, (language) => document.createTextNode(language + ':'));
    for (let end = step; end < text.length + step; end += step) {
        view.update(text.slice(0, end));
    }
    const html = element.innerHTML.replace(/ (class|tabindex)="[^"]*"/g, '');
    return html.replace(/<(div|span)>|<.(div|span)>/g, '');
}"""


@pytest.fixture(scope="module")
def page(browser: Browser) -> Iterator[Page]:
    def serve(route: Route) -> None:
        path = PAGE / route.request.url[len(ORIGIN) :]
        headers = {
            "Content-Security-Policy": content_policy(),
            "Content-Type": mimetypes.guess_type(path)[0] or "text/plain",
        }
        if path.is_file() and path.suffix != ".html":
            route.fulfill(path=path, headers=headers)
        else:
            route.fulfill(body="", headers=headers | {"Content-Type": "text/html"})

    page = browser.new_page()
    page.route("**/*", serve)
    page.goto(ORIGIN)
    yield page
    page.close()


@pytest.fixture
def draw(page: Page) -> Draw:
    def draw(text: str, step: int = 1 << 30) -> str:
        found: str = page.evaluate(_DRAW, [text, min(step, max(1, len(text)))])
        return found

    return draw


CASES: dict[str, tuple[str, str]] = {
    "paragraphs": ("one\ntwo\n\nthree", "<p>one\ntwo</p><p>three</p>"),
    "headings": ("# A\n### B *c*", "<h3>A</h3><h5>B <em>c</em></h5>"),
    "no heading": ("#A", "<p>#A</p>"),
    "emphasis": (
        "**a** *b* ***c*** __d__ _e_ ~~f~~",
        "<p><strong>a</strong> <em>b</em> <strong><em>c</em></strong> <strong>d</strong> "
        "<em>e</em> <del>f</del></p>",
    ),
    "emphasis in Chinese": ("这是**红色**的。", "<p>这是<strong>红色</strong>的。</p>"),
    "no emphasis": ("2*3*4 a_b_c ** x ** *", "<p>2*3*4 a_b_c ** x ** *</p>"),
    "not closed": ("**a *b `c", "<p>**a *b `c</p>"),
    "escaped": (r"\*a\* \`b\`", "<p>*a* `b`</p>"),
    "code": ("`a*b*` ``c`d``", "<p><code>a*b*</code> <code>c`d</code></p>"),
    "list": (
        "- a\n- b\n  - c\n\n- d",
        "<ul><li><p>a</p></li><li><p>b</p><ul><li><p>c</p></li></ul></li><li><p>d</p></li></ul>",
    ),
    "numbers": (
        "3. a\n4. b\n   more",
        '<ol start="3"><li><p>a</p></li><li><p>b\nmore</p></li></ol>',
    ),
    "list after text": ("So:\n1. a\n2. b", "<p>So:</p><ol><li><p>a</p></li><li><p>b</p></li></ol>"),
    "no list": ("-5\n1984.\n1: x", "<p>-5\n1984.\n1: x</p>"),
    "quote": (
        "> a\n> > b\n\nc",
        "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote><p>c</p>",
    ),
    "rule": ("a\n\n---\n\nb", "<p>a</p><hr><p>b</p>"),
    "fence": (
        "```py\nif a < b:\n\n    c\n```\nd",
        "py:<pre><code>if a &lt; b:\n\n    c</code></pre><p>d</p>",
    ),
    "fence in a list": (
        "1. a\n   ```\n   b\n   ```",
        "<ol><li><p>a</p>:<pre><code>b</code></pre></li></ol>",
    ),
    "fence that is not closed": ("````x\n```\n**a**", "x:<pre><code>```\n**a**</code></pre>"),
    "table": (
        "| a | b |\n|---|:-:|\n| 1 | *2* |\n| 3 |",
        "<table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td>1</td><td><em>2</em></td>"
        "</tr><tr><td>3</td><td></td></tr></tbody></table>",
    ),
    "no table": ("a | b\nc | d", "<p>a | b\nc | d</p>"),
    "address": (
        "[**a**](https://x.org/?q=1) [https://b.org](https://b.org) ![c](http://d.org/e.png)",
        "<p><strong>a</strong> (https://x.org/?q=1) https://b.org c (http://d.org/e.png)</p>",
    ),
    "script address": (
        "[a](javascript:alert(1)) [b](JaVaScRiPt:x) [c](data:text/html,x) [d]( https://e.org)",
        "<p>[a](javascript:alert(1)) [b](JaVaScRiPt:x) [c](data:text/html,x) [d]( https://e.org)</p>",
    ),
    "HTML": (
        "<img src=x onerror=alert(1)>\n<script>x</script>\n&lt;b&gt;",
        "<p>&lt;img src=x onerror=alert(1)&gt;\n&lt;script&gt;x&lt;/script&gt;\n"
        "&amp;lt;b&amp;gt;</p>",
    ),
    "HTML in code": (
        "```<i>\n</code><b>\n```",
        "&lt;i&gt;:<pre><code>&lt;/code&gt;&lt;b&gt;</code></pre>",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_drawn(draw: Draw, name: str) -> None:
    text, html = CASES[name]
    assert draw(text) == html


@pytest.mark.parametrize("step", [1, 3, 7])
def test_pieces_give_the_same(draw: Draw, step: int) -> None:
    for name, (text, html) in CASES.items():
        assert draw(text, step) == html, name
    whole = "\n\n".join(text for name, (text, _) in CASES.items() if "not closed" not in name)
    assert draw(whole, step) == draw(whole)


def test_only_the_last_block_is_drawn_again(page: Page) -> None:
    kept: list[Any] = page.evaluate(
        """async () => {
            const {MarkdownView} = await import('./markdown.js');
            const element = document.createElement('div');
            document.body.append(element);
            const view = new MarkdownView(element, () => document.createTextNode(''));
            view.update('**one**\\n\\ntwo');
            const nodes = [element.firstChild, element.lastChild, element.lastChild.firstChild];
            getSelection().selectAllChildren(element);
            view.update('**one**\\n\\ntwo three\\n\\nfour');
            return [element.childNodes[0] === nodes[0], element.childNodes[1] === nodes[1],
                element.childNodes[1].firstChild === nodes[2], getSelection().toString()];
        }"""
    )
    assert kept[:3] == [True] * 3
    assert kept[3].startswith("one\n\ntwo")


HOSTILE = {
    "quotes": ">" * 20_000,
    "quotes and lists": "> - " * 5_000 + "x",
    "nested lists": "\n".join("  " * i + "- a" for i in range(2_000)),
    "stars": "*a **b " * 8_000,
    "open stars": "**" * 30_000,
    "alternating": "*_" * 30_000,
    "brackets": "[" * 50_000,
    "links": "[a](" * 20_000,
    "ticks": " ".join("`" * (i % 50 + 1) for i in range(5_000)),
    "fences": "```\n~~~\n" * 5_000,
    "bars": "|" * 30_000 + "\n" + "|" * 30_000,
    "blank lines": "- a" + "\n" * 50_000,
    "spaces": " " * 50_000 + "x" + " " * 50_000,
    "rules": "- " * 30_000 + "x",
    "backslashes": "\\" * 50_001,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_drawn(page: Page, draw: Draw, name: str) -> None:
    """Nothing is lost, and nesting stays shallow: deep trees exhaust the browser's stack.

    A text whose time grew with its square would not be done before the test's time limit.
    """
    text = HOSTILE[name]
    page.set_default_timeout(60_000)
    html = draw(text)
    depth, elements = page.evaluate(
        """(html) => {
            const parsed = new DOMParser().parseFromString(html, 'text/html').body;
            const depth = (e) => 1 + Math.max(0, ...Array.from(e.children).slice(0, 99).map(depth));
            return [depth(parsed), parsed.querySelectorAll('a, img, script, iframe').length];
        }""",
        html,
    )
    assert depth < 40
    assert elements == 0
