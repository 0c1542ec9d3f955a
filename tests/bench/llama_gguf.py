"""Writes a GGUF file of random Q4_0 weights; run by llama.cpp's own Python: `FILE GEOMETRY`.

GEOMETRY is JSON, see `geometry` in `tests.bench.against_llama`. All matrices are Q4_0, the tied
embedding included, as `llama-quantize --pure` makes them: 4.5 bits per weight, as ours. Tensors
are made and written one after the other.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

CONTEXT = 4096  # tokens; what the file says, not what is used
GROUP, BLOCK_BYTES = 32, 18  # a Q4_0 block: a float16 step, then 32 codes of 4 bits
_CODES_STD = 4.61  # of codes 0 .. 15 that are equally likely


def tensors(g: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields names and shapes (N, K) of matrices, (K,) of norms, as llama.cpp calls them."""
    d, hidden = g["hidden_size"], g["intermediate_size"]
    kv = g["head_dim"] * g["num_key_value_heads"]
    yield "token_embd.weight", (g["vocab_size"], d)
    yield "output_norm.weight", (d,)
    shapes = {
        "attn_norm": (d,), "attn_q": (d, d), "attn_k": (kv, d), "attn_v": (kv, d),
        "attn_output": (d, d), "ffn_norm": (d,), "ffn_gate": (hidden, d), "ffn_up": (hidden, d),
        "ffn_down": (d, hidden),
    }  # fmt: skip
    for i in range(g["num_hidden_layers"]):
        for name, shape in shapes.items():
            yield f"blk.{i}.{name}.weight", shape


def decode_bytes(g: dict[str, Any]) -> int:
    """Returns the bytes of weights that a decoded token reads; the embedding is the head."""
    sizes = (n[0] * 4 if len(n) == 1 else n[0] * n[1] // GROUP * BLOCK_BYTES for _, n in tensors(g))
    return sum(sizes)


def random_q4_0(rows: int, columns: int, rng: np.random.Generator) -> Any:
    """Returns a matrix (rows, columns / 32 * 18) uint8 whose products keep their input's size."""
    blocks = rows * columns // GROUP
    raw = np.frombuffer(rng.bytes(blocks * BLOCK_BYTES), np.uint8).reshape(blocks, BLOCK_BYTES)
    raw = raw.copy()
    steps = rng.uniform(0.5, 1.5, blocks) * columns**-0.5 / _CODES_STD
    raw[:, :2] = steps.astype("<f2").view(np.uint8).reshape(blocks, 2)
    return raw.reshape(rows, columns // GROUP * BLOCK_BYTES)


def write(path: Path, g: dict[str, Any]) -> None:
    """Writes the file under a temporary name, then renames it."""
    import gguf

    partial = path.with_suffix(".partial")
    w = gguf.GGUFWriter(partial, "minicpm")
    w.add_context_length(CONTEXT)
    w.add_embedding_length(g["hidden_size"])
    w.add_block_count(g["num_hidden_layers"])
    w.add_feed_forward_length(g["intermediate_size"])
    w.add_head_count(g["num_attention_heads"])
    w.add_head_count_kv(g["num_key_value_heads"])
    w.add_rope_dimension_count(g["head_dim"])
    w.add_rope_freq_base(g["rope_theta"])
    w.add_layer_norm_rms_eps(g["rms_norm_eps"])
    w.add_embedding_scale(g["scale_emb"])
    w.add_residual_scale(g["residual_scale"])
    w.add_logit_scale(g["logit_scale"])
    w.add_vocab_size(g["vocab_size"])
    w.add_tokenizer_model("none")
    w.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    q4 = gguf.GGMLQuantizationType.Q4_0
    for name, shape in tensors(g):
        if len(shape) == 1:
            w.add_tensor_info(name, shape, np.dtype(np.float32), 4 * shape[0])
        else:
            stored = (shape[0], shape[1] // GROUP * BLOCK_BYTES)
            nbytes = stored[0] * stored[1]
            w.add_tensor_info(name, stored, np.dtype(np.uint8), nbytes, raw_dtype=q4)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_ti_data_to_file()
    rng = np.random.default_rng(0)
    for _, shape in tensors(g):
        ones = len(shape) == 1
        w.write_tensor_data(np.ones(shape, np.float32) if ones else random_q4_0(*shape, rng))
    w.close()
    os.replace(partial, path)


if __name__ == "__main__":
    write(Path(sys.argv[1]), json.loads(sys.argv[2]))
