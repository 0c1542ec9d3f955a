"""Checkpoints from the Hugging Face hub: data files only, never code."""

from __future__ import annotations

import re
from pathlib import Path

from quantize.errors import CheckpointError

# The card and the licence's text are for the cards of what is made; a repository may lack them.
_DESCRIPTION = ("config.json", "tokenizer.model", "README.md", "LICENSE*")
_SAFETENSORS = ("*.safetensors", "*.safetensors.index.json")
_PICKLED = ("pytorch_model*.bin", "pytorch_model.bin.index.json")


def is_hub_id(source: str) -> bool:
    """Says whether a name looks like `openbmb/MiniCPM-V` and is not an existing path."""
    return bool(re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source)) and not Path(source).exists()


def fetch(repo_id: str) -> Path:
    """Downloads a checkpoint into the hub's cache, with the hub's progress bars.

    What the cache already holds is not downloaded again, and works offline.

    Raises:
        CheckpointError: offline, no such repository, no permission, no disk space.
    """
    folder = _snapshot(repo_id, (*_DESCRIPTION, *_SAFETENSORS))
    if not any(folder.glob("*.safetensors")):  # a repository that has both is fetched once
        folder = _snapshot(repo_id, (*_DESCRIPTION, *_PICKLED))
    return folder


def _snapshot(repo_id: str, patterns: tuple[str, ...]) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(huggingface_hub.snapshot_download(repo_id, allow_patterns=list(patterns)))
    except GatedRepoError as error:
        raise _error(repo_id, "its owner grants access on request; then set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        raise _error(repo_id, "no such repository there, or a private one") from error
    except LocalEntryNotFoundError as error:
        raise _error(repo_id, "no connection, and not in the cache either") from error
    # The hub's library and the HTTP library below it (which one depends on the version) have
    # dozens more; each means that the checkpoint could not be had.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise _error(repo_id, f"{reason:.300}") from error


def _error(repo_id: str, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{repo_id}: no such folder here, and it cannot be fetched from the Hugging Face hub: "
        f"{reason}; try a local folder with the checkpoint's files"
    )
