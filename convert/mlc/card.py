"""The card of a package for MLC-LLM."""

from __future__ import annotations

from pathlib import Path

from convert.bundle.card import Card
from convert.bundle.kv_cache import FP16, describe_kv
from convert.checkpoint.config import ModelConfig
from convert.mlc.compilers import command_for_later, library_name
from convert.mlc.manifest import MANIFEST, PackageManifest
from convert.mlc.square import cut_square
from convert.support.console import Size, megabytes
from convert.support.markdown import code

_ANDROID, _HOST = "mlc-android", "mlc-host"
_PC_DEVICES = {_HOST: "cpu", "mlc-opencl": "opencl"}  # as `mlc_llm chat` calls them
_SOURCES = "https://github.com/mlc-ai/mlc-llm"
_ANDROID_PAGE = "https://llm.mlc.ai/docs/deploy/android.html"


def package_card(manifest: PackageManifest) -> Card:
    """Returns what a package's card says."""
    config, sees = ModelConfig.from_json(manifest.model), manifest.pictures
    kv = describe_kv(FP16, config.decoder)
    bits = 8 * manifest.weights_bytes / max(manifest.parameters, 1)
    libraries = {record.file for record in manifest.libraries.values()}
    names = sorted(manifest.files, key=lambda name: (name not in libraries, name))
    part = config.architecture if sees else f"The decoder of {config.architecture}"
    return Card(
        source=manifest.source,
        form=f"{manifest.quantization} for MLC-LLM",
        about=f"{part} as a package for [MLC-LLM]({_SOURCES}), which runs it offline on the GPU of "
        f"a phone or a PC. It takes {'pictures and text' if sees else 'text, no pictures'}.",
        tools=manifest.tools,
        relation="quantized",
        library="mlc-llm",
        task="image-text-to-text" if sees else "text-generation",
        tags=[
            "minicpm-v",
            "quantized",
            "on-device",
            *["android"] * (_ANDROID in manifest.libraries),
        ],
        facts=[
            ["recipe", f"{code(manifest.recipe)}, method {code(manifest.method)}"],
            ["number format", f"{code(manifest.quantization)} of MLC-LLM"],
            ["weights", f"{Size(manifest.weights_bytes)}, {bits:.2f} bits per weight"],
            ["KV cache", f"{kv['format']}, {kv['bytes_per_token']:,} bytes per token"],
            ["tokenizer", _tokenizer(manifest)],
            *(_library(manifest, target) for target in manifest.libraries),
        ],
        files={name: manifest.files[name].size for name in names},
        manifest=f"`{MANIFEST}` has the SHA-256 of every file.",
        run=_run(manifest),
        unmeasured=_unmeasured(manifest),
    )


def _tokenizer(manifest: PackageManifest) -> str:
    if manifest.why_no_tokenizer_json is None:
        return "`tokenizer.json` and `tokenizer.model`, with the same ids"
    return f"no `tokenizer.json`: {code(manifest.why_no_tokenizer_json)}"


def _library(manifest: PackageManifest, target: str) -> list[str]:
    record = manifest.libraries[target]
    says = f"{code(record.file)}, compiled by MLC-LLM {code(record.mlc_llm)}"
    if record.temporary_bytes is not None:
        says += f"; takes {megabytes(record.temporary_bytes)} beside weights and KV cache"
    return [f"library, {code(target)}", says]


def _run(manifest: PackageManifest) -> str:
    parts = []
    if not manifest.libraries:
        command = command_for_later(_ANDROID, Path("DIR"), None)
        parts.append(
            f"The library is not compiled yet. Where MLC-LLM is installed:\n\n{_sh(command)}"
        )
    for target, device in _PC_DEVICES.items():
        # A stock MLC-LLM has the tokenizer and the turns of a text; a picture needs an app.
        if target in manifest.libraries and not manifest.pictures:
            library = library_name(target, pictures=False)
            command = f"mlc_llm chat DIR --model-lib DIR/{library} --device {device}"
            parts.append(f"On a PC, where MLC-LLM is installed:\n\n{_sh(command)}")
    parts.append(
        f"On a phone: build MLC-LLM's Android app as [its documentation]({_ANDROID_PAGE}) "
        "describes, with the weights and the library of this folder in place of its own."
    )
    square = cut_square(ModelConfig.from_json(manifest.model))
    if manifest.pictures and square is not None:
        parts.append(_run_slices(square, manifest))
    elif manifest.pictures:
        parts.append(
            "The library alone knows the vision encoder; MLC-LLM itself does not. The app has to "
            "scale a picture to the model's size, and to send the parts of a message in this "
            "order: the text `<image>`, the picture, and the text `</image>`, a newline and the "
            "question."
        )
    return "\n\n".join(parts)


def _run_slices(side: int, manifest: PackageManifest) -> str:
    start, end = map(code, manifest.slice_tags or ("<slice>", "</slice>"))
    return f"""The library alone knows the vision encoder; MLC-LLM itself does not. A picture
becomes an overview and, where it is large, slices of it. The app has to cut it, and to scale each
image to {side} x {side} pixels, since MLC-LLM takes images of one size. The model itself keeps an
image's shape: what this package computes of an image that is no square differs from it.

The parts of a message are texts and images. An overview alone is sent as the text `<image>`, the
picture, and the text `</image>`, a newline and the question. With two rows of two slices the parts
are these, each image a part of its own, each text without spaces at its ends:

```text
<image> OVERVIEW </image><slice><image> SLICE </image><image> SLICE </image>
<image> SLICE </image><image> SLICE </image></slice>
QUESTION
```

A newline stands between the rows of slices and before the question, and nowhere else. The tags
around all slices are pieces of the tokenizer, which it spells {start} and {end}. An image takes 66
tokens of the window."""


def _unmeasured(manifest: PackageManifest) -> str:
    if _HOST in manifest.libraries:
        return (
            "Not measured yet: `minicpmv verify DIR --engine mlc --card` compares the package with "
            "the full-precision checkpoint, and writes the figures here."
        )
    return (
        f"Not measured yet. `minicpmv verify DIR --engine mlc --card` does it for a package with a "
        f"library for the PC's processor: `minicpmv convert` with `--target {_HOST}`."
    )


def _sh(command: str) -> str:
    return f"```sh\n{command}\n```"
