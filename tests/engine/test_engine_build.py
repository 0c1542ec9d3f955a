"""The built engine: a static program for every platform, with identical results of its blocks.

The first run compiles TVM's runtime and SentencePiece, which takes minutes; they are kept (see
convert/engine/toolchain.py).
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from convert.bundle.errors import BundleError
from convert.bundle.weights_file import TensorSpec, WeightsFile
from convert.bundle.weights_writer import WeightsWriter
from convert.engine.build import (
    BlockLibrary,
    EngineReport,
    build_engine,
    build_info,
    export_objects,
)
from convert.engine.compile import Target
from convert.engine.toolchain import PAGE_BYTES, BuildError
from convert.engine.units import SENTENCEPIECE
from tests.support.elf import DYNAMIC, INTERPRETER, LOAD, Elf
from tests.support.needs import need_qemu
from tests.support.processor import processor_features

HERE = Path(__file__).resolve().parent
TARGETS = ("android-x86_64", "android-arm64")
PREFIX = "proof_"
MAX_BYTES = 8 * 2**20
# The oldest phones' cores, and newer ones.
ARM_CPUS = {
    "cortex-a53": ["asimd"],
    "cortex-a76": ["asimd", "dotprod", "fp16"],
    "max,sme=off": ["asimd", "dotprod", "fp16", "i8mm"],
}
Array = npt.NDArray[Any]
Run = Callable[..., list[dict[str, Any]]]


def eighths(shape: Sequence[int], dtype: str, factor: int, modulus: int) -> Array:
    """Makes the same inputs as build_main.cc: all sums of their products are exact."""
    count = np.arange(int(np.prod(shape)))
    return ((count * factor % modulus - modulus // 2) / 8).astype(dtype).reshape(shape)


INPUTS = (
    eighths((5, 64), "float32", 7, 13),
    eighths((8, 64, 16), "float16", 5, 17),
    eighths((128,), "float32", 3, 11),
)


def compiled_proof(target: dict[str, Any], prefix: str | None) -> Any:
    """Compiles a linear layer with float16 weights, parallel over its rows."""

    from convert.blocks.graph import Graph, tensor, tensor_type, variable
    from convert.blocks.linear import Linear, linear_f16
    from convert.blocks.lowering import build
    from convert.blocks.processors import products

    graph, length = Graph(products("neon")), variable("length")
    parameters = [
        tensor("x", (length, 64)),
        tensor("weight", (8, 64, 16), "float16"),
        tensor("bias", (128,)),
    ]
    kernel = linear_f16(Linear(rows=128, columns=64, bias=True), products("neon"))
    with graph.function("proof", parameters):
        graph.finish(graph.call(kernel, parameters, tensor_type((length, 128))))
    module = graph.module()
    if prefix is not None:
        module = module.with_attr("system_lib_prefix", prefix)
    return build(module, target)


@pytest.fixture(scope="module", params=TARGETS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> EngineReport:
    """Builds build_main.cc for a target, in the same way as an engine."""
    try:
        SENTENCEPIECE.fetch()
    except BuildError as error:
        pytest.skip(str(error))
    target = Target.load(request.param)
    folder = tmp_path_factory.mktemp(target.name)
    objects = export_objects(compiled_proof(target.variants[-1].tvm, PREFIX), folder / "objects")
    library = BlockLibrary(prefix=PREFIX, requires=(), objects=objects)
    return build_engine(
        target.name,
        target.link,
        [library],
        folder / "program",
        "proof",
        main=HERE / "build_main.cc",
    )


def run(report: EngineReport, *arguments: object, cpu: str = "max") -> list[dict[str, Any]]:
    """Runs a program, under qemu if it is for arm64; returns its lines."""
    command = [str(report.program)]
    if report.target.endswith("arm64"):
        command = [need_qemu(), "-cpu", cpu, *command]
    done = subprocess.run(
        [*command, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert not done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_file_needs_nothing(built: EngineReport) -> None:
    elf = Elf.read(built.program)
    assert elf.machine == ("aarch64" if built.target.endswith("arm64") else "x86_64")
    assert elf.kind == 3, "position-independent"
    kinds = [segment.kind for segment in elf.segments]
    assert INTERPRETER not in kinds and elf.needed == (), "static"
    assert DYNAMIC in kinds
    symbol_table = 2
    assert symbol_table not in elf.sections, "stripped"


def test_segments_fit_large_pages(built: EngineReport) -> None:
    loads = [s for s in Elf.read(built.program).segments if s.kind == LOAD]
    for segment in loads:
        assert segment.alignment >= PAGE_BYTES and segment.alignment % PAGE_BYTES == 0
        assert (segment.address - segment.offset) % segment.alignment == 0
    # No page may need two different protections.
    ends = [s.address + s.file_bytes for s in loads]
    for end, after in zip(ends, loads[1:], strict=False):
        assert (end - 1) // PAGE_BYTES < after.address // PAGE_BYTES


def test_the_file_is_small(
    built: EngineReport, record_property: Callable[[str, object], None]
) -> None:
    record_property(f"{built.target}, bytes", built.program_bytes)
    assert built.program_bytes == built.program.stat().st_size <= MAX_BYTES


def test_the_file_tells_nothing_of_this_machine(built: EngineReport) -> None:
    content = built.program.read_bytes()
    for folder in (HERE.parents[1], Path.home() / ".cache", Path("/tmp"), "site-packages"):
        assert str(folder).encode() not in content


def test_a_second_build_gives_the_same_bytes(built: EngineReport, tmp_path: Path) -> None:
    target = Target.load(built.target)
    objects = tuple(sorted((built.program.parent / "objects").iterdir()))
    library = BlockLibrary(prefix=PREFIX, requires=(), objects=objects)
    heard: list[str] = []
    again = build_engine(
        target.name,
        target.link,
        [library],
        tmp_path / "again",
        "proof",
        lambda stage, *_: heard.append(stage),
        main=HERE / "build_main.cc",
    )
    assert again.program.read_bytes() == built.program.read_bytes()
    assert heard == [f"link for {target.link}"] * 2, "nothing is compiled again"


def test_the_engine_says_what_it_is(built: EngineReport, tmp_path: Path) -> None:
    target = Target.load(built.target)
    objects = tuple(sorted((built.program.parent / "objects").iterdir()))
    library = BlockLibrary(prefix=PREFIX, requires=(), objects=objects)
    engine = build_engine(target.name, target.link, [library], tmp_path / "engine", "0123abcd")
    hello = run(engine)[0]
    assert hello["event"] == "hello"
    assert (hello["target"], hello["program_id"]) == (target.name, "0123abcd")
    assert hello["version"] == version("minicpmv")
    assert hello["kinds"] == [PREFIX]
    assert engine.program_bytes <= MAX_BYTES


def test_blocks_give_the_same_numbers(built: EngineReport) -> None:
    """They equal numpy's in float64 exactly: with these inputs nothing is rounded."""
    x, weight, bias = (value.astype(np.float64) for value in INPUTS)
    expected = np.einsum("lk,tkr->ltr", x, weight).reshape(len(x), -1) + bias
    for cpu in ARM_CPUS:
        values = run(built, "proof", cpu=cpu)[0]["values"]
        np.testing.assert_array_equal(np.array(values).reshape(expected.shape), expected)
        if not built.target.endswith("arm64"):
            break


