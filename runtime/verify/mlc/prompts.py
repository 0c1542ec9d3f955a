"""The ids that MLC-LLM makes of a conversation, by the package's own template and tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from convert.checkpoint.tokenizer_file import open_tokenizer
from convert.mlc.opened import MlcPackage
from convert.mlc.tokenizer_json import open_tokenizer_json
from runtime.inputs.prompt import UNKNOWN_ID, Message, Prompt

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
    template: Mapping[str, Any],
    encode: Encode,
    messages: Sequence[Message],
    image_tokens: int,
    around: Sequence[str] = (),
) -> Prompt:
    """Puts turns together as MLC-LLM does, and tokenizes what stands around a picture's images.

    Args:
        template: `conv_template` of `mlc-chat-config.json`.
        encode: see `package_encode`.
        messages: turns of user and assistant in turn.
        image_tokens: of each image of the picture in the first turn.
        around: the text parts around its images, which an app has to send: see
            `convert.mlc.square.message_parts`; none without a picture.
    """
    parts = [""]
    for i, message in enumerate(messages):
        role = message["role"]
        content = template["role_templates"][role].replace(
            f"{{{role}_message}}", message["content"]
        )
        parts[-1] += template["roles"][role] + template["role_content_sep"]
        if around and i == 0:
            parts[-1] += around[0]
            parts += around[1:]
        parts[-1] += content + template["seps"][i % len(template["seps"])]
    parts[-1] += template["roles"]["assistant"] + template["role_empty_sep"]
    ids, starts = [*template["system_prefix_token_ids"], *encode(parts[0])], []
    for part in parts[1:]:
        starts.append(len(ids))
        ids += [UNKNOWN_ID] * image_tokens + encode(part)
    return Prompt(ids, starts[0] if starts else None, tuple(starts[1:]))
