"""Text of two kinds, as sequences of token ids: what calibration sees, and what is held out.

Prose is the documentation in Django's source archive (BSD); every third file is held out, the
others are calibrated on. The other kind is Debian's common licences, none of which is calibrated
on.
"""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from convert.support.cache import cache_folder, pinned_file
from quantize.errors import ToolkitError
from tests.bench import llama_build

ARCHIVE = "Django-5.2.tar.gz"
SHA256 = "1a47f7a7a3d43ce64570d350e008d2949abe8c7e21737b351b6a1611277c6d89"
LICENCES = Path("/usr/share/common-licenses")
LENGTH = 256  # tokens of a sequence
SAMPLES, PROSE, OTHER = 128, 24, 16  # sequences
_FOLDERS = ("docs/topics", "docs/howto", "docs/intro")
_CHOSEN = ("Apache-2.0", "GFDL-1.3", "GPL-2", "GPL-3", "LGPL-2.1", "MPL-2.0")

Ids = list[list[int]]


@dataclass(frozen=True)
class Texts:
    """Sequences of `LENGTH` token ids."""

    samples: Ids
    held_out: dict[str, Ids]  # by kind


def load(tokenizer: Tokenizer) -> Texts:
    """Fetches and tokenizes the texts.

    Raises:
        ToolkitError: a download failed, or Debian's licences are not here.
    """
    path = pinned_file(cache_folder() / "text" / ARCHIVE, SHA256, _fetch)
    pages = _pages(path)
    names = sorted(pages)
    held = [pages[name] for i, name in enumerate(names) if i % 3 == 2]
    used = [pages[name] for i, name in enumerate(names) if i % 3 != 2]
    if not LICENCES.is_dir():
        raise ToolkitError(f"{LICENCES}: not here; the benchmark needs Debian's licence texts")
    other = [(LICENCES / name).read_text("utf-8") for name in _CHOSEN]
    return Texts(
        cut(tokenizer, used, SAMPLES),
        {"prose": cut(tokenizer, held, PROSE), "licences": cut(tokenizer, other, OTHER)},
    )


def cut(tokenizer: Tokenizer, texts: Sequence[str], count: int) -> Ids:
    """Cuts texts into sequences, and takes `count` of them, evenly spaced."""
    whole: Ids = []
    for text in texts:
        ids = tokenizer.encode(text).ids
        whole += [ids[i : i + LENGTH] for i in range(0, len(ids) - LENGTH + 1, LENGTH)]
    return [whole[i * len(whole) // count] for i in range(count)]


def _pages(path: Path) -> dict[str, str]:
    pages = {}
    with tarfile.open(path) as archive:
        for member in archive:
            inside = member.name.partition("/")[2]
            if inside.endswith(".txt") and inside.startswith(_FOLDERS):
                file = archive.extractfile(member)
                assert file is not None, "a regular file"
                pages[inside] = file.read().decode()
    return pages


def _fetch(folder: Path) -> Path:
    name, _, version = ARCHIVE.removesuffix(".tar.gz").partition("-")
    llama_build.download(f"{name}=={version}", folder, "--no-binary", ":all:")
    return folder / ARCHIVE
