"""A checkpoint of any size with random weights, to measure and test at full scale.

A value is drawn by its rank: 16 random bits choose one of 65,536 quantiles of the normal
distribution, from a table that is already in the stored dtype. Every tensor has a stream of its
own, made from the seed and its name, so the bytes depend on nothing else.

A few channels of the residual stream are much larger than the rest, as in real models: the
embeddings' columns and the rows of the linears that write to the stream. The final norm takes
that back, so that they do not decide the answer alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from statistics import NormalDist
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from convert.checkpoint.config import CONFIGS, TEXT_ONLY, ModelConfig
from convert.checkpoint.reader import DEMOS
from convert.checkpoint.shards import FLOATS
from convert.checkpoint.tensor_tables import ANY_GRID, EMBEDDING, HEAD, sources
from convert.checkpoint.writer import SHARD_BYTES, TensorEntry, write_weights
from convert.support.json_text import json_text
from convert.support.progress import Progress
from quantize.errors import ConfigError

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
OUTLIERS, OUTLIER_FACTOR = 4, 8.0  # channels of one part's residual stream; times the others

_RANKS = 1 << 16
_PIECE = 1 << 16  # values at once: they stay in the cache; a multiple of what 64 bits give, 4
_NUMPY_DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class _Kind:
    """How the values of tensors whose name matches `pattern` are distributed."""

    pattern: str
    std: float | None = None  # None: such that a linear keeps the size of its input
    mean: float = 0.0
    outliers: str | None = None  # "rows" or "columns": which of them are the outlier channels
    factor: float = OUTLIER_FACTOR  # of outlier channels


# The first that matches counts. Embeddings times scale_emb have about the size of image tokens.
_KINDS = (
    _Kind("llm.model.embed_tokens.weight", 0.1, outliers="columns"),
    _Kind("llm.model.norm.weight", 0.1, 1.0, "columns", 1 / OUTLIER_FACTOR),
    _Kind("vpm.norm.weight", 0.1, 1.0, "columns", 1 / OUTLIER_FACTOR),
    _Kind("*norm*.weight", 0.1, 1.0),
    _Kind("*.ln_*.weight", 0.1, 1.0),
    _Kind("*bias", 0.1),
    _Kind("vpm.pos_embed", 0.5, outliers="columns"),
    _Kind("resampler.query", 1.0),
    _Kind("resampler.pos_embed", 0.7),
    _Kind("llm.*.o_proj.weight", outliers="rows"),
    _Kind("llm.*.down_proj.weight", outliers="rows"),
    _Kind("vpm.blocks.*.attn.proj.weight", outliers="rows"),
    _Kind("vpm.blocks.*.mlp.fc2.weight", outliers="rows"),
    _Kind("*"),
)


def load_config(name: str) -> ModelConfig:
    """Reads a configuration.

    Args:
        name: of a file in configs/model, of a demo, or a path to a `config.json`.

    Raises:
        ConfigError: no such configuration, or one that does not make sense.
    """
    known = {path.stem: path for path in sorted((CONFIGS / "model").glob("*.json"))}
    known |= {demo: folder / "config.json" for demo, folder in DEMOS.items()}
    path = known.get(name, Path(name))
    if not path.is_file():
        raise ConfigError(
            f"configuration {name!r} is unknown: neither {', '.join(known)} nor a file; "
            "expected one of these names or the path of a config.json"
        )
    return ModelConfig.load(path)


def stored_tensors(config: ModelConfig, dtype: str) -> list[TensorEntry]:
    """Returns what a checkpoint of `config` holds, a copy of the tied LM head included.

    Args:
        config: of the model.
        dtype: a key of `convert.checkpoint.shards.FLOATS`.
    """
    shapes = sources(config)
    named: list[tuple[str, tuple[int, ...]]] = []
    for name, shape in shapes.items():
        grid = 0 if config.vision is None else config.vision.trained_grid
        named.append((name, tuple(grid**2 if n == ANY_GRID else n for n in shape)))
        if name == "llm.model.norm.weight":  # the decoder's last; where the original has its head
            named.append((HEAD, shapes[EMBEDDING]))
    prefix = "llm." if config.architecture == TEXT_ONLY else ""
    return [TensorEntry(name.removeprefix(prefix), shape, dtype) for name, shape in named]


def write_synthetic(
    folder: Path,
    config: ModelConfig,
    *,
    dtype: str,
    seed: int,
    format: str,
    progress: Progress,
    shard_bytes: int = SHARD_BYTES,
) -> list[TensorEntry]:
    """Writes config.json and random weights into an empty folder; returns the tensors.

    Args:
        folder: where to write.
        config: of the model.
        dtype: a key of `convert.checkpoint.shards.FLOATS`.
        seed: the same gives the same bytes.
        format: a key of `convert.checkpoint.writer.FORMATS`.
        progress: receives the bytes written.
        shard_bytes: see `write_weights`.
    """
    described = {**config.source, "torch_dtype": dtype}
    text = json_text(described, indent=2) + "\n"
    (folder / "config.json").write_text(text, "utf-8")
    tensors = stored_tensors(config, dtype)
    total = sum(tensor.nbytes for tensor in tensors)
    prefix = "llm." if config.architecture == TEXT_ONLY else ""
    done = 0

    def values(tensor: TensorEntry) -> Iterator[Array]:
        nonlocal done
        for piece in _values(prefix + tensor.name, tensor.shape, dtype, seed):
            yield piece
            done += piece.nbytes
            progress("write weights", done, total)

    write_weights(folder, tensors, values, format=format, shard_bytes=shard_bytes)
    return tensors


def _values(name: str, shape: tuple[int, ...], dtype: str, seed: int) -> Iterator[Array]:
    """Yields a tensor's values, flat, piece by piece."""
    source = EMBEDDING if name == HEAD else name  # tied: the same stream
    kind = next(kind for kind in _KINDS if fnmatchcase(source, kind.pattern))
    count = int(np.prod(shape))
    width = count // shape[0] if len(shape) > 1 else count  # of a row
    std = width**-0.5 if kind.std is None else kind.std
    table = _table(kind.mean, std, dtype)
    channels: list[int] = []
    if kind.outliers:
        size = shape[0] if kind.outliers == "rows" else shape[-1]
        channels = _outlier_channels(name.partition(".")[0], size, seed)
    larger = _table(kind.mean * kind.factor, std * kind.factor, dtype)
    bits = np.random.SFC64(_seed(seed, source))
    for start in range(0, count, _PIECE):
        length = min(_PIECE, count - start)
        raw = bits.random_raw(-(-length // 4)).astype("<u8", copy=False)
        ranks = raw.view("<u2")[:length]
        piece = np.take(table, ranks, mode="wrap")  # "raise", the default, is slower
        for channel in channels:
            if kind.outliers == "rows":
                first = min(max(channel * width - start, 0), length)
                mine = slice(first, min(max((channel + 1) * width - start, first), length))
            else:
                mine = slice((channel - start) % shape[-1], None, shape[-1])
            piece[mine] = larger[ranks[mine]]
        yield piece


def _outlier_channels(part: str, size: int, seed: int) -> list[int]:
    """Chooses the outlier channels of a part of the model: the same in all its layers."""
    order = np.argsort(np.random.SFC64(_seed(seed, f"{part} outliers")).random_raw(size))
    return [int(channel) for channel in order[:OUTLIERS]]


def _seed(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest(), "little")


@cache
def _table(mean: float, std: float, dtype: str) -> Array:
    """Returns quantiles of a normal distribution (65536,), as the bits of `dtype`."""
    values = (mean + std * _quantiles()).astype(_NUMPY_DTYPES[dtype])
    return values.view(np.dtype(f"<u{FLOATS[dtype]}"))


@cache
def _quantiles() -> npt.NDArray[np.float64]:
    """Returns the middles of 65,536 equally likely ranges of the standard normal distribution."""
    inverse = NormalDist().inv_cdf
    upper = np.array([inverse((i + 0.5) / _RANKS) for i in range(_RANKS // 2, _RANKS)])
    return np.concatenate((-upper[::-1], upper))
