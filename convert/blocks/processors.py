"""What kinds of processors there are, by the names that `configs/target/` calls them."""

from __future__ import annotations

from convert.blocks.products import Products
from convert.blocks.products_arm import ARM
from convert.blocks.products_x86 import X86
from quantize.errors import ConfigError

_KNOWN = {**X86, **ARM}


def products(name: str) -> Products:
    """Returns what `configs/target/` calls by a name.

    Raises:
        ConfigError: nothing is called so.
    """
    if name not in _KNOWN:
        raise ConfigError(f"products {name!r} are unknown; known: {', '.join(_KNOWN)}")
    return _KNOWN[name]
