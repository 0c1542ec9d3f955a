"""llama.cpp at work: requests and answers are JSON lines; run by its own Python: `FILE THREADS`.

`{"op": "load"}`, `{"op": "prefill", "tokens": N}`, `{"op": "decode", "after": N, "steps": M}`;
each is answered with `{"ms": T, "processor_ms": P, "peak_rss_bytes": B}`.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp as llama

CONTEXT = 512  # tokens; more than any request fills


class Model:
    """A loaded file. Ids are random; nothing is sampled, only the logits are waited for."""

    def __init__(self, path: str, threads: int) -> None:
        self._path, self._threads = path.encode(), threads
        self._model: Any = None
        self._context: Any = None
        self._random = random.Random(0)

    def load(self) -> None:
        """Loads the file anew."""
        if self._model is not None:
            llama.llama_free(self._context)
            llama.llama_model_free(self._model)
        how = llama.llama_model_default_params()
        how.use_extra_bufts = True  # Q4_0 is repacked for the processor
        self._model = llama.llama_model_load_from_file(self._path, how)
        if not self._model:
            raise RuntimeError("llama.cpp cannot load the file")
        asked = llama.llama_context_default_params()
        asked.n_ctx = asked.n_batch = asked.n_ubatch = CONTEXT
        asked.n_threads = asked.n_threads_batch = self._threads
        self._context = llama.llama_init_from_model(self._model, asked)
        self._words = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self._model))

    def clear(self) -> None:
        """Forgets all tokens."""
        llama.llama_memory_clear(llama.llama_get_memory(self._context), True)

    def feed(self, count: int) -> None:
        """Runs `count` tokens at once; the logits of the last one are computed."""
        ids = (llama.llama_token * count)(
            *(self._random.randrange(self._words) for _ in range(count))
        )
        if llama.llama_decode(self._context, llama.llama_batch_get_one(ids, count)):
            raise RuntimeError(f"llama_decode refused {count} tokens")
        llama.llama_synchronize(self._context)


def answers(model: Model) -> Iterator[dict[str, Any]]:
    """Does what is asked on stdin."""
    for line in sys.stdin:
        request = json.loads(line)
        if request["op"] == "decode":
            model.clear()
            model.feed(request["after"])
        elif request["op"] == "prefill":
            model.clear()
        start, computed = time.perf_counter(), time.process_time()
        if request["op"] == "load":
            model.load()
        elif request["op"] == "prefill":
            model.feed(request["tokens"])
        else:
            for _ in range(request["steps"]):
                model.feed(1)
        ms = (time.perf_counter() - start) * 1000
        computed = (time.process_time() - computed) * 1000
        yield {"ms": ms, "processor_ms": computed, "peak_rss_bytes": _peak_rss_bytes()}


def _peak_rss_bytes() -> int:
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    # llama.cpp writes where it likes: stdout is kept for the answers.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    llama.llama_backend_init()
    for answer in answers(Model(sys.argv[1], int(sys.argv[2]))):
        print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    main()
