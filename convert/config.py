"""The model's geometry, read from a Hugging Face `config.json`.

Field names are upstream's, so that a search in upstream code finds them. Nothing else in the
toolkit states a width, a depth or a picture size.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantize.errors import ConfigError

CONFIGS = Path(__file__).resolve().parent.parent / "configs"

# Keys of `config.json` that do not change what the model computes.
IGNORED = frozenset(
    {
        "_attn_implementation", "_name_or_path", "attention_dropout", "auto_map", "cache_dir",
        "dtype", "image_processor_type", "initializer_range", "max_position_embeddings",
        "model_type", "pad_token_id", "pretraining_tp", "processor_class", "torch_dtype",
        "tokenizer_class", "transformers_version", "use_cache",
    }
)  # fmt: skip
MULTIMODAL, TEXT_ONLY = "MiniCPMV", "MiniCPMForCausalLM"


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """Geometry of the vision encoder (`vpm.`)."""

    name: str  # of the vision transformer, without timm's suffix
    image_size: int  # pixels, square
    patch_size: int  # pixels
    embed_dim: int
    depth: int  # blocks that run: one fewer than the named model where the last is dropped
    num_heads: int
    mlp_hidden_dim: int
    norm_eps: float

    def __post_init__(self) -> None:
        """Checks the rules between fields."""
        _positive(self, "image_size", "patch_size", "embed_dim", "depth", "num_heads")
        if self.image_size % self.patch_size:
            raise ConfigError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}"
            )
        if self.embed_dim % self.num_heads:
            raise ConfigError(
                f"vision embed_dim {self.embed_dim} is not a multiple of {self.num_heads} heads"
            )

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches of one picture."""
        return self.grid**2

    @property
    def patch_dim(self) -> int:
        """Values of one patch: three colours."""
        return 3 * self.patch_size**2

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.embed_dim // self.num_heads


