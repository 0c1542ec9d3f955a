"""Reads the parameters of an MLC package: `tensor-cache.json` and the files that it lists."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from convert.bundle.errors import BundleError
from convert.bundle.plan import Plan
from convert.mlc.params import CACHE, names_in
from convert.support.strict_json import load_json
from quantize.int8 import INT8_GROUP
from quantize.layout import unpack_mlc, unpack_mlc_int8
from quantize.schemes import Array

Spec = tuple[tuple[int, ...], str]  # a parameter's shape and dtype


class _Record(Struct, frozen=True):
    """A parameter in a file; TVM writes more keys."""

    name: str
    shape: list[int]
    dtype: str
    nbytes: int
    byteOffset: int  # TVM's name


class _Shard(Struct, frozen=True):
    """A file of parameters."""

    dataPath: str  # TVM's name
    nbytes: int
    records: list[_Record]


class _Cache(Struct, frozen=True):
    """The content of `tensor-cache.json`."""

    records: list[_Shard]


def expected_params(plan: Plan) -> dict[str, Spec]:
    """Returns shapes and dtypes of a package's parameters by MLC-LLM's names.

    Args:
        plan: made by `convert.mlc.package.make_mlc_plan`.
    """
    scheme, names, specs = plan.recipe.scheme, names_in(plan), dict[str, Spec]()
    for tensor in plan.tensors:
        shape, name = tensor.rule.shape, names[tensor.name]
        if tensor.format == "q4":
            specs[f"{name}.q_weight"] = ((shape[0], shape[1] // 8), "uint32")
            specs[f"{name}.q_scale"] = ((shape[0], shape[1] // scheme.group_size), "float16")
        elif tensor.format == "q8":
            groups = -(-shape[1] // INT8_GROUP)
            matrix = name.removesuffix(".weight")
            specs[f"{matrix}.q_weight"] = ((shape[0], groups * INT8_GROUP // 4), "uint32")
            specs[f"{matrix}.q_scale"] = ((shape[0], groups), "float16")
        else:
            specs[name] = (tuple(shape), "float16")
    return specs


class StoredParams(Mapping[str, Array]):
    """The parameters of a package, mapped into memory, by MLC-LLM's names."""

    def __init__(self, folder: Path, files: Collection[str], expected: Mapping[str, Spec]) -> None:
        """Checks every name, shape, dtype and place.

        Args:
            folder: the package.
            files: what its manifest lists; each is there and has its size.
            expected: what must be stored; see `expected_params`.

        Raises:
            BundleError: the list is damaged, or does not list what is expected.
        """
        self._path = folder / CACHE
        found: dict[str, tuple[Path, int, Spec]] = {}
        for shard in self._read():
            path = folder / shard.dataPath
            if shard.dataPath not in files:
                raise self._damaged(f"{shard.dataPath:.80} is not a file of the package")
            size = path.stat().st_size
            for one in shard.records:
                spec = (tuple(one.shape), one.dtype)
                if one.name in found or expected.get(one.name) != spec:
                    raise self._damaged(
                        f"parameter {one.name:.80} does not follow from the model and the recipe"
                    )
                nbytes = int(np.prod(one.shape)) * np.dtype(one.dtype).itemsize
                if one.nbytes != nbytes or not 0 <= one.byteOffset <= size - nbytes:
                    raise self._damaged(f"parameter {one.name} does not lie in {shard.dataPath}")
                found[one.name] = path, one.byteOffset, spec
        missing = [name for name in expected if name not in found]
        if missing:
            raise self._damaged(f"parameter {missing[0]} is missing")
        self._found = found

    def __getitem__(self, name: str) -> Array:
        """Returns a read-only view of a parameter."""
        path, offset, (shape, dtype) = self._found[name]
        return np.memmap(path, dtype, "r", offset, shape)

    def __iter__(self) -> Iterator[str]:
        """Iterates over the names in the order of the files."""
        return iter(self._found)

    def __len__(self) -> int:
        """Returns how many there are."""
        return len(self._found)

    def _read(self) -> list[_Shard]:
        try:
            raw: Any = load_json(self._path)
            return msgspec.convert(raw, _Cache).records
        except (OSError, ValueError) as error:  # msgspec's errors are ValueErrors
            raise BundleError(f"{self._path}: cannot be read: {error}") from error

    def _damaged(self, why: str) -> BundleError:
        return BundleError(f"{self._path}: damaged: {why}; convert the checkpoint again")


def stored_tensor(params: Mapping[str, Array], name: str, form: str) -> tuple[Array, Array] | Array:
    """Returns a tensor as it is stored.

    Args:
        params: of the package.
        name: MLC-LLM's name of the tensor.
        form: the plan's format of it.

    Returns:
        Of `q4` codes (N, K) uint8, with their zero point, and scales (N, G) float16; of `q8` codes
        (N, G * 128) int8 and scales; of others the values, float16.
    """
    if form not in ("q4", "q8"):
        return params[name]
    matrix = name if form == "q4" else name.removesuffix(".weight")
    packed, scale = params[f"{matrix}.q_weight"], params[f"{matrix}.q_scale"]
    return (unpack_mlc(packed) if form == "q4" else unpack_mlc_int8(packed)), scale
