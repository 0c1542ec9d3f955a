"""What every product of a conversion does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Protocol

from convert.bundle.plan import Plan
from convert.conversion.config import ConvertConfig
from convert.conversion.conversion import Conversion


class ProductSummary(Protocol):
    """What became of a product."""

    def to_json(self) -> dict[str, Any]:
        """Returns this product's part of the command's `--json`."""

    def shown(self) -> list[tuple[str, str]]:
        """Returns names and texts, as the command prints them."""


class Product(ABC):
    """A folder that a conversion makes. The pipeline calls the methods in this order."""

    name: ClassVar[str]  # its key in `ConvertConfig.outputs`
    target: ClassVar[str | None] = None  # asks for it; None: every target with an engine does
    # Whether it checks the products before it, which then must not appear unless it can be made.
    is_cross_check: ClassVar[bool] = False

    @staticmethod
    @abstractmethod
    def settings(config: ConvertConfig) -> Mapping[str, str]:
        """Names what a request says of this product, as the user would."""

    @abstractmethod
    def __init__(self, config: ConvertConfig) -> None:
        """Checks, before the checkpoint is opened, all that does not depend on it.

        Raises:
            ToolkitError: something else stands in its place, or a tool is not usable.
        """

    @abstractmethod
    def check(self, conversion: Conversion) -> None:
        """Checks, before any work, that it can be made of this checkpoint.

        Raises:
            ToolkitError: it cannot.
        """

    def plan(self, conversion: Conversion) -> Plan | None:
        """Decides how its tensors are stored; None where there is nothing to decide.

        Raises:
            ToolkitError: the recipe does not suit the model.
        """
        return None

    @abstractmethod
    def make(self, conversion: Conversion) -> AbstractContextManager[None]:
        """Makes it; it appears under its name when the `with` block ends, not before.

        Raises:
            ToolkitError: it could not be made; what stood in its place is still there.
        """

    @abstractmethod
    def summary(self) -> ProductSummary:
        """Says what was made."""
