"""A checkout of MLC-LLM's source: what it must hold, and which commit it is.

The checkout is the user's. Nothing of it is copied, and nothing is written into it; its Python
code runs in a process of its own (`convert.mlc.launch`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from convert.support.regular_file import read_regular
from quantize.errors import ConfigError

# The commits whose compiler was tried with the pinned apache-tvm.
TESTED_COMMITS = ("79d603f085f50500e9509fa01785ffa7ecfaaa93",)  # of 2026-07-23
DRIFTED = 3  # the launcher's exit code where source and TVM differ
PACKAGE = Path("python", "mlc_llm")
# What the launcher runs, and what our model is derived from.
_NEEDED = ("cli/compile.py", "compiler_pass/pipeline.py", "model/minicpm/minicpm_model.py")
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_REFERENCE = re.compile(r"ref: (refs/[\w./-]+)")
_TEXT_BYTES = 2**20  # of git's own files: more is none of them


@dataclass(frozen=True)
class MlcCheckout:
    """A folder that holds MLC-LLM's source."""

    path: Path
    commit: str | None  # None: not a git checkout, or one whose commit cannot be read

    @staticmethod
    def open(path: Path) -> MlcCheckout:
        """Checks that a folder is a checkout of MLC-LLM, and reads its commit.

        Raises:
            ConfigError: the folder is missing, or is something else.
        """
        where = f"--mlc-source {path}"
        if not path.is_dir():
            raise ConfigError(f"{where}: no such folder; expected a checkout of mlc-llm")
        missing = [name for name in _NEEDED if not (path / PACKAGE / name).is_file()]
        if missing:
            raise ConfigError(
                f"{where}: not a checkout of mlc-llm: {PACKAGE / missing[0]} is missing; expected "
                "the folder that `git clone` of mlc-llm makes"
            )
        return MlcCheckout(path.resolve(), _read_commit(path))

    @property
    def is_tested(self) -> bool:
        """Whether its compiler was tried with the pinned apache-tvm."""
        return self.commit in TESTED_COMMITS

    @property
    def version(self) -> str:
        """Names the commit, for people."""
        return "of an unknown commit" if self.commit is None else f"commit {self.commit[:12]}"

    @property
    def warning(self) -> str | None:
        """Says that nobody tried this commit; None for one that was tried."""
        if self.is_tested:
            return None
        tested = ", ".join(commit[:12] for commit in TESTED_COMMITS)
        return (
            f"mlc-llm {self.version} was not tried with this apache-tvm; tried: {tested}. If it "
            f"fails: git -C {self.path} checkout {TESTED_COMMITS[0]}"
        )


def _read_commit(path: Path) -> str | None:
    """Reads the commit that is checked out from git's own files; git itself is not needed."""
    folder = path / ".git"
    if folder.is_file():  # of a worktree or a submodule
        pointer = re.fullmatch(r"gitdir: (.+)", _read_line(folder) or "")
        if pointer is None:
            return None
        folder = path / pointer[1]
    head = _read_line(folder / "HEAD")
    reference = _REFERENCE.fullmatch(head or "")
    if reference is None:
        return head if head and _COMMIT.fullmatch(head) else None
    common = folder / (_read_line(folder / "commondir") or ".")
    commit = _read_line(common / reference[1]) or _packed(common / "packed-refs", reference[1])
    return commit if commit and _COMMIT.fullmatch(commit) else None


def _packed(path: Path, reference: str) -> str | None:
    for line in _read_text(path).splitlines():
        commit, _, name = line.partition(" ")
        if name == reference:
            return commit
    return None


def _read_line(path: Path) -> str | None:
    lines = _read_text(path).splitlines()
    return lines[0].strip() if lines else None


def _read_text(path: Path) -> str:
    try:
        return read_regular(path, limit=_TEXT_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
