"""The plan of a bundle: every tensor, its format, and the reason, decided before any work.

A recipe (`configs/quant/NAME.json`) lists patterns with formats; the first pattern that matches a
tensor's name applies. A tensor that no pattern matches, or whose shape its format cannot store, is
an error: nothing falls back silently.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from convert.bundle.kv_cache import FP16, find_kv_format
from convert.bundle.weights_file import TensorSpec, file_size
from convert.checkpoint.config import ModelConfig
from convert.checkpoint.tensor_tables import Rule, Table, bundle_rules
from convert.support.strict_json import load_json
from quantize.errors import ConfigError, ShapeError
from quantize.int8 import INT8_GROUP
from quantize.layout import TILE_ROWS, tiles
from quantize.methods import find_method
from quantize.schemes import RECIPES, GroupScheme

Shape = tuple[int, ...]
# A row that names one tensor of one layer, without wildcards.
_SINGLE = re.compile(r"(?:llm\.layers|vision\.blocks)\.(?=\d+\.[^*?\[]*$)")


@dataclass(frozen=True)
class FormatRule:
    """One row of a recipe: tensors whose names match `pattern` (with `*`) get `format`."""

    pattern: str
    format: str  # a key of FORMATS
    why: str


@dataclass(frozen=True)
class Recipe:
    """A quantization recipe: the number format of groups, the method, and each tensor's format."""

    scheme: GroupScheme
    method: str  # a key of quantize.methods.METHODS
    tensors: tuple[FormatRule, ...]
    source: Mapping[str, Any]  # the file it was read from

    @staticmethod
    def load(name: str) -> Recipe:
        """Reads `configs/quant/NAME.json`, or a file of the user's whose name ends with `.json`.

        Raises:
            ConfigError: no such recipe, or a missing, unknown or contradictory key.
        """
        if name.endswith(".json"):
            return _load_file(name)
        GroupScheme.load(name)
        return Recipe.from_json(json.loads((RECIPES / f"{name}.json").read_text("utf-8")))

    @staticmethod
    def from_json(raw: Mapping[str, Any]) -> Recipe:
        """Reads a recipe's content; see `load`."""
        name = raw.get("name")
        names = {field.name for field in fields(GroupScheme)}
        expected = {*names, "method", "tensors"}
        if set(raw) != expected:
            raise ConfigError(
                f"recipe {name}: has the keys {', '.join(sorted(raw))}; "
                f"expected {', '.join(sorted(expected))}"
            )
        find_method(str(raw["method"]))
        rows, keys = raw["tensors"], {field.name for field in fields(FormatRule)}
        if not isinstance(rows, list) or not all(_is_row(row, keys) for row in rows):
            raise ConfigError(
                f"recipe {name}: tensors must be a list of objects with the texts "
                f"{', '.join(sorted(keys))}"
            )
        unknown = {row["format"] for row in rows} - set(FORMATS)
        if unknown:
            raise ConfigError(
                f"recipe {name}: unknown formats {', '.join(sorted(unknown))}; "
                f"known: {', '.join(FORMATS)}"
            )
        scheme = GroupScheme(**{key: raw[key] for key in names})
        return Recipe(scheme, raw["method"], tuple(FormatRule(**row) for row in rows), raw)

    def with_method(self, method: str) -> Recipe:
        """Returns the same recipe with another method; only plain rounding leaves a code unused.

        Raises:
            ConfigError: no such method.
        """
        codes = (
            2**self.scheme.bits - 1 if find_method(method).search else 2 * self.scheme.zero_point
        )
        return Recipe.from_json({**self.source, "method": method, "max_code": codes})

    def format_of(self, name: str) -> FormatRule:
        """Returns the row that applies to a tensor."""
        for row in self.tensors:
            if fnmatchcase(name, row.pattern):
                return row
        raise ConfigError(f"recipe {self.scheme.name} says nothing about tensor {name}")

    def check_layers(self, names: Collection[str]) -> None:
        """Checks that a row which names one tensor of one layer names one of a model's.

        Rows with `*` may match nothing: a recipe is for models with and without vision.

        Args:
            names: of the model's tensors.

        Raises:
            ConfigError: a tensor that the model lacks.
        """
        for row in self.tensors:
            stack = _SINGLE.match(row.pattern)
            if stack is None or row.pattern in names:
                continue
            if any(name.startswith(stack[0]) for name in names):
                raise ConfigError(
                    f"recipe {self.scheme.name}: names the tensor {row.pattern:.80}, which the "
                    "model does not have; leave out that row, or write * for every layer"
                )


