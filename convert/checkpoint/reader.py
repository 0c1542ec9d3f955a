"""A Hugging Face checkpoint of MiniCPM-V, checked whole when it is opened.

Weights in safetensors or `pytorch_model*.bin`, sharded or not. Tensors go by MiniCPM-V's names
(`vpm.`, `resampler.`, `llm.`), in a decoder-only checkpoint too, whose files lack the `llm.`.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from convert.checkpoint.config import CONFIGS, TEXT_ONLY, ModelConfig
from convert.checkpoint.hub import fetch, is_hub_id
from convert.checkpoint.shards import FLOATS, StoredTensor, list_tensors
from convert.checkpoint.tensor_tables import ANY_GRID, EMBEDDING, HEAD, drops, shape_fits, sources
from convert.checkpoint.tokenizer_file import check_tokenizer, open_tokenizer
from convert.support.hashing import feed
from convert.support.progress import Progress, silent
from convert.support.regular_file import open_regular
from convert.support.strict_json import load_json
from quantize.errors import CheckpointError

DEMO_NAME = "demo"  # of the one that is meant where none is named
DEMOS = {name: CONFIGS / name for name in (DEMO_NAME, "demo-2.0")}
DEMO = DEMOS[DEMO_NAME]
_FORMATS = ("model.safetensors", "pytorch_model.bin")  # the first that is there is read
_LISTED = 8  # names of one kind in an error
_CHUNK_BYTES = 1 << 22  # of comparing
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Part:
    """The size of one part of the model in its checkpoint, without dropped tensors."""

    name: str
    parameters: int
    nbytes: int


def demo_name(source: str | Path | None) -> str | None:
    """Returns the name of the demo checkpoint that is meant; None: another one.

    Args:
        source: see `Checkpoint.open`; a name that is also a path here means the path.
    """
    if source is None:
        return DEMO_NAME
    return str(source) if str(source) in DEMOS and not Path(source).exists() else None


class Checkpoint:
    """A checkpoint's configuration, tokenizer and tensors; made by `open`."""

    def __init__(
        self,
        path: Path,
        config: ModelConfig,
        tokenizer: Path | None,
        tensors: dict[str, StoredTensor],
        files: tuple[Path, ...],
        untied_head: bool,
        dropped: dict[str, str],
    ) -> None:
        self.path = path
        self.config = config
        self.tokenizer = tokenizer  # `tokenizer.model`; only a decoder-only model may lack it
        self.files = files  # all that say what the model computes, sorted by name
        self.untied_head = untied_head  # the LM head is not the token embedding
        self.dropped = dropped  # names left out, with the reason
        self._tensors = tensors
        self._hash: str | None = None

    @staticmethod
    def open(source: str | Path | None = None) -> Checkpoint:
        """Opens a checkpoint and checks every tensor's name, shape and dtype.

        Args:
            source: a local folder, a hub id such as `openbmb/MiniCPM-V`, a name of `DEMOS`, or
                None for the demo.

        Raises:
            CheckpointError: no checkpoint there, damaged files, or tensors that do not fit.
            ConfigError: `config.json` is not one of a model that the toolkit knows.
        """
        demo = demo_name(source)
        if source is None or demo is not None:
            path = DEMOS[demo or DEMO_NAME]
        elif isinstance(source, str) and is_hub_id(source):
            path = fetch(source)
        else:
            path = Path(source)
        if not path.is_dir():
            what = "a file" if path.exists() else "no such folder"
            raise CheckpointError(
                f"{path}: {what}; expected a checkpoint's folder, a Hugging Face id such as "
                f"openbmb/MiniCPM-V, or {' or '.join(DEMOS)}"
            )
        try:
            str(path.absolute()).encode("utf-8")
        except UnicodeEncodeError as error:  # a bundle could not name it, nor safetensors open it
            raise CheckpointError(
                f"{str(path)!a}: this path is no text in UTF-8; rename the folder"
            ) from error
        if not (path / "config.json").exists():
            raise CheckpointError(f"{path}: no checkpoint: it has no config.json")
        config = ModelConfig.load(path / "config.json")
        tokenizer = _find_tokenizer(path, config)
        index, files, problems = _find_weights(path)
        prefix = "llm." if config.architecture == TEXT_ONLY else ""
        found = {prefix + key: stored for key, stored in index.items()}
        if config.source.get("tie_word_embeddings") is False and HEAD not in found:
            problems.add("missing (tie_word_embeddings is false)", HEAD.removeprefix(prefix))
        _check(path, config, found, problems, prefix)
        untied = HEAD in found and not _equal(found[HEAD], found[EMBEDDING])
        if untied:
            _LOG.info("%s differs from the token embedding: kept", found[HEAD].key)
        dropped = _dropped(config, found, untied)
        for name, reason in dropped.items():
            _LOG.info("%s: dropped: %s", found[name].key, reason)
        kept = {name: stored for name, stored in found.items() if name not in dropped}
        described = [path / "config.json", *files, *([tokenizer] if tokenizer else [])]
        in_order = tuple(sorted(described, key=lambda file: file.name))
        return Checkpoint(path, config, tokenizer, kept, in_order, untied, dropped)

    def read(self, name: str) -> Tensor:
        """Returns a tensor on the CPU, in its stored dtype, mapped from its file."""
        return self._tensors[name].read()

    def names(self) -> tuple[str, ...]:
        """Returns the names of all tensors that are used."""
        return tuple(self._tensors)

    def nbytes(self) -> int:
        """Returns the size of all tensors that are used, in bytes, as they are stored."""
        return sum(stored.nbytes for stored in self._tensors.values())

    def parts(self) -> tuple[Part, ...]:
        """Returns the size of each part of the model, in the order of the data."""
        layers = ("llm.model.layers.", "llm.model.norm.")
        prefixes: dict[str, tuple[str, ...]] = {
            "vision encoder": ("vpm.",),
            "resampler": ("resampler.",),
            "decoder embedding": (EMBEDDING,),
            "decoder layers": layers,
            "LM head": (HEAD,),
        }
        parts = []
        for part, starts in prefixes.items():
            mine = [s for name, s in self._tensors.items() if name.startswith(starts)]
            if mine:
                size = sum(s.nbytes for s in mine)
                parameters = sum(s.parameters for s in mine)
                parts.append(Part(name=part, parameters=parameters, nbytes=size))
        return tuple(parts)

    def source_hash(self, progress: Progress = silent) -> str:
        """Returns the SHA-256 over name, size and bytes of every file in `files`.

        Args:
            progress: receives the bytes read; nothing if the hash is known already.
        """
        if self._hash is None:
            total = sum(file.stat().st_size for file in self.files)
            done = 0

            def advance(count: int) -> None:
                nonlocal done
                done += count
                progress("hash checkpoint", done, total)

            digest = hashlib.sha256()
            for path in self.files:
                digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
                with open_regular(path) as file:
                    feed(file, digest, on_block=advance)
            self._hash = digest.hexdigest()
        return self._hash


