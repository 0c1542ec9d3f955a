"""A package for MLC-LLM: the weights, `mlc-chat-config.json`, the tokenizer.

Without pictures it is what MLC-LLM's `convert_weight` and `gen_config` make for its `minicpm` model
type, but for three things that are stated here because it would get them wrong:
`tie_word_embeddings` (its default is false), the conversation template (it has none for MiniCPM),
and `tokenizer.json` (the one that today's `transformers` makes gives other ids). With pictures the
vision encoder and the resampler are added, their matrices in int8 as in a bundle, for the model
type `minicpm_v` that `convert.mlc.minicpm_v` plugs in. `mlc-package.json` is ours: what was made,
from what, and every file's hash.
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.bundle.manifest import BundleSource, FileRecord
from convert.bundle.plan import Plan, Recipe, plan_of
from convert.calibrate.store import CalibratedWeights
from convert.checkpoint.config import ModelConfig
from convert.checkpoint.reader import Checkpoint
from convert.checkpoint.tokenizer_file import open_tokenizer
from convert.mlc.manifest import PackageManifest
from convert.mlc.names import CHAT_CONFIG, PICTURE_MODEL, SCHEME, TEXT_MODEL, TOKENIZER_JSON
from convert.mlc.params import write_params
from convert.mlc.square import square_rules
from convert.mlc.tokenizer_json import TokenizerJsonError, make_tokenizer_json
from convert.mlc.vision_config import MlcVisionConfig
from convert.support.json_text import json_text
from convert.support.progress import Progress
from convert.support.versions import TOOLKIT, package_version
from quantize.errors import ConfigError
from runtime.inputs.defaults import GenerationDefaults
from runtime.inputs.prompt import ASSISTANT, USER

TOKENIZER = "tokenizer.model"
TOKENIZER_FILES = (TOKENIZER, TOKENIZER_JSON)  # in MLC-LLM's order
TOOLS = (TOOLKIT, "numpy", "tokenizers", "torch")
# Tokens at once, with pictures: what a phone can spare for activations. Longer prompts take turns.
PICTURE_CHUNK = 256
_POSITIONS = 4096  # of a config.json that does not say


@dataclass(frozen=True, kw_only=True)
class PackageReport:
    """What was written."""

    tensors: int
    parameters: int
    weights_bytes: int
    why_no_tokenizer_json: str | None  # None: there is one, with the ids of tokenizer.model


_VISION_MATRICES = (
    *("vision.patch_embed.weight", "vision.blocks.*.qkv.weight", "vision.blocks.*.proj.weight"),
    *("vision.blocks.*.fc?.weight", "resampler.kv_proj.weight", "resampler.[kv]_proj.weight"),
    *("resampler.out_proj.weight", "resampler.proj.weight"),
)


def make_mlc_plan(
    config: ModelConfig, untied_head: bool, recipe: Recipe, *, pictures: bool = False
) -> Plan:
    """Plans a model as MLC-LLM stores it: the decoder's matrices in 4 bits, norms in float16.

    Args:
        config: the model, with or without a vision encoder.
        untied_head: whether the LM head is a matrix of its own.
        recipe: whose number format and method count; its table of tensors is for bundles.
        pictures: whether the vision encoder and the resampler are part of it: matrices in int8,
            the rest in float16.

    Raises:
        ConfigError: the recipe's number format is not MLC-LLM's.
        ShapeError: a width has no whole groups.
    """
    scheme = recipe.scheme
    if (scheme.bits, scheme.group_size, scheme.zero_point) != (4, 32, 7):
        raise ConfigError(f"recipe {scheme.name}: not of MLC-LLM's format {SCHEME}")
    rows = [
        {"pattern": "llm.*norm.weight", "format": "f16", "why": "norms"},
        {"pattern": "llm.*", "format": "q4", "why": "matrices of the decoder"},
        *(
            {"pattern": name, "format": "q8", "why": "matrices of vision"}
            for name in _VISION_MATRICES
        ),
        {"pattern": "*", "format": "f16", "why": "norms, biases and positions of vision"},
    ]
    whole = plan_of(
        square_rules(config, untied_head), Recipe.from_json({**recipe.source, "tensors": rows})
    )
    return Plan(
        whole.recipe,
        tuple(one for one in whole.tensors if pictures or one.name.startswith("llm.")),
    )


def write_package(
    checkpoint: Checkpoint,
    source: BundleSource,
    plan: Plan,
    folder: Path,
    progress: Progress,
    calibrated: CalibratedWeights | None = None,
) -> PackageReport:
    """Fills an empty folder with a package.

    Args:
        checkpoint: whose decoder; without a tokenizer only weights and configuration are written.
        source: what the manifest says of it.
        plan: made by `make_mlc_plan`.
        folder: where to write.
        progress: receives the tensors written.
        calibrated: what calibration made, if the recipe's method has one.

    Raises:
        CheckpointError: a tensor holds NaN, infinity, or more than float16 can.
    """
    nbytes = write_params(checkpoint, plan, folder, progress, calibrated)
    why_not = _write_tokenizer(checkpoint, folder)
    pictures = any(tensor.name.startswith("vision.") for tensor in plan.tensors)
    names = [name for name in TOKENIZER_FILES if (folder / name).exists()]
    config = chat_config(checkpoint, names, pictures=pictures)
    text = json_text(config, indent=2) + "\n"
    (folder / CHAT_CONFIG).write_text(text, "utf-8")
    files = sorted(path for path in folder.iterdir() if path.is_file())
    PackageManifest(
        model=checkpoint.config.source,
        quantization=SCHEME,
        recipe=plan.recipe.scheme.name,
        method=plan.recipe.method,
        pictures=pictures,
        why_no_tokenizer_json=why_not,
        parameters=plan.parameters,
        weights_bytes=nbytes,
        source=source,
        libraries={},
        tools={
            "python": platform.python_version(),
            **{name: package_version(name) for name in TOOLS},
        },
        files={path.name: FileRecord.of(path) for path in files},
        slice_tags=_slice_tags(checkpoint) if pictures else None,
    ).write(folder)
    return PackageReport(
        tensors=len(plan.tensors),
        parameters=plan.parameters,
        weights_bytes=nbytes,
        why_no_tokenizer_json=why_not,
    )


def _slice_tags(checkpoint: Checkpoint) -> tuple[str, str] | None:
    """Returns how the tokenizer spells the tags around slices, which the configuration numbers."""
    vision, path = checkpoint.config.vision, checkpoint.tokenizer
    if vision is None or vision.slices is None or path is None:
        return None
    pieces, slices = open_tokenizer(path), vision.slices
    start, end = (
        pieces.id_to_piece(id) for id in (slices.slice_start_token_id, slices.slice_end_token_id)
    )
    return start, end


def _write_tokenizer(checkpoint: Checkpoint, folder: Path) -> str | None:
    """Writes the tokenizer's files; returns why there is no `tokenizer.json`, or None."""
    if checkpoint.tokenizer is None:
        return f"the checkpoint has no {TOKENIZER}"
    copy = folder / TOKENIZER
    shutil.copyfile(checkpoint.tokenizer, copy)
    try:
        text = make_tokenizer_json(copy)
    except TokenizerJsonError as error:
        return str(error)
    (folder / TOKENIZER_JSON).write_text(text, "utf-8")
    return None


