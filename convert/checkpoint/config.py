"""The model's geometry, read from a Hugging Face `config.json`.

Field names are upstream's, so that a search in upstream code finds them. Nothing else in the
toolkit states a width, a depth or a picture size.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from convert.checkpoint.config_keys import RANGES, ConfigReader, check_range, shown
from convert.support.strict_json import load_json
from quantize.errors import ConfigError

CONFIGS = Path(__file__).resolve().parent.parent.parent / "configs"

MULTIMODAL, TEXT_ONLY = "MiniCPMV", "MiniCPMForCausalLM"
_SLICE_TOKENS = {"slice_start_token_id": 111, "slice_end_token_id": 112}  # with upstream's defaults


@dataclass(frozen=True, kw_only=True)
class SliceConfig:
    """How a picture becomes images of several shapes: an overview, and slices of more detail."""

    max_slice_nums: int  # beside the overview; 1: every picture is one image
    scale_resolution: int  # pixels; an image has about the area of a square with this side
    slice_start_token_id: int
    slice_end_token_id: int

    def __post_init__(self) -> None:
        """Checks the rules between fields."""
        _check_ranges(self)
        if self.slice_start_token_id == self.slice_end_token_id:
            raise ConfigError(
                f"slice_start_token_id and slice_end_token_id are both {self.slice_end_token_id}"
            )


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """Geometry of the vision encoder (`vpm.`), and of the images that it takes."""

    name: str  # of the vision transformer, without timm's suffix
    image_size: int  # pixels; the side of the square that a picture is resized to without slices
    patch_size: int  # pixels
    embed_dim: int
    depth: int  # blocks that run: one fewer than the named model where the last is dropped
    num_heads: int
    mlp_hidden_dim: int
    norm_eps: float
    slices: SliceConfig | None = None  # None: a picture is one square of `image_size`

    def __post_init__(self) -> None:
        """Checks the rules between fields."""
        _check_ranges(self)
        if self.slices is not None and self.slices.scale_resolution < self.patch_size:
            raise ConfigError(
                f"scale_resolution {self.slices.scale_resolution} is less than patch_size "
                f"{self.patch_size}"
            )
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
        """Patches along one side of the square; images of a model with slices have no one grid."""
        assert self.slices is None, "images have several shapes"
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches of one picture; see `grid`."""
        return self.grid**2

    @property
    def most_patches(self) -> int:
        """Patches of an image, at most.

        Of images of several shapes, twice the square's: what one has whose shorter side is half a
        patch, rounded up. With 448 pixels and patches of 14 that is a picture of 1:4096.
        """
        if self.slices is None:
            return self.num_patches
        return 2 * self.slices.scale_resolution**2 // self.patch_size**2

    @property
    def images(self) -> str:
        """Which images the encoder gets of a picture, in words."""
        if self.slices is None:
            return f"{self.image_size} px, {self.grid} x {self.grid} patches"
        shape = f"of about {self.slices.scale_resolution}² px, patches of {self.patch_size} px"
        if self.slices.max_slice_nums == 1:
            return f"one image {shape}"
        return f"an overview and up to {self.slices.max_slice_nums} slices {shape}"

    @property
    def trained_grid(self) -> int:
        """Patches along one side of the images that the named encoder was trained on.

        timm's names end with the size of these images.
        """
        size = self.name.rpartition("_")[2]
        return (int(size) if size.isdecimal() else self.image_size) // self.patch_size

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
        _check_ranges(self)
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
        _check_ranges(self)
        for name in ("bos_token_id", "eos_token_id"):
            if getattr(self, name) >= self.vocab_size:
                raise ConfigError(
                    f"{name} is {getattr(self, name)}, outside of the vocabulary: vocab_size is "
                    f"{self.vocab_size}"
                )
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
            raw = load_json(path)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
        except ValueError as error:
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
        keys = ConfigReader(raw)
        architectures = keys.take("architectures", list, [])
        if len(architectures) != 1 or architectures[0] not in (MULTIMODAL, TEXT_ONLY):
            raise ConfigError(
                f"architectures is {shown(architectures)}; "
                f"expected [{MULTIMODAL!r}] or [{TEXT_ONLY!r}]"
            )
        decoder = _decoder(keys)
        vision = resampler = None
        if architectures[0] == MULTIMODAL:
            vision = _vision(keys, decoder)
            resampler = _resampler(keys, vision, decoder)
        keys.finish()
        return ModelConfig(
            architecture=architectures[0],
            decoder=decoder,
            vision=vision,
            resampler=resampler,
            # For readers that know the one spelling only, as the engine does.
            source={**raw, "rope_theta": decoder.rope_theta},
        )