def _find_tokenizer(path: Path, config: ModelConfig) -> Path | None:
    tokenizer = path / "tokenizer.model"
    if not tokenizer.exists():
        if config.vision is not None:
            raise CheckpointError(f"{path}: lacks tokenizer.model, the model's SentencePiece file")
        _LOG.warning("%s has no tokenizer.model: its weights can be converted, but no chat", path)
        return None
    check_tokenizer(tokenizer, open_tokenizer(tokenizer), config)
    return tokenizer


class _Problems:
    """What is wrong with a checkpoint's tensors, by kind."""

    def __init__(self) -> None:
        self._found: dict[str, list[str]] = {}

    def add(self, kind: str, entry: str) -> None:
        """Adds a tensor, by its name in the file, with what is wrong."""
        self._found.setdefault(kind, []).append(entry)

    def check(self, path: Path) -> None:
        """Raises one CheckpointError with all of them."""
        if not self._found:
            return
        count = sum(map(len, self._found.values()))
        kinds = []
        for kind, entries in self._found.items():
            more = len(entries) - _LISTED
            listed = ", ".join(entries[:_LISTED]) + (f" and {more} more" if more > 0 else "")
            kinds.append(f"{kind}: {listed}")
        raise CheckpointError(
            f"{path}: {count} tensors do not fit: {'; '.join(kinds)}; "
            "is it MiniCPM-V 1.0, and does config.json belong to it?"
        )


