"""`minicpmv info`: describes a checkpoint, a bundle, an MLC package, a configuration, a recipe."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convert.support.streams import print_json
from quantize.errors import CheckpointError

if TYPE_CHECKING:
    from rich.console import Console

    from convert.bundle.manifest import Bundle
    from convert.checkpoint.config import ModelConfig

NAME = "info"
HELP = "describe a checkpoint, a bundle, an MLC package, a config.json or a recipe"
EXAMPLES = (
    ("describe a bundle", "minicpmv info build/demo"),
    ("describe a recipe, as JSON", "minicpmv info configs/quant/small.json --json"),
)

# Parts of the model, each with the prefixes of its tensors' names in the reference and in a bundle.
PARTS = {
    "vision encoder": ("vpm.", "vision."),
    "resampler": ("resampler.",),
    "decoder embedding": ("llm.model.embed_tokens.", "llm.embed"),
    "decoder layers": ("llm.model.layers.", "llm.model.norm.", "llm.layers.", "llm.norm."),
    "LM head": ("llm.lm_head.", "llm.head"),
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "path",
        metavar="PATH",
        nargs="?",
        help="a checkpoint's folder or Hugging Face id, demo-2.0, a bundle, an MLC package, a "
        "config.json, or a recipe of configs/quant (default: the demo checkpoint)",
    )
    add = parser.add_argument_group("output").add_argument
    add("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Prints the description and returns the exit code."""
    from convert.support.console import results

    info = describe(args.path)
    if args.json:
        print_json(info, indent=1)
    else:
        _print(results(), info)
    return 0


def describe(source: str | None) -> dict[str, Any]:
    """Describes a path; returns what `--json` prints.

    Raises:
        ToolkitError: the path holds nothing that is known, or something damaged.
    """
    from convert.bundle.manifest import MANIFEST
    from convert.commands.recipe_info import describe_mlc_package, describe_recipe, is_recipe
    from convert.mlc import manifest as mlc_manifest

    path = None if source is None else Path(source)
    if path is not None and path.is_file() and is_recipe(path):
        return describe_recipe(path)
    if path is not None and (path / mlc_manifest.MANIFEST).exists():
        return describe_mlc_package(path)
    if path is not None and path.is_file():
        return _describe_config(path)
    if path is not None and (path / MANIFEST).exists():
        return _describe_bundle(path)
    if path is not None and path.is_dir() and not (path / "config.json").exists():
        raise CheckpointError(
            f"{path}: holds neither a {MANIFEST} (a bundle) nor a config.json (a checkpoint)"
        )
    return _describe_checkpoint(source)


def _describe_config(path: Path) -> dict[str, Any]:
    from convert.checkpoint.config import ModelConfig
    from convert.checkpoint.tensor_tables import Rule, reference_rules

    config = ModelConfig.load(path)
    rules = [r for r in reference_rules(config, untied_head=False) if isinstance(r, Rule)]
    sizes = ((rule.name, math.prod(rule.shape), None) for rule in rules)
    info = {
        "kind": "configuration",
        "path": str(path),
        **_describe_model(config),
        **_stored(config),
        **_parts(sizes),
        "kv_caches": _kv_caches(config),
        **_converted(config, untied_head=False),
    }
    # Only the weights show whether a stored head is a copy of the embedding.
    if config.source.get("tie_word_embeddings") is False:
        info["converted_own_head"] = _converted(config, untied_head=True)["converted"]
    return info


def _describe_checkpoint(source: str | None) -> dict[str, Any]:
    from convert.checkpoint.reader import Checkpoint

    checkpoint = Checkpoint.open(source)
    tensors = [(name, checkpoint.read(name)) for name in checkpoint.names()]  # mapped, not read
    sizes = ((name, tensor.numel(), tensor.nbytes) for name, tensor in tensors)
    return {
        "kind": "checkpoint",
        "path": str(checkpoint.path),
        **_describe_model(checkpoint.config),
        "dtypes": sorted({str(tensor.dtype).removeprefix("torch.") for _, tensor in tensors}),
        "tokenizer": _pieces(checkpoint.tokenizer, checkpoint.config),
        "dropped": checkpoint.dropped,
        **_parts(sizes),
        "kv_caches": _kv_caches(checkpoint.config),
        **_converted(checkpoint.config, checkpoint.untied_head),
    }


