"""Text of three kinds, as sequences of token ids: what calibration sees, and what is held out.

Prose is the documentation in Django's source archive (BSD); every third file is held out, the
others are calibrated on. The other kinds, none of which is calibrated on, are Debian's common
licences and the source of Python's standard library. In place of Django's documentation, the
toolkit's built-in calibration texts can be calibrated on: then all three kinds are new.
"""

from __future__ import annotations

import sysconfig
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from convert.calibrate.built_in import default_samples
from convert.support.cache import cache_folder, pinned_file
from quantize.errors import ToolkitError
from tests.bench import llama_build

ARCHIVE = "Django-5.2.tar.gz"
SHA256 = "1a47f7a7a3d43ce64570d350e008d2949abe8c7e21737b351b6a1611277c6d89"
LICENCES = Path("/usr/share/common-licenses")
LENGTH = 256  # tokens of a sequence
SAMPLES, PROSE, OTHER = 128, 24, 16  # sequences
DJANGO, BUILT_IN = "django", "built-in"  # what can be calibrated on
_FOLDERS = ("docs/topics", "docs/howto", "docs/intro")
_CHOSEN = ("Apache-2.0", "GFDL-1.3", "GPL-2", "GPL-3", "LGPL-2.1", "MPL-2.0")
_MODULES = ("argparse.py", "csv.py", "heapq.py", "statistics.py", "tarfile.py", "textwrap.py")

Ids = list[list[int]]


@dataclass(frozen=True)
class Texts:
    """Sequences of `LENGTH` token ids; the built-in samples are as long as they are."""

    samples: Ids
    held_out: dict[str, Ids]  # by kind


def load(tokenizer: Tokenizer, calibration: str = DJANGO, samples: int = SAMPLES) -> Texts:
    """Fetches and tokenizes the texts.

    Args:
        tokenizer: the model's.
        calibration: what is calibrated on, `DJANGO` or `BUILT_IN`.
        samples: how much of it, in sequences of `LENGTH` tokens.

    Raises:
        ToolkitError: a download failed, or Debian's licences are not here.
    """
    path = pinned_file(cache_folder() / "text" / ARCHIVE, SHA256, _fetch)
    documentation = pages(path)
    names = sorted(documentation)
    held = [documentation[name] for i, name in enumerate(names) if i % 3 == 2]
    used = [documentation[name] for i, name in enumerate(names) if i % 3 != 2]
    if not LICENCES.is_dir():
        raise ToolkitError(f"{LICENCES}: not here; the benchmark needs Debian's licence texts")
    other = [(LICENCES / name).read_text("utf-8") for name in _CHOSEN]
    library = Path(sysconfig.get_path("stdlib"))
    code = [(library / name).read_text("utf-8") for name in _MODULES]
    return Texts(
        built_in(tokenizer, samples * LENGTH)
        if calibration == BUILT_IN
        else cut(tokenizer, used, SAMPLES)[:samples],
        {
            "prose": cut(tokenizer, held, PROSE),
            "licences": cut(tokenizer, other, OTHER),
            "code": cut(tokenizer, code, OTHER),
        },
    )


def built_in(tokenizer: Tokenizer, tokens: int) -> Ids:
    """Returns the built-in calibration texts in their order, as many as make up `tokens`."""
    found: Ids = []
    for sample in default_samples(demo=None, pictures=False):
        turns = [message["content"] for message in sample.messages]
        ids = tokenizer.encode("\n".join([*turns, sample.answer])).ids[:tokens]
        tokens -= len(ids)
        if ids:
            found.append(ids)
    return found


def cut(tokenizer: Tokenizer, texts: Sequence[str], count: int) -> Ids:
    """Cuts texts into sequences, and takes `count` of them, evenly spaced."""
    whole: Ids = []
    for text in texts:
        ids = tokenizer.encode(text).ids
        whole += [ids[i : i + LENGTH] for i in range(0, len(ids) - LENGTH + 1, LENGTH)]
    return [whole[i * len(whole) // count] for i in range(count)]


def pages(path: Path) -> dict[str, str]:
    """Returns the documentation in Django's source archive, by the names of its files."""
    found = {}
    with tarfile.open(path) as archive:
        for member in archive:
            inside = member.name.partition("/")[2]
            if inside.endswith(".txt") and inside.startswith(_FOLDERS):
                file = archive.extractfile(member)
                assert file is not None, "a regular file"
                found[inside] = file.read().decode()
    return found


def _fetch(folder: Path) -> Path:
    name, _, version = ARCHIVE.removesuffix(".tar.gz").partition("-")
    llama_build.download(f"{name}=={version}", folder, "--no-binary", ":all:")
    return folder / ARCHIVE
