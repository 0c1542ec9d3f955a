"""A fake engine: it speaks the protocol and reports fixed times."""

from __future__ import annotations

import json
import sys
import zlib

from runtime.engine_client import protocol
from runtime.engine_client.protocol import Event, Field, Op

PICTURE_TOKENS = 66
PEAK_RSS_BYTES = 3 * 2**20


class StandIn:
    """Answers requests; remembers the last picture only."""

    def __init__(self) -> None:
        self._picture = ""
        self._cached = ""
        self._reads = 0

    def answer(self, request: dict) -> dict:
        fields = getattr(self, request[Field.OP])(request)
        return {Field.EVENT: Event.DONE, Field.ID: request[Field.ID], **fields}

    def load(self, request: dict) -> dict:
        return {Field.LOAD_MS: 12.5, Field.WINDOW: request[Field.WINDOW]}

    def image(self, request: dict) -> dict:
        with open(request[Field.PATH], "rb") as file:
            name = str(zlib.crc32(file.read()))
        remembered, self._picture = name == self._picture, name
        return {Field.IMAGE: name, Field.REMEMBERED: remembered, Field.ENCODE_MS: 400.0}

    def chat(self, request: dict) -> dict:
        """Counts a word as a token; prefill takes 2 ms per token, decode 10 ms per step."""
        text = request[Field.MESSAGES][0][Field.CONTENT]
        image = request.get(Field.IMAGE)
        tokens = len(text.split()) + (PICTURE_TOKENS if image else 0)
        reused = PICTURE_TOKENS if image and image == self._cached else 0
        self._cached = image or ""
        steps = min(request[Field.MAX_NEW_TOKENS] - 1, 7)  # it ends its answers early
        statistics = {
            Field.PREFILL_MS: 2.0 * (tokens - reused),
            Field.DECODE_MS: 10.0 * steps,
            Field.PROMPT_TOKENS: tokens,
            Field.REUSED_TOKENS: reused,
            Field.DECODE_STEPS: steps,
            Field.PEAK_RSS_BYTES: PEAK_RSS_BYTES,
        }
        return {Field.TEXT: "", Field.IDS: [], Field.STOP: "eos", Field.STATISTICS: statistics}

    def reset(self, request: dict) -> dict:
        self._cached = ""
        return {}

    def bandwidth(self, request: dict) -> dict:
        """Reports 1 GB/s and 3 GB/s in turn."""
        self._reads += 1
        rate = 1e6 if self._reads % 2 else 3e6  # bytes per millisecond
        return {
            Field.BYTES: request[Field.BYTES],
            Field.MS: request[Field.BYTES] / rate,
            Field.LAUNCH_US: 1.5,
        }


def main() -> None:
    """Speaks the protocol; given `OP` as an argument, exits when that operation is requested."""
    stand_in = StandIn()
    hello = {
        Field.EVENT: Event.HELLO,
        Field.PROTOCOL: protocol.VERSION,
        Field.TARGET: "host",
        Field.PROGRAM_ID: "0123456789abcdef",
        Field.CPU: "a processor of no make",
        Field.CPU_FEATURES: [],
        Field.KINDS: ["none"],
        Field.THREADS: 2,
        Field.MEMORY_BYTES: 2**30,
    }
    print(json.dumps(hello), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if request[Field.OP] in sys.argv[1:]:
            print("no more", file=sys.stderr)
            sys.exit(3)
        if request[Field.OP] != Op.CANCEL:
            print(json.dumps(stand_in.answer(request)), flush=True)


if __name__ == "__main__":
    main()
