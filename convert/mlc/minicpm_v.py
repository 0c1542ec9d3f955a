"""MiniCPM-V as a model of MLC-LLM: its MiniCPM decoder, with our vision encoder and resampler.

It is plugged in from outside, in the process of `convert.mlc.launch`: `mlc_llm` is the user's
checkout. MLC-LLM's C++ engine calls `image_embed` for a picture and puts the image tokens where it
stands in the prompt. Parameters are named, shaped and prepared as a bundle's tensors are
(`convert.checkpoint.tensor_tables`): the query is finished, the keys' positions are projected.

Matrices take half-precision inputs; the residual stream, norms, scores and GELU are float32:
SigLIP's largest activations leave float16 few bits. Attention is written out here, since
MLC-LLM's own falls back to CUDA kernels.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from mlc_llm.loader import QuantizeMapping
from mlc_llm.model import MODELS
from mlc_llm.model.minicpm.minicpm_model import MiniCPMConfig, MiniCPMForCausalLM
from mlc_llm.model.model import Model
from mlc_llm.quantization.group_quantization import GroupQuantize
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor, op

from convert.mlc.names import PICTURE_MODEL
from convert.mlc.vision_config import MlcVisionConfig

_WIDE = "float32"


@dataclasses.dataclass
class MiniCPMVConfig(MiniCPMConfig):  # type: ignore[misc]
    """The decoder's configuration, and the vision encoder's with the resampler's."""

    vision_config: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def vision(self) -> MlcVisionConfig:
        """The vision part, with names of ours."""
        return MlcVisionConfig.from_json(self.vision_config)


class MlcNorm(nn.Module):  # type: ignore[misc]
    """Layer norm over the last axis, in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter((width,)), nn.Parameter((width,))
        self._width, self._eps = width, eps

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, D) float32 to (N, D) float32."""
        weight, bias = self.weight.astype(_WIDE), self.bias.astype(_WIDE)
        return op.layer_norm(x, self._width, weight, bias, self._eps)


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Attends to all keys: (Q, D) from query (Q, D), key and value (P, D), float32 inside."""
    width = query.shape[-1] // heads
    q, k, v = (
        op.permute_dims(op.reshape(x, (x.shape[0], heads, width)), (1, 0, 2))
        for x in (query * width**-0.5, key, value)
    )
    scores = op.matmul(q, op.permute_dims(k, (0, 2, 1)), out_dtype=_WIDE)
    shares = op.softmax(scores, axis=-1).astype(value.dtype)
    # As many terms as an image has patches: sums in float16 would lose 8 dB of 1,024.
    mixed = op.matmul(shares, v, out_dtype=_WIDE).astype(value.dtype)
    return op.reshape(op.permute_dims(mixed, (1, 0, 2)), query.shape)


class MlcVisionBlock(nn.Module):  # type: ignore[misc]
    """A pre-norm transformer block."""

    def __init__(self, c: MlcVisionConfig) -> None:
        super().__init__()
        width, hidden = c.embed_dim, c.mlp_hidden_dim
        self.norm1, self.norm2 = MlcNorm(width, c.norm_eps), MlcNorm(width, c.norm_eps)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self._heads = c.num_heads

    def forward(self, x: Tensor, dtype: str) -> Tensor:
        """Maps (P, D) float32 to (P, D) float32; matrices take inputs of `dtype`."""
        q, k, v = op.split(self.qkv(self.norm1(x).astype(dtype)), 3, axis=-1)
        x = x + self.proj(attend(q, k, v, self._heads)).astype(_WIDE)
        wide = op.gelu(self.fc1(self.norm2(x).astype(dtype)).astype(_WIDE))
        return x + self.fc2(wide.astype(dtype)).astype(_WIDE)


class MlcVision(nn.Module):  # type: ignore[misc]
    """SigLIP's encoder."""

    def __init__(self, c: MlcVisionConfig) -> None:
        super().__init__()
        self.patch_embed = nn.Linear(3 * c.encoder_patch_size**2, c.embed_dim)
        self.pos_embed = nn.Parameter((c.num_patches, c.embed_dim))
        self.blocks = nn.ModuleList([MlcVisionBlock(c) for _ in range(c.depth)])
        self.norm = MlcNorm(c.embed_dim, c.norm_eps)
        self._config = c

    def forward(self, pixels: Tensor, dtype: str) -> Tensor:
        """Maps pixels (1, S, S, 3), 0 to 255, to features (P, D) float32."""
        grid, patch = self._config.grid, self._config.encoder_patch_size
        x = op.reshape(pixels.astype(_WIDE), (grid, patch, grid, patch, 3))
        x = op.permute_dims(x, (0, 2, 4, 1, 3))  # (row, column, channel, y, x)
        x = op.reshape(x, (grid * grid, 3 * patch * patch)) * (2 / 255) - 1.0
        x = self.patch_embed(x.astype(dtype)).astype(_WIDE) + self.pos_embed.astype(_WIDE)
        for block in self.blocks:
            x = block(x, dtype)
        return self.norm(x)


