"""Runs compiled blocks through TVM's Python runtime: numpy in, numpy out, one call per block."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import tvm
from numpy.typing import NDArray
from torch import Tensor
from tvm import relax

from convert.blocks.lowering import build
from convert.blocks.matrix_formats import variant
from convert.bundle.kv_cache import FP16, INT8
from convert.bundle.plan import Plan
from convert.checkpoint.config import DecoderConfig, ModelConfig
from convert.checkpoint.positions import resample_grid, sincos_grid
from convert.engine.compile import Target, build_blocks
from quantize.layout import TILE_ROWS, tiles

Array = NDArray[Any]
Float32 = NDArray[np.float32]

PREFILL_CHUNK = 128  # tokens that go through a layer at once; a cache has room for the newest
_ALIGNMENT = 64  # bytes; what TVM asks of tensors that it does not own
Shape = tuple[int, int]  # rows and columns of patches
# The weights of each function, by the names of the bundle's tensors.
_VISION_BLOCK = ("norm1", "qkv", "proj", "norm2", "fc1", "fc2")
_RESAMPLER = (
    "kv_proj.weight", "ln_kv.weight", "ln_kv.bias", "query", "k_proj.weight",
    "v_proj.weight", "v_proj.bias", "out_proj.weight", "out_proj.bias", "ln_post.weight",
    "ln_post.bias", "proj.weight",
)  # fmt: skip
_KEY_POSITIONS = ("key_column_proj.weight", "key_row_proj.weight", "k_proj.bias")
_DECODER_LAYER = ("input_norm.weight", "qkv", "o", "post_norm.weight", "gate_up", "down")


class CompiledCache:
    """The KV cache of all layers for one conversation; window as in the reference's `KVCache`.

    Slots are as `convert.blocks.cached_attention` describes them. Memory is taken when it is
    written.
    """

    def __init__(self, c: DecoderConfig, kv: str, *, window: int, pinned: int, chunk: int) -> None:
        """Makes an empty cache.

        Args:
            c: the decoder.
            kv: the kind of cache, as a plan has it.
            window, pinned: see `KVCache`.
            chunk: most tokens that a layer gets at once.
        """
        assert 0 < pinned < window
        self.window, self.pinned, self.chunk = window, pinned, chunk
        self._ring = tiles(window - pinned + chunk) * TILE_ROWS  # slots for all but the pinned
        count = tiles(pinned) + self._ring // TILE_ROWS
        heads, dim = c.num_key_value_heads, c.head_dim
        dtype = np.dtype(np.int8 if kv == INT8 else np.float16)
        shapes = [((heads, count, dim, TILE_ROWS), dtype), ((heads, count, TILE_ROWS, dim), dtype)]
        if kv == INT8:
            shapes += [((heads, count, TILE_ROWS), np.dtype(np.float32))] * 2  # scales
        self._tensors = [
            [_zeros(shape, dtype) for shape, dtype in shapes] for _ in range(c.num_hidden_layers)
        ]
        self._seen = [0] * c.num_hidden_layers  # tokens, per layer
        self._oldest = pinned  # the first token behind the pinned that was never overwritten
        self._frequencies = c.rope_theta ** -(np.arange(0, dim, 2, dtype=np.float64) / dim)
        self._angles: tuple[tuple[int, int], Any] = ((0, 0), None)

    @property
    def length(self) -> int:
        """Tokens that all layers have seen, evicted ones included."""
        return self._seen[-1]

    def truncate(self, length: int) -> bool:
        """Goes back to the first `length` tokens.

        Returns:
            False if tokens that would be visible again are gone; the cache is then unchanged.
        """
        assert 0 <= length <= self.length, f"{length} is not within 0..{self.length}"
        needed = max(self.pinned, length - (self.window - self.pinned) + 1)
        if length > self.pinned and needed < self._oldest:
            return False
        self._seen = [length] * len(self._seen)
        return True

    def place(self, layer: int, rows: int) -> tuple[Any, ...]:
        """Returns a decoder layer's arguments for its next `rows` tokens, and counts them.

        Returns:
            angles, the layer's cache, and the shape (start, window, pinned).
        """
        assert rows <= self.chunk
        start = self._seen[layer]
        arguments = (self._rotation(start, rows), *self._tensors[layer], self._integers(start))
        self._seen[layer] += rows
        self._oldest = max(self._oldest, self._seen[layer] - self._ring)
        return arguments

    def _integers(self, start: int) -> Any:
        return tvm.runtime.ShapeTuple([start, self.window, self.pinned])

    def _rotation(self, start: int, rows: int) -> Any:
        """Returns cos, sin for recent and cos, sin for pinned keys: (L, 4, head_dim/2)."""
        if self._angles[0] != (start, rows):  # every layer asks for the same
            # In float64: a long conversation's positions are large, and sin amplifies that.
            near = np.arange(start, start + rows)
            far = np.minimum(near, self.window - 1)
            angles = [positions[:, None] * self._frequencies for positions in (near, far)]
            table = np.stack([f(a) for a in angles for f in (np.cos, np.sin)], axis=1)
            self._angles = ((start, rows), _copy(table.astype(np.float32)))
        return self._angles[1]


class CompiledBackend:
    """Generation over compiled blocks, as `runtime.sessions.backend.Backend` has it."""

    def __init__(self, model: CompiledModel) -> None:
        self._model = model
        self.config = model.config

    def encode_image(self, pixels: Tensor) -> Tensor:
        assert self.config.vision is not None, "a decoder-only model"
        x = self._model.vision_embed(_numpy(pixels[0]))
        for i in range(self.config.vision.depth):
            x = self._model.vision_block(i, x)
        patch = self.config.vision.patch_size
        rows, columns = (side // patch for side in pixels.shape[-2:])
        return torch.from_numpy(self._model.resample(self._model.vision_norm(x), (rows, columns)))

    def embed(self, ids: Sequence[int]) -> Tensor:
        return torch.from_numpy(self._model.embed(list(ids)))

    def new_cache(self, window: int, pinned: int) -> CompiledCache:
        return self._model.new_cache(window, pinned)

    def forward(self, embeds: Tensor, cache: CompiledCache) -> Tensor:
        x = _numpy(embeds)
        for i in range(self.config.decoder.num_hidden_layers):
            x = self._model.layer(i, x, cache)
        return torch.from_numpy(x)

    def logits(self, hidden: Tensor) -> Tensor:
        return torch.from_numpy(self._model.logits(_numpy(hidden)))


def compile_here(config: ModelConfig, plan: Plan) -> Any:
    """Compiles a model's blocks for this PC, in memory; returns the machine that runs them."""
    host = Target.load("host").variants[-1]  # what every host can run
    module, _ = build_blocks(config, plan, host)
    return relax.VirtualMachine(build(module, host.tvm), tvm.cpu())


