import json
from dataclasses import replace

import pytest

from convert.checkpoint.config import (
    CONFIGS,
    DecoderConfig,
    ModelConfig,
    ResamplerConfig,
    SliceConfig,
    VisionConfig,
)
from convert.checkpoint.config_keys import RANGES
from quantize.errors import ConfigError
from tests.support.tiny_config import tiny_config

REAL, DEMO = CONFIGS / "model" / "minicpm-v-1.0.json", CONFIGS / "demo" / "config.json"
SLICES = {"max_slice_nums": 9, "scale_resolution": 448}
SLICED = {"slice_mode": True, **SLICES}


def test_real_model_geometry():
    config = ModelConfig.load(REAL)
    vision, resampler, decoder = config.vision, config.resampler, config.decoder
    assert vision is not None and resampler is not None
    assert (vision.depth, vision.embed_dim, vision.head_dim, vision.mlp_hidden_dim) == (
        (26, 1152, 72, 4304)
    )
    assert (vision.grid, vision.num_patches, vision.patch_dim) == (32, 1024, 588)
    assert (resampler.grid, resampler.num_heads, resampler.head_dim) == (8, 18, 128)
    assert (decoder.head_dim, decoder.kv_dim, decoder.logits_divisor) == (64, 2304, 9)
    assert decoder.residual_scale == pytest.approx(0.22135943621)


def test_real_model_with_slices():
    """MiniCPM-V 2.0: 1.0's shapes, and images of several shapes."""
    plain = ModelConfig.load(REAL)
    config = ModelConfig.load(CONFIGS / "model" / "minicpm-v-2.0.json")
    assert config.vision is not None and plain.vision is not None
    assert config.vision.slices == SliceConfig(
        max_slice_nums=9,
        scale_resolution=448,
        slice_start_token_id=111,
        slice_end_token_id=112,
    )
    assert replace(config.vision, slices=None) == plain.vision
    assert (config.decoder, config.resampler) == (plain.decoder, plain.resampler)
    assert config.vision.trained_grid == 27
    with pytest.raises(AssertionError, match="several shapes"):
        assert config.vision.grid


def test_without_slices_but_with_their_mode_a_picture_is_one_image():
    vision = ModelConfig.from_json(tiny_config(slice_mode=False, **SLICES)).vision
    assert vision is not None and vision.slices is not None
    assert vision.slices.max_slice_nums == 1


def test_the_demo_says_what_the_real_one_does():
    real, demo = json.loads(REAL.read_text()), json.loads(DEMO.read_text())
    # These two name the original's own repository and code.
    assert set(real) - set(demo) == {"_name_or_path", "auto_map"}
    assert list(demo) == sorted(demo) == [key for key in real if key in demo]
    assert real["tie_word_embeddings"] is demo["tie_word_embeddings"] is False


def test_demo_exercises_what_the_real_model_does():
    config = ModelConfig.load(DEMO)
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
    "vision_encoder", "image_size", "query_num",
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
        ({"slice_mode": 0}, "slice_mode.*expected bool"),
        ({"slice_mode": True}, "max_slice_nums.*missing"),
        ({"slice_mode": False, "max_slice_nums": 9}, "scale_resolution.*missing"),
        *[({key: 111}, f"{key}.*without 'slice_mode'") for key in (*SLICES, "slice_end_token_id")],
        (SLICED | {"slice_start_token_id": 501}, "slice_start_token_id is 501.*vocab_size is 501"),
        (SLICED | {"slice_end_token_id": 111}, "slice_start_token_id and slice_end.*both 111"),
        (SLICED | {"slice_end_token_id": -1}, "slice_end_token_id is -1"),
        (SLICED | {"scale_resolution": 13}, "scale_resolution 13 is less than patch_size 14"),
        ({"decoder_only": True, "slice_mode": True}, "unknown keys slice_mode"),
        ({"im_start_token_id": 7}, "im_start_token_id.*only 101.*<image>"),
        ({"unk_token_id": 7}, "unk_token_id.*only 0"),
        ({"patch_size": 16}, "patch_size is 16.*vit_demo_patch14_126.*14"),
        (SLICED | {"max_slice_nums": 0}, "max_slice_nums is 0"),
        (SLICED | {"max_slice_nums": "9"}, "max_slice_nums.*expected int"),
        (SLICED | {"scale_resolution": -448}, "scale_resolution is -448"),
        ({"quantization_config": {"bits": 4}}, "quantization_config.*quantized already"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads.*cut out"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder.*decoder"),
        ({"repetition_penalty": 1.1}, "repetition_penalty.*configs/generation.json"),
        ({"num_beams": 3}, "num_beams"),
        ({"bos_token_id": 501}, "bos_token_id is 501.*vocab_size is 501"),
        ({"eos_token_id": 501}, "eos_token_id is 501.*vocab_size is 501"),
        ({"eos_token_id": -1}, "eos_token_id is -1"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope_parameters.*scales"),
        ({"rope_parameters": {"rope_type": "default", "factor": 4.0}}, "rope_parameters.*scales"),
        ({"rope_parameters": {"type": ["default"]}}, "rope_parameters.*scales"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "rope_parameters.*all of a head"),
        ({"rope_parameters": {"rope_theta": 1e6}, "rope_theta": 1e4}, "1000000.*10000"),
        ({"rope_parameters": {"rope_theta": "big"}}, "rope_theta.*expected float"),
        ({"rope_parameters": "default"}, "rope_parameters.*expected dict"),
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
        ({"scale_depth": float("nan")}, "scale_depth is nan"),
        ({"image_size": 57}, "image_size 57.*patch_size 14"),
        ({"query_num": 10}, "query_num 10 is not a square"),
        ({"vision_encoder": "resnet50"}, "resnet50.*known: vit_so400m"),
    ],
)
def test_contradiction_is_named(overrides, says):
    with pytest.raises(ConfigError, match=says):
        ModelConfig.from_json(tiny_config(**overrides))


