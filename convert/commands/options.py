"""The arguments of `minicpmv convert`, and the request that they make."""

from __future__ import annotations

import argparse
from pathlib import Path

from convert.bundle.kv_cache import FP16
from convert.conversion.config import (
    DEFAULT_RECIPE,
    DEFAULT_TARGET,
    MLC_RECIPE,
    SIZED_RECIPE,
    ConvertConfig,
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        nargs="?",
        help="a checkpoint's folder, or a Hugging Face id such as openbmb/MiniCPM-V "
        "(default: the demo checkpoint)",
    )
    parser.add_argument("-o", "--output", metavar="DIR", required=True, help="where to write")
    parser.add_argument(
        "--target",
        metavar="NAMES",
        default=DEFAULT_TARGET,
        help="what to make, separated by commas: a bundle with engines for `host`, this PC, "
        "`android-arm64`, phones, `android-x86_64`, emulators; `onnx`, the vision encoder and "
        "resampler as ONNX; `mlc-android`, the decoder for MLC-LLM, the phone's GPU. Those two are "
        "in DIR, or beside a bundle in DIR-onnx and DIR-mlc-android (default: %(default)s)",
    )
    parser.add_argument(
        "--quant",
        metavar="NAME",
        help=f"quantization recipe, a file in configs/quant (default: {DEFAULT_RECIPE}; "
        f"{MLC_RECIPE} for mlc-android)",
    )
    parser.add_argument(
        "--method",
        metavar="NAME",
        help="how codes are found: `rtn`, plain rounding; `mse`, searched scales; `awq`, `gptq`, "
        "`awq+gptq`, calibrated (default: the recipe's)",
    )
    parser.add_argument(
        "--kv",
        metavar="NAME",
        help="how a bundle's engine keeps keys and values: `fp16`, or `int8`, in half the memory, "
        f"with a scale for each token and head (default: {FP16}); no say in onnx and mlc-android",
    )
    parser.add_argument(
        "--target-size",
        metavar="SIZE",
        help="size of a bundle's weights, such as 1.9GB: every part gets the format that loses "
        f"least within it, by measurement; number format and method are --quant's (default: "
        f"{SIZED_RECIPE})",
    )
    parser.add_argument(
        "--calibration",
        metavar="FILE.jsonl",
        type=Path,
        help="samples for calibration, one JSON object a line: question, and if there are image (a "
        "path beside the file) and answer (default: built-in ones)",
    )
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave out lines of --calibration that are bad"
    )
    parser.add_argument(
        "--mlc-python",
        metavar="PYTHON",
        help="the Python of the environment that has mlc_llm, for mlc-android (default: this one)",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the bundle that an interrupted run of the same command left unfinished",
    )
    parser.add_argument("--json", action="store_true", help="print the summary as JSON on stdout")
    parser.add_argument("-v", "--verbose", action="store_true", help="show every tensor's plan")


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
        mlc_python=args.mlc_python,
        resume=args.resume,
    )
