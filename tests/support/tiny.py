"""A tiny random MiniCPM-V in the checkpoint format, made in a fraction of a second.

Names and shapes are spelled out here once more, apart from the toolkit's own tables, so that a
table that forgets or misnames a tensor is found.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

import sentencepiece
import torch
from safetensors.torch import save_file
from sentencepiece import sentencepiece_model_pb2
from torch import Tensor

from convert.checkpoint.config import CONFIGS

Head = Literal["none", "copy", "different"]
State = dict[str, Tensor]

VOCAB_SIZE = 501  # odd, so that no tile or group divides it
IMAGE_ID = 101  # the other tags follow it, as in the real tokenizer
TAGS = ("<image>", "</image>", "<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>")
STORED_GRID = 3  # side of the vision encoder's stored position grid; the picture has 4
OUTLIER_CHANNELS = (3, 77, 200)
OUTLIER_FACTOR = 20.0
_CORPUS = (
    "<用户>What colour is the shape?<AI>The shape is red.",
    "<用户>这个图形是什么颜色？<AI>这个图形是红色的。",
    "<用户>How many circles are there in the picture?<AI>There are three circles.",
    "<用户>图片里有几个圆形？<AI>有三个圆形。",
)


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


def random_state(
    config: Mapping[str, Any], *, seed: int = 0, head: Head = "copy", outliers: bool = False
) -> State:
    """Returns random float32 weights with the names that a checkpoint of `config` has.

    Args:
        config: a `config.json`, as `tiny_config` makes it.
        seed: of the random numbers.
        head: whether `lm_head.weight` is stored, and as what.
        outliers: whether a few channels of the hidden state are much larger than the rest.
    """
    random = _Random(seed)
    state = _decoder(config, random, outliers)
    embedding = state["model.embed_tokens.weight"]
    if head != "none":
        same = head == "copy"
        state["lm_head.weight"] = embedding.clone() if same else random.matrix(*embedding.shape)
    if config["architectures"] == ["MiniCPMForCausalLM"]:
        return state
    state = {f"llm.{name}": tensor for name, tensor in state.items()}
    return state | _vision(config, random) | _resampler(config, random)


def write_checkpoint(
    path: Path,
    *,
    config: Mapping[str, Any] | None = None,
    state: Mapping[str, Tensor] | None = None,
    format: Literal["safetensors", "bin"] = "safetensors",
    shards: int = 1,
    dtype: torch.dtype = torch.bfloat16,
    head: Head = "copy",
    decoder_only: bool = False,
    outliers: bool = False,
    tokenizer: bool = True,
    seed: int = 0,
) -> Path:
    """Writes a checkpoint folder and returns it; more than one shard come with an index."""
    config = tiny_config(decoder_only=decoder_only) if config is None else config
    if state is None:
        state = random_state(config, seed=seed, head=head, outliers=outliers)
    state = {name: tensor.to(dtype).contiguous() for name, tensor in state.items()}
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config, indent=2), "utf-8")
    if tokenizer:
        (path / "tokenizer.model").write_bytes(tokenizer_model())
    stem = "model" if format == "safetensors" else "pytorch_model"
    names = sorted(state)
    if shards == 1:
        _save(path / f"{stem}.{format}", state)
        return path
    weight_map = {}
    for i in range(shards):
        file = f"{stem}-{i + 1:05d}-of-{shards:05d}.{format}"
        part = {name: state[name] for name in names[i::shards]}
        _save(path / file, part)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in state.values())}}
    (path / f"{stem}.{format}.index.json").write_text(
        json.dumps(index | {"weight_map": weight_map})
    )
    return path


@cache
def tokenizer_model() -> bytes:
    """Trains a small SentencePiece model with the settings of the real one; returns its file."""
    fillers = [f"<reserved_{i}>" for i in range(IMAGE_ID - 3)]  # after <unk>, <s>, </s>
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_CORPUS * 4),
        model_writer=out,
        model_type="bpe",
        vocab_size=VOCAB_SIZE,
        hard_vocab_limit=False,
        user_defined_symbols=[*fillers, *TAGS],
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=2,
    )
    return out.getvalue()


def wrong_tokenizers() -> dict[str, tuple[bytes, str]]:
    """Returns tokenizer files that a tiny model cannot use, with the message about each.

    Keys: what is wrong.
    """
    whole = tokenizer_model()

    def changed(**normalizer: bool) -> bytes:
        proto = sentencepiece_model_pb2.ModelProto.FromString(whole)
        for name, value in normalizer.items():
            setattr(proto.normalizer_spec, name, value)
        content: bytes = proto.SerializeToString()
        return content

    cut = sentencepiece_model_pb2.ModelProto.FromString(whole)
    for name in ("trainer_spec", "normalizer_spec", "denormalizer_spec"):
        cut.ClearField(name)
    larger = sentencepiece_model_pb2.ModelProto.FromString(whole)
    larger.pieces.add(piece="another", type=1)
    as_it_is = "does not round-trip text"
    return {
        "empty": (b"", "is empty|not a SentencePiece model"),
        "no model": (b"no model", "not a SentencePiece model"),
        "truncated": (whole[:-100], "not a SentencePiece model"),
        "half": (whole[: len(whole) // 2], "not a SentencePiece model"),
        "cut behind the pieces": (cut.SerializeToString(), "not a SentencePiece model"),
        "other control pieces": (renamed_piece(whole, 2, "<end>"), "ids 0, 1, 2 are"),
        "a space before text": (changed(add_dummy_prefix=True), as_it_is),
        "fewer spaces": (changed(remove_extra_whitespaces=True), as_it_is),
        "no tags": (renamed_piece(whole, IMAGE_ID + 1, "<picture>"), "lacks the piece"),
        "more pieces": (larger.SerializeToString(), f"has {VOCAB_SIZE + 1} pieces"),
    }


def renamed_piece(model: bytes, id: int, name: str) -> bytes:
    """Returns a `tokenizer.model` in which one piece has another name."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    proto.pieces[id].piece = name
    renamed: bytes = proto.SerializeToString()
    return renamed


