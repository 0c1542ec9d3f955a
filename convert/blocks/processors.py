"""The kinds of processors, by their names in `configs/target/`."""

from __future__ import annotations

from convert.blocks.products import Products
from convert.blocks.products_arm import ARM
from convert.blocks.products_x86 import X86
from quantize.errors import ConfigError

_KNOWN = {**X86, **ARM}


def products(name: str) -> Products:
    """Returns the products of a kind of processor, by its name in `configs/target/`.

    Raises:
        ConfigError: the name is unknown.
    """
    if name not in _KNOWN:
        raise ConfigError(f"products {name!r} are unknown; known: {', '.join(_KNOWN)}")
    return _KNOWN[name]