def test_python_gives_the_same_numbers(built: EngineReport) -> None:
    import tvm
    from tvm import relax

    target = Target.load("host").variants[-1].tvm
    machine = relax.VirtualMachine(compiled_proof(target, None), tvm.cpu())
    result = machine["proof"](*map(tvm.runtime.tensor, INPUTS)).numpy()
    assert run(built, "proof")[0]["values"] == result.reshape(-1).tolist()


def test_processor_features(built: EngineReport) -> None:
    """On arm64 those of the emulated cores; on x86-64 those that the kernel reports."""
    if built.target.endswith("arm64"):
        for cpu, features in ARM_CPUS.items():
            assert run(built, "choose", "any=", cpu=cpu)[0]["features"] == features
        return
    assert set(run(built, "choose", "any=")[0]["features"]) == processor_features()


def test_the_first_blocks_that_run_are_taken(built: EngineReport) -> None:
    have = "asimd" if built.target.endswith("arm64") else "x86-64-v2"
    line = run(built, "choose", f"best={have} warp", f"good={have}", "any=")[0]
    assert line["prefix"] == "good"
    assert run(built, "choose", "any=")[0]["prefix"] == "any"


def test_a_processor_that_runs_no_blocks_is_named(built: EngineReport) -> None:
    have = "asimd" if built.target.endswith("arm64") else "x86-64-v2"
    line = run(built, "choose", "best=sse5 warp", f"good={have} warp")[0]
    assert line["code"] == "unsupported_cpu"
    assert line["message"].endswith("also need: warp")
    assert "no compiled blocks" in run(built, "choose")[0]["message"]