def _describe_bundle(path: Path) -> dict[str, Any]:
    import msgspec

    from convert.bundle.kv_cache import describe_kv
    from convert.bundle.manifest import Bundle

    bundle = Bundle.open(path)
    manifest = bundle.manifest
    sizes = ((t.name, t.parameters, t.nbytes) for t in bundle.plan.tensors)
    return {
        "kind": "bundle",
        "path": str(path),
        **_describe_model(bundle.config),
        "quantization": bundle.plan.recipe.scheme.name,
        "method": bundle.plan.recipe.method,
        "kv_cache": describe_kv(bundle.plan.kv, bundle.config.decoder),
        "tokenizer": _pieces(bundle.tokenizer, bundle.config),
        "source": msgspec.structs.asdict(manifest.source),
        "programs": {name: record.program_id for name, record in manifest.targets.items()},
        "tools": manifest.tools,
        **_parts(sizes),
        "formats": _formats(bundle),
        "files": {name: record.size for name, record in manifest.files.items()},
    }


def _describe_model(config: ModelConfig) -> dict[str, Any]:
    c = config.decoder
    info: dict[str, Any] = {"architecture": config.architecture}
    if config.vision is not None and config.resampler is not None:
        v = config.vision
        info["vision"] = (
            f"{v.name}: {v.images}, {v.depth} blocks, "
            f"width {v.embed_dim}, {v.num_heads} heads, MLP {v.mlp_hidden_dim}"
        )
        per_image = "" if v.slices is None else " for each image"
        info["resampler"] = f"{config.resampler.query_num} image tokens{per_image}"
    info["decoder"] = (
        f"{c.num_hidden_layers} layers, width {c.hidden_size}, {c.num_attention_heads} heads "
        f"({c.num_key_value_heads} of keys), MLP {c.intermediate_size}, vocabulary {c.vocab_size}"
    )
    return info


def _stored(config: ModelConfig) -> dict[str, Any]:
    """Returns the size of a checkpoint's files, in the type that the configuration names."""
    from convert.checkpoint.shards import FLOATS
    from convert.checkpoint.synth import stored_tensors

    dtype = config.source.get("torch_dtype") or config.source.get("dtype")
    if not isinstance(dtype, str) or dtype not in FLOATS:
        return {}
    tensors = stored_tensors(config, dtype)
    nbytes = sum(tensor.nbytes for tensor in tensors)
    return {"stored": {"dtype": dtype, "tensors": len(tensors), "bytes": nbytes}}


def _parts(sizes: Iterable[tuple[str, int, int | None]]) -> dict[str, Any]:
    """Adds up tensors (name, parameters, bytes if known) by part and in total."""
    parts: dict[str, dict[str, Any]] = {}
    for name, parameters, nbytes in sizes:
        part = next(part for part, starts in PARTS.items() if name.startswith(starts))
        for key in (part, "all"):
            total = parts.setdefault(key, {"parameters": 0, "bytes": None})
            total["parameters"] += parameters
            if nbytes is not None:
                total["bytes"] = (total["bytes"] or 0) + nbytes
    for total in parts.values():
        if total["bytes"] is not None:
            total["bits_per_weight"] = round(8 * total["bytes"] / total["parameters"], 3)
    known = [part for part in (*PARTS, "all") if part in parts]
    return {"parts": {part: parts[part] for part in known}}


def _converted(config: ModelConfig, untied_head: bool) -> dict[str, Any]:
    """Returns the size of a bundle's weights file, by recipe."""
    from convert.bundle.plan import Recipe, make_plan
    from quantize.schemes import RECIPES

    plans = {
        path.stem: make_plan(config, untied_head, Recipe.load(path.stem))
        for path in sorted(RECIPES.glob("*.json"))
    }
    return {
        "converted": {
            name: {"bytes": plan.nbytes, "bits_per_weight": round(plan.bits_per_weight, 3)}
            for name, plan in plans.items()
        }
    }


def _kv_caches(config: ModelConfig) -> dict[str, int]:
    """Returns the bytes of a token in the KV cache, by the cache's format."""
    from convert.bundle.kv_cache import KV_FORMATS

    return {name: one.token_bytes(config.decoder) for name, one in KV_FORMATS.items()}


