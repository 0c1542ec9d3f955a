"""The card of a bundle."""

from __future__ import annotations

from convert.bundle.card import Card
from convert.bundle.kv_cache import describe_kv
from convert.bundle.manifest import MANIFEST, WEIGHTS, Bundle
from convert.bundle.targets import HOST
from convert.support.console import Size
from convert.support.markdown import code
from convert.support.versions import TOOLKIT


def bundle_card(bundle: Bundle) -> Card:
    """Returns what a bundle's card says."""
    manifest, plan = bundle.manifest, bundle.plan
    vision = bundle.config.vision
    sees = vision is not None
    kv = describe_kv(plan.kv, bundle.config.decoder)
    names = sorted(manifest.files, key=lambda name: (name != WEIGHTS, name))
    recipe, about = plan.recipe, "pictures and text" if sees else "text"
    return Card(
        source=manifest.source,
        form=recipe.scheme.name,
        about=f"{manifest.architecture} as a bundle for phones and PCs: quantized weights, and a "
        f"compiled engine per target, which answers about {about} offline.",
        tools=manifest.tools,
        relation="quantized",
        library=TOOLKIT,
        task="image-text-to-text" if sees else "text-generation",
        tags=["minicpm-v", "quantized", "on-device", *["android"] * _is_for_phones(bundle)],
        facts=[
            ["recipe", f"{code(recipe.scheme.name)}, method {code(recipe.method)}"],
            ["weights", f"{Size(plan.nbytes)}, {plan.bits_per_weight:.2f} bits per weight"],
            ["KV cache", f"{kv['format']}, {kv['bytes_per_token']:,} bytes per token"],
            *([] if vision is None else [["pictures", vision.images]]),
            ["targets", ", ".join(code(target) for target in manifest.targets)],
        ],
        files={name: manifest.files[name].size for name in names},
        manifest=f"`{MANIFEST}` has the format of every tensor and the SHA-256 of every file.",
        run=_commands(bundle),
        unmeasured="Not measured yet: `minicpmv verify DIR --card` compares the bundle with the "
        "full-precision checkpoint, and writes the figures here.",
    )


def _is_for_phones(bundle: Bundle) -> bool:
    return any(target.startswith("android") for target in bundle.manifest.targets)


def _commands(bundle: Bundle) -> str:
    lines = []
    if HOST in bundle.manifest.targets:
        lines += ["minicpmv chat DIR          # on this PC, in the terminal; --web in a browser"]
    if _is_for_phones(bundle):
        lines += [
            "minicpmv apk DIR           # an app for phones",
            "minicpmv sideload          # installs it over USB, with the weights",
        ]
    lines += ["minicpmv verify DIR        # compares it with the full-precision checkpoint"]
    return "```sh\n" + "\n".join(lines) + "\n```"