def _find_weights(path: Path) -> tuple[dict[str, StoredTensor], list[Path], _Problems]:
    """Lists tensors by their stored names, the files they are in, and contradictions."""
    for whole in _FORMATS:
        index = path / f"{whole}.index.json"
        if (path / whole).exists():
            weight_map, files = None, [path / whole]
        elif index.exists():
            weight_map = _read_index(index)
            files = [path / shard for shard in sorted(set(weight_map.values()))]
        else:
            continue
        places: dict[str, list[StoredTensor]] = {}
        for file in files:
            for stored in list_tensors(file):
                places.setdefault(stored.key, []).append(stored)
        problems = _Problems()
        for key, copies in places.items():
            shards = [s.file.name for s in copies]
            if len(copies) > 1:
                problems.add("duplicate", f"{key} in {' and '.join(shards)}")
            if weight_map is None:
                continue
            if key not in weight_map:
                problems.add(f"not in {index.name}", key)
            elif weight_map[key] not in shards:
                problems.add("in another shard than the index says", f"{key} in {shards[0]}")
        for key in sorted(set(weight_map or ()) - set(places)):
            problems.add("in the index but in no shard", key)
        found = {key: copies[0] for key, copies in places.items()}
        return found, files + ([index] if weight_map is not None else []), problems
    raise CheckpointError(
        f"{path}: has no weights: expected {' or '.join(_FORMATS)}, or shards of them with their "
        "index (.index.json)"
    )


def _read_index(index: Path) -> dict[str, str]:
    try:
        weight_map = load_json(index)["weight_map"]
        shards = sorted(set(weight_map.values()))
    except OSError as error:
        raise CheckpointError(f"{index}: cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{index}: not an index of shards ({type(error).__name__}: {error}); "
            "expected a JSON object with 'weight_map'"
        ) from error
    suffix = index.name.removesuffix(".index.json").rpartition(".")[2]
    for shard in shards:
        # A shard is a file of this folder: a path could lead anywhere.
        plain = isinstance(shard, str) and not set(shard) & set("/\\\0")
        if not plain or not shard.endswith(f".{suffix}"):
            raise CheckpointError(
                f"{index}: names the shard {shard!r:.80}; expected the plain name of a "
                f".{suffix} file in the same folder"
            )
    if not shards:
        raise CheckpointError(f"{index}: names no shards")
    checked: dict[str, str] = weight_map
    return checked


def _check(
    path: Path,
    config: ModelConfig,
    found: dict[str, StoredTensor],
    problems: _Problems,
    prefix: str,
) -> None:
    """Compares the tensors with the tables; raises one error that lists every mismatch."""
    required = sources(config)
    accepted = required | {HEAD: required[EMBEDDING]}
    left_out = drops(config, untied_head=False)
    for name in (n for n in required if n not in found):
        problems.add("missing", name.removeprefix(prefix))
    for name, stored in found.items():
        if name not in accepted:
            if not any(drop.matches(name) for drop in left_out):
                problems.add("unknown", stored.key)
            continue
        if stored.dtype not in FLOATS:
            expected = ", ".join(FLOATS)
            problems.add("wrong dtype", f"{stored.key} is {stored.dtype}, expected {expected}")
        if not shape_fits(stored.shape, accepted[name]):
            shape = str(list(accepted[name])).replace(str(ANY_GRID), "any square number")
            problems.add("wrong shape", f"{stored.key} is {list(stored.shape)}, expected {shape}")
    problems.check(path)


def _equal(one: StoredTensor, other: StoredTensor) -> bool:
    """Compares two matrices of the same shape, some rows at a time."""
    if one.shape != other.shape:
        return False
    a, b = one.read(), other.read()
    rows = max(1, _CHUNK_BYTES // (a[:1].numel() * a.element_size()))
    wide = torch.promote_types(a.dtype, b.dtype)
    starts = range(0, a.shape[0], rows)
    return all(torch.equal(a[i : i + rows].to(wide), b[i : i + rows].to(wide)) for i in starts)


def _dropped(
    config: ModelConfig, found: dict[str, StoredTensor], untied_head: bool
) -> dict[str, str]:
    rows = drops(config, untied_head)
    return {name: drop.reason for name in found for drop in rows if drop.matches(name)}
