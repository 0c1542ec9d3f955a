"""`README.md` of a bundle: a model card in the form of the Hugging Face hub.

The manifest does not list it, so that `verify --card` can add its figures without altering the
bundle. A mark in it tells a card of ours from a file of somebody else's.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.bundle.errors import BundleError
from convert.bundle.folder_manifest import CARD
from convert.bundle.kv_cache import describe_kv
from convert.bundle.manifest import MANIFEST, WEIGHTS, Bundle
from convert.bundle.targets import HOST
from convert.checkpoint.hub import is_hub_id
from convert.support.console import Size
from convert.support.regular_file import require_regular
from convert.support.versions import TOOLKIT, VERSION
from convert.support.whole_file import whole_file

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Licence:
    """What a checkpoint's files say of the weights' licence."""

    names: dict[str, Any]  # of its own card: license, license_name, license_link
    files: tuple[str, ...]  # that look like its text

    @staticmethod
    def of(folder: Path) -> Licence:
        """Reads a checkpoint's folder; what is not said there is not known."""
        found = (p.name for p in folder.iterdir() if p.is_file())
        texts = sorted(n for n in found if n.upper().startswith(("LICENSE", "LICENCE", "COPYING")))
        card, names = folder / CARD.name, {}
        try:
            require_regular(card)
            from huggingface_hub import metadata_load  # loads an HTTP library

            front = metadata_load(card) or {}
            keys = ("license", "license_name", "license_link")
            names = {key: front[key] for key in keys if isinstance(front.get(key), str)}
        except FileNotFoundError:
            pass
        except Exception as error:  # somebody else's YAML can be wrong in any way
            _LOG.warning("%s: its licence cannot be read: %s", card, f"{error}".splitlines()[0])
        return Licence(names, tuple(texts))


@dataclass(frozen=True)
class Accuracy:
    """What verify found, in words."""

    verdict: str  # one sentence
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def check_card(folder: Path) -> None:
    """Checks that a bundle's card can be written.

    Raises:
        BundleError: there is a README that is none of our cards.
    """
    path = folder / CARD.name
    if os.path.lexists(path) and not CARD.is_ours(path):
        raise BundleError(f"{path}: not a card of minicpmv's, and would be replaced; move it away")


def write_card(bundle: Bundle, licence: Licence, accuracy: Accuracy | None = None) -> None:
    """Writes a bundle's card in the place of the one before.

    Args:
        bundle: that it describes.
        licence: of the weights.
        accuracy: what verify found; None: nothing yet.

    Raises:
        BundleError: see `check_card`.
    """
    check_card(bundle.path)
    with whole_file(bundle.path / CARD.name) as file:
        file.write_text(_front_matter(bundle, licence) + _text(bundle, licence, accuracy), "utf-8")


def _front_matter(bundle: Bundle, licence: Licence) -> str:
    from huggingface_hub import ModelCardData  # loads an HTTP library

    source, values = bundle.manifest.source.path, dict[str, Any](licence.names)
    if is_hub_id(source):
        values |= {"base_model": source, "base_model_relation": "quantized"}
    values["language"] = ["en", "zh"]
    values["tags"] = ["minicpm-v", "quantized", "on-device", *["android"] * _is_for_phones(bundle)]
    with_pictures = bundle.config.vision is not None
    values["pipeline_tag"] = "image-text-to-text" if with_pictures else "text-generation"
    return f"---\n{ModelCardData(library_name=TOOLKIT, **values).to_yaml()}\n---\n"


def _text(bundle: Bundle, licence: Licence, accuracy: Accuracy | None) -> str:
    manifest, recipe = bundle.manifest, bundle.plan.recipe.scheme.name
    name = _name(bundle)
    made_with = f"`minicpmv convert` {manifest.tools.get(TOOLKIT, VERSION)}"
    about = "pictures and text" if bundle.config.vision is not None else "text"
    files = sorted(manifest.files.items(), key=lambda item: (item[0] != WEIGHTS, item[0]))
    found = (
        "Not measured yet: `minicpmv verify DIR --card` compares the bundle with the "
        "full-precision checkpoint, and writes the figures here."
    )
    if accuracy is not None:
        found = f"{accuracy.verdict}\n\n{_table(accuracy.header, accuracy.rows)}"
    sections = [
        CARD.mark,
        f"# {name}, {recipe}",
        f"{manifest.architecture} as a bundle for phones and PCs: quantized weights, and a "
        f"compiled engine per target, which answers about {about} offline. Made with {made_with}.",
        "## What it is",
        _table(["", ""], _facts(bundle)),
        _table(["file", "size"], [[f"`{n}`", str(Size(record.size))] for n, record in files]),
        f"`{MANIFEST}` has the format of every tensor and the SHA-256 of every file.",
        "## Run it",
        _commands(bundle),
        "## Accuracy",
        found,
        "## Licence of the weights",
        _licence(licence),
        "## Upload it",
        "```sh\nhf auth login\nhf upload USER/NAME DIR .\n```",
        "The hub shows this card. Whether the weights may be passed on, their licence says.",
    ]
    return "\n\n".join(sections) + "\n"


def _facts(bundle: Bundle) -> list[list[str]]:
    plan, source = bundle.plan, bundle.manifest.source
    kv = describe_kv(plan.kv, bundle.config.decoder)
    return [
        ["made from", f"`{_name(bundle)}`, SHA-256 `{source.sha256}`"],
        ["recipe", f"`{plan.recipe.scheme.name}`, method `{plan.recipe.method}`"],
        ["weights", f"{Size(plan.nbytes)}, {plan.bits_per_weight:.2f} bits per weight"],
        ["KV cache", f"{kv['format']}, {kv['bytes_per_token']:,} bytes per token"],
        ["targets", ", ".join(f"`{target}`" for target in bundle.manifest.targets)],
    ]


def _name(bundle: Bundle) -> str:
    """Returns the checkpoint's name; of a local folder nothing but its last part is anybody's."""
    return bundle.manifest.source.path.rstrip("/").rpartition("/")[2] or "checkpoint"


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


def _licence(licence: Licence) -> str:
    named = licence.names.get("license_name") or licence.names.get("license")
    parts = []
    if named:
        link = licence.names.get("license_link")
        parts.append(f"The checkpoint's card names `{named}`{f' ({link})' if link else ''}.")
    if licence.files:
        files = ", ".join(f"`{name}`" for name in licence.files)
        parts.append(f"The checkpoint's folder has {files}, which may have to come along.")
    if not parts:
        parts.append("The checkpoint's files do not say; ask where it comes from.")
    return " ".join(parts)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in lines)
