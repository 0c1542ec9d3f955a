import json

import pytest

from convert.config import CONFIGS, ModelConfig
from quantize.errors import ConfigError
from tests.tiny import tiny_config


def test_real_model_geometry():
    config = ModelConfig.load(CONFIGS / "model" / "minicpm-v-1.0.json")
    vision, resampler, decoder = config.vision, config.resampler, config.decoder
    assert vision is not None and resampler is not None
    assert (vision.depth, vision.embed_dim, vision.head_dim, vision.mlp_hidden_dim) == (
        (26, 1152, 72, 4304)
    )
    assert (vision.grid, vision.num_patches, vision.patch_dim) == (32, 1024, 588)
    assert (resampler.grid, resampler.num_heads, resampler.head_dim) == (8, 18, 128)
    assert (decoder.head_dim, decoder.kv_dim, decoder.logits_divisor) == (64, 2304, 9)
    assert decoder.residual_scale == pytest.approx(0.22135943621)


def test_demo_exercises_what_the_real_model_does():
    config = ModelConfig.load(CONFIGS / "demo" / "config.json")
    assert config.vision is not None and config.resampler is not None
    assert config.vision.num_patches == 144
    assert config.vision.head_dim == 72
    assert config.vision.mlp_hidden_dim % 32 != 0
    assert config.resampler.head_dim == 128
    assert config.resampler.grid < config.vision.grid
    assert config.decoder.vocab_size % 2 == 1


def test_decoder_only_has_no_vision():
    config = ModelConfig.from_json(tiny_config(decoder_only=True))
    assert config.vision is None and config.resampler is None


def test_last_vision_block_is_kept_on_request():
    dropped = ModelConfig.from_json(tiny_config()).vision
    kept = ModelConfig.from_json(tiny_config(drop_vision_last_layer=False)).vision
    assert dropped is not None and kept is not None
    assert kept.depth == dropped.depth + 1


def test_keys_of_other_programs_are_ignored():
    extra = {
        "auto_map": {"AutoModel": "x.Y"},
        "transformers_version": "4.36.0",
        "_name_or_path": "",
    }
    ModelConfig.from_json(tiny_config(**extra))


REQUIRED = (
    "architectures", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "rms_norm_eps", "scale_emb", "scale_depth", "dim_model_base",
    "vision_encoder", "image_size", "patch_size", "query_num",
)  # fmt: skip


@pytest.mark.parametrize("key", REQUIRED)
def test_missing_key_is_named(key):
    with pytest.raises(ConfigError, match=key):
        ModelConfig.from_json(tiny_config(**{key: None}))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "LlamaForCausalLM.*expected.*MiniCPMV"),
        ({"architectures": ["MiniCPMV", "MiniCPMV"]}, "architectures"),
        ({"architectures": "MiniCPMV"}, "expected list"),
        ({"slice_mode": True}, "slice_mode.*2.0"),
        ({"mm_use_im_start_end": False}, "mm_use_im_start_end"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling"),
        ({"sliding_window": 7}, "unknown keys sliding_window"),
        ({"hidden_size": 250}, "hidden_size 250"),
        ({"hidden_size": 320}, "hidden_size 320.*128"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers.*expected int"),
        ({"num_hidden_layers": True}, "num_hidden_layers.*expected int"),
        ({"scale_depth": float("nan")}, "scale_depth.*finite"),
        ({"image_size": 57}, "image_size 57.*patch_size 14"),
        ({"query_num": 10}, "query_num 10 is not a square"),
        ({"vision_encoder": "resnet50"}, "resnet50.*known: vit_so400m"),
    ],
)
def test_contradiction_is_named(overrides, says):
    with pytest.raises(ConfigError, match=says):
        ModelConfig.from_json(tiny_config(**overrides))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"not json", "cannot be read as JSON"),
        (b"\xff\xfe\x00", "cannot be read as JSON"),
        (b"[" * 100_000, "cannot be read as JSON"),
        (b"[1]", "expected a JSON object, found list"),
        (b"{}", "architectures"),
    ],
)
def test_bad_file_is_named(tmp_path, content, says):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=says) as caught:
        ModelConfig.load(path)
    assert str(path) in str(caught.value)


def test_source_round_trip():
    raw = tiny_config()
    config = ModelConfig.from_json(raw)
    assert ModelConfig.from_json(json.loads(json.dumps(dict(config.source)))) == config
