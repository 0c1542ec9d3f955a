"""One file of weights: what it holds, and one of its tensors at a time.

A file is opened anew for every tensor: its mapping ends with the tensor, so that memory does not
grow to the size of the file.
"""

from __future__ import annotations

import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from convert.support.regular_file import open_regular, require_regular
from quantize.errors import CheckpointError

FLOATS = {"bfloat16": 2, "float16": 2, "float32": 4}  # name to bytes of a value
_SAFETENSORS_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Where a tensor is stored, and as what."""

    file: Path
    key: str  # its name in the file
    shape: tuple[int, ...]
    dtype: str  # one of `FLOATS`, or the file format's word for something else

    @property
    def parameters(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size of the values in the file; for dtypes of `FLOATS`."""
        return self.parameters * FLOATS[self.dtype]

    def read(self) -> Tensor:
        """Maps the tensor from its file, in its stored dtype, on the CPU."""
        if self.file.suffix == ".safetensors":
            with _open_safetensors(self.file) as file:
                mapped: Tensor = file.get_tensor(self.key)
                return mapped
        loaded: Tensor = _load_pickle(self.file)[self.key]
        return loaded.detach()


def list_tensors(file: Path) -> list[StoredTensor]:
    """Lists what a `.safetensors` or `.bin` file holds, without reading the tensors.

    Raises:
        CheckpointError: the file is missing, truncated, damaged, or holds more than tensors.
    """
    try:
        with open_regular(file) as opened:
            start = opened.read(len(_LFS_POINTER))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{file}: no such file; was the checkpoint downloaded completely?"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from error
    if start == _LFS_POINTER:
        raise CheckpointError(f"{file}: a Git LFS pointer, not the file; try `git lfs pull`")
    if file.suffix == ".safetensors":
        return _list_safetensors(file)
    return _list_pickle(file)


def _open_safetensors(file: Path) -> Any:
    try:
        require_regular(file)
        return safe_open(file, framework="pt")  # checks header, offsets and cover
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file}: damaged or no safetensors file ({error}); try to download it again"
        ) from error


def _list_safetensors(file: Path) -> list[StoredTensor]:
    found = []
    with _open_safetensors(file) as opened:
        for key in opened.keys():
            view = opened.get_slice(key)
            dtype = view.get_dtype()
            found.append(
                StoredTensor(
                    file=file,
                    key=key,
                    shape=tuple(view.get_shape()),
                    dtype=_SAFETENSORS_NAMES.get(dtype, dtype),
                )
            )
    return found


def _list_pickle(file: Path) -> list[StoredTensor]:
    # A compressed entry could unpack to more than memory holds, and cannot be mapped.
    try:
        with zipfile.ZipFile(file) as archive:
            if any(e.compress_type != zipfile.ZIP_STORED for e in archive.infolist()):
                raise CheckpointError(f"{file}: holds compressed entries; torch.save writes none")
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise CheckpointError(
            f"{file}: truncated, or not written by torch.save since PyTorch 1.6 ({error}); "
            "try to download it again, or a checkpoint in safetensors"
        ) from error
    found = []
    for key, value in _load_pickle(file).items():
        tensor = isinstance(value, Tensor)
        if not (tensor and isinstance(key, str)):
            raise CheckpointError(
                f"{file}: entry {key!r:.80} is a {type(value).__name__}; expected a state dict, "
                "which has names and tensors only"
            )
        plain = value.layout == torch.strided and value.device.type == "cpu"
        dtype = str(value.dtype).removeprefix("torch.")
        found.append(
            StoredTensor(
                file=file,
                key=key,
                shape=tuple(value.shape),
                dtype=dtype if plain else f"{value.layout} {dtype} on {value.device.type}",
            )
        )
    return found


def _load_pickle(file: Path) -> dict[Any, Any]:
    try:
        require_regular(file)
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    # A hostile pickle can make the restricted unpickler raise anything.
    except Exception as error:
        raise CheckpointError(
            f"{file}: refused: damaged, or holds code or objects beside tensors "
            f"({type(error).__name__}); try a checkpoint in safetensors"
        ) from error
    if not isinstance(loaded, dict):
        raise CheckpointError(
            f"{file}: holds a {type(loaded).__name__}; expected a state dict of names and tensors"
        )
    return loaded
