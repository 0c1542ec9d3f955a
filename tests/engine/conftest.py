from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from convert.bundle.manifest import Bundle
from convert.bundle.program import Program
from convert.bundle.targets import HOST, PHONE
from convert.engine.toolchain import Toolchain
from convert.engine.units import ENGINE, SENTENCEPIECE, engine_unit, sentencepiece_unit
from runtime.engine_client.client import LOCAL, engine_command
from tests.engine.components import Components
from tests.engine.engines import Built, add_phone, build_host_engine
from tests.engine.libraries import Library, build_library, built_library
from tests.support.needs import need_compiler, need_host_engine, need_qemu
from tests.support.once import once
from tests.support.slices import TINY_SLICES
from tests.support.tiny_config import tiny_config

SOURCES = [
    "dot_products_arm64.S",
    "few_products_arm64.S",
    "image_preprocessor.cc",
    "logprobs.cc",
    "matrix_unit.cc",
    "outer_products_arm64.S",
    "tile_products_x86.cc",
    "picture_file.cc",
    "positions.cc",
    "prompt.cc",
    "prompt_lookup.cc",
    "random.cc",
    "regular_file.cc",
    "resize_axis.cc",
    "sampler.cc",
    "slices.cc",
    "text_stream.cc",
    "tokenizer.cc",
    "utf8.cc",
    "window.cc",
]


def _build(triple: str, program: Path) -> None:
    """Builds the engine's components, reusing objects from the cache."""
    need_compiler()
    with (
        Toolchain(triple) as toolchain,
        SENTENCEPIECE.unpacked() as package,
        tempfile.TemporaryDirectory() as generated,
    ):
        units = [
            sentencepiece_unit(package, Path(generated)),
            engine_unit("engine", ENGINE, SOURCES, package),
            engine_unit("components", Path(__file__).parent, ["components_main.cc"], package),
        ]
        objects = [o for unit in units for o in toolchain.compile(unit, lambda *_: None)]
        toolchain.link(objects, program)


@pytest.fixture(scope="session")
def components_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need_host_engine()
    return _components(tmp_path_factory, "x86_64-linux-musl")


@pytest.fixture(scope="session")
def arm64_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need_qemu()
    return _components(tmp_path_factory, "aarch64-linux-musl")


def _components(factory: pytest.TempPathFactory, triple: str) -> Path:
    folder = once(
        factory, f"components-{triple}", lambda folder: _build(triple, folder / "program")
    )
    return folder / "program"


@pytest.fixture
def components(components_program: Path) -> Iterator[Components]:
    with Components(str(components_program)) as running:
        yield running


@pytest.fixture
def arm64(arm64_program: Path) -> Iterator[Components]:
    with Components(need_qemu(), str(arm64_program)) as running:
        yield running


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A tiny model's bundle with its engine; tests must not alter it."""
    need_host_engine()
    # With an untied LM head: with tied embeddings, a random model repeats one token for ever.
    make = partial(build_host_engine, head="different")
    bundle = once(tmp_path_factory, "engine", make) / "bundle"
    return Built(bundle, Bundle.open(bundle).program(HOST))


@pytest.fixture(scope="session")
def sliced(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The same for a model with slices."""
    need_host_engine()
    make = partial(build_host_engine, config=tiny_config(**TINY_SLICES), head="different")
    bundle = once(tmp_path_factory, "engine-slices", make) / "bundle"
    return Built(bundle, Bundle.open(bundle).program(HOST))


@pytest.fixture(scope="session")
def phone_built(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The same bundle with the phone's engine."""
    need_qemu()

    def make(folder: Path) -> None:
        shutil.copytree(built.bundle, folder / "bundle")
        add_phone(folder / "bundle")

    bundle = once(tmp_path_factory, "phone", make) / "bundle"
    return Built(bundle, Bundle.open(bundle).program(PHONE))


@pytest.fixture(scope="session")
def library(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Library:
    """The tiny model's engine as a library for this PC."""
    return _library(tmp_path_factory, built, HOST)


@pytest.fixture(scope="session")
def phone_library(phone_built: Built, tmp_path_factory: pytest.TempPathFactory) -> Library:
    """The same for phones."""
    return _library(tmp_path_factory, phone_built, PHONE)


def _library(factory: pytest.TempPathFactory, built: Built, target: str) -> Library:
    make = partial(build_library, built.bundle, target)
    return built_library(built.bundle, target, once(factory, f"library-{target}", make))


@pytest.fixture(scope="module", params=["program", "library"])
def engine(request: pytest.FixtureRequest, built: Built) -> list[str | Program]:
    """Starts the tiny model's engine: the program, and a process that loads the library."""
    if request.param == "program":
        return engine_command(LOCAL, built.program)
    library: Library = request.getfixturevalue("library")
    return [*library.command()]
