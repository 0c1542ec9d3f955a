"""llama.cpp's quantizer and logits; run by its own Python.

`quantize FROM TO TYPE THREADS` quantizes a GGUF file anew, from what its tensors say in float32.
`logits FILE IDS OUT THREADS` runs sequences of token ids, a list of lists in JSON, each from its
start, and writes all logits (S, L, V) float32 as `.npy`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import llama_cpp as llama
import numpy as np

_TYPES = {
    "Q4_0": llama.LLAMA_FTYPE_MOSTLY_Q4_0,
    "Q4_K_S": llama.LLAMA_FTYPE_MOSTLY_Q4_K_S,
    "Q4_K_M": llama.LLAMA_FTYPE_MOSTLY_Q4_K_M,
}


def quantize(source: str, target: str, kind: str, threads: int) -> None:
    """Quantizes as `llama-quantize --allow-requantize` does."""
    asked = llama.llama_model_quantize_default_params()
    asked.ftype, asked.allow_requantize, asked.nthread = _TYPES[kind], True, threads
    if llama.llama_model_quantize(source.encode(), target.encode(), asked):
        raise RuntimeError(f"llama.cpp cannot quantize {source}")


def logits(file: str, sequences: list[list[int]], threads: int) -> np.ndarray:
    """Returns the logits (S, L, V) of sequences of the same length L."""
    model = llama.llama_model_load_from_file(file.encode(), llama.llama_model_default_params())
    if not model:
        raise RuntimeError(f"llama.cpp cannot load {file}")
    length = len(sequences[0])
    asked = llama.llama_context_default_params()
    asked.n_ctx = asked.n_batch = asked.n_ubatch = length
    asked.n_threads = asked.n_threads_batch = threads
    context = llama.llama_init_from_model(model, asked)
    words = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    batch = llama.llama_batch_init(length, 0, 1)
    out = np.empty((len(sequences), length, words), np.float32)
    for index, ids in enumerate(sequences):
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        batch.n_tokens = length
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i] = token, i
            batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, 0, 1
        if llama.llama_decode(context, batch):
            raise RuntimeError(f"llama_decode refused {length} tokens")
        pointer = llama.llama_get_logits(context)
        out[index] = np.ctypeslib.as_array(pointer, shape=(length, words))
    return out


def main() -> None:
    llama.llama_backend_init()
    if sys.argv[1] == "quantize":
        quantize(*sys.argv[2:5], threads=int(sys.argv[5]))
        return
    sequences = json.loads(Path(sys.argv[3]).read_text("utf-8"))
    np.save(sys.argv[4], logits(sys.argv[2], sequences, int(sys.argv[5])))


if __name__ == "__main__":
    main()
