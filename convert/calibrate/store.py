"""Calibration results on disk: a folder from which an interrupted run can resume.

It holds a file per decoder layer, and one each for the embedding and the head: codes, scales, and
norms with folded factors. Beside them are the hidden states at the input of the next layer. The
folder's name is a hash of everything that the result depends on, so another checkpoint, recipe or
sample has another folder. Results unused for long are removed, see `convert.support.cache`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from convert.calibrate.samples import CalibrationError
from convert.support.cache import hash_file, is_damaged, is_whole, keep, kept_entry, writing
from quantize.layout import pack_mlc, unpack_mlc
from quantize.schemes import Array

MOST_BYTES = 8 * 2**30  # of all results; one of the real model takes 1.5 GiB
_STREAM = "stream"
_LOG = logging.getLogger(__name__)
Stream = list[Tensor]  # each sample's hidden states (L, D) float32


class CalibratedWeights:
    """Quantized tensors by their artifact names, each read on request."""

    def __init__(self, folder: Path) -> None:
        """Opens the folder of a finished calibration."""
        self.identity = folder.name  # a hash of everything that it depends on
        self._files: dict[str, Path] = {}
        for path in sorted(folder.glob("part-*.safetensors")):
            with _opened(path) as file:
                self._files |= dict.fromkeys(file.keys(), path)

    def has(self, name: str) -> bool:
        """Tells whether calibration changed or quantized a tensor."""
        return name in self._files or f"{name}.q_scale" in self._files

    def codes(self, name: str) -> tuple[Array, Array] | None:
        """Returns q (N, K) uint8 and scale (N, K/G) float16; None if there are none."""
        if f"{name}.q_scale" not in self._files:
            return None
        return unpack_mlc(self._read(f"{name}.q_weight")), self._read(f"{name}.q_scale")

    def replaced(self, name: str) -> Array | None:
        """Returns the new float32 values of a small tensor (a norm); None if it is unchanged."""
        return self._read(name) if name in self._files else None

    def _read(self, key: str) -> Array:
        with _opened(self._files[key]) as file:
            values: Array = file.get_tensor(key)
        return values


class CalibrationStore:
    """The folder of one calibration, complete or not."""

    def __init__(self, parent: Path, about: Mapping[str, Any]) -> None:
        """Args: parent: of all such folders. about: everything that the result depends on."""
        text = json.dumps(about, sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()[:24]
        self.folder = kept_entry(parent, name, MOST_BYTES)
        with writing(self.folder):
            self.folder.mkdir(exist_ok=True)

    def has(self, part: str) -> bool:
        """Tells whether a part is there and undamaged."""
        return _is_there(self._part(part))

    def save(
        self, part: str, codes: Mapping[str, tuple[Tensor, Tensor]], small: Mapping[str, Tensor]
    ) -> None:
        """Writes a part: codes (N, K) uint8 with their scales, and small tensors, by name."""
        tensors = {name: values.float().contiguous().numpy() for name, values in small.items()}
        for name, (q, scale) in codes.items():
            tensors[f"{name}.q_weight"] = pack_mlc(q.numpy())
            tensors[f"{name}.q_scale"] = scale.numpy()
        _write(self._part(part), tensors, {})

    def save_stream(self, stage: str, done: int, streams: Sequence[Stream]) -> None:
        """Saves the hidden states before layer `done` of a stage; replaces earlier ones."""
        tensors = {
            f"{i}.{k}": sample.numpy() for i, s in enumerate(streams) for k, sample in enumerate(s)
        }
        _write(self.folder / f"{_STREAM}.safetensors", tensors, {"stage": stage, "done": str(done)})

    def load_stream(self, stage: str) -> tuple[int, list[Stream]] | None:
        """Returns how many layers of a stage are done, and its streams; None if none was saved."""
        path = self.folder / f"{_STREAM}.safetensors"
        if not _is_there(path):
            return None
        try:
            with safe_open(path, "numpy") as file:
                about = file.metadata() or {}
                if about.get("stage") != stage:
                    return None
                places = sorted(tuple(map(int, key.split("."))) for key in file.keys())
                streams: list[Stream] = [[] for _ in range(places[-1][0] + 1)]
                for i, k in places:
                    streams[i].append(torch.from_numpy(np.array(file.get_tensor(f"{i}.{k}"))))
                return int(about["done"]), streams
        except (OSError, SafetensorError):  # removed meanwhile, or unreadable: start again
            return None

    def finish(self) -> CalibratedWeights:
        """Removes the hidden states and opens the result."""
        stream = self.folder / f"{_STREAM}.safetensors"
        with suppress(OSError):  # no longer needed; it only takes space
            stream.unlink(missing_ok=True)
            hash_file(stream).unlink(missing_ok=True)
        return CalibratedWeights(self.folder)

    def _part(self, part: str) -> Path:
        return self.folder / f"part-{part}.safetensors"


def _is_there(path: Path) -> bool:
    if is_damaged(path):
        _LOG.warning("%s: damaged; calibrated again", path)
        with writing(path.parent):
            path.unlink()  # so that the warning appears once
    return is_whole(path)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Opens a part; the error for a damaged one says what to do."""
    try:
        with safe_open(path, "numpy") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise CalibrationError(
            f"{path}: damaged: {error}; remove the file, and calibration will make it again"
        ) from error


def _write(path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
    """Writes a file that appears only when it is complete."""
    partial = path.with_suffix(f".{os.getpid()}.partial")
    contiguous = {name: np.ascontiguousarray(values) for name, values in tensors.items()}
    with writing(path.parent):
        try:
            save_file(contiguous, partial, metadata=dict(metadata))
            keep(partial, path)
        except SafetensorError as error:  # safetensors wraps the system's errors in it
            raise OSError(str(error)) from error
        finally:
            partial.unlink(missing_ok=True)
