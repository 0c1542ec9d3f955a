"""An engine without a model; the question says what it should do.

`die 3` exits with code 3, `signal 9` kills it with a signal, `garbage` sends invalid JSON, `slow`
streams text until it is cancelled, `count` streams numbers, `refuse CODE` fails with an error;
anything else is echoed. A file `forget-pictures` in the bundle makes it evict all pictures once.
"""

from __future__ import annotations

import json
import os
import queue
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Any

HEADER = struct.Struct("<8sIIII")  # of a picture file
_PIECE_SECONDS = 0.02

lines: queue.Queue[dict[str, Any] | None] = queue.Queue()
cancelled = threading.Event()


def say(event: str, number: object, **fields: object) -> None:
    print(json.dumps({"event": event, "id": number, **fields}), flush=True)


def read() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        if request["op"] == "cancel":
            cancelled.set()
        lines.put(request)
    cancelled.set()
    lines.put(None)


def done(request: dict[str, Any], text: str, stop: str) -> None:
    statistics = {
        "prompt_tokens": len(request["messages"]),
        "reused_tokens": 0,
        "generated_tokens": len(text),
        "prefill_tok_s": 100.0,
        "decode_tok_s": 10.0,
        "peak_rss_bytes": 1 << 20,
    }
    ids = [ord(c) for c in text]
    say("done", request["id"], text=text, ids=ids, stop=stop, statistics=statistics)


def speak(request: dict[str, Any], word: str) -> None:
    text = ""
    while not cancelled.is_set():
        piece = f"{len(text.split())} " if word == "count" else "bla "
        say("text", request["id"], text=piece)
        text += piece
        time.sleep(_PIECE_SECONDS)
    done(request, text, "cancelled")


def chat(request: dict[str, Any], pictures: dict[str, str]) -> None:
    number, last = request["id"], request["messages"][-1]["content"]
    word, _, rest = last.partition(" ")
    image = request.get("image")
    if image is not None and image not in pictures:
        say("error", number, code="unknown_picture", message=f"no picture {image}")
        return
    if word == "refuse":
        say("error", number, code=rest, message="refused")
        return
    if word in ("die", "signal", "garbage"):
        say("text", number, text="half an ans")
        print("last words", file=sys.stderr, flush=True)
        if word == "garbage":
            print("{", flush=True)
            time.sleep(60)
        if word == "signal":
            os.kill(os.getpid(), int(rest))
        os._exit(int(rest))
    if word in ("slow", "count"):
        speak(request, word)
        return
    seen = f" seeing {pictures[image]}" if image else ""
    answer = f"{len(request['messages'])}: {last}{seen}"
    say("progress", number, stage="prefill", done=1, total=1)
    for piece in (answer[:3], answer[3:]):
        say("text", number, text=piece)
    done(request, answer, "eos")


def main() -> None:
    threading.Thread(target=read, daemon=True).start()
    threads = os.environ.get("TVM_NUM_THREADS", "")
    hello = {"protocol": 1, "version": "0", "target": "host", "program_id": "program", "cpu": "x"}
    print(json.dumps({"event": "hello", **hello, "threads": threads}), flush=True)
    pictures: dict[str, str] = {}
    bundle = Path()
    while (request := lines.get()) is not None:
        number, op = request["id"], request["op"]
        if op == "load":
            bundle = Path(request["bundle"])
            size = (bundle / "weights.safetensors").stat().st_size
            say("done", number, image_tokens=4, weights_bytes=size, window=request["window"])
        elif op == "image":
            _, _, width, height, _ = HEADER.unpack(Path(request["path"]).read_bytes()[:24])
            name = f"{width}x{height}"
            pictures[name] = name
            say("progress", number, stage="encode", done=1, total=2)
            say("done", number, image=name, remembered=False, encode_ms=5.0)
        elif op == "save_image":
            Path(request["path"]).write_text(request["image"])
            say("done", number, bytes=1)
        elif op == "restore_image":
            name = Path(request["path"]).read_text()
            pictures[name] = name + " again"
            say("done", number, image=name, remembered=False)
        elif op == "selfcheck":
            check = {"question": "q", "expected": "a", "text": "a", "passed": True}
            say("done", number, passed=True, checks=[check], peak_rss_bytes=1 << 20)
        elif op == "chat":
            if (bundle / "forget-pictures").exists():
                (bundle / "forget-pictures").unlink()
                pictures.clear()
            chat(request, pictures)
        else:
            say("done", number)
        cancelled.clear()


main()
