"""The ids that MLC-LLM makes of a conversation, by the package's own template and tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from convert.checkpoint.tokenizer_file import open_tokenizer
from convert.mlc.opened import MlcPackage
from convert.mlc.tokenizer_json import open_tokenizer_json
from runtime.inputs.prompt import IMAGE_END, IMAGE_START, UNKNOWN_ID, Message, Prompt

Encode = Callable[[str], list[int]]


def package_encode(package: MlcPackage) -> Encode:
    """Returns what gives a text's ids as MLC-LLM does: it prefers `tokenizer.json`.

    Raises:
        BundleError: the file is damaged.
    """
    if package.tokenizer_json is not None:
        tokenizer = open_tokenizer_json(package.tokenizer_json)
        return lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)
    assert package.tokenizer is not None, "opened with one"
    pieces = open_tokenizer(package.tokenizer)
    return lambda text: list(pieces.encode(text))


def package_prompt(
    template: Mapping[str, Any], encode: Encode, messages: Sequence[Message], image_tokens: int
) -> Prompt:
    """Puts turns together as MLC-LLM does, and tokenizes what stands before and after a picture.

    Args:
        template: `conv_template` of `mlc-chat-config.json`.
        encode: see `package_encode`.
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
    ids = [*template["system_prefix_token_ids"], *encode(parts[0])]
    if len(parts) == 1:
        return Prompt(ids, None)
    start = len(ids)
    return Prompt([*ids, *[UNKNOWN_ID] * image_tokens, *encode(parts[1])], start)