def _formats(bundle: Bundle) -> dict[str, Any]:
    formats: dict[str, dict[str, int]] = {}
    for tensor in bundle.plan.tensors:
        row = formats.setdefault(tensor.format, {"tensors": 0, "parameters": 0, "bytes": 0})
        row["tensors"] += 1
        row["parameters"] += tensor.parameters
        row["bytes"] += tensor.nbytes
    return formats


def _pieces(tokenizer: Path | None, config: ModelConfig) -> dict[str, Any] | None:
    from runtime.inputs.prompt import Tokenizer

    return None if tokenizer is None else {"pieces": Tokenizer(tokenizer, config).vocab_size}


def _print(console: Console, info: dict[str, Any]) -> None:
    from convert.commands.recipe_info import lines

    if info["kind"] in ("recipe", "MLC package"):
        for key, text in lines(info):
            _say(console, key, text)
        return
    _print_facts(console, info)
    console.print()
    _print_tables(console, info)
    for name, nbytes in info.get("kv_caches", {}).items():
        console.print()
        _say(console, "KV cache", f"with --kv {name}: {nbytes:,} bytes per token")
    _print_conversions(console, info)


def _say(console: Console, key: str, value: object) -> None:
    """Prints a value beside its name."""
    console.print(f"{key:14}{value}", markup=False, soft_wrap=True)


def _print_facts(console: Console, info: dict[str, Any]) -> None:
    """Prints what it is, how it is stored and what it was made from."""
    from convert.support.console import megabytes

    _say(console, info["kind"], info["path"])
    for key in ("architecture", "vision", "resampler", "decoder", "quantization", "method"):
        if key in info:
            _say(console, key, info[key])
    if "kv_cache" in info:
        kv = info["kv_cache"]
        _say(console, "KV cache", f"{kv['format']}, {kv['bytes_per_token']:,} bytes per token")
    if "stored" in info:
        stored = info["stored"]
        count = f"{stored['tensors']} tensors with the LM head"
        _say(console, "stored as", f"{stored['dtype']}, {count}, {megabytes(stored['bytes'])}")
    if "dtypes" in info:
        _say(console, "stored as", ", ".join(info["dtypes"]))
    if "tokenizer" in info:
        tokenizer = info["tokenizer"]
        pieces = "none" if tokenizer is None else f"{tokenizer['pieces']:,} pieces"
        _say(console, "tokenizer", pieces)
    for name, reason in info.get("dropped", {}).items():
        _say(console, "left out", f"{name}: {reason}")
    if "source" in info:
        source = info["source"]
        _say(console, "made from", f"{source['path']} (SHA-256 {source['sha256'][:12]}…)")
        tools = ", ".join(f"{name} {text}" for name, text in info["tools"].items())
        _say(console, "made with", tools)
        for target, program_id in info["programs"].items():
            _say(console, "program", f"{target}: {program_id}")


def _print_tables(console: Console, info: dict[str, Any]) -> None:
    """Prints sizes by part and, for a bundle, by format and file."""
    from convert.support.console import Size, print_table

    sized = info["parts"]["all"]["bytes"] is not None
    rows = [
        [name, part["parameters"]]
        + ([Size(part["bytes"]), part["bits_per_weight"]] if sized else [])
        for name, part in info["parts"].items()
    ]
    print_table(console, ["part", "parameters", "size", "bits per weight"][: len(rows[0])], rows)
    if "formats" in info:
        console.print()
        rows = [
            [name, row["tensors"], row["parameters"], Size(row["bytes"])]
            for name, row in info["formats"].items()
        ]
        print_table(console, ["format", "tensors", "parameters", "size"], rows)
        console.print()
        rows = [[name, Size(size)] for name, size in info["files"].items()]
        print_table(console, ["file", "size"], rows)


def _print_conversions(console: Console, info: dict[str, Any]) -> None:
    """Prints the size that each recipe would give a bundle."""
    from convert.support.console import megabytes

    for name, row in info.get("converted", {}).items():
        console.print()
        bits = f"{row['bits_per_weight']:.2f} bits per weight"
        _say(console, "converted", f"with --quant {name}: {megabytes(row['bytes'])}, {bits}")
        if "converted_own_head" in info:
            own_head = info["converted_own_head"][name]["bytes"]
            _say(console, "", f"with an LM head that is not the embedding: {megabytes(own_head)}")