class MlcResampler(nn.Module):  # type: ignore[misc]
    """The perceiver resampler behind the encoder."""

    def __init__(self, c: MlcVisionConfig, width: int) -> None:
        super().__init__()
        self.query = nn.Parameter((c.num_queries, width))
        self.key_positions = nn.Parameter((c.num_patches, width))
        self.kv_proj = nn.Linear(c.embed_dim, width, bias=False)
        self.k_proj, self.v_proj = nn.Linear(width, width, bias=False), nn.Linear(width, width)
        self.out_proj, self.proj = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.ln_kv, self.ln_post = (MlcNorm(width, c.resampler_norm_eps) for _ in range(2))
        self._heads = c.resampler_heads

    def forward(self, features: Tensor, dtype: str) -> Tensor:
        """Maps features (P, Dv) float32 to image tokens (Q, D) of `dtype`."""
        kv = self.ln_kv(self.kv_proj(features.astype(dtype)).astype(_WIDE)).astype(dtype)
        key, value = self.k_proj(kv) + self.key_positions, self.v_proj(kv)
        x = self.out_proj(attend(self.query, key, value, self._heads)).astype(_WIDE)
        return self.proj(self.ln_post(x).astype(dtype))


class MiniCPMVForCausalLM(MiniCPMForCausalLM):  # type: ignore[misc]
    """MLC-LLM's MiniCPM with `image_embed`; without `batch_verify`.

    Only speculative decoding calls `batch_verify`; it plans logits for each token of a chunk,
    half a gigabyte at full size.
    """

    def __init__(self, config: MiniCPMVConfig) -> None:
        super().__init__(config)
        self.vision = MlcVision(config.vision)
        self.resampler = MlcResampler(config.vision, config.hidden_size)
        self._side = config.vision.image_size

    def image_embed(
        self,
        pixel_values: Tensor,
        resized_height: Any,
        resized_width: Any,
        crop_height: Any,
        crop_width: Any,
    ) -> Tensor:
        """Maps pixels (1, S, S, 3) uint8 to image tokens (Q, D).

        The engine passes four sizes to every model; pictures come in the model's own size here.
        """
        return self.resampler(self.vision(pixel_values, self.dtype), self.dtype)

    def get_default_spec(self) -> Any:
        """Describes the functions that are compiled."""
        spec = _spec_of(super().get_default_spec)
        del spec["batch_verify"]
        sizes = ("resized_height", "resized_width", "crop_height", "crop_width")
        spec["image_embed"] = {
            "pixel_values": nn.spec.Tensor([1, self._side, self._side, 3], "uint8"),
            **{name: nn.spec.Int() for name in sizes},
            "$": {"param_mode": "packed", "effect_mode": "none"},
        }
        return nn.spec.ModuleSpec.from_raw(spec, self)


def _spec_of(describe: Any) -> dict[str, Any]:
    """Returns the raw description that a model's `get_default_spec` hands over."""
    seen: list[dict[str, Any]] = []
    build = nn.spec.ModuleSpec.from_raw
    nn.spec.ModuleSpec.from_raw = lambda spec, module: seen.append(spec)
    try:
        describe()
    finally:
        nn.spec.ModuleSpec.from_raw = build
    return seen[0]


def _quantize(config: MiniCPMVConfig, scheme: GroupQuantize) -> tuple[Any, QuantizeMapping]:
    """Builds the model: the decoder in the package's scheme, the vision part in int8."""
    model, mapping = MiniCPMVForCausalLM(config), QuantizeMapping({}, {})
    model.to(scheme.model_dtype)
    scheme.tensor_parallel_shards = config.tensor_parallel_shards
    parts: dict[str, Any] = {name: getattr(model, name) for name in ("vision", "resampler")}
    for name in parts:
        setattr(model, name, None)
    model = scheme.quantize_model(model, mapping, "")
    own = dataclasses.replace(
        scheme, name="int8", quantize_dtype="int8", group_size=config.vision.int8_group
    )
    for name, part in parts.items():
        setattr(model, name, own.quantize_model(part, mapping, name))
    return model, mapping


def register() -> None:
    """Makes MLC-LLM know the model type `minicpm_v`."""
    MODELS[PICTURE_MODEL] = Model(
        name=PICTURE_MODEL,
        config=MiniCPMVConfig,
        model=MiniCPMVForCausalLM,
        source={},
        quantize={"group-quant": _quantize},
    )
