"""The keys of a `config.json`: their types, their ranges, and their allowed values.

A key is read, or a table here lists the values of it that change nothing, or it is refused: an
unknown key may change what the model computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quantize.errors import ConfigError

# Keys of `config.json` that do not change what the model computes, whatever they say.
IGNORED = frozenset(
    {
        "_attn_implementation", "_attn_implementation_autoset", "_commit_hash", "_name_or_path",
        "attention_dropout", "attn_implementation", "auto_map", "cache_dir",
        "chunk_size_feed_forward", "cross_attention_hidden_size", "decoder_start_token_id", "dtype",
        "finetuning_task", "id2label", "image_processor_type", "initializer_range", "is_decoder",
        "label2id", "max_length", "model_type", "output_attentions", "output_hidden_states",
        "output_scores", "pad_token_id", "pretraining_tp", "problem_type", "processor_class",
        "return_dict", "return_dict_in_generate", "sep_token_id", "task_specific_params",
        "tf_legacy_loss", "tie_encoder_decoder", "tokenizer_class", "torch_dtype", "torchscript",
        "transformers_version", "use_bfloat16", "use_cache",
    }
)  # fmt: skip

_GENERATION = "it would change the original's answers; ours follow configs/generation.json"
# Keys that change nothing with this one value, or with null; and why with another they do.
NEUTRAL: Mapping[str, tuple[Any, str]] = {
    "hidden_act": ("silu", "the decoder's MLP is SwiGLU"),
    "attention_bias": (False, "MiniCPM's attention has no bias"),
    "im_start_token_id": (101, "the piece <image> of tokenizer.model has this id"),
    "im_end_token_id": (102, "the piece </image> of tokenizer.model has this id"),
    "unk_token_id": (0, "<unk> holds the place of image tokens"),
    "mm_use_im_start_end": (True, "the prompt frames the picture with two tags"),
    "is_encoder_decoder": (False, "MiniCPM is a decoder"),
    "add_cross_attention": (False, "MiniCPM's decoder attends to itself"),
    "pruned_heads": ({}, "attention heads that are cut out are not supported"),
    "quantization_config": (None, "its weights are quantized already; take full precision's"),
    "prefix": (None, "it would stand before every prompt"),
    "bad_words_ids": (None, _GENERATION),
    "begin_suppress_tokens": (None, _GENERATION),
    "diversity_penalty": (0, _GENERATION),
    "do_sample": (False, _GENERATION),
    "early_stopping": (False, _GENERATION),
    "encoder_no_repeat_ngram_size": (0, _GENERATION),
    "exponential_decay_length_penalty": (None, _GENERATION),
    "forced_bos_token_id": (None, _GENERATION),
    "forced_eos_token_id": (None, _GENERATION),
    "length_penalty": (1, _GENERATION),
    "min_length": (0, _GENERATION),
    "no_repeat_ngram_size": (0, _GENERATION),
    "num_beam_groups": (1, _GENERATION),
    "num_beams": (1, _GENERATION),
    "num_return_sequences": (1, _GENERATION),
    "remove_invalid_values": (False, _GENERATION),
    "repetition_penalty": (1, _GENERATION),
    "suppress_tokens": (None, _GENERATION),
    "temperature": (1, _GENERATION),
    "top_k": (50, _GENERATION),
    "top_p": (1, _GENERATION),
    "typical_p": (1, _GENERATION),
}

# The range of every number that is used; nobody could run a model outside of it.
RANGES: Mapping[str, tuple[float, float]] = {
    "vocab_size": (1, 2**24),
    "hidden_size": (1, 2**17),
    "intermediate_size": (1, 2**19),
    "num_hidden_layers": (1, 1024),
    "num_attention_heads": (1, 2**12),
    "num_key_value_heads": (1, 2**12),
    "rms_norm_eps": (1e-12, 1),
    "rope_theta": (1, 1e12),
    "scale_emb": (1e-6, 1e6),
    "scale_depth": (1e-6, 1e6),
    "dim_model_base": (1, 2**17),
    "bos_token_id": (0, 2**24),  # and inside the vocabulary
    "eos_token_id": (0, 2**24),
    "max_position_embeddings": (1, 2**31),
    "image_size": (1, 4096),  # pixels
    "patch_size": (1, 1024),  # pixels
    "query_num": (1, 4096),
    "scale_resolution": (1, 4096),  # pixels
    "max_slice_nums": (1, 1024),
    "slice_start_token_id": (0, 2**24),  # and inside the vocabulary
    "slice_end_token_id": (0, 2**24),
    "embed_dim": (1, 2**17),
    "depth": (1, 1024),
    "num_heads": (1, 2**12),
    "mlp_hidden_dim": (1, 2**19),
    "kv_dim": (1, 2**17),
    "norm_eps": (1e-12, 1),
}


def check_range(name: str, value: float) -> None:
    """Raises ConfigError where a number is out of its range; one without a range is not known."""
    least, most = RANGES[name]
    if not least <= value <= most:  # NaN is in no range
        raise ConfigError(f"{name} is {shown(value)}; expected a number from {least} to {most}")


def shown(value: Any) -> str:
    """Returns a value as a message shows it: not all of a number of 300 digits."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


class ConfigReader:
    """Reads keys with their types, and remembers which were never read.

    A key that is null counts as missing.
    """

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self._raw = raw
        self._taken: set[str] = set()

    def has(self, key: str) -> bool:
        """Says whether a key has a value."""
        return self._raw.get(key) is not None

    def take(self, key: str, kind: type, default: Any = None) -> Any:
        """Returns a value of `kind`, a number inside its range; without a default it is needed.

        Raises:
            ConfigError: missing, of another type, or out of its range.
        """
        self._taken.add(key)
        value = self._raw.get(key)
        value = default if value is None else value
        if value is None:
            raise ConfigError(f"key {key!r} is missing; is this a MiniCPM-V config.json?")
        if not _is(value, kind):
            raise ConfigError(f"key {key!r} is {shown(value)}; expected {kind.__name__}")
        if kind in (int, float):
            check_range(key, value)
        return float(value) if kind is float else value

    def optional(self, key: str, kind: type) -> Any:
        """Returns a value as `take` does, or None where there is none."""
        self._taken.add(key)
        return self.take(key, kind) if self.has(key) else None

    def finish(self) -> None:
        """Refuses keys that nobody asked for, and values of `NEUTRAL` that change something."""
        for key in sorted(set(self._raw) & set(NEUTRAL)):
            value, (neutral, why) = self._raw[key], NEUTRAL[key]
            same = value == neutral and isinstance(value, bool) == isinstance(neutral, bool)
            if value is not None and not same:
                only = "null" if neutral is None else repr(neutral)
                raise ConfigError(f"key {key!r} is {shown(value)}; only {only} works: {why}")
        unknown = sorted(set(self._raw) - self._taken - IGNORED - set(NEUTRAL))
        if unknown:
            names = ", ".join(f"{name!a:.40}"[1:-1] for name in unknown[:8])
            raise ConfigError(f"unknown keys {names}: what do they change?")


def _is(value: Any, kind: type) -> bool:
    if kind in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if kind is float else kind)
