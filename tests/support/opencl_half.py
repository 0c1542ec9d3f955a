"""Half precision for PoCL 3.1, which has none: OpenCL C in front of a kernel's own.

Its compiler knows C's `_Float16`: stored as half, computed in float32 and rounded when assigned.
The functions that TVM's kernels call with halves are defined here.
"""

from __future__ import annotations

from collections.abc import Iterator

_OVERLOAD = "__attribute__((overloadable))"


def half_precision() -> str:
    """Returns the definitions."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield from ("#define cl_khr_fp16 1", "#define half _Float16")
    for n in (2, 4, 8):
        yield f"typedef half half{n} __attribute__((ext_vector_type({n})));"
        each = f"for (int k = 0; k < {n}; k++)"
        for space in ("__global", "__local", "__private"):
            load = f"half{n} v; {each} v[k] = p[i * {n} + k]; return v;"
            yield _function(f"half{n}", f"vload{n}", f"size_t i, const {space} half *p", load)
            stored = f"half{n} v, size_t i, {space} half *p"
            yield _function("void", f"vstore{n}", stored, f"{each} p[i * {n} + k] = v[k];")
        for source, result in (("half", "float"), ("float", "half"), ("uint", "half")):
            body = f"return __builtin_convertvector(v, {result}{n});"
            yield _function(f"{result}{n}", f"convert_{result}{n}", f"{source}{n} v", body)
    for source, result in (("half", "float"), ("float", "half"), ("uint", "half")):
        yield _function(result, f"convert_{result}", f"{source} v", "return v;")
    yield _function("half", "exp", "half v", "return exp((float)v);")


def _function(result: str, name: str, parameters: str, body: str) -> str:
    return f"{result} {_OVERLOAD} {name}({parameters}) {{ {body} }}"
