"""Names that MLC-LLM knows, and ours among them."""

from __future__ import annotations

CHAT_CONFIG = "mlc-chat-config.json"
TOKENIZER_JSON = "tokenizer.json"  # taken in place of tokenizer.model
SCHEME = "q4f16_1"  # the one of MLC-LLM's schemes that we write
TEXT_MODEL = "minicpm"  # MLC-LLM's own model type
PICTURE_MODEL = "minicpm_v"  # that of `convert.mlc.minicpm_v`, plugged into MLC-LLM
