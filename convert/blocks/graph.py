"""Relax functions that call kernels: a short form of TVM's block builder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from tvm import relax, tirx

from convert.blocks.products import Products

Expr = Any  # TVM has no type stubs

_UPPER_BOUNDS = "tir_var_upper_bound"  # the attribute that TVM's memory planning reads


class Graph:
    """A module under construction. A kernel that is called twice is stored once."""

    def __init__(self, products: Products) -> None:
        """Args: products: how the processor that it is for multiplies codes."""
        self.products = products
        self._builder = relax.BlockBuilder()
        self._parameters: list[Expr] = []
        self.functions: list[str] = []

    def module(self) -> Any:
        """Returns the module."""
        return self._builder.get()

    @contextmanager
    def function(
        self, name: str, parameters: Sequence[Expr], most: Mapping[str, int] | None = None
    ) -> Iterator[None]:
        """Opens a function; `finish` ends it.

        Args:
            name: under which it is called.
            parameters: its own.
            most: of variables by name: the largest values, for which memory is planned. Calls with
                larger ones fail. Without it, memory follows the variables.
        """
        self.functions.append(name)
        attributes = {} if most is None else {_UPPER_BOUNDS: dict(most)}
        with self._builder.function(name, list(parameters), attributes):
            yield

    def finish(self, result: Expr) -> None:
        """Makes `result` what the function returns."""
        self._builder.emit_func_output(result)

    def _add(self, kernel: Expr) -> Expr:
        # Without a symbol of its own a kernel gets a name that is unique in the module.
        name = kernel.attrs["global_symbol"]
        return self._builder.add_func(kernel.without_attr("global_symbol"), name)

    def call(self, kernel: Expr, arguments: Sequence[Expr], *outputs: Expr) -> Expr:
        """Calls a kernel that writes new tensors of the types `outputs`; returns it or them."""
        at = self._add(kernel)
        types = list(outputs)
        called = relax.call_tir(at, list(arguments), types[0] if len(types) == 1 else types)
        result = self._builder.emit(called)
        return result if len(types) == 1 else [result[i] for i in range(len(types))]

    def call_in_place(
        self, kernel: Expr, arguments: Sequence[Expr], written: Sequence[int], *outputs: Expr
    ) -> Expr:
        """Calls a kernel that writes into its arguments, and new tensors of the types `outputs`.

        Returns the arguments as they are afterwards, then the new tensors. Use these,
        and the arguments no more: Relax treats the call as pure.
        """
        at = self._add(kernel)
        types = [*(arguments[i].ty for i in written), *outputs]
        places = [*written, *(-1 for _ in outputs)]  # -1: a new one
        called = relax.op.call_tir_inplace(at, list(arguments), places, types)
        result = self._builder.emit(called)
        return [result[i] for i in range(len(types))]


def variable(name: str) -> Expr:
    """Makes an int64 variable for shapes."""
    return tirx.Var(name, "int64")


def tensor_type(shape: Sequence[Expr], dtype: str = "float32") -> Expr:
    """Returns the type of a tensor."""
    return relax.TensorType(list(shape), dtype)


def tensor(name: str, shape: Sequence[Expr], dtype: str = "float32") -> Expr:
    """Makes a function's tensor parameter."""
    return relax.Var(name, tensor_type(shape, dtype))


def integers(name: str, values: Sequence[Expr]) -> Expr:
    """Makes a function's parameter of integers, passed as a shape."""
    return relax.Var(name, relax.ShapeType(list(values)))
