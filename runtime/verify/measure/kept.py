"""Results of the reference in a file, so that many bundles are compared against one run of it.

The file is a safetensors file whose tensors are named after what was computed, and from which
inputs: a result is found by its input's hash, never by its place. The tensor `about` says what the
results are of, and has the hash of every other tensor.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from convert.bundle.errors import BundleError
from convert.bundle.weights_file import Array, TensorSpec, WeightsFile
from convert.bundle.weights_writer import WeightsWriter
from convert.support.progress import Progress
from convert.support.scratch import scratch_folder
from convert.support.strict_json import parse_json
from convert.support.whole_file import check_replaceable, whole_file
from quantize.errors import ToolkitError

SAVE, USE = "--save-reference", "--reference-results"
_FORMAT, _VERSION = "minicpmv-verify-reference", 1
_ABOUT, _SEAL = "about", "about.sha256"
_CODES = {np.dtype(np.float32): "F32", np.dtype(np.uint8): "U8"}
_OTHER = {  # what a file is of that does not suit, by the key that differs
    "reference": "results of another checkpoint",
    "toolkit": "results of another version of this toolkit",
    "cases": "answers to other questions",
    "window": "results with another context window",
    "max_new_tokens": "answers of another greatest length",
}


class ReferenceResultsError(ToolkitError):
    """A file of the reference's results cannot be used, or cannot be written."""


class Kept(Protocol):
    """Results by name."""

    def get(self, name: str) -> Array | None:
        """Returns a result; None if there is none of that name."""

    def add(self, name: str, values: Array) -> None:
        """Keeps a result, float32 or bytes."""


class ReferenceWriter:
    """Collects results beside the final path; `commit` makes the file. A context manager."""

    def __init__(self, path: Path, about: Mapping[str, Any], most_bytes: int) -> None:
        """Checks that the file can be written.

        Args:
            path: of the file; an existing one is replaced.
            about: what the results are of; plain JSON.
            most_bytes: that the results can take.

        Raises:
            ReferenceResultsError: there is no such folder, or too little space.
            OutputFileError: the path is taken by what is no file.
        """
        self._path, self._about = check_replaceable(path).absolute(), about
        self._specs: list[TensorSpec] = []
        self._hashes: dict[str, str] = {}
        self._stack, self._open = ExitStack(), False
        if not self._path.parent.is_dir():
            raise ReferenceResultsError(f"{path.parent}: no such folder; choose another {SAVE}")
        free, needed = shutil.disk_usage(self._path.parent).free, 2 * most_bytes
        if free < needed:
            raise ReferenceResultsError(
                f"{path}: the disk has {free / 2**20:,.0f} MiB free, but the results of these "
                f"questions may take {most_bytes / 2**20:,.0f} MiB, twice while they are written; "
                "ask fewer questions, or choose another disk"
            )

    def __enter__(self) -> ReferenceWriter:
        folder = self._stack.enter_context(scratch_folder(".reference-", self._path.parent))
        self._scratch = folder / "results"
        self._file = self._stack.enter_context(self._scratch.open("xb", buffering=0))
        self._open = True
        return self

    def __exit__(self, *error: object) -> None:
        self._open = False
        self._stack.close()

    def get(self, name: str) -> Array | None:
        """Finds nothing: what is kept is measured."""
        return None

    def add(self, name: str, values: Array) -> None:
        """See `Kept`; after `commit` nothing is added."""
        if not self._open or name in self._hashes:
            return
        spec = TensorSpec(name, _CODES[values.dtype], values.shape)
        raw = np.ascontiguousarray(values).data.cast("B")
        self._hashes[name] = hashlib.sha256(raw).hexdigest()
        self._specs.append(spec)
        while raw:
            raw = raw[self._file.write(raw) :]

    def commit(self) -> int:
        """Writes the file; returns its size in bytes."""
        self._open = False
        about = {"format": _FORMAT, "version": _VERSION, **self._about, "hashes": self._hashes}
        text = json.dumps(about, sort_keys=True).encode()
        sealed = {
            _ABOUT: np.frombuffer(text, np.uint8),
            _SEAL: np.frombuffer(hashlib.sha256(text).digest(), np.uint8),
        }
        ends = [TensorSpec(name, "U8", values.shape) for name, values in sealed.items()]
        with whole_file(self._path) as partial:
            with WeightsWriter(partial, [*ends, *self._specs]) as writer:
                for name, values in sealed.items():
                    writer.write(name, values)
                offset = 0
                for spec in self._specs:
                    kind = np.float32 if spec.dtype == "F32" else np.uint8
                    part = np.memmap(self._scratch, kind, "r", offset, spec.shape)
                    writer.write(spec.name, part)
                    offset += spec.nbytes
            return partial.stat().st_size