def chat_config(
    checkpoint: Checkpoint, tokenizer_files: Sequence[str], *, pictures: bool = False
) -> dict[str, Any]:
    """Returns the content of `mlc-chat-config.json`, keys in MLC-LLM's order.

    Args:
        checkpoint: the model.
        tokenizer_files: names of files in the package; MLC-LLM prefers `tokenizer.json`.
        pictures: whether the package takes pictures.
    """
    c, raw = checkpoint.config.decoder, checkpoint.config.source
    # A KV cache takes 360 KiB for each token at full size, and MLC-LLM takes all of it at once.
    defaults = GenerationDefaults.load().for_model(checkpoint.config)
    window = min(defaults.window, raw.get("max_position_embeddings") or _POSITIONS)
    chunk = min(window, PICTURE_CHUNK) if pictures else window
    sample = defaults.named(defaults.settings).sample
    model_config = _model_config(checkpoint, window, chunk, pictures)
    return {
        "version": "0.1.0",  # of the format of MLC-LLM's chat configuration
        "model_type": PICTURE_MODEL if pictures else TEXT_MODEL,
        "quantization": SCHEME,
        "model_config": model_config,
        "vocab_size": c.vocab_size,
        "context_window_size": window,
        "sliding_window_size": -1,
        "prefill_chunk_size": chunk,
        "attention_sink_size": -1,
        "tensor_parallel_shards": 1,
        "pipeline_parallel_stages": 1,
        "active_vocab_size": c.vocab_size,
        "temperature": sample["temperature"],
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": sample.get("repetition_penalty", 1.0),
        "top_p": sample["top_p"],
        "tokenizer_files": list(tokenizer_files),
        # What MLC-LLM itself finds in our tokenizer.json.
        "tokenizer_info": {
            "token_postproc_method": "byte_fallback",
            "prepend_space_in_encode": False,
            "strip_space_in_decode": False,
        },
        "conv_template": conversation_template(c.bos_token_id, c.eos_token_id),
        "pad_token_id": 0,
        "bos_token_id": c.bos_token_id,
        "eos_token_id": c.eos_token_id,
    }


