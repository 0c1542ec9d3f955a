"""CPU features as the kernel reports them; the engine asks the CPU itself."""

from __future__ import annotations

from pathlib import Path


def processor_features() -> set[str]:
    """Returns names of `runtime/engine/cpu_features.cc`; empty unless this is Linux on x86-64."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    flags = set(next((line for line in lines if line.startswith("flags")), "").split())
    features = set()
    if {"sse4_2", "popcnt", "cx16"} <= flags:
        features.add("x86-64-v2")
    if {"avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"} <= flags:
        features.add("x86-64-v3")
        features |= {"avx-vnni"} if "avx_vnni" in flags else set()
        if {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"} <= flags:
            features.add("x86-64-v4")
            features |= {"avx512-vnni"} if "avx512_vnni" in flags else set()
            # Linux shows them from 5.16 on, which is the first that permits them.
            features |= {"amx-int8"} if {"amx_tile", "amx_int8"} <= flags else set()
    return features
