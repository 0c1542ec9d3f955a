"""The arguments of `minicpmv convert`, and the request that they make."""

from __future__ import annotations

import argparse
from pathlib import Path

from convert.bundle.kv_cache import FP16
from convert.conversion.config import (
    DEFAULT_RECIPE,
    DEFAULT_TARGET,
    MLC_RECIPE,
    ConvertConfig,
    MlcOptions,
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        nargs="?",
        help="a checkpoint's folder, a Hugging Face id such as openbmb/MiniCPM-V, or demo-2.0, the "
        "demo that cuts pictures into slices (default: the demo checkpoint)",
    )
    _add_products(parser)
    _add_formats(parser)
    _add_calibration(parser)
    _add_mlc(parser)
    add = parser.add_argument_group("messages").add_argument
    add("--json", action="store_true", help="print the summary as JSON on stdout")
    add("-v", "--verbose", action="store_true", help="print how each tensor is stored, and why")


def _add_products(parser: argparse.ArgumentParser) -> None:
    """Declares what is made, and where."""
    add = parser.add_argument_group("output").add_argument
    add("-o", "--output", metavar="DIR", required=True, help="folder to write")
    add(
        "--target",
        metavar="NAMES",
        default=DEFAULT_TARGET,
        help="what to make, separated by commas. host, android-arm64, android-x86_64: a bundle "
        "with an engine for this PC, phones, emulators. onnx: the vision encoder and resampler as "
        "ONNX. mlc-android, mlc-opencl, mlc-host: a package for MLC-LLM, with a library for a "
        "phone's GPU, this PC's GPU, this PC's processor. Bundles are written to DIR; ONNX and the "
        "MLC package to DIR if nothing else is made, else to DIR-onnx and DIR-mlc "
        "(default: %(default)s)",
    )
    add(
        "--resume",
        action="store_true",
        help="continue a bundle that an interrupted run of the same command left unfinished",
    )


def _add_mlc(parser: argparse.ArgumentParser) -> None:
    """Declares how MLC-LLM compiles a library."""
    add = parser.add_argument_group("MLC-LLM").add_argument
    add(
        "--mlc-source",
        metavar="DIR",
        type=Path,
        help="a checkout of mlc-llm; its compiler runs with this environment's apache-tvm",
    )
    add(
        "--mlc-python",
        metavar="PYTHON",
        help="instead: the Python of an environment that has mlc_llm (default: this one)",
    )
    add(
        "--mlc-pictures",
        action=argparse.BooleanOptionalAction,
        help="include the vision encoder and resampler; needs --mlc-source (default: if that is "
        "given and the model has a vision encoder)",
    )
    add(
        "--mlc-abi",
        metavar="VERSION",
        help="the release of apache-tvm whose runtime loads the library: 0.27, or 0.26; needs "
        "--mlc-source (default: 0.27)",
    )


def _add_formats(parser: argparse.ArgumentParser) -> None:
    """Declares how numbers are stored."""
    add = parser.add_argument_group("quantization").add_argument
    add(
        "--quant",
        metavar="NAME",
        help="recipe: the name of a file in configs/quant, or a path that ends in .json "
        f"(default: {DEFAULT_RECIPE}; for MLC-LLM: {MLC_RECIPE})",
    )
    add(
        "--method",
        metavar="NAME",
        help="how quantized values are chosen. rtn: rounding; mse: rounding with searched scales; "
        "awq, gptq: with calibration (default: the recipe's; rtn if neither is given and "
        "calibration would take more than an hour, or the checkpoint has no tokenizer)",
    )
    add(
        "--target-size",
        metavar="SIZE",
        help="limit for the weights of a bundle, such as 1.9GB. The error of every format is "
        "measured for every tensor, and the formats with the smallest loss within SIZE are used. "
        f"--quant gives the scheme and the method (default: {DEFAULT_RECIPE})",
    )
    add(
        "--kv",
        metavar="NAME",
        help="format of a bundle's KV cache. fp16; int8: half the memory, with a scale per token "
        f"and head (default: {FP16})",
    )


def _add_calibration(parser: argparse.ArgumentParser) -> None:
    """Declares the samples that calibrated methods run the model on."""
    add = parser.add_argument_group("calibration").add_argument
    add(
        "--calibration",
        metavar="FILE.jsonl",
        type=Path,
        help="samples, one JSON object per line: question (or a list of turns), and optionally "
        "image (a path relative to the file) and answer; or ids, a list of token ids (default: "
        "built-in samples)",
    )
    add("--skip-bad", action="store_true", help="skip invalid lines of --calibration")


def resolve(args: argparse.Namespace) -> ConvertConfig:
    """Returns the request that the arguments make.

    Raises:
        ConfigError: an unknown target or KV cache, or an option of a product that is not made.
    """
    from convert.pipeline import resolve_config

    return resolve_config(
        args.checkpoint,
        args.output,
        target=args.target,
        quant=args.quant,
        method=args.method,
        kv=args.kv,
        target_size=args.target_size,
        calibration=args.calibration,
        skip_bad=args.skip_bad,
        mlc=MlcOptions(
            python=args.mlc_python,
            source=args.mlc_source,
            abi=args.mlc_abi,
            pictures=args.mlc_pictures,
        ),
        resume=args.resume,
    )