@dataclass(frozen=True, kw_only=True)
class ResamplerConfig:
    """Geometry of the perceiver resampler (`resampler.`)."""

    query_num: int  # image tokens of one picture: a square number
    embed_dim: int  # the decoder's width
    kv_dim: int  # the vision encoder's width
    num_heads: int
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        """Checks the rules between fields."""
        _positive(self, "query_num", "embed_dim", "kv_dim", "num_heads")
        if self.grid**2 != self.query_num:
            raise ConfigError(f"query_num {self.query_num} is not a square number")

    @property
    def grid(self) -> int:
        """Queries along one side."""
        return math.isqrt(self.query_num)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.embed_dim // self.num_heads


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Geometry and scalings of the language model (`llm.`)."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    rms_norm_eps: float
    rope_theta: float
    scale_emb: float
    scale_depth: float
    dim_model_base: int
    bos_token_id: int
    eos_token_id: int

    def __post_init__(self) -> None:
        """Checks the rules between fields."""
        _positive(
            self, "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
            "num_attention_heads", "num_key_value_heads", "rms_norm_eps", "rope_theta",
            "scale_emb", "scale_depth", "dim_model_base",
        )  # fmt: skip
        if self.hidden_size % self.num_attention_heads or self.head_dim % 2:
            raise ConfigError(
                f"hidden_size {self.hidden_size} does not give {self.num_attention_heads} heads "
                "of an even width"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def kv_dim(self) -> int:
        """Width of all key heads together."""
        return self.num_key_value_heads * self.head_dim

    @property
    def residual_scale(self) -> float:
        """Factor of every residual branch."""
        return self.scale_depth / math.sqrt(self.num_hidden_layers)

    @property
    def logits_divisor(self) -> float:
        """What the final hidden state is divided by before the LM head."""
        return self.hidden_size / self.dim_model_base


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A whole model: with pictures (`MiniCPMV`), or the decoder alone (`MiniCPMForCausalLM`)."""

    architecture: str
    decoder: DecoderConfig
    vision: VisionConfig | None
    resampler: ResamplerConfig | None
    source: Mapping[str, Any]  # the `config.json` it was read from, for bundles and packages

    @staticmethod
    def load(path: Path) -> ModelConfig:
        """Reads a `config.json`.

        Raises:
            ConfigError: not JSON, another architecture, a missing, unknown or contradictory key.
        """
        try:
            raw = json.loads(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise ConfigError(f"{path}: cannot be read as JSON: {error}") from error
        if not isinstance(raw, dict):
            raise ConfigError(f"{path}: expected a JSON object, found {type(raw).__name__}")
        try:
            return ModelConfig.from_json(raw)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    @staticmethod
    def from_json(raw: Mapping[str, Any]) -> ModelConfig:
        """Reads the keys of a `config.json`; see `load`."""
        keys = _Keys(raw)
        architectures = keys.take("architectures", list, [])
        if len(architectures) != 1 or architectures[0] not in (MULTIMODAL, TEXT_ONLY):
            raise ConfigError(
                f"architectures is {architectures}; expected [{MULTIMODAL!r}] or [{TEXT_ONLY!r}]"
            )
        decoder = _decoder(keys)
        vision = resampler = None
        if architectures[0] == MULTIMODAL:
            vision = _vision(keys)
            resampler = _resampler(keys, vision, decoder)
        keys.finish()
        return ModelConfig(
            architecture=architectures[0],
            decoder=decoder,
            vision=vision,
            resampler=resampler,
            source=dict(raw),
        )


class _Keys:
    """Takes keys with their types, and remembers which were never asked for."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self._raw = raw
        self._taken: set[str] = set()

    def take(self, key: str, kind: type, default: Any = None) -> Any:
        """Returns a value of `kind`; without a default the key must be there."""
        self._taken.add(key)
        value = self._raw.get(key, default)
        if value is None:
            raise ConfigError(f"key {key!r} is missing; is this a MiniCPM-V config.json?")
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        fits = number if kind is float else isinstance(value, kind)
        if (kind is int and isinstance(value, bool)) or not fits:
            raise ConfigError(f"key {key!r} is {value!r}; expected {kind.__name__}")
        if kind is float and not math.isfinite(value):
            raise ConfigError(f"key {key!r} is {value!r}; expected a finite number")
        return float(value) if kind is float else value

    def expect(self, key: str, expected: Any, why: str) -> None:
        """Refuses a key that says something the toolkit does not compute."""
        self._taken.add(key)
        if self._raw.get(key, expected) != expected:
            raise ConfigError(f"key {key!r} is {self._raw[key]!r}; only {expected!r} works: {why}")

    def finish(self) -> None:
        """Refuses keys that nobody asked for and that `IGNORED` does not list."""
        unknown = sorted(set(self._raw) - self._taken - IGNORED)
        if unknown:
            raise ConfigError(f"unknown keys {', '.join(unknown)}: what do they change?")


def _decoder(keys: _Keys) -> DecoderConfig:
    keys.expect("hidden_act", "silu", "the decoder's MLP is SwiGLU")
    keys.expect("rope_scaling", None, "no MiniCPM-V scales its positions")
    keys.expect("attention_bias", False, "MiniCPM's attention has no bias")
    keys.take("tie_word_embeddings", bool, True)  # a head of its own is found by its tensor
    heads = keys.take("num_attention_heads", int)
    return DecoderConfig(
        vocab_size=keys.take("vocab_size", int),
        hidden_size=keys.take("hidden_size", int),
        intermediate_size=keys.take("intermediate_size", int),
        num_hidden_layers=keys.take("num_hidden_layers", int),
        num_attention_heads=heads,
        num_key_value_heads=keys.take("num_key_value_heads", int, heads),
        rms_norm_eps=keys.take("rms_norm_eps", float),
        rope_theta=keys.take("rope_theta", float, 10000.0),
        scale_emb=keys.take("scale_emb", float),
        scale_depth=keys.take("scale_depth", float),
        dim_model_base=keys.take("dim_model_base", int),
        bos_token_id=keys.take("bos_token_id", int, 1),
        eos_token_id=keys.take("eos_token_id", int, 2),
    )


def _vision(keys: _Keys) -> VisionConfig:
    keys.expect("slice_mode", False, "MiniCPM-V 2.0's slices are not supported")
    keys.expect("mm_use_im_start_end", True, "the prompt frames the picture with two tags")
    full_name = keys.take("vision_encoder", str)
    table = json.loads((CONFIGS / "vision_encoders.json").read_text("utf-8"))
    name = full_name.partition(".")[0]  # timm writes `model.pretraining`
    if name not in table:
        raise ConfigError(f"vision_encoder {full_name!r} is unknown; known: {', '.join(table)}")
    shape = dict(table[name])
    depth = shape.pop("depth") - (1 if keys.take("drop_vision_last_layer", bool, True) else 0)
    return VisionConfig(
        name=name,
        image_size=keys.take("image_size", int),
        patch_size=keys.take("patch_size", int),
        depth=depth,
        **shape,
    )


def _resampler(keys: _Keys, vision: VisionConfig, decoder: DecoderConfig) -> ResamplerConfig:
    head_dim = 128  # upstream fixes the width of a resampler head, not their number
    if decoder.hidden_size % head_dim:
        raise ConfigError(
            f"hidden_size {decoder.hidden_size} is not a multiple of the resampler's head, 128"
        )
    return ResamplerConfig(
        query_num=keys.take("query_num", int),
        embed_dim=decoder.hidden_size,
        kv_dim=vision.embed_dim,
        num_heads=decoder.hidden_size // head_dim,
    )


def _positive(config: object, *fields: str) -> None:
    for field in fields:
        value = getattr(config, field)
        if value <= 0:
            raise ConfigError(f"{field} is {value}; expected a positive number")
