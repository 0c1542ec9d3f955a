"""The licence of a checkpoint's weights, as far as its files say."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.bundle.folder_manifest import CARD
from convert.support.markdown import code
from convert.support.regular_file import require_regular

_IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")  # of the hub's list, such as `cc-by-4.0`
_LINK = re.compile(r"https?://[^\s<>()\[\]`|\\\"']{1,300}|LICENSE(\.md|\.txt)?")
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

    def front_matter(self) -> dict[str, str]:
        """Returns the keys of a card's header, in the form that the hub accepts.

        The hub refuses a card whose licence is no identifier of its list. It calls a licence that
        nobody named `unknown`, and one with a name of its own `other`.
        """
        name, own, link = (
            self.names.get(key) for key in ("license", "license_name", "license_link")
        )
        if not name:
            return {"license": "unknown"}
        if not _IDENTIFIER.fullmatch(name):
            name, own = "other", own or name
        values = {"license": name}
        if own:
            values["license_name"] = (
                re.sub(r"[^a-z0-9.]+", "-", own.lower())[:64].strip("-") or "own"
            )
        if link and _LINK.fullmatch(link):
            values["license_link"] = link
        return values

    def describe(self) -> str:
        """Returns in Markdown what is known."""
        named = self.names.get("license_name") or self.names.get("license")
        parts = []
        if named:
            link = self.names.get("license_link")
            where = "" if not link else f" ({link if _LINK.fullmatch(link) else code(link)})"
            parts.append(f"The checkpoint's card names {code(named)}{where}.")
        if self.files:
            files = ", ".join(code(name) for name in self.files)
            parts.append(f"The checkpoint's folder has {files}, which may have to come along.")
        if not parts:
            parts.append("The checkpoint's files do not say; ask where it comes from.")
        return " ".join(parts)
