"""What is to be compared, and how: what `minicpmv verify` is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.bundle.manifest import BundleSource
from convert.checkpoint.config import VisionConfig
from convert.checkpoint.reader import Checkpoint
from quantize.errors import CheckpointError, ConfigError
from runtime.engine_client.options import EngineOptions
from runtime.sessions.loader import find_source, source_problem
from runtime.verify.cases import Case, built_in_cases, read_cases


@dataclass(frozen=True, kw_only=True)
class Request:
    """A comparison that somebody asks for."""

    artifact: Path  # a bundle, or an MLC package
    reference: str | None  # None: what the artifact was made from
    window: int | None  # tokens; None: the default, or an MLC package's own
    engine: EngineOptions
    data: Path | None
    skip_bad: bool
    report: Path | None
    force: bool
    save_reference: Path | None = None  # a file to make of the reference's results
    reference_results: Path | None = None  # a file to take them from
    sensitivity: Path | None = None  # a file for the recipe that costs less
    card: bool = False  # write what was found into the artifact's card
    noise_floor: bool = True  # whether the reference also runs in the checkpoint's own dtype

    def __post_init__(self) -> None:
        """Checks combinations."""
        if self.skip_bad and self.data is None:
            raise ConfigError("--skip-bad needs --data")
        if self.save_reference is not None and self.reference_results is not None:
            raise ConfigError(
                "--save-reference and --reference-results: what is read is not measured; use one"
            )

    def window_or(self, default: int) -> int:
        """Returns the window that was asked for, or the default."""
        return default if self.window is None else self.window

    def cases(self, settings: Mapping[str, Any], vision: VisionConfig | None) -> list[Case]:
        """Returns the questions.

        Args:
            settings: `configs/verify.json`.
            vision: how the artifact takes pictures; None: it takes none.

        Raises:
            DataError: a line of the user's file cannot be used.
        """
        if self.data is None:
            return built_in_cases(settings["built_in"], vision)
        with_pictures = vision is not None
        return read_cases(self.data, with_pictures=with_pictures, skip_bad=self.skip_bad)

    def open_reference(self, source: BundleSource) -> tuple[Checkpoint, list[str]]:
        """Returns the full-precision checkpoint, and warnings about it.

        Args:
            source: what the artifact's manifest says that it was made from.

        Raises:
            CheckpointError: it is missing, another one, or cannot answer.
        """
        checkpoint, warnings = find_source(source, self.reference), []
        problem = source_problem(source, self.artifact, checkpoint)
        if problem is not None:
            if not self.force:
                raise CheckpointError(f"{problem}; convert again, or compare anyway with --force")
            warnings.append(
                f"{problem}: differences may come from the reference and not from {self.artifact}"
            )
        if checkpoint.tokenizer is None:
            raise CheckpointError(
                f"{checkpoint.path}: has no tokenizer.model, so it cannot answer questions"
            )
        return checkpoint, warnings
