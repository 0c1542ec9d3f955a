"""The ids that MLC-LLM makes of a conversation, by the package's own template and tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convert.checkpoint.tokenizer_file import open_tokenizer
from runtime.inputs.prompt import IMAGE_END, IMAGE_START, UNKNOWN_ID, Message, Prompt


def package_prompt(
    template: Mapping[str, Any], tokenizer: Path, messages: Sequence[Message], image_tokens: int
) -> Prompt:
    """Puts turns together as MLC-LLM does, and tokenizes what stands before and after a picture.

    Args:
        template: `conv_template` of `mlc-chat-config.json`.
        tokenizer: the package's SentencePiece model.
        messages: turns of user and assistant in turn.
        image_tokens: of the picture in the first turn; 0 without one. The text parts around it are
            those that an app has to send: see `convert/mlc/README.md`.
    """
    parts = [""]
    for i, message in enumerate(messages):
        role = message["role"]
        content = template["role_templates"][role].replace(
            f"{{{role}_message}}", message["content"]
        )
        parts[-1] += template["roles"][role] + template["role_content_sep"]
        if image_tokens and i == 0:
            parts[-1] += IMAGE_START
            parts.append(f"{IMAGE_END}\n")
        parts[-1] += content + template["seps"][i % len(template["seps"])]
    parts[-1] += template["roles"]["assistant"] + template["role_empty_sep"]
    pieces = open_tokenizer(tokenizer)
    ids = [*template["system_prefix_token_ids"], *pieces.encode(parts[0])]
    if len(parts) == 1:
        return Prompt(ids, None)
    start = len(ids)
    return Prompt([*ids, *[UNKNOWN_ID] * image_tokens, *pieces.encode(parts[1])], start)
