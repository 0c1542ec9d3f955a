"""An engine without a model; the question says what it should do.

`die 3` exits with code 3, `signal 9` kills it with a signal, `garbage` sends invalid JSON, `slow`
streams text until it is cancelled, `count` streams numbers, `refuse CODE` fails with an error,
`mistake` with one that is a bug, `options` is answered with how it was to be generated; anything
else is echoed. A file `forget-pictures` in the bundle makes it evict all pictures once; a file
`wait` there makes it stop halfway through a picture until it is cancelled. A file `cannot-map`
makes it refuse weights that it is handed.
"""

from __future__ import annotations

import json
import os
import queue
import socket
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Any

HEADER = struct.Struct("<8sIIII")  # of a picture file
BLOCKS = 2  # of the vision encoder
# By the number of slices asked for: their columns and rows, of any picture.
GRIDS = {0: None, 1: None, 4: (2, 2), 9: (3, 3)}
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


def receive_weights(number: object) -> int:
    """Takes the weights' descriptor, as the engine does; returns their size."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("")  # the system chooses a name
        listening.listen()
        say("socket", number, name=listening.getsockname()[1:].decode())
        connection, _ = listening.accept()
        with connection:
            _, (descriptor,), _, _ = socket.recv_fds(connection, 1, 1)
    size = os.fstat(descriptor).st_size
    os.close(descriptor)
    return size


def done(request: dict[str, Any], text: str, stop: str) -> None:
    statistics = {
        "prompt_tokens": len(request["messages"]),
        "reused_tokens": 0,
        "generated_tokens": 3,
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


def options(request: dict[str, Any]) -> str:
    names = ("max_new_tokens", "do_sample", "temperature", "top_k", "top_p", "repetition_penalty")
    found = {name: request.get(name) for name in (*names, "seed", "stop", "top_logprobs")}
    found["stop"] = tuple(found["stop"] or ())
    return ", ".join(f"{name}={value!r}" for name, value in found.items())


def chat(request: dict[str, Any], pictures: dict[str, str], window: int) -> None:
    number, last = request["id"], request["messages"][-1]["content"]
    word, _, rest = last.partition(" ")
    image = request.get("image")
    if image is not None and image not in pictures:
        say("error", number, code="unknown_picture", message=f"no picture {image}")
        return
    if word == "refuse":
        code = rest or "prompt_too_long"
        say("error", number, code=code, message=f"refused: the window is {window}")
        return
    if word == "mistake":
        say("error", number, code="internal", message="a secret of the engine's")
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
    last = options(request) if last == "options" else last
    answer = f"{len(request['messages'])}: {last}{seen}"
    say("progress", number, stage="prefill", done=1, total=1)
    count = request.get("top_logprobs")
    pieces = [answer[:3], answer[3:]]
    if count is not None:
        pieces = [answer[i : i + 2] for i in range(0, len(answer), 2)]
    for piece in pieces:
        if count is not None:
            top = [{**token(10 + i), "logprob": -0.5 - i} for i in range(count)]
            say("token", number, **token(10), logprob=-0.5, top=top)
        say("text", number, text=piece)
    if count is not None:  # a token without a text
        say("token", number, token=0, piece="<unk>", logprob=-0.25, top=[])
    done(request, answer, "eos")


def token(number: int) -> dict[str, Any]:
    """Returns a token of the vocabulary: a word, a byte, and then none."""
    pieces = {10: "▁word", 11: "<0xE4>"}
    return {"token": number} | ({"piece": pieces[number]} if number in pieces else {})


def encode(request: dict[str, Any], most: int, waits: bool) -> str | None:
    """Plays the encoding of a picture; returns its name, or None after an error."""
    number, wanted = request["id"], request.get("max_slices")
    if wanted is not None and not 1 <= wanted <= most:
        say("error", number, code="invalid_request", message=f"max_slices is {wanted}")
        return None
    _, _, width, height, _ = HEADER.unpack(Path(request["path"]).read_bytes()[:24])
    grid = GRIDS[most if wanted is None else wanted]
    images = 1 + (0 if grid is None else grid[0] * grid[1])
    cut = {} if grid is None else {"grid": grid}
    for block in range(1, BLOCKS * images + 1):
        say("progress", number, stage="encode", done=block, total=BLOCKS * images, **cut)
        if waits and block == BLOCKS * images // 2:
            cancelled.wait()
            say("error", number, code="cancelled", message="cancelled")
            return None
    name = f"{width}x{height}" + ("" if grid is None else f" in {images}")
    say("done", number, image=name, images=images, remembered=False, encode_ms=5.0, **cut)
    return name


def main() -> None:
    threading.Thread(target=read, daemon=True).start()
    threads = os.environ.get("TVM_NUM_THREADS", "")
    hello = {"protocol": 1, "version": "0", "target": "host", "program_id": "program", "cpu": "x"}
    hello |= {"kinds": ["fast_", "slow_"]}
    print(json.dumps({"event": "hello", **hello, "threads": threads}), flush=True)
    pictures: dict[str, str] = {}
    bundle, most, window = Path(), 0, 0
    while (request := lines.get()) is not None:
        number, op = request["id"], request["op"]
        if op == "load":
            bundle, window = Path(request["bundle"]), request["window"]
            Path(request["kinds_file"]).write_text("fast_ fast_ slow_")
            if request.get("receive_weights"):
                size = receive_weights(number)
                if (bundle / "cannot-map").exists():
                    say("error", number, code="invalid_bundle", message="No such device")
                    continue
            else:
                size = (bundle / "weights.safetensors").stat().st_size
            model = json.loads((bundle / "bundle.json").read_bytes()).get("model", {})
            most = model.get("max_slice_nums", 0)
            facts = {"image_tokens": 4, "max_slices": most, "weights_bytes": size}
            say("done", number, **facts, window=window)
        elif op == "image":
            found = encode(request, most, (bundle / "wait").exists())
            if found is not None:
                pictures[found] = found
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
            chat(request, pictures, window)
        else:
            say("done", number)
        cancelled.clear()


main()
