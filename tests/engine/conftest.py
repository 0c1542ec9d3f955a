from __future__ import annotations

import importlib.util
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from convert.bundle.manifest import Bundle
from convert.bundle.targets import PHONE, is_host
from convert.engine.toolchain import Toolchain
from convert.engine.units import ENGINE, SENTENCEPIECE, engine_unit, sentencepiece_unit
from tests.engine.components import Components
from tests.engine.engines import Built, add_phone, build_host_engine

QEMU = "qemu-aarch64-static"
SOURCES = ["image_preprocessor.cc", "logprobs.cc", "picture_file.cc", "prompt.cc", "random.cc"]
SOURCES += [
    "regular_file.cc",
    "sampler.cc",
    "text_stream.cc",
    "tokenizer.cc",
    "utf8.cc",
    "window.cc",
]


def _build(triple: str, program: Path) -> Path:
    """Builds the engine's components, with what the cache of compiled objects has of them."""
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("ziglang is not installed; it compiles the engine")
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
    return program


@pytest.fixture(scope="session")
def components_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not is_host():
        pytest.skip("the host engine is for Linux on x86-64")
    return _build("x86_64-linux-musl", tmp_path_factory.mktemp("components") / "host")


@pytest.fixture(scope="session")
def arm64_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which(QEMU) is None:
        pytest.skip(f"{QEMU} is not installed; it runs the phone's program")
    return _build("aarch64-linux-musl", tmp_path_factory.mktemp("components") / "arm64")


@pytest.fixture
def components(components_program: Path) -> Iterator[Components]:
    with Components(str(components_program)) as running:
        yield running


@pytest.fixture
def arm64(arm64_program: Path) -> Iterator[Components]:
    with Components(QEMU, str(arm64_program)) as running:
        yield running


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A tiny model's bundle with its engine; nobody alters it."""
    if not is_host():
        pytest.skip("the host engine is for Linux on x86-64")
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("ziglang is not installed; it compiles the engine")
    # With a head of its own: where it is the embedding, a random model says one token for ever.
    return build_host_engine(tmp_path_factory.mktemp("engine"), head="different")


@pytest.fixture(scope="session")
def phone(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The same bundle with the phone's engine."""
    if shutil.which(QEMU) is None:
        pytest.skip(f"{QEMU} is not installed; it runs the phone's program")
    bundle = tmp_path_factory.mktemp("phone") / "bundle"
    shutil.copytree(built.bundle, bundle)
    add_phone(bundle)
    return Built(bundle, Bundle.open(bundle).program(PHONE))
