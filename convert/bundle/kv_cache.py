"""The kinds of KV cache that a decoder can be converted for, and their size per token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from convert.checkpoint.config import DecoderConfig
from quantize.errors import ConfigError

FP16, INT8 = "fp16", "int8"


@dataclass(frozen=True)
class KVFormat:
    """A storage format of keys and values."""

    value_bytes: int  # per element of a key or value
    scale_bytes: int  # per token and head, once for the key and once for the value

    def token_bytes(self, c: DecoderConfig) -> int:
        """Returns the bytes that a token takes in all layers."""
        per_head = c.head_dim * self.value_bytes + self.scale_bytes
        return 2 * c.num_hidden_layers * c.num_key_value_heads * per_head


KV_FORMATS = {
    FP16: KVFormat(value_bytes=2, scale_bytes=0),
    INT8: KVFormat(value_bytes=1, scale_bytes=4),
}


def describe_kv(name: str, c: DecoderConfig) -> dict[str, Any]:
    """Returns a cache's format and its bytes per token, as JSON values."""
    return {"format": name, "bytes_per_token": find_kv_format(name).token_bytes(c)}


def find_kv_format(name: str) -> KVFormat:
    """Returns a KV-cache format by its name.

    Raises:
        ConfigError: there is no such format.
    """
    if name not in KV_FORMATS:
        raise ConfigError(f"KV cache {name!r:.40} is unknown; known: {', '.join(KV_FORMATS)}")
    return KV_FORMATS[name]
