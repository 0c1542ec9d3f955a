"""Opens a checkpoint or a bundle for chat, whichever a path is.

A bundle's engine needs no PyTorch, which takes seconds to load: only a checkpoint loads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from convert.bundle.errors import BundleError
from convert.bundle.manifest import MANIFEST, Bundle, BundleSource
from convert.checkpoint.config import ModelConfig
from convert.checkpoint.hub import is_hub_id
from convert.support.progress import Progress, silent
from quantize.errors import CheckpointError, ConfigError
from runtime.engine_client.options import REFERENCE, EngineOptions
from runtime.engine_client.places import open_place
from runtime.inputs.defaults import DEFAULTS, GenerationDefaults
from runtime.inputs.prompt import Tokenizer
from runtime.sessions.engine_session import EngineSession
from runtime.sessions.session import Session

if TYPE_CHECKING:
    from convert.checkpoint.reader import Checkpoint


class OpenSession(Protocol):
    """Starts conversations with a model."""

    def __call__(self, *, window: int, as_original: bool = False) -> Session:
        """See `Session`.

        Args:
            window: tokens that a token may see.
            as_original: cut long prompts silently, and take turns in any order.
        """


@dataclass(frozen=True)
class Loaded:
    """A model that is ready to answer."""

    config: ModelConfig
    open_session: OpenSession
    tokenizer: Tokenizer
    defaults: GenerationDefaults
    description: str  # what runs, where and how


def is_bundle(source: str | Path | None) -> bool:
    """Says whether a path is a bundle rather than a checkpoint."""
    return source is not None and (Path(source) / MANIFEST).exists()


def load(
    source: str | Path | None,
    engine: EngineOptions | None = None,
    *,
    device: str | None = None,
    dtype: str | None = None,
    progress: Progress = silent,
) -> Loaded:
    """Loads a model.

    Args:
        source: a bundle, a checkpoint's folder or hub id, or None for the demo checkpoint.
        engine: where it runs; by default on this PC, a checkpoint in PyTorch. A bundle's
            reference is its checkpoint.
        device: cpu, mps or cuda; by default the fastest that is there. Reference only.
        dtype: a name of `devices.DTYPES`; by default float32 on a CPU, a half elsewhere.
        progress: receives the bytes copied to a phone.

    Raises:
        ToolkitError: nothing that can be opened, or an engine that cannot run it.
    """
    options = engine or EngineOptions()
    bundle = None if source is None or not is_bundle(source) else Bundle.open(source)
    if bundle is None and options.engine not in (None, REFERENCE):
        raise BundleError(
            f"{source or 'the demo checkpoint'}: not a bundle, so engine {options.engine} cannot "
            "run it; make one with `minicpmv convert`, or choose --engine reference"
        )
    if bundle is None or options.engine == REFERENCE:
        if options.threads is not None:
            raise ConfigError(
                f"threads {options.threads} is for a bundle's engine, not for the reference"
            )
        from convert.checkpoint.reader import Checkpoint

        checkpoint = Checkpoint.open(source) if bundle is None else open_source(bundle)
        return _load_checkpoint(checkpoint, device, dtype)
    for name, value in (("device", device), ("dtype", dtype)):
        if value is not None:
            raise ConfigError(f"{name} {value!r} is for --engine reference; a bundle has its own")
    return _load_bundle(bundle, options, progress)


def open_source(bundle: Bundle, reference: str | None = None) -> Checkpoint:
    """Opens the checkpoint that a bundle was made from, and makes sure that it is that one.

    Args:
        bundle: whose manifest names it.
        reference: where it is now, if not there.

    Raises:
        CheckpointError: it is not there, or another one by now.
    """
    checkpoint = find_source(bundle.manifest.source, reference)
    problem = source_problem(bundle.manifest.source, bundle.path, checkpoint)
    if problem is not None:
        raise CheckpointError(f"{problem}; convert again")
    return checkpoint


def find_source(source: BundleSource, reference: str | None = None) -> Checkpoint:
    """Opens what is where an artifact's checkpoint should be.

    Args:
        source: what its manifest says.
        reference: where it is now, if not there.

    Raises:
        CheckpointError: it is not there.
    """
    from convert.checkpoint.reader import DEMOS, Checkpoint

    if not (reference or source.demo or Path(source.path).exists() or is_hub_id(source.path)):
        raise CheckpointError(
            f"{source.path}: the checkpoint that this was made from is not there; "
            "name it with --reference, or as the argument of chat"
        )
    return Checkpoint.open(reference or (DEMOS.get(source.path) if source.demo else source.path))


def source_problem(source: BundleSource, artifact: Path, checkpoint: Checkpoint) -> str | None:
    """Says what is wrong if a bundle or a package was not made from a checkpoint.

    Args:
        source: what its manifest says.
        artifact: where it is, for the message.
        checkpoint: what it is to be made from.
    """
    expected = source.sha256
    if checkpoint.source_hash() == expected:
        return None
    return (
        f"{checkpoint.path}: not the checkpoint that {artifact} was made from: its hash is "
        f"not {expected[:12]}…"
    )


def _load_checkpoint(checkpoint: Checkpoint, device: str | None, dtype: str | None) -> Loaded:
    from runtime.reference.load import load_reference
    from runtime.sessions.backend import ReferenceBackend
    from runtime.sessions.devices import choose_device, choose_dtype
    from runtime.sessions.reference_session import ReferenceSession

    tokenizer = _tokenizer(checkpoint.tokenizer, checkpoint.path, checkpoint.config)
    where = choose_device(device)
    kind = choose_dtype(dtype, where)
    model = load_reference(checkpoint, device=where, dtype=kind)
    name = str(kind).removeprefix("torch.")
    return Loaded(
        checkpoint.config,
        partial(ReferenceSession, ReferenceBackend(model), tokenizer),
        tokenizer,
        GenerationDefaults.load(DEFAULTS).for_model(checkpoint.config),
        f"{checkpoint.path} on the reference engine ({name}, {where})",
    )


def _load_bundle(bundle: Bundle, options: EngineOptions, progress: Progress) -> Loaded:
    tokenizer = _tokenizer(bundle.tokenizer, bundle.path, bundle.config)
    place = open_place(bundle, options)
    place.prepare(progress)
    made = f"{bundle.plan.recipe.scheme.name}, {bundle.plan.kv} KV cache"
    return Loaded(
        bundle.config,
        partial(EngineSession, place, bundle.config),
        tokenizer,
        GenerationDefaults.load(bundle.generation).for_model(bundle.config),
        f"{bundle.path} on the {place.description} ({made})",
    )


def _tokenizer(path: Path | None, folder: Path, config: ModelConfig) -> Tokenizer:
    if path is None:
        raise CheckpointError(
            f"{folder}: has no tokenizer.model, so it cannot read text; put the original's beside "
            "its config.json"
        )
    return Tokenizer(path, config)
