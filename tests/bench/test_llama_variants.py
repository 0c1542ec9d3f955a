"""Which build of llama.cpp is compared with, on processors with and without AMX; crashes of one.

What stands for llama.cpp is a script: no machine of ours has the processor on which it dies.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest

from quantize.errors import ToolkitError
from tests.bench import llama_build
from tests.bench.child import Child
from tests.bench.llama_build import NATIVE, Variant, variants
from tests.bench.llama_variants import fastest, try_all

ZEN_4 = "sse4_2 avx avx2 bmi2 fma f16c avx512f avx512bw avx512cd avx512dq avx512vl".split()
ZEN_4 += ["avx512vbmi", "avx512_vnni", "avx512_bf16"]
SAPPHIRE_RAPIDS = [*ZEN_4, "avx_vnni", "amx_bf16", "amx_tile", "amx_int8"]
GRANITE_WITHOUT_512 = ["sse4_2", "avx", "avx2", "bmi2", "fma", "f16c", "amx_int8", "avx512f"]

# Answers as llama_child.py does; a time per kind of work, or a signal in the place of an answer.
LLAMA = """
import json, os, sys
times = json.loads(sys.argv[1])
for line in sys.stdin:
    op = json.loads(line)["op"]
    if isinstance(times[op], str):
        os.kill(os.getpid(), getattr(__import__("signal"), times[op]))
    print(json.dumps({"ms": times[op], "processor_ms": 1 / times[op]}), flush=True)
"""
SLOW = {"load": 1, "prefill": 1000, "decode": 4000}
FAST = {"load": 1, "prefill": 500, "decode": 2000}
OFF = variants(SAPPHIRE_RAPIDS)[1]


def start(times: dict[str, dict[str, float | str]], folder: Path, variant: Variant) -> Child:
    if variant.name not in times:
        raise ToolkitError("pip failed with exit code 1; see above")
    command = [sys.executable, "-c", LLAMA, json.dumps(times[variant.name])]
    return Child("llama.cpp", command, folder)


def test_a_processor_without_amx_has_one_variant() -> None:
    assert variants(ZEN_4) == variants([]) == (NATIVE,)
    assert "-DGGML_NATIVE=ON" in NATIVE.cmake and "REPACK=ON" in NATIVE.cmake


def test_amx_is_all_that_is_left_out() -> None:
    native, off = variants(SAPPHIRE_RAPIDS)
    assert (native, off.name) == (NATIVE, "amx-off")
    options = dict(option.split("=") for option in off.cmake.split())
    amx = {name: value for name, value in options.items() if "AMX" in name}
    assert set(amx.values()) == {"OFF"} and len(amx) == 3
    assert options["-DGGML_NATIVE"] == "OFF" and options["-DGGML_CPU_REPACK"] == "ON"
    on = {name.removeprefix("-DGGML_") for name, value in options.items() if value == "ON"}
    assert on == {*llama_build._INSTRUCTIONS, "CPU_REPACK"}
    options = dict(option.split("=") for option in variants(GRANITE_WITHOUT_512)[1].cmake.split())
    assert options["-DGGML_AVX2"] == "ON" and options["-DGGML_AVX512"] == "OFF"


@pytest.mark.parametrize(
    ("native", "off", "chosen"),
    [
        (SLOW, FAST, "amx-off"),
        (FAST, SLOW, "native"),
        (FAST | {"prefill": "SIGILL"}, SLOW, "amx-off"),
        (FAST | {"load": "SIGSEGV"}, SLOW, "amx-off"),
        (SLOW, FAST | {"decode": "SIGKILL"}, "native"),
        (None, SLOW, "amx-off"),
    ],
)
def test_the_fastest_that_works_is_taken(
    native: dict[str, float | str] | None,
    off: dict[str, float | str],
    chosen: str,
    tmp_path: Path,
) -> None:
    times = {"amx-off": off} | ({"native": native} if native else {})
    told: list[str] = []
    found = try_all((NATIVE, OFF), lambda v: start(times, tmp_path, v), "ms", told.append)
    assert fastest(found).name == chosen
    assert [line.split(":")[0] for line in told] == ["llama.cpp, native", "llama.cpp, amx-off"]
    for tried in found:
        bad = [t for t in times.get(tried.variant.name, {}).values() if isinstance(t, str)]
        if bad:
            number = signal.Signals[bad[0]]
            why = f"llama.cpp ended: killed by {number.name} ({signal.strsignal(number)})"
            assert tried.to_json()["problem"] == why and why in told[found.index(tried)]
        elif tried.problem is None:
            prefill, decode = (times[tried.variant.name][op] for op in ("prefill", "decode"))
            speeds = {
                "prefill 96": 96_000 / prefill,  # type: ignore[operator]
                "prefill 256": 256_000 / prefill,  # type: ignore[operator]
                "decode": 64_000 / decode,  # type: ignore[operator]
            }
            assert tried.to_json()["tok_s"] == pytest.approx(speeds)


def test_the_clock_that_was_asked_for_counts(tmp_path: Path) -> None:
    times = {"native": FAST, "amx-off": SLOW}  # a processor's time is the other way round
    found = try_all((NATIVE, OFF), lambda v: start(times, tmp_path, v), "processor_ms", print)
    assert fastest(found).name == "amx-off"


def test_what_to_do_when_none_works(tmp_path: Path) -> None:
    times = {"native": FAST | {"prefill": "SIGILL"}}
    found = try_all((NATIVE, OFF), lambda v: start(times, tmp_path, v), "ms", print)
    why = r"no build of llama\.cpp .* works here: native: .*SIGILL.*; amx-off: pip failed.*remove"
    with pytest.raises(ToolkitError, match=why):
        fastest(found)


def test_a_build_is_for_this_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pip(command: list[str], environment: dict[str, str]) -> None:
        assert "--no-cache-dir" in command, "pip would give one variant for the other"
        built.append(environment["CMAKE_ARGS"])

    built: list[str] = []
    monkeypatch.setattr(llama_build, "folder", lambda: tmp_path)
    monkeypatch.setattr(llama_build, "run_pip", pip)
    monkeypatch.setattr(
        llama_build.subprocess, "run", lambda command, **_: Path(command[-1]).mkdir()
    )
    monkeypatch.setattr(llama_build, "features", lambda: frozenset(ZEN_4))
    places = [llama_build.python(variant) for variant in (NATIVE, NATIVE, OFF, OFF)]
    assert built == [NATIVE.cmake, OFF.cmake] and len(set(places)) == 2
    monkeypatch.setattr(llama_build, "features", lambda: frozenset(SAPPHIRE_RAPIDS))
    assert llama_build.python() == places[0]
    assert built[2:] == [NATIVE.cmake]
