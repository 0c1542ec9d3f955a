"""What is wrong with a bundle."""

from __future__ import annotations

from quantize.errors import ToolkitError


class BundleError(ToolkitError):
    """A bundle is damaged, incomplete, or not made by this toolkit."""