def _model_config(
    checkpoint: Checkpoint, window: int, chunk: int, pictures: bool
) -> dict[str, Any]:
    c = checkpoint.config.decoder
    model_config = {
        "vocab_size": c.vocab_size,
        "hidden_size": c.hidden_size,
        "num_hidden_layers": c.num_hidden_layers,
        "num_attention_heads": c.num_attention_heads,
        "num_key_value_heads": c.num_key_value_heads,
        "hidden_act": "silu",
        "rms_norm_eps": c.rms_norm_eps,
        "intermediate_size": c.intermediate_size,
        "scale_emb": _whole(c.scale_emb),
        "scale_depth": c.scale_depth,
        "dim_model_base": c.dim_model_base,
        "use_cache": True,
        "bos_token_id": c.bos_token_id,
        "eos_token_id": c.eos_token_id,
        "tie_word_embeddings": not checkpoint.untied_head,
        "rope_theta": _whole(c.rope_theta),
        "context_window_size": window,
        "prefill_chunk_size": chunk,
        "tensor_parallel_shards": 1,
        "head_dim": c.head_dim,
        "max_batch_size": 1,
        "num_experts_per_tok": 0,
        "num_experts": 0,
    }
    if pictures:
        model_config["vision_config"] = MlcVisionConfig.of(checkpoint.config).to_json()
    return model_config


def conversation_template(bos: int, eos: int) -> dict[str, Any]:
    """Returns MiniCPM's turns as MLC-LLM describes a conversation."""
    return {
        "name": "minicpm",
        "system_template": "{system_message}",
        "system_message": "",
        "system_prefix_token_ids": [bos],
        "add_role_after_system_message": True,
        "roles": {"user": USER, "assistant": ASSISTANT},
        "role_templates": {
            "user": "{user_message}",
            "assistant": "{assistant_message}",
            "tool": "{tool_message}",
        },
        "messages": [],
        "seps": [""],
        "role_content_sep": "",
        "role_empty_sep": "",
        "stop_str": [],
        "stop_token_ids": [eos],
        "function_string": "",
        "use_function_calling": False,
    }


def _whole(value: float) -> float | int:
    """MLC-LLM's configuration states some numbers as integers."""
    return int(value) if value == int(value) else value
