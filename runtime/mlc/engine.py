"""A compiled MLC package in TVM's own virtual machine: what MLC-LLM's engine calls, called here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tvm
from torch import Tensor
from tvm import relax
from tvm.runtime import ShapeTuple

from convert.bundle.errors import BundleError
from convert.mlc.compilers import ABIS
from convert.mlc.opened import MlcPackage
from quantize.schemes import Array

HOST = "mlc-host"  # the target whose library runs here
_PAGE = 16  # tokens of the KV cache that are kept together, as MLC-LLM's engine has it
# What a file that is none, or one of another program, makes TVM and the lines below raise.
_LOADING_FAILS = (AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError)
_NORM = "model.norm.weight"  # MLC-LLM's name of the final norm
_SEQUENCE = 0  # the id of the one conversation


def find_library(package: MlcPackage, target: str = HOST) -> Path:
    """Returns the library that this environment's TVM can load.

    Raises:
        BundleError: there is none for the target, or it is for another release of TVM.
    """
    path, here = package.library(target), ABIS[0]
    abi = package.manifest.libraries[target].abi
    if abi != here:
        compiled = f"for apache-tvm {abi}" if abi else "by an installed mlc_llm, for its own TVM"
        raise BundleError(
            f"{path}: compiled {compiled}; it runs here only when compiled for {here}: convert "
            f"again with --mlc-source and --mlc-abi {here}"
        )
    return path


class MlcEngine:
    """One conversation at a time, from its first token on."""

    def __init__(self, library: Path, params: Mapping[str, Array], device: Any = None) -> None:
        """Loads a library, and gives it its parameters.

        Args:
            library: compiled for this machine.
            params: by MLC-LLM's names.
            device: TVM's; None: the processor.

        Raises:
            BundleError: it cannot be loaded, or is another model's.
        """
        self._device = device or tvm.cpu()
        try:
            module = tvm.runtime.load_module(str(library))
            self._vm = relax.VirtualMachine(module, self._device)
            metadata = json.loads(self._vm["_metadata"]())
            wanted = [(one["name"], one["dtype"], list(one["shape"])) for one in metadata["params"]]
            self.window: int = metadata["context_window_size"]
            self._chunk: int = metadata["prefill_chunk_size"]
        except _LOADING_FAILS as error:
            reason = str(error).strip().splitlines()[-1]
            raise BundleError(f"{library}: cannot be loaded: {reason:.200}") from error
        _require_params(library, wanted, params)
        self._parameters = [self._put(params[name]) for name, _, _ in wanted]
        self._dtype = str(params[_NORM].dtype)  # of all that is not packed
        self._cache: Any = None

    def image_tokens(self, picture: Array) -> Tensor:
        """Maps a picture (S, S, 3) uint8 to image tokens (Q, D) float32."""
        sizes = [ShapeTuple([n]) for n in (0, 0, 0, 0)]  # for other models
        tokens = self._vm["image_embed"](self._put(picture[None]), *sizes, self._parameters)
        return torch.from_numpy(tokens.numpy()).float()

    def embed(self, ids: Sequence[int]) -> Tensor:
        """Maps token ids to scaled embeddings (L, D) float32."""
        parts = []
        for part in torch.split(torch.tensor(ids, dtype=torch.int32), self._chunk):
            out = self._vm["embed"](self._put(part.numpy()), self._parameters)
            parts.append(torch.from_numpy(out.numpy()).float())
        return torch.cat(parts)

    def begin(self) -> None:
        """Forgets the conversation."""
        one = [ShapeTuple([n]) for n in (1, self.window, self._chunk, _PAGE, 0)]
        self._cache = self._vm["create_tir_paged_kv_cache"](*one)
        _builtin("add_sequence")(self._cache, _SEQUENCE)

    def logits(self, embeddings: Tensor) -> Tensor:
        """Goes on with embeddings (L, D); returns the logits (V) behind the last."""
        last: Any = None
        for part in torch.split(embeddings, self._chunk):
            values = self._put(part.numpy()[None].astype(self._dtype))
            _builtin("begin_forward")(self._cache, ShapeTuple([_SEQUENCE]), ShapeTuple([len(part)]))
            function = "decode" if len(part) == 1 else "prefill"
            last, self._cache = self._vm[function](values, self._cache, self._parameters)
            _builtin("end_forward")(self._cache)
        return torch.from_numpy(last.numpy()).float().flatten()

    def _put(self, values: Array) -> Any:
        return tvm.runtime.tensor(np.ascontiguousarray(values), self._device)


def _require_params(
    library: Path, wanted: Sequence[tuple[str, str, list[int]]], params: Mapping[str, Array]
) -> None:
    """Raises BundleError unless a library takes the very parameters of a package."""
    for name, dtype, shape in wanted:
        if name not in params:
            raise _foreign(library, f"it takes a parameter {name}, which the package lacks")
        found = params[name]
        if (str(found.dtype), list(found.shape)) != (dtype, shape):
            raise _foreign(
                library,
                f"it takes {name} as {dtype} {shape}; the package has {found.dtype} "
                f"{list(found.shape)}",
            )
    left = sorted(set(params) - {name for name, _, _ in wanted})
    if left:
        raise _foreign(library, f"it takes no parameter {left[0]}, which the package has")


def _foreign(library: Path, why: str) -> BundleError:
    return BundleError(
        f"{library}: compiled for another model: {why}; convert the checkpoint again"
    )


def _builtin(name: str) -> Any:
    return tvm.get_global_func(f"vm.builtin.kv_state_{name}")