SPECS = (
    TensorSpec("a.weight", "F16", (3, 7)),
    TensorSpec("b.scale", "F32", (5,)),
    TensorSpec("empty", "U8", (0, 4)),
    TensorSpec("c", "U8", (2, 3, 64)),
    TensorSpec("one", "I8", ()),
)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    rng = np.random.default_rng(0)
    with WeightsWriter(path, SPECS) as writer:
        for spec in SPECS:
            codes = rng.integers(0, 100, spec.shape)
            dtype = {"F16": "float16", "F32": "float32", "U8": "uint8", "I8": "int8"}[spec.dtype]
            writer.write(spec.name, np.asarray(codes).astype(dtype))
    return path


def described(path: Path) -> dict[str, Any]:
    """Describes a file as build_main.cc does, using the Python reader."""
    file = WeightsFile(path)
    return {
        spec.name: [
            spec.dtype,
            list(spec.shape),
            int(np.sum(np.frombuffer(file[spec.name].tobytes(), "u1"))),
        ]
        for spec in file.specs()
    }


def test_weights_are_read_as_python_reads_them(built: EngineReport, weights: Path) -> None:
    assert run(built, "weights", weights)[0] == described(weights)


def test_damaged_weights_are_refused_as_python_refuses_them(
    built: EngineReport, weights: Path, tmp_path: Path
) -> None:
    whole = weights.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    text = whole[8 : 8 + length]
    nested = b"[" * 100_000
    contents = [whole[:n] for n in (0, 7, 8, 9, 100, 8 + length, len(whole) - 1)]
    contents += [whole + b"\0", b"\xff" * 8 + whole[8:], nested.join([b"", b""])]
    contents += [len(nested).to_bytes(8, "little") + nested]
    for old, new in (
        (b'"F16"', b'"F17"'),
        (b'"F16"', b'"F32"'),
        (b"[3,7]", b"[7,3]"),  # as good as the other
        (b"[3,7]", b"[3,8]"),
        (b"[3,7]", b"[-3,7]"[:5]),
        (b"[0,42]", b"[42,0]"),
        (b"[0,42]", b"[1,43]"),
        (b"[0,42]", b'"0,42'[:5] + b'"'),
        (b'"shape"', b'"sharp"'),
        (b'{"a.weight"', b'["a.weight"'),
        (b"[5]", b"5  "),
        (b"[5]", b"5.0"),
        (b"[0,4]", b"[1e1]"[:5]),
    ):
        assert old in text and len(old) == len(new)
        contents.append(whole.replace(old, new, 1))
    rng = np.random.default_rng(1)
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[int(rng.integers(8 + length))] = int(rng.integers(32, 127))
        contents.append(bytes(damaged))
    paths = []
    for i, content in enumerate(contents):
        paths.append(tmp_path / f"{i}.safetensors")
        paths[-1].write_bytes(content)
    missing = tmp_path / "missing"
    lines = run(built, "weights", *paths, missing, tmp_path)
    assert [line["code"] for line in lines[-2:]] == ["invalid_bundle"] * 2
    refused = 0
    for path, line in zip(paths, lines[:-2], strict=True):
        try:
            expected = described(path)
        except BundleError:
            refused += 1
            assert line.get("code") == "invalid_bundle", path.read_bytes()[:400]
            assert line["message"].startswith(str(path))
        else:
            assert line == expected, path.read_bytes()[:400]
    assert refused > 200


def test_build_info() -> None:
    library = BlockLibrary(prefix="avx2_", requires=("x86-64-v3", "fma"), objects=())
    text = build_info("host", "0123", [library])
    assert 'const char kTarget[] = "host";' in text
    assert 'const char kProgramId[] = "0123";' in text
    assert '{"avx2_", "x86-64-v3 fma"},' in text
    with pytest.raises(AssertionError, match="cannot stand in C"):
        build_info('host"; evil', "0123", [])
