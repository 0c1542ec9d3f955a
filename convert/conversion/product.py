"""The interface of a conversion's products."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Protocol

from convert.bundle.plan import Plan
from convert.conversion.config import ConvertConfig
from convert.conversion.conversion import Conversion


class ProductSummary(Protocol):
    """What was made of one product."""

    def to_json(self) -> dict[str, Any]:
        """Returns this product's part of the command's `--json`."""

    def shown(self) -> list[tuple[str, str]]:
        """Returns the lines that the command prints, each as a name and a text."""


class Product(ABC):
    """A folder that a conversion makes. The pipeline calls the methods in the order below."""

    name: ClassVar[str]  # its key in `ConvertConfig.outputs`
    targets: ClassVar[tuple[str, ...]] = ()  # that select it; none: each target with an engine
    # Whether it also checks the products before it, which must not appear unless it succeeds.
    is_cross_check: ClassVar[bool] = False

    @staticmethod
    @abstractmethod
    def settings(config: ConvertConfig) -> Mapping[str, str]:
        """Returns the settings of this product in a request, in the user's words."""

    @abstractmethod
    def __init__(self, config: ConvertConfig) -> None:
        """Checks, before the checkpoint is opened, everything that does not depend on it.

        Raises:
            ToolkitError: its folder holds something else, or a tool cannot be used.
        """

    @abstractmethod
    def check(self, conversion: Conversion) -> None:
        """Checks, before any work, that it can be made from this checkpoint.

        Raises:
            ToolkitError: it cannot.
        """

    def plan(self, conversion: Conversion) -> Plan | None:
        """Decides how its tensors are stored; None if there is nothing to decide.

        Raises:
            ToolkitError: the recipe does not suit the model.
        """
        return None

    @abstractmethod
    def make(self, conversion: Conversion) -> AbstractContextManager[None]:
        """Makes it; it appears under its final name when the `with` block ends.

        Raises:
            ToolkitError: it could not be made; an older one is still in its place.
        """

    @abstractmethod
    def summary(self) -> ProductSummary:
        """Returns what was made."""