@dataclass(frozen=True)
class PlannedTensor:
    """One artifact tensor and how it is stored."""

    rule: Rule
    format: str
    why: str
    stored: tuple[TensorSpec, ...]

    @property
    def name(self) -> str:
        """The artifact tensor's name; if it is stored in several parts, each adds a suffix."""
        return self.rule.name

    @property
    def parameters(self) -> int:
        """The number of values, without padding."""
        return math.prod(self.rule.shape)

    @property
    def nbytes(self) -> int:
        """The bytes stored, including the padding of tiles."""
        return sum(spec.nbytes for spec in self.stored)


@dataclass(frozen=True)
class PlannedGroup:
    """Tensors of one part of the model that have the same format for the same reason."""

    part: str
    why: str
    format: str
    tensors: tuple[PlannedTensor, ...]

    @property
    def parameters(self) -> int:
        """The number of values in the group's tensors."""
        return sum(tensor.parameters for tensor in self.tensors)

    @property
    def nbytes(self) -> int:
        """The bytes of the group's tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)


@dataclass(frozen=True)
class Plan:
    """All tensors of a bundle, in the order of its weights file, and the decoder's KV cache."""

    recipe: Recipe
    tensors: tuple[PlannedTensor, ...]
    kv: str = FP16  # a key of convert.bundle.kv_cache.KV_FORMATS

    @property
    def stored(self) -> list[TensorSpec]:
        """The tensors of the weights file, in order."""
        return [spec for tensor in self.tensors for spec in tensor.stored]

    @property
    def parameters(self) -> int:
        """The number of values in all tensors."""
        return sum(tensor.parameters for tensor in self.tensors)

    @property
    def nbytes(self) -> int:
        """The size of the weights file in bytes."""
        return file_size(self.stored)

    @property
    def bits_per_weight(self) -> float:
        """The bits per parameter in the weights file, including header and padding."""
        return 8 * self.nbytes / self.parameters

    def groups(self) -> list[PlannedGroup]:
        """Groups tensors by part, reason and format, in the order of their first tensors."""
        groups: dict[tuple[str, str, str], list[PlannedTensor]] = {}
        for tensor in self.tensors:
            part = tensor.name.partition(".")[0]
            groups.setdefault((part, tensor.why, tensor.format), []).append(tensor)
        return [PlannedGroup(*key, tuple(tensors)) for key, tensors in groups.items()]


def make_plan(config: ModelConfig, untied_head: bool, recipe: Recipe, kv: str = FP16) -> Plan:
    """Decides how every tensor of a bundle is stored.

    Args:
        config: the model's geometry.
        untied_head: whether the LM head is a matrix of its own, not the embedding.
        recipe: the tensors' formats.
        kv: the decoder's KV cache, a key of `convert.bundle.kv_cache.KV_FORMATS`.

    Raises:
        ConfigError: the recipe has no row for a tensor, or the KV cache is unknown.
        ShapeError: a tensor's shape does not suit its format.
    """
    return plan_of(bundle_rules(config, untied_head), recipe, kv)


