"""The description of a recipe and of an MLC package, for `minicpmv info`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from convert.bundle.plan import Plan, Recipe, make_plan
from convert.checkpoint.config import CONFIGS, ModelConfig
from convert.mlc.manifest import PackageManifest
from convert.mlc.square import cut_square, one_shape
from convert.support.strict_json import load_json
from quantize.errors import ConfigError

FULL_SIZE = CONFIGS / "model" / "minicpm-v-1.0.json"
ORIGINAL_PORT_BYTES = 2_952_110_912  # weights of the original phone port, from its manifest


def is_recipe(path: Path) -> bool:
    """Returns whether a file is a quantization recipe and not a model's configuration."""
    try:
        raw = load_json(path)
    except (OSError, ValueError):
        return False
    return isinstance(raw, dict) and "tensors" in raw


def describe_recipe(path: Path) -> dict[str, Any]:
    """Describes a recipe, and the sizes that it gives the real model.

    Raises:
        ConfigError: a missing, unknown or contradictory key.
    """
    raw = load_json(path)
    try:
        recipe = Recipe.from_json(raw)
    except TypeError as error:
        raise ConfigError(f"{path}: {error}") from error
    config = ModelConfig.load(FULL_SIZE)
    plan, own_head = (make_plan(config, untied, recipe) for untied in (False, True))
    return {
        "kind": "recipe",
        "path": str(path),
        "method": recipe.method,
        "full_size": {
            "model": FULL_SIZE.stem,
            "bytes": plan.nbytes,
            "bits_per_weight": round(plan.bits_per_weight, 3),
            "of_original_port": round(plan.nbytes / ORIGINAL_PORT_BYTES, 3),
            "own_head_bytes": own_head.nbytes,  # where the LM head is not the embedding
            "groups": groups(plan),
        },
    }


def groups(plan: Plan) -> list[dict[str, Any]]:
    """Adds up a plan's tensors by part, reason and format."""
    return [
        {
            "part": group.part,
            "what": group.why,
            "format": group.format,
            "tensors": len(group.tensors),
            "parameters": group.parameters,
            "bytes": group.nbytes,
        }
        for group in plan.groups()
    ]


def describe_mlc_package(path: Path) -> dict[str, Any]:
    """Describes an MLC package.

    Raises:
        BundleError: not one of ours, or damaged.
    """
    manifest = PackageManifest.read(path)
    config = ModelConfig.from_json(manifest.model)
    size, parameters = manifest.weights_bytes, manifest.parameters
    return {
        "kind": "MLC package",
        "path": str(path),
        "architecture": config.architecture,
        "quantization": f"{manifest.quantization}, {manifest.method}",
        "pictures": manifest.pictures,
        "square": cut_square(config) if manifest.pictures else None,
        "libraries": msgspec.to_builtins(manifest.libraries),
        "tokenizer": "tokenizer.model" in manifest.files,
        "why_no_tokenizer_json": manifest.why_no_tokenizer_json,
        "source": msgspec.to_builtins(manifest.source),
        "weights": {
            "parameters": parameters,
            "bytes": size,
            "bits_per_weight": round(8 * size / max(parameters, 1), 3),
        },
        "files": {name: record.size for name, record in manifest.files.items()},
    }


def lines(info: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns the lines to print for either, as pairs of key and text."""
    from convert.support.console import Size, megabytes

    rows = [(info["kind"], info["path"])]
    if info["kind"] == "recipe":
        full = info["full_size"]
        rows.append(("method", info["method"]))
        bits = f"{full['bits_per_weight']:.2f} bits per weight"
        share = f"{full['of_original_port']:.1%} of the original port's "
        size = f"{megabytes(full['bytes'])}, {bits}, {share}{ORIGINAL_PORT_BYTES / 1e6:,.0f} MB"
        rows.append(("full size", size))
        rows.append(("", f"{megabytes(full['own_head_bytes'])} with an LM head of its own"))
        for group in full["groups"]:
            what = f"{group['part']}, {group['what']}"
            rows.append(("", f"{group['format']:10}{Size(group['bytes'])!s:>14}  {what}"))
        return rows
    weights = info["weights"]
    bits = f"{weights['bits_per_weight']:.2f} bits per weight"
    rows += [
        ("architecture", info["architecture"] + ("" if info["pictures"] else ", its decoder")),
        ("quantization", info["quantization"]),
        ("pictures", _pictures(info)),
        ("tokenizer", _tokenizer(info)),
        *(("library", _library(name, record)) for name, record in info["libraries"].items()),
        ("weights", f"{weights['parameters']:,} parameters, {Size(weights['bytes'])}, {bits}"),
    ]
    if not info["libraries"]:
        rows.append(("library", "not compiled yet"))
    rows += [("", f"{name}  {Size(size)}") for name, size in info["files"].items()]
    return rows


def _pictures(info: dict[str, Any]) -> str:
    if not info["pictures"]:
        return "not part of this package: text only"
    return "taken" if info["square"] is None else f"taken; {one_shape(info['square'])}"


def _tokenizer(info: dict[str, Any]) -> str:
    if not info["tokenizer"]:
        return "none: weights only"
    why_not = info["why_no_tokenizer_json"]
    if why_not is None:
        return "tokenizer.json, tokenizer.model"
    return f"tokenizer.model; no tokenizer.json: {why_not}"


def _library(target: str, record: dict[str, Any]) -> str:
    from convert.support.console import megabytes

    text = f"{target}: {record['file']}, by mlc_llm {record['mlc_llm']}"
    size = record["temporary_bytes"]
    return text if size is None else f"{text}; takes {megabytes(size)} beside weights and KV cache"
