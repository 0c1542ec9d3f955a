"""The base of the toolkit's errors, and what `quantize` raises; others are beside their subject.

The base is here because every other folder imports `quantize`.
"""


class ToolkitError(Exception):
    """A mistake that the user can mend: says what, where, what was expected, what to try.

    The command line shows it in one line and exits with code 2.
    """


class ConfigError(ToolkitError):
    """A configuration lacks a key or contradicts itself."""


class CheckpointError(ToolkitError):
    """A checkpoint cannot be read: missing files, damaged files, wrong tensors."""


class ShapeError(ToolkitError):
    """A tensor's shape does not suit the operation."""