def plan_of(rules: Table, recipe: Recipe, kv: str = FP16) -> Plan:
    """Decides how each tensor of a table is stored; see `make_plan`."""
    find_kv_format(kv)
    tensors = []
    recipe.check_layers({rule.name for rule in rules if isinstance(rule, Rule)})
    for rule in rules:
        if isinstance(rule, Rule):
            row = recipe.format_of(rule.name)
            stored = stored_specs(rule.name, rule.shape, row.format, recipe.scheme)
            tensors.append(PlannedTensor(rule, row.format, row.why, stored))
    return Plan(recipe, tuple(tensors), kv)


def stored_specs(
    name: str, shape: Shape, format: str, scheme: GroupScheme
) -> tuple[TensorSpec, ...]:
    """Returns the stored tensors of an artifact tensor (N, K) or (N,) in a format of FORMATS.

    Raises:
        ShapeError: the shape does not suit the format.
    """
    return FORMATS[format](name, shape, scheme)


def _load_file(name: str) -> Recipe:
    try:
        raw = load_json(Path(name))
    except OSError as error:
        raise ConfigError(f"recipe {name}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"recipe {name}: not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"recipe {name}: a {type(raw).__name__}; expected an object")
    try:
        return Recipe.from_json(raw)
    except TypeError as error:
        raise ConfigError(f"recipe {name}: {error}") from error


def _is_row(row: Any, keys: set[str]) -> bool:
    return (
        isinstance(row, dict)
        and set(row) == keys
        and all(isinstance(value, str) for value in row.values())
    )


def _q4(name: str, shape: Shape, scheme: GroupScheme) -> tuple[TensorSpec, ...]:
    if len(shape) != 2 or shape[1] % scheme.group_size:
        raise ShapeError(
            f"{name}: shape {list(shape)}; q4 needs a matrix whose width is a multiple of "
            f"{scheme.group_size}. Give it another format in recipe {scheme.name}"
        )
    count, groups = tiles(shape[0]), shape[1] // scheme.group_size
    block = scheme.group_size * TILE_ROWS * scheme.bits // 8 // 4
    return (
        TensorSpec(f"{name}.q_weight", "U8", (count, groups, 4, block)),
        TensorSpec(f"{name}.q_scale", "F16", (count, groups, TILE_ROWS)),
    )


def _q8(name: str, shape: Shape, scheme: GroupScheme) -> tuple[TensorSpec, ...]:
    if len(shape) != 2:
        raise ShapeError(f"{name}: shape {list(shape)}; q8 needs a matrix")
    count, groups = tiles(shape[0]), -(-shape[1] // INT8_GROUP)
    block = 4 * TILE_ROWS
    return (
        TensorSpec(f"{name}.q_weight", "I8", (count, groups, INT8_GROUP // 4, block)),
        TensorSpec(f"{name}.q_scale", "F16", (count, groups, TILE_ROWS)),
    )


def _f16_tiled(name: str, shape: Shape, scheme: GroupScheme) -> tuple[TensorSpec, ...]:
    if len(shape) != 2:
        raise ShapeError(f"{name}: shape {list(shape)}; f16_tiled needs a matrix")
    return (TensorSpec(name, "F16", (tiles(shape[0]), shape[1], TILE_ROWS)),)


def _f16(name: str, shape: Shape, scheme: GroupScheme) -> tuple[TensorSpec, ...]:
    return (TensorSpec(name, "F16", shape),)


def _f32(name: str, shape: Shape, scheme: GroupScheme) -> tuple[TensorSpec, ...]:
    return (TensorSpec(name, "F32", shape),)


FORMATS: dict[str, Callable[[str, Shape, GroupScheme], tuple[TensorSpec, ...]]] = {
    "q4": _q4,  # 4-bit codes and a scale per group, tiled
    "q8": _q8,  # int8 codes and a scale per group, the last group padded with zeros; tiled
    "f16_tiled": _f16_tiled,  # float16 matrix, tiled
    "f16": _f16,
    "f32": _f32,
}
