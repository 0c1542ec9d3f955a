"""A tiny random MiniCPM-V in the checkpoint format, made in a fraction of a second.

Names and shapes are spelled out here once more, apart from the toolkit's own tables, so that a
table that forgets or misnames a tensor is found.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from convert.checkpoint.config import CONFIGS
from tests.support.tiny_config import tiny_config
from tests.support.tiny_tokenizer import tokenizer_model

Head = Literal["none", "copy", "different"]
State = dict[str, Tensor]

STORED_GRID = 3  # side of the vision encoder's stored position grid; the picture has 4
OUTLIER_CHANNELS = (3, 77, 200)
OUTLIER_FACTOR = 20.0


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
