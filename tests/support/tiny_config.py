"""The configuration of a tiny MiniCPM-V; `tiny.py` makes its weights."""

from __future__ import annotations

from typing import Any

VOCAB_SIZE = 501  # odd, so that no tile or group divides it


def tiny_config(*, decoder_only: bool = False, **overrides: Any) -> dict[str, Any]:
    """Returns a `config.json`; an override of None removes its key."""
    config: dict[str, Any] = {
        "architectures": ["MiniCPMV"],
        "model_type": "minicpmv",
        "torch_dtype": "bfloat16",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 256,
        "intermediate_size": 320,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "scale_emb": 12,
        "dim_model_base": 64,
        "scale_depth": 1.4,
    }
    if decoder_only:
        config |= {"architectures": ["MiniCPMForCausalLM"], "model_type": "minicpm"}
    else:
        config |= {
            "vision_encoder": "vit_demo_patch14_126",
            "drop_vision_last_layer": True,
            "query_num": 9,
            "image_size": 56,
        }
    return {key: value for key, value in (config | overrides).items() if value is not None}
