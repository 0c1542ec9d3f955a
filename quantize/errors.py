"""The toolkit's errors. They stand here because every other folder imports `quantize`."""


class ToolkitError(Exception):
    """A mistake that the user can mend: says what, where, what was expected, what to try.

    The command line shows it in one line and exits with code 2.
    """


class ConfigError(ToolkitError):
    """A configuration lacks a key or contradicts itself."""


class CheckpointError(ToolkitError):
    """A checkpoint cannot be read: missing files, damaged files, wrong tensors."""


class BundleError(ToolkitError):
    """A bundle is damaged, foreign, or may not be overwritten."""


class CalibrationError(ToolkitError):
    """A calibration sample is missing, malformed, or does not suit the model."""


class ShapeError(ToolkitError):
    """A tensor's shape does not fit what is done with it."""


class PictureError(ToolkitError):
    """A file is no picture, or one that is too large to decode safely."""


class PromptError(ToolkitError):
    """A conversation is malformed or does not fit into the context window."""