class CompiledModel:
    """A bundle's blocks and weights."""

    def __init__(
        self, config: ModelConfig, machine: Any, weights: Mapping[str, Array], kv: str = FP16
    ) -> None:
        """Wraps the weights; they are neither copied nor read.

        Args:
            config: the geometry for which the blocks were compiled.
            machine: what `compile_here` made for it.
            weights: by the bundle's names; must not be unmapped while the model lives.
            kv: the kind of cache for which they were compiled.
        """
        self.config, self._kv = config, kv
        self._functions = machine
        self._weights = weights
        self._wrapped: dict[str, Any] = {}
        self._vision_blocks: list[list[Any]] = []
        self._key_positions: list[Any] = []
        if config.vision is not None:
            self._wrap_vision(config.vision.depth)
        layers = range(config.decoder.num_hidden_layers)
        self._layers = [self._quantized_layer(f"llm.layers.{i}") for i in layers]
        self._embedding = self._take("llm.embed")
        untied = {"llm.head", "llm.head.q_weight"} & set(weights)
        self._head = self._take("llm.norm.weight", "llm.head" if untied else "llm.embed")

    def vision_embed(self, pixels: Array) -> Float32:
        """Maps normalised pixels (3, H, W) to patches with positions (P, Dv)."""
        vision, positions = self.config.vision, self._weights["vision.pos_embed"]
        assert vision is not None
        if vision.slices is not None:
            rows, columns = (side // vision.patch_size for side in pixels.shape[1:])
            trained = torch.from_numpy(np.array(positions)).unsqueeze(0)
            positions = resample_grid(trained, rows, columns)[0].numpy()
        return self._call("vision_embed", _copy(pixels), _copy(positions), *self._patch_embed)

    def vision_block(self, i: int, x: Array) -> Float32:
        """Runs the vision encoder's block i on (P, Dv)."""
        names = [f"vision.blocks.{i}.{part}.weight" for part in ("qkv", "proj", "fc1", "fc2")]
        function = variant("vision_block", [self._format(name) for name in names])
        return self._call(function, _copy(x), *self._vision_blocks[i])

    def vision_norm(self, x: Array) -> Float32:
        """Applies the vision encoder's last norm to (P, Dv)."""
        return self._call("vision_norm", _copy(x), *self._vision_norm)

    def resample(self, features: Array, shape: Shape) -> Float32:
        """Maps vision features (P, Dv) of an image to image tokens (Q, D)."""
        positions = _copy(self.key_positions(shape))
        return self._call("resampler", _copy(features), positions, *self._resampler)

    def key_positions(self, shape: Shape) -> Array:
        """Returns what an image's positions add to the resampler's keys: (P, D)."""
        if not self._key_positions:
            return self._weights["resampler.key_positions"]
        (_, columns), width = shape, self.config.decoder.hidden_size
        table = sincos_grid(width, *shape).numpy()
        halves = table[:columns, : width // 2], table[::columns, width // 2 :]
        return self._call("key_positions", *map(_copy, halves), *self._key_positions)

    def embed(self, ids: Sequence[int]) -> Float32:
        """Maps token ids to scaled embeddings (L, D)."""
        return self._call("embed", tvm.runtime.tensor(np.asarray(ids, np.int32)), *self._embedding)

    def new_cache(self, window: int, pinned: int, *, chunk: int = PREFILL_CHUNK) -> CompiledCache:
        """Makes an empty cache."""
        c = self.config.decoder
        return CompiledCache(c, self._kv, window=window, pinned=pinned, chunk=chunk)

    def layer(self, i: int, x: Array, cache: CompiledCache) -> Float32:
        """Runs decoder layer i on the next tokens (L, D) and adds them to its cache."""
        names = [f"llm.layers.{i}.{part}" for part in ("qkv", "o", "gate_up", "down")]
        formats = [self._format(name) for name in names]
        parts = [
            self._call(
                variant("decoder_step" if len(part) == 1 else "decoder_layer", formats),
                _copy(part),
                *cache.place(i, len(part)),
                *self._layers[i],
            )
            for part in _chunks(x, cache.chunk)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _format(self, name: str) -> str:
        codes = self._weights.get(f"{name}.q_weight")
        if codes is None:
            return "f16_tiled"
        return "q8" if codes.dtype == np.int8 else "q4"

    def logits(self, hidden: Array) -> Float32:
        """Maps hidden states (L, D) to logits (L, V): final norm and LM head."""
        return self._call("lm_head", _copy(hidden), *self._head)

    def _call(self, name: str, *arguments: Any) -> Float32:
        result: Float32 = self._functions[name](*arguments).numpy()
        return result

    def _wrap_vision(self, depth: int) -> None:
        self._patch_embed = self._take(*_pair("vision.patch_embed"))
        for i in range(depth):
            names = [n for part in _VISION_BLOCK for n in _pair(f"vision.blocks.{i}.{part}")]
            self._vision_blocks.append(self._take(*names))
        self._vision_norm = self._take(*_pair("vision.norm"))
        self._resampler = self._take(*(f"resampler.{name}" for name in _RESAMPLER))
        if "resampler.key_positions" not in self._weights:  # images have several shapes
            self._key_positions = self._take(*(f"resampler.{name}" for name in _KEY_POSITIONS))

    def _quantized_layer(self, prefix: str) -> list[Any]:
        return self._take(*(f"{prefix}.{part}" for part in _DECODER_LAYER))

    def _take(self, *names: str) -> list[Any]:
        """Wraps weights as TVM tensors, two for a quantized one."""
        stored: list[str] = []
        for name in names:
            parts = [f"{name}.q_weight", f"{name}.q_scale"]
            stored += parts if parts[0] in self._weights else [name]
        for name in stored:
            if name not in self._wrapped:
                self._wrapped[name] = _wrap(self._weights[name])
        return [self._wrapped[name] for name in stored]


def _numpy(tensor: Tensor) -> Array:
    return np.ascontiguousarray(tensor.numpy(), dtype=np.float32)


def _pair(name: str) -> list[str]:
    return [f"{name}.weight", f"{name}.bias"]


def _chunks(x: Array, size: int) -> Iterator[Array]:
    for start in range(0, len(x), size):
        yield x[start : start + size]


def _copy(x: Array) -> Any:
    return tvm.runtime.tensor(np.ascontiguousarray(x, np.float32))


def _wrap(array: Array) -> Any:
    """Makes a TVM tensor of the same memory; a copy only where it is not aligned."""
    address = array.ctypes.data
    if address % _ALIGNMENT or not array.flags.c_contiguous:
        return tvm.runtime.tensor(np.ascontiguousarray(array))
    # DLPack refuses read-only memory, as a mapped file is; nothing writes to a weight.
    memory = (ctypes.c_byte * array.nbytes).from_address(address)
    return tvm.runtime.from_dlpack(np.ndarray(array.shape, array.dtype, buffer=memoryview(memory)))


def _zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    """Makes a tensor of zeros whose pages are taken when they are written."""
    size = int(np.prod(shape)) * dtype.itemsize
    memory = np.zeros(size + _ALIGNMENT, np.uint8)
    first = -memory.ctypes.data % _ALIGNMENT
    aligned = memory[first : first + size].view(dtype).reshape(shape)
    return tvm.runtime.from_dlpack(aligned)