class ReferenceFile:
    """The results of an earlier run, mapped into memory."""

    def __init__(self, path: Path, about: Mapping[str, Any], progress: Progress) -> None:
        """Opens a file and checks all of it.

        Args:
            path: of the file.
            about: what the results must be of.
            progress: counts tensors.

        Raises:
            ReferenceResultsError: no such file, a damaged one, or results of something else.
        """
        self._path = path
        try:
            self._tensors = WeightsFile(path)
            found = self._read_about()
        except (BundleError, ValueError, KeyError) as error:
            text = str(error) if isinstance(error, BundleError) else f"{path}: damaged: {error}"
            raise ReferenceResultsError(
                f"{text}; make the results again with {SAVE} {path}"
            ) from error
        for key in (key for key in about if found.get(key) != about[key]):
            difference = ""
            if isinstance(about[key], (int, str)) and key != "reference":
                difference = f": {found.get(key)!r:.40}; expected {about[key]!r}"
            raise ReferenceResultsError(
                f"{path}: holds {_OTHER[key]}{difference}; make them with {SAVE}, or leave out "
                f"{USE}"
            )
        self._check_values(found["hashes"], progress)

    def get(self, name: str) -> Array | None:
        """See `Kept`."""
        return np.array(self._tensors[name]) if name in self._tensors else None

    def add(self, name: str, values: Array) -> None:
        """Adds nothing: the file stays as it is."""

    def _read_about(self) -> dict[str, Any]:
        text = self._tensors[_ABOUT].tobytes()
        if hashlib.sha256(text).digest() != self._tensors[_SEAL].tobytes():
            raise ValueError("its description is not as it was written")
        found = parse_json(text)
        if not isinstance(found, dict) or found.get("format") != _FORMAT:
            raise ValueError("it holds no results of verify's reference")
        if found.get("version") != _VERSION:
            raise ValueError(f"format version {found.get('version')!r:.40}, not {_VERSION}")
        return found

    def _check_values(self, hashes: Mapping[str, str], progress: Progress) -> None:
        names = [name for name in self._tensors if name not in (_ABOUT, _SEAL)]
        wrong = sorted(set(names) ^ set(hashes))
        for done, name in enumerate([] if wrong else names):
            progress("check the reference's results", done, len(names))
            data = self._tensors[name].reshape(-1).view(np.uint8).data
            if hashlib.sha256(data).hexdigest() != hashes[name]:
                wrong.append(name)
                break
        progress("check the reference's results", len(names), len(names))
        self._tensors.release()
        if wrong:
            raise ReferenceResultsError(
                f"{self._path}: damaged: {wrong[0]} is not as it was written; make the results "
                f"again with {SAVE} {self._path}"
            )


def named(stage: str, settings: Sequence[int], inputs: Sequence[Array]) -> str:
    """Returns the name of a stage's result.

    Args:
        stage: what computes it.
        settings: beside the inputs: indices, ids, a window.
        inputs: arrays, which are hashed with their shapes.
    """
    digest = hashlib.sha256(json.dumps([list(settings), [a.shape for a in inputs]]).encode())
    for values in inputs:
        digest.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
    return f"{stage}.{digest.hexdigest()[:32]}"
