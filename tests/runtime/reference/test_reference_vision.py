"""The vision encoder against SigLIP of `transformers`, its positions against PIL's resize."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SiglipVisionConfig, SiglipVisionModel

from convert.checkpoint.config import CONFIGS, ModelConfig, VisionConfig
from convert.checkpoint.positions import resample_grid
from quantize.errors import ShapeError
from runtime.reference.vision import VisionEncoder
from tests.support.compare import Record, assert_close, randomize

# Both sum the same float32 products in another order; measured 5e-7.
FLOAT32_ORDER = 5e-6
# PIL computes its filter in float64, torch in float32; measured 8e-7.
FLOAT32_FILTER = 5e-6


def _demo() -> VisionConfig:
    vision = ModelConfig.load(CONFIGS / "demo" / "config.json").vision
    assert vision is not None
    return vision


def _one_real_block() -> VisionConfig:
    """The real model's widths and patches, and one of its 26 blocks."""
    vision = ModelConfig.load(CONFIGS / "model" / "minicpm-v-1.0.json").vision
    assert vision is not None
    return replace(vision, depth=1)


def _siglip(encoder: VisionEncoder, c: VisionConfig) -> SiglipVisionModel:
    config = SiglipVisionConfig(
        hidden_size=c.embed_dim,
        intermediate_size=c.mlp_hidden_dim,
        num_hidden_layers=c.depth,
        num_attention_heads=c.num_heads,
        image_size=c.image_size,
        patch_size=c.patch_size,
        layer_norm_eps=c.norm_eps,
        hidden_act="gelu",
        vision_use_head=False,
        attn_implementation="eager",
    )
    state = {}
    for name, tensor in encoder.state_dict().items():
        name = name.replace("patch_embed.proj", "embeddings.patch_embedding")
        name = name.replace("pos_embed", "embeddings.position_embedding.weight")
        name = name.replace("blocks.", "encoder.layers.").replace("attn.proj", "self_attn.out_proj")
        name = name.replace("norm1", "layer_norm1").replace("norm2", "layer_norm2")
        name = f"post_layer{name}" if name.startswith("norm.") else name
        if "qkv" in name:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                state[name.replace("attn.qkv", f"self_attn.{letter}_proj")] = part
        else:
            state[name] = tensor.squeeze(0) if "position" in name else tensor
    model = SiglipVisionModel(config).eval()
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("geometry", [_demo, _one_real_block])
def test_encoder_equals_siglip(geometry, record_property: Record) -> None:
    c = geometry()
    encoder = VisionEncoder(c)
    randomize(encoder)
    torch.manual_seed(1)
    pixels = torch.rand(2, 3, c.image_size, c.image_size) * 2 - 1
    with torch.no_grad():
        expected = _siglip(encoder, c)(pixel_values=pixels).last_hidden_state
        actual = encoder(pixels)
    assert_close(f"vision features, {c.name}", actual, expected, FLOAT32_ORDER, record_property)


def test_pictures_of_a_batch_do_not_mix() -> None:
    c = _demo()
    encoder = VisionEncoder(c)
    randomize(encoder)
    pixels = torch.rand(2, 3, c.image_size, c.image_size, generator=torch.manual_seed(2))
    with torch.no_grad():
        both = encoder(pixels)
        alone = torch.cat([encoder(p.unsqueeze(0)) for p in pixels])
    torch.testing.assert_close(both, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        (27, (32, 32)),
        (9, (12, 12)),
        (32, (12, 12)),
        (5, (4, 4)),
        (1, (6, 6)),
        (27, (28, 37)),
        (9, (3, 40)),
    ],
)
def test_positions_are_resampled_as_pil_does(
    stored: int, wanted: tuple[int, int], record_property: Record
) -> None:
    positions = torch.randn(1, stored * stored, 8, generator=torch.manual_seed(3))
    planes = positions.view(stored, stored, 8).permute(2, 0, 1).numpy()
    size = wanted[::-1]  # columns first
    resized = [Image.fromarray(p).resize(size, Image.Resampling.BICUBIC) for p in planes]
    expected = np.stack([np.asarray(p) for p in resized], axis=-1).reshape(
        1, wanted[0] * wanted[1], 8
    )
    actual = resample_grid(positions, *wanted)
    assert_close(
        f"positions {stored} -> {wanted}", actual, expected, FLOAT32_FILTER, record_property
    )


def test_positions_of_the_same_grid_stay_exactly() -> None:
    positions = torch.randn(1, 144, 8).bfloat16()
    assert torch.equal(resample_grid(positions, 12, 12), positions.float())


def test_positions_that_form_no_square_are_refused() -> None:
    with pytest.raises(ShapeError, match="145 positions"):
        resample_grid(torch.zeros(1, 145, 8), 12, 12)