def _decoder(keys: ConfigReader) -> DecoderConfig:
    keys.take("tie_word_embeddings", bool, True)  # a head of its own is found by its tensor
    keys.optional("max_position_embeddings", int)
    heads = keys.take("num_attention_heads", int)
    return DecoderConfig(
        vocab_size=keys.take("vocab_size", int),
        hidden_size=keys.take("hidden_size", int),
        intermediate_size=keys.take("intermediate_size", int),
        num_hidden_layers=keys.take("num_hidden_layers", int),
        num_attention_heads=heads,
        num_key_value_heads=keys.take("num_key_value_heads", int, heads),
        rms_norm_eps=keys.take("rms_norm_eps", float),
        rope_theta=_rope_theta(keys),
        scale_emb=keys.take("scale_emb", float),
        scale_depth=keys.take("scale_depth", float),
        dim_model_base=keys.take("dim_model_base", int),
        bos_token_id=keys.take("bos_token_id", int, 1),
        eos_token_id=keys.take("eos_token_id", int, 2),
    )


def _rope_theta(keys: ConfigReader) -> float:
    """Reads RoPE's base, which `transformers` 5 writes into an object, too or instead."""
    theta: float | None = keys.optional("rope_theta", float)
    for key in ("rope_scaling", "rope_parameters"):
        nested = keys.optional(key, dict)
        if nested is None:
            continue
        # The kind has two spellings, an older and a newer; both may be there.
        neutral = {"rope_type": "default", "type": "default", "partial_rotary_factor": 1}
        scaled = [k for k, v in nested.items() if v is not None and v != neutral.get(k)]
        if set(scaled) - {"rope_theta"}:
            raise ConfigError(
                f"key {key!r} is {shown(nested)}; only the type 'default' works, which rotates all "
                "of a head: no MiniCPM-V scales its positions"
            )
        base: float | None = ConfigReader(nested).optional("rope_theta", float)
        if None not in (base, theta) and base != theta:
            raise ConfigError(f"key {key!r} says rope_theta {base}, but rope_theta is {theta}")
        theta = base if theta is None else theta
    return 10000.0 if theta is None else theta


def _vision(keys: ConfigReader, decoder: DecoderConfig) -> VisionConfig:
    full_name = keys.take("vision_encoder", str)
    table = json.loads((CONFIGS / "vision_encoders.json").read_text("utf-8"))
    name = full_name.partition(".")[0]  # timm writes `model.pretraining`
    if name not in table:
        raise ConfigError(
            f"vision_encoder {shown(full_name)} is unknown; known: {', '.join(table)}"
        )
    shape = dict(table[name])
    patch_size = keys.optional("patch_size", int)  # 1.0 does not write it
    if patch_size not in (None, shape["patch_size"]):
        raise ConfigError(
            f"patch_size is {patch_size}, but vision_encoder {full_name!r} has patches of "
            f"{shape['patch_size']} pixels"
        )
    depth = shape.pop("depth") - (1 if keys.take("drop_vision_last_layer", bool, True) else 0)
    return VisionConfig(
        name=name,
        image_size=keys.take("image_size", int),
        depth=depth,
        slices=_slices(keys, decoder),
        **shape,
    )


def _slices(keys: ConfigReader, decoder: DecoderConfig) -> SliceConfig | None:
    """Reads how pictures are cut; 1.0 has none of these keys, 2.0 says `slice_mode`."""
    mode: bool | None = keys.optional("slice_mode", bool)
    if mode is None:
        for key in ("max_slice_nums", "scale_resolution", *_SLICE_TOKENS):
            if keys.has(key):
                raise ConfigError(
                    f"key {key!r} is given without 'slice_mode', which says whether pictures are "
                    "cut into slices: true or false for MiniCPM-V 2.0, none of them for 1.0"
                )
        return None
    tokens = {key: keys.take(key, int, default) for key, default in _SLICE_TOKENS.items()}
    for key, id in tokens.items():
        if id >= decoder.vocab_size:
            raise ConfigError(
                f"{key} is {id}, outside of the vocabulary: vocab_size is {decoder.vocab_size}"
            )
    most = keys.take("max_slice_nums", int)
    return SliceConfig(
        max_slice_nums=most if mode else 1,
        scale_resolution=keys.take("scale_resolution", int),
        **tokens,
    )


def _resampler(keys: ConfigReader, vision: VisionConfig, decoder: DecoderConfig) -> ResamplerConfig:
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


def _check_ranges(config: object) -> None:
    for field in fields(config):  # type: ignore[arg-type]  # every caller is a dataclass
        if field.name in RANGES:
            check_range(field.name, getattr(config, field.name))
