"""Unpacks a GGUF file for `tests.bench.smollm2`; run by llama.cpp's own Python: `FILE FOLDER`.

Writes each tensor as `NAME.npy`, float32 as its codes and scales give it, and the vocabulary as
`vocabulary.json`: tokens and merges.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gguf
import numpy as np


def main() -> None:
    reader, folder = gguf.GGUFReader(sys.argv[1]), Path(sys.argv[2])
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        np.save(folder / f"{tensor.name}.npy", values.astype(np.float32))
    names = ("tokens", "merges")
    words = {name: reader.fields[f"tokenizer.ggml.{name}"].contents() for name in names}
    (folder / "vocabulary.json").write_text(json.dumps(words), "utf-8")


if __name__ == "__main__":
    main()
