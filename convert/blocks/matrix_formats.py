"""Matrices in the formats of a recipe: the parameters that hold them, and their products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tvm import tirx

from convert.blocks.graph import Expr, Graph, tensor, tensor_type
from convert.blocks.linear import Linear, linear_codes, linear_f16
from convert.blocks.outer_products import linear_of_several, pack_tokens, packed_shapes
from convert.blocks.rows import RowSource, embedding_codes, embedding_f16, given, quantize, write
from convert.bundle.plan import Plan
from quantize.errors import ConfigError
from quantize.int8 import INT8_GROUP
from quantize.layout import TILE_ROWS
from quantize.schemes import GroupScheme


@dataclass(frozen=True)
class Rows:
    """Rows (L, K) that a source makes of tensors, the first of which has L rows."""

    source: RowSource
    tensors: tuple[Expr, ...]

    @property
    def length(self) -> Expr:
        """L."""
        return self.tensors[0].ty.shape[0]

    def write(self, graph: Graph) -> Expr:
        """Adds what computes them: (L, K)."""
        out = tensor_type((self.length, self.source.width))
        return graph.call(write(self.source), self.tensors, out)


@dataclass(frozen=True)
class StoredMatrix:
    """A matrix (N, K) as a function's parameters."""

    format: str  # a key of convert.bundle.plan.FORMATS
    scheme: GroupScheme
    parameters: tuple[Expr, ...]
    rows: int
    columns: int

    @property
    def group_size(self) -> int:
        """Inputs that share a scale."""
        return self.scheme.group_size if self.format == "q4" else INT8_GROUP

    @property
    def rounds(self) -> bool:
        """Whether its product rounds the inputs to int8."""
        return self.format != "f16_tiled"

    def linear(self, graph: Graph, c: Linear, x: Rows | Expr, *arguments: Expr) -> Expr:
        """Adds the product x (L, K) -> (L, N) and what `c` says follows it."""
        if not self.rounds:
            x = x.write(graph) if isinstance(x, Rows) else x
            out = tensor_type((x.ty.shape[0], self.rows))
            kernel = linear_f16(c, graph.products)
            return graph.call(kernel, [x, *self.parameters, *arguments], out)
        x = x if isinstance(x, Rows) else Rows(given(self.columns), (x,))
        size, groups = self.group_size, -(-self.columns // self.group_size)
        zero_point = self.scheme.zero_point if self.format == "q4" else graph.products.q8.bias
        activations = graph.call(
            quantize(x.source, size, zero_point),
            x.tensors,
            tensor_type((x.length, groups, size), "int8"),
            tensor_type((x.length, groups)),
            tensor_type((x.length, groups), "int32"),
        )
        product = graph.products.q4 if self.format == "q4" else graph.products.q8
        blocks, dtype = _blocks(self.format)
        several = graph.products.several
        if several is not None and self.format != "q4":
            several = replace(several, few=None)
        if several is None or (isinstance(x.length, tirx.IntImm) and x.length < several.fewest):
            kernel = linear_codes(c, size, product, blocks, dtype)
        else:
            if several.packs:
                activations += graph.call(
                    pack_tokens(groups, size, several),
                    activations[: 2 if several.few is None else 3],
                    *(tensor_type(*one) for one in packed_shapes(x.length, groups, size, several)),
                )
            kernel = linear_of_several(c, size, product, blocks, dtype, zero_point, several)
        out = tensor_type((x.length, self.rows))
        return graph.call(kernel, [*activations, *self.parameters, *arguments], out)

    def look_up(self, graph: Graph, ids: Expr, factor: float) -> Expr:
        """Adds the rows of `ids` (L,), times `factor`: (L, K)."""
        if self.format == "f16_tiled":
            kernel = embedding_f16(self.rows, self.columns, factor)
        else:
            zero_point = self.scheme.zero_point if self.format == "q4" else None
            kernel = embedding_codes(self.rows, self.columns, factor, self.group_size, zero_point)
        out = tensor_type((ids.ty.shape[0], self.columns))
        return graph.call(kernel, [ids, *self.parameters], out)


def variant(function: str, combination: Sequence[str]) -> str:
    """Returns the name of a layer's function for a combination of formats.

    The engine makes the same name of a layer's formats: `Blocks::Variant` in
    `runtime/engine/blocks.cc`.
    """
    return "_".join((function, *combination))


class Formats:
    """The formats that a plan gives a model's matrices."""

    def __init__(self, plan: Plan) -> None:
        self._scheme = plan.recipe.scheme
        self._formats = {tensor.name: tensor.format for tensor in plan.tensors}

    @property
    def untied_head(self) -> bool:
        """Says whether the LM head is another matrix than the token embedding."""
        return "llm.head" in self._formats

    def combinations(self, names: Sequence[str], depth: int) -> list[tuple[str, ...]]:
        """Returns which formats the matrices of one layer have; each combination is compiled once.

        Args:
            names: the bundle's, of a layer's matrices; `*` stands for the layer's number.
            depth: the number of layers.
        """
        layers = (tuple(self._formats[n.replace("*", str(i))] for n in names) for i in range(depth))
        return list(dict.fromkeys(layers))

    def matrix(self, name: str, rows: int, columns: int, form: str | None = None) -> StoredMatrix:
        """Makes the parameters of a matrix.

        Args:
            name: the bundle's; `*` stands for the layers that have this format.
            rows: N.
            columns: K.
            form: its format; None: the one that the plan gives it.

        Raises:
            ConfigError: no kernel knows the format.
        """
        form = self._formats[name] if form is None else form
        parameters = _parameters(form, name, rows, columns, self._scheme.group_size)
        if parameters is None:
            raise ConfigError(
                f"recipe {self._scheme.name}: {name} has the format {form}, which no kernel "
                "multiplies; expected q4, q8 or f16_tiled"
            )
        return StoredMatrix(form, self._scheme, parameters, rows, columns)


def _blocks(format: str) -> tuple[int, str]:
    """Returns how many blocks of 64 bytes hold a group's codes, and the codes' type."""
    return (4, "uint8") if format == "q4" else (INT8_GROUP // 4, "int8")


def _parameters(
    format: str, name: str, rows: int, columns: int, group_size: int
) -> tuple[Expr, ...] | None:
    tiles, name = -(-rows // TILE_ROWS), name.rpartition("*.")[2].replace(".", "_")
    if format == "f16_tiled":
        return (tensor(name, (tiles, columns, TILE_ROWS), "float16"),)
    if format not in ("q4", "q8"):
        return None
    blocks, dtype = _blocks(format)
    groups = -(-columns // (group_size if format == "q4" else INT8_GROUP))
    return (
        tensor(f"{name}_q_weight", (tiles, groups, blocks, 4 * TILE_ROWS), dtype),
        tensor(f"{name}_q_scale", (tiles, groups, TILE_ROWS), "float16"),
    )
