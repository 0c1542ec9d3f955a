"""How codes and scales are found: the methods that a recipe may name."""

from __future__ import annotations

from dataclasses import dataclass

from quantize.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Method:
    """The steps that find a tensor's codes and scales."""

    search: bool  # scales are searched, all codes used; otherwise plain rounding, as MLC does
    fold: bool = False  # AWQ's factors are folded into norms and the linears before
    compensate: bool = False  # GPTQ, with correction of what the layers before lost

    @property
    def calibrated(self) -> bool:
        """Whether it needs to see activations."""
        return self.fold or self.compensate


METHODS = {
    "rtn": Method(search=False),
    "mse": Method(search=True),
    "awq": Method(search=True, fold=True),
    "gptq": Method(search=True, compensate=True),
}


def find_method(name: str) -> Method:
    """Returns a method by its name.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in METHODS:
        raise ConfigError(
            f"quantization method {name!r:.40} is unknown; known: {', '.join(METHODS)}"
        )
    return METHODS[name]
