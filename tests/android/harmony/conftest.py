from __future__ import annotations

from functools import partial

import pytest

from convert.bundle.targets import HOST, PHONE
from tests.android.harmony.modules import build_module_and_host, module_behind_host
from tests.engine.conftest import built, library, phone_built, phone_library
from tests.engine.libraries import Library
from tests.support.once import once

__all__ = ["built", "library", "phone_built", "phone_library"]  # fixtures


@pytest.fixture(scope="session")
def module(library: Library, tmp_path_factory: pytest.TempPathFactory) -> Library:
    """The module for this PC, in a process that loads it."""
    return _module(library, HOST, tmp_path_factory)


@pytest.fixture(scope="session")
def phone_module(phone_library: Library, tmp_path_factory: pytest.TempPathFactory) -> Library:
    """The same for phones."""
    return _module(phone_library, PHONE, tmp_path_factory)


def _module(engine: Library, target: str, factory: pytest.TempPathFactory) -> Library:
    make = partial(build_module_and_host, engine, target)
    return module_behind_host(engine, once(factory, f"module-{target}", make))