BESIDE_1_0 = {
    "patch_size": 14,
    "mm_use_im_start_end": True,
    "im_start_token_id": 101,
    "im_end_token_id": 102,
    "unk_token_id": 0,
}
# What `transformers` 4 and 5 write beside the class's own keys, some only with `use_diff=False`.
OF_TRANSFORMERS = {
    "_commit_hash": "abc", "chunk_size_feed_forward": 0, "dtype": "bfloat16", "return_dict": True,
    "torchscript": False, "id2label": {"0": "LABEL_0"}, "is_encoder_decoder": False,
    "output_attentions": False, "problem_type": None, "pruned_heads": {}, "do_sample": False,
    "temperature": 1.0, "top_k": 50, "num_beams": 1, "bad_words_ids": None, "max_length": 20,
    "quantization_config": None, "rope_scaling": {"rope_type": "default"},
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default", "type": None},
}  # fmt: skip


@pytest.mark.parametrize("given", [*[{k: v} for k, v in BESIDE_1_0.items()], OF_TRANSFORMERS])
def test_what_changes_nothing(given):
    plain, beside = (
        ModelConfig.from_json(tiny_config()),
        ModelConfig.from_json(tiny_config(**given)),
    )
    assert (plain.decoder, plain.vision) == (beside.decoder, beside.vision)


def test_transformers_5_moves_rope_theta():
    moved = {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}
    config = ModelConfig.from_json(tiny_config(**moved))
    assert config.decoder.rope_theta == 5e5
    assert config.source["rope_theta"] == 5e5  # where the engine looks


def test_null_is_the_default():
    given = {**tiny_config(), "tie_word_embeddings": None, "drop_vision_last_layer": None}
    plain, null = ModelConfig.from_json(tiny_config()), ModelConfig.from_json(given)
    assert (plain.decoder, plain.vision) == (null.decoder, null.vision)


def test_every_number_has_a_range():
    numbers = {
        name
        for kind in (DecoderConfig, VisionConfig, ResamplerConfig, SliceConfig)
        for name, type_ in kind.__annotations__.items()
        if type_ in ("int", "float")
    }
    assert numbers <= set(RANGES)


HUGE = 10**299  # more digits than this are no number of JSON for us
GIVEN = {"max_position_embeddings": 2048, "rope_theta": 1e4, "bos_token_id": 1, "eos_token_id": 2}
GIVEN |= {"patch_size": 14, **SLICED, "slice_start_token_id": 99, "slice_end_token_id": 100}


@pytest.mark.parametrize("value", [HUGE, -HUGE, 10**9, -1, float("inf"), float("nan")])
@pytest.mark.parametrize("key", sorted(set(tiny_config(**GIVEN)) & set(RANGES)))
def test_numbers_out_of_their_range(key, value):
    if (key, value) in (("max_position_embeddings", 10**9), ("rope_theta", 10**9)):
        pytest.skip("a model may have that")
    with pytest.raises(ConfigError, match=key) as caught:
        ModelConfig.from_json(tiny_config(**GIVEN | {key: value}))
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"not json", "cannot be read as JSON"),
        (b"\xff\xfe\x00", "cannot be read as JSON"),
        (b"[" * 100_000, "cannot be read as JSON"),
        (b'{"rms_norm_eps": 1e400}', "cannot be read as JSON: the number 1e400 is out of range"),
        (b'{"vocab_size": 1' + b"0" * 4999 + b"}", "a number of 5,000 digits is out of range"),
        (b'{"scale_emb": NaN}', "NaN is not a JSON number"),
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


def test_a_byte_order_mark_is_no_mistake(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(tiny_config()).encode())
    assert ModelConfig.load(path) == ModelConfig.from_json(tiny_config())


def test_saved_by_todays_transformers(tmp_path):
    from transformers import PretrainedConfig

    fields = {key: value for key, value in tiny_config().items() if key != "model_type"}

    class Original(PretrainedConfig):
        model_type = "minicpmv"

        def __init__(self, **kwargs):
            for key, value in {**fields, "rope_theta": 10000.0, "rope_scaling": None}.items():
                setattr(self, key, value)
            super().__init__(**kwargs)

    Original(architectures=["MiniCPMV"], torch_dtype="bfloat16").save_pretrained(tmp_path)
    found = ModelConfig.load(tmp_path / "config.json")
    plain = ModelConfig.from_json(tiny_config())
    assert (found.decoder, found.vision) == (plain.decoder, plain.vision)
    whole = tmp_path / "whole.json"
    Original(architectures=["MiniCPMV"]).to_json_file(whole, use_diff=False)
    assert ModelConfig.load(whole).decoder == plain.decoder


def test_source_round_trip():
    raw = tiny_config()
    config = ModelConfig.from_json(raw)
    assert ModelConfig.from_json(json.loads(json.dumps(dict(config.source)))) == config
