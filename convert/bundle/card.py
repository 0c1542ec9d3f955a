"""`README.md` of what `convert` makes: a model card in the form of the Hugging Face hub.

The manifests do not list it, so that `verify --card` can add its figures without altering what they
describe. A mark in it tells a card of ours from a file of somebody else's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.bundle.errors import BundleError
from convert.bundle.folder_manifest import CARD
from convert.bundle.licence import Licence
from convert.bundle.manifest import BundleSource
from convert.checkpoint.hub import is_hub_id
from convert.support.console import Size
from convert.support.markdown import code, table, text
from convert.support.versions import TOOLKIT, VERSION
from convert.support.whole_file import whole_file

_LANGUAGES = ("en", "zh")  # of the model


@dataclass(frozen=True)
class Accuracy:
    """What a comparison with the full-precision model found, in words."""

    verdict: str  # Markdown
    header: Sequence[str]
    rows: Sequence[Sequence[str]]  # plain texts


@dataclass(frozen=True, kw_only=True)
class Card:
    """What the cards of a bundle, a package for MLC-LLM and an ONNX export differ in.

    Texts are Markdown; those from a manifest went through `convert.support.markdown`.
    """

    source: BundleSource
    form: str  # of the model, behind its name in the title; a plain text
    about: str  # what it is, in a sentence or two
    tools: Mapping[str, str]  # versions of what made it
    relation: str | None  # to the checkpoint, in the hub's words, where it has one
    library: str  # that runs it: a key of the hub
    task: str  # a key of the hub
    tags: Sequence[str]
    facts: Sequence[Sequence[str]]  # rows of name and value, without those of the source
    files: Mapping[str, int]  # size in bytes by name, in the order to show
    manifest: str  # a sentence about the file that lists the others
    run: str  # the section that says how
    unmeasured: str  # the section on accuracy until something was measured


def check_card(folder: Path) -> None:
    """Checks that a folder's card can be written.

    Raises:
        BundleError: there is a README that is none of our cards.
    """
    path = folder / CARD.name
    if os.path.lexists(path) and not CARD.is_ours(path):
        raise BundleError(f"{path}: not a card of minicpmv's, and would be replaced; move it away")


def write_card(
    folder: Path, card: Card, licence: Licence, accuracy: Accuracy | None = None
) -> None:
    """Writes a folder's card in the place of the one before.

    Args:
        folder: that it describes.
        card: what it says.
        licence: of the weights.
        accuracy: what a comparison found; None: nothing yet.

    Raises:
        BundleError: see `check_card`.
    """
    check_card(folder)
    with whole_file(folder / CARD.name) as file:
        file.write_text(_front_matter(card, licence) + _text(card, licence, accuracy), "utf-8")


def _front_matter(card: Card, licence: Licence) -> str:
    from huggingface_hub import ModelCardData  # loads an HTTP library

    values: dict[str, Any] = {**licence.front_matter()}
    if is_hub_id(card.source.path) and card.source.path.isascii():
        values["base_model"] = card.source.path
        if card.relation is not None:
            values["base_model_relation"] = card.relation
    values |= {"language": list(_LANGUAGES), "tags": list(card.tags), "pipeline_tag": card.task}
    return f"---\n{ModelCardData(library_name=card.library, **values).to_yaml()}\n---\n"


def _text(card: Card, licence: Licence, accuracy: Accuracy | None) -> str:
    name = _name(card.source)
    made_from = ["made from", f"{code(name)}, SHA-256 {code(card.source.sha256)}"]
    found = card.unmeasured
    if accuracy is not None:
        rows = [[text(cell) for cell in row] for row in accuracy.rows]
        found = f"{accuracy.verdict}\n\n{table([text(cell) for cell in accuracy.header], rows)}"
    files = [[code(name), str(Size(size))] for name, size in card.files.items()]
    sections = [
        CARD.mark,
        f"# {text(name)}, {text(card.form)}",
        f"{card.about} Made with `minicpmv convert` {text(card.tools.get(TOOLKIT, VERSION))}.",
        "## What it is",
        table(["", ""], [made_from, *card.facts]),
        table(["file", "size"], files),
        card.manifest,
        "## Run it",
        card.run,
        "## Accuracy",
        found,
        "## Licence of the weights",
        licence.describe(),
        "## Upload it",
        "```sh\nhf auth login\nhf upload USER/NAME DIR .\n```",
        "The hub shows this card. Whether the weights may be passed on, their licence says.",
    ]
    return "\n\n".join(sections) + "\n"


def _name(source: BundleSource) -> str:
    """Returns the checkpoint's name; of a local folder nothing but its last part is anybody's."""
    return source.path.rstrip("/").rpartition("/")[2] or "checkpoint"
