"""Vision encoder and resampler as an ONNX model: a product of its own, and a cross-check.

A folder with `vision.onnx` (the graph), `vision.onnx.data` (the weights, one tensor after another)
and `onnx.json` (what was made, from what, with which versions). Weights are float32: that holds
every value of a bf16 checkpoint exactly, which float16 does not, and runtimes that want float16
would cast it back while loading.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from msgspec import structs
from onnx import TensorProto, helper
from torch import Tensor

from convert.bundle.folder_manifest import CARD
from convert.bundle.manifest import FileRecord
from convert.checkpoint.config import ModelConfig
from convert.onnx.builder import OnnxWeight
from convert.onnx.graph import OPSET, OnnxGraph, build_graph
from convert.support.json_text import json_text
from convert.support.output_folder import FolderKind
from convert.support.progress import Progress
from convert.support.versions import TOOLKIT, VERSION, package_version

MODEL, DATA, MANIFEST = "vision.onnx", "vision.onnx.data", "onnx.json"
KIND = FolderKind(
    manifest=MANIFEST, format="minicpmv-onnx", noun="ONNX export", article="an", unlisted=CARD
)
FORMAT_VERSION = 1
ALIGNMENT = 4096  # bytes: a page, so that runtimes can map the weights
TOOLS = (TOOLKIT, "onnx", "torch")
_GRAPH_BYTES = 2**20  # room for the graph and the manifest, beside the weights
_STAGE = "ONNX weights"

Read = Callable[[str], Tensor]


@dataclass(frozen=True, kw_only=True)
class OnnxReport:
    """What was written."""

    tensors: int
    parameters: int
    nbytes: int  # of all files


def onnx_bytes(config: ModelConfig) -> int:
    """Returns about how many bytes `write_onnx` writes.

    Raises:
        ConfigError: a model without vision.
    """
    return _placed(build_graph(config).weights)[1] + _GRAPH_BYTES


def write_onnx(
    read: Read, config: ModelConfig, source_sha256: str, folder: Path, progress: Progress
) -> OnnxReport:
    """Fills an empty folder, usually one of `OutputFolder`; one tensor is in memory at a time.

    Args:
        read: returns a tensor by its name in the checkpoint.
        config: the model's geometry.
        source_sha256: of the checkpoint, as `Checkpoint.source_hash` computes it.
        folder: where to write.
        progress: receives the bytes written.

    Raises:
        ConfigError: the model has no vision.
        CheckpointError: a tensor holds NaN or infinity.
    """
    graph = build_graph(config)
    offsets = _write_weights(read, graph, folder / DATA, progress)
    model = _model(graph, offsets, config, source_sha256)
    (folder / MODEL).write_bytes(model.SerializeToString(deterministic=True))
    onnx.checker.check_model(folder / MODEL, full_check=True)
    manifest = {
        "format": KIND.format,
        "format_version": FORMAT_VERSION,
        "model": config.source,
        "source_sha256": source_sha256,
        "tools": {name: package_version(name) for name in TOOLS},
        "files": {name: structs.asdict(FileRecord.of(folder / name)) for name in (MODEL, DATA)},
    }
    text = json_text(manifest, indent=1) + "\n"
    (folder / MANIFEST).write_text(text, "utf-8")
    return OnnxReport(
        tensors=len(graph.weights),
        parameters=sum(math.prod(weight.shape) for weight in graph.weights),
        nbytes=sum((folder / name).stat().st_size for name in (MODEL, DATA, MANIFEST)),
    )


def _write_weights(read: Read, graph: OnnxGraph, path: Path, progress: Progress) -> list[int]:
    """Writes the data file; returns where each weight starts."""
    offsets, total = _placed(graph.weights)
    with path.open("wb") as file:
        for weight, offset in zip(graph.weights, offsets, strict=True):
            progress(_STAGE, offset, total)
            file.write(bytes(offset - file.tell()))
            weight.make(read).numpy().astype("<f4", copy=False).tofile(file)
    progress(_STAGE, total, total)
    return offsets


def _placed(weights: Sequence[OnnxWeight]) -> tuple[list[int], int]:
    """Returns where each weight starts in the data file, and where the last one ends."""
    offsets, end = [], 0
    for weight in weights:
        start = -(-end // ALIGNMENT) * ALIGNMENT
        offsets.append(start)
        end = start + weight.nbytes
    return offsets, end


def _model(graph: OnnxGraph, offsets: list[int], config: ModelConfig, source_sha256: str) -> Any:
    weights = [_external(w, at) for w, at in zip(graph.weights, offsets, strict=True)]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "MiniCPM-V vision encoder and resampler",
            graph.inputs,
            graph.outputs,
            initializer=[*graph.constants, *weights],
        ),
        producer_name="minicpmv",
        producer_version=VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )
    model.ir_version = helper.find_min_ir_version_for(model.opset_import)
    config_json = json_text(config.source)
    helper.set_model_props(model, {"config": config_json, "source_sha256": source_sha256})
    return model


def _external(weight: OnnxWeight, offset: int) -> Any:
    """Describes an initializer whose values lie in the data file."""
    tensor = TensorProto(
        name=weight.name,
        data_type=TensorProto.FLOAT,
        dims=weight.shape,
        data_location=TensorProto.EXTERNAL,
    )
    for key, value in (("location", DATA), ("offset", offset), ("length", weight.nbytes)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor
