"""The app's page with a long chat: how soon it opens, and how smoothly an answer is streamed.

    python -m tests.bench.page [--turns 400] [--throttle 4]

Chromium runs the page with its processor slowed down. Opening is the time from the host's event to
the frame that shows the end of the chat; the page draws the earlier turns after that. Streaming
sends pieces of an answer 30 times a second; a frame rate is that of the frames in a second. Prints
one JSON line, with medians and extremes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from itertools import pairwise
from typing import Any

from playwright.sync_api import Browser, Page, Route, sync_playwright

from android.build.builder import PAGE
from tests.bench.convert import machine

ORIGIN = "https://app.local/"
ANSWER = """The picture shows **three shapes** on a plain background:

1. a *red* star at the top left,
2. a blue circle beside it, and
3. a green square below both.

They do not overlap. The star has five points; its edges are sharp, and it is the largest.

```python
shapes = ["star", "circle", "square"]
```
"""
_BRIDGE = "window.app = {send: () => {}};"
_OPEN = """(event) => new Promise((resolve) => {
    receive({event: 'chat'});
    requestAnimationFrame(() => setTimeout(() => {
        const began = performance.now();
        receive(event);
        requestAnimationFrame(() => setTimeout(() => resolve(performance.now() - began)));
    }, 500));
})"""
_DRAWN = "(count) => document.querySelectorAll('.turn').length === count"
_STREAM = """([id, seconds]) => new Promise((resolve) => {
    const words = 'The **next** thing is a `shape`, red and round.\\n\\n- like *this* one\\n';
    const began = performance.now();
    let text = '';
    const frames = [];
    const timer = setInterval(() => {
        const piece = words.substr(text.length % (words.length - 6), 6);
        receive({event: 'text', chat: id, at: text.length, text: piece});
        text += piece;
    }, 1000 / 30);
    const count = (now) => {
        frames.push(now - began);
        if (now - began < seconds * 1000) {
            requestAnimationFrame(count);
        } else {
            clearInterval(timer);
            resolve({frames, length: document.querySelector('.waiting').textContent.length});
        }
    };
    requestAnimationFrame(count);
})"""


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--turns", type=int, default=400, help="of the chat")
    parser.add_argument("--throttle", type=float, default=4.0, help="times slower")
    parser.add_argument("--rounds", type=int, default=7, help="how often to open it")
    parser.add_argument("--seconds", type=int, default=10, help="of streaming")
    chosen = parser.parse_args()
    with sync_playwright() as playwright:
        program = shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = _page(browser, chosen.throttle)
        events = [_chat(f"chat-{i}", chosen.turns) for i in range(chosen.rounds)]
        open_ms = []
        for event in events:
            open_ms.append(page.evaluate(_OPEN, event))
            page.wait_for_function(_DRAWN, arg=chosen.turns)
        page.evaluate("receive", events[-1] | {"partial": ""})
        streamed = page.evaluate(_STREAM, [events[-1]["chat"]["id"], chosen.seconds])
        browser.close()
    frames = streamed["frames"]
    rates = [
        sum(second * 1000 <= at < (second + 1) * 1000 for at in frames)
        for second in range(chosen.seconds)
    ]
    print(
        json.dumps(
            {
                "machine": machine(),
                "throttle": chosen.throttle,
                "turns": chosen.turns,
                "open_ms": _spread(open_ms),
                "frames_s": _spread(rates),
                "longest_frame_ms": round(max(b - a for a, b in pairwise(frames))),
                "streamed_characters": streamed["length"],
            }
        )
    )


def _page(browser: Browser, throttle: float) -> Page:
    page = browser.new_page(viewport={"width": 360, "height": 720})

    def serve(route: Route) -> None:
        path = PAGE / route.request.url[len(ORIGIN) :]
        if path.is_file():
            route.fulfill(path=path)
        else:
            route.fulfill(status=404)

    page.route(ORIGIN + "**", serve)
    page.add_init_script(_BRIDGE)
    page.goto(ORIGIN + "index.html")
    state: dict[str, Any] = {"event": "state", "language": "en", "dark": False, "can": []}
    page.evaluate("receive", state | {"chats": [], "about": {}, "model": {"image_tokens": 64}})
    page.context.new_cdp_session(page).send("Emulation.setCPUThrottlingRate", {"rate": throttle})
    return page


def _chat(name: str, count: int) -> dict[str, Any]:
    turns = [
        {"role": "assistant", "text": f"{ANSWER}\nThat is answer {i}.", "stop": "eos"}
        if i % 2
        else {"role": "user", "text": f"What is in the picture, and where? Question {i}."}
        for i in range(count)
    ]
    return {"event": "chat", "chat": {"id": name, "title": name, "turns": turns}}


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 1),
        "least": round(min(values), 1),
        "most": round(max(values), 1),
    }


if __name__ == "__main__":
    main()