class _Random:
    """Random tensors whose sizes keep activations near one."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, std: float = 0.1, mean: float = 0.0) -> Tensor:
        return torch.randn(*shape, generator=self._generator) * std + mean

    def matrix(self, rows: int, columns: int) -> Tensor:
        return self.normal(rows, columns, std=columns**-0.5)

    def linear(self, name: str, rows: int, columns: int) -> State:
        return {f"{name}.weight": self.matrix(rows, columns), f"{name}.bias": self.normal(rows)}

    def layer_norm(self, name: str, width: int) -> State:
        weight = self.normal(width, mean=1.0)
        return {f"{name}.weight": weight, f"{name}.bias": self.normal(width)}


def _decoder(config: Mapping[str, Any], random: _Random, outliers: bool) -> State:
    width, hidden = config["hidden_size"], config["intermediate_size"]
    kv_heads = config.get("num_key_value_heads", config["num_attention_heads"])
    kv_width = width // config["num_attention_heads"] * kv_heads
    state = {"model.embed_tokens.weight": random.normal(config["vocab_size"], width)}
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}"
        norm = random.normal(width, mean=1.0)
        if outliers:
            norm[list(OUTLIER_CHANNELS)] *= OUTLIER_FACTOR
        state |= {
            f"{at}.input_layernorm.weight": norm,
            f"{at}.self_attn.q_proj.weight": random.matrix(width, width),
            f"{at}.self_attn.k_proj.weight": random.matrix(kv_width, width),
            f"{at}.self_attn.v_proj.weight": random.matrix(kv_width, width),
            f"{at}.self_attn.o_proj.weight": random.matrix(width, width),
            f"{at}.post_attention_layernorm.weight": random.normal(width, mean=1.0),
            f"{at}.mlp.gate_proj.weight": random.matrix(hidden, width),
            f"{at}.mlp.up_proj.weight": random.matrix(hidden, width),
            f"{at}.mlp.down_proj.weight": random.matrix(width, hidden),
        }
    return state | {"model.norm.weight": random.normal(width, mean=1.0)}


def _vision(config: Mapping[str, Any], random: _Random) -> State:
    table = json.loads((CONFIGS / "vision_encoders.json").read_text("utf-8"))
    shape = table[config["vision_encoder"].partition(".")[0]]
    patch = shape["patch_size"]
    width, hidden = shape["embed_dim"], shape["mlp_hidden_dim"]
    patches = random.linear("vpm.patch_embed.proj", width, 3 * patch * patch)
    # Slices need all the positions that the named encoder was trained with.
    side = int(config["vision_encoder"].rpartition("_")[2]) // patch
    stored = side if "slice_mode" in config else STORED_GRID
    state = patches | {"vpm.pos_embed": random.normal(1, stored**2, width, std=0.5)}
    weight = state["vpm.patch_embed.proj.weight"]
    state["vpm.patch_embed.proj.weight"] = weight.view(width, 3, patch, patch)
    for i in range(shape["depth"] - config.get("drop_vision_last_layer", True)):
        at = f"vpm.blocks.{i}"
        state |= random.layer_norm(f"{at}.norm1", width)
        state |= random.linear(f"{at}.attn.qkv", 3 * width, width)
        state |= random.linear(f"{at}.attn.proj", width, width)
        state |= random.layer_norm(f"{at}.norm2", width)
        state |= random.linear(f"{at}.mlp.fc1", hidden, width)
        state |= random.linear(f"{at}.mlp.fc2", width, hidden)
    return state | random.layer_norm("vpm.norm", width)


def _resampler(config: Mapping[str, Any], random: _Random) -> State:
    queries, width = config["query_num"], config["hidden_size"]
    table = json.loads((CONFIGS / "vision_encoders.json").read_text("utf-8"))
    kv_width = table[config["vision_encoder"].partition(".")[0]]["embed_dim"]
    return {
        "resampler.query": random.normal(queries, width, std=1.0),
        "resampler.pos_embed": random.normal(queries, width, std=0.7),
        "resampler.proj": random.matrix(width, width),
        "resampler.kv_proj.weight": random.matrix(width, kv_width),
        "resampler.attn.in_proj_weight": random.matrix(3 * width, width),
        "resampler.attn.in_proj_bias": random.normal(3 * width),
        **random.linear("resampler.attn.out_proj", width, width),
        **random.layer_norm("resampler.ln_q", width),
        **random.layer_norm("resampler.ln_kv", width),
        **random.layer_norm("resampler.ln_post", width),
    }


def _save(file: Path, state: State) -> None:
    if file.suffix == ".safetensors":
        save_file(state, file, metadata={"format": "pt"})
    else:
        torch.save(state, file)
