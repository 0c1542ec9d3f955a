"""What `minicpmv convert` is asked for: its arguments, and what they come to."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from convert.bundle.kv_cache import FP16, find_kv_format
from quantize.errors import ConfigError

DEFAULT_TARGET, DEFAULT_RECIPE, MLC_RECIPE = "host", "q4f16_1", "mlc"
SIZED_RECIPE = "small"  # whose method --target-size takes


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """What the user asked for, resolved."""

    checkpoint: str | None  # None: the demo
    bundle: Path | None  # None: no compiled target
    onnx: Path | None  # None: no ONNX
    targets: tuple[str, ...]  # compiled ones
    quant: str  # of the bundle
    kv: str = FP16  # of the bundle: a key of convert.bundle.kv_cache.KV_FORMATS
    mlc: Path | None = None  # None: no MLC package
    mlc_quant: str = MLC_RECIPE
    mlc_python: str | None = None  # where mlc_llm is; None: here
    method: str | None = None  # None: the recipe's
    target_size: str | None = None  # None: the recipe's formats
    samples: Path | None = None  # for calibration; None: built-in ones
    skip_bad: bool = False
    resume: bool = False

    def shown(self) -> dict[str, str]:
        """Names every setting as the user would."""
        shown = {"checkpoint": self.checkpoint or "demo"}
        if self.bundle is not None:
            shown |= {"bundle": str(self.bundle), "target": ", ".join(self.targets)}
            more = [text for text in (self.method, self.target_size) if text]
            shown |= {"quantization": ", ".join([self.quant, *more]), "kv cache": self.kv}
        if self.onnx is not None:
            shown |= {"onnx": str(self.onnx)}
        if self.mlc is not None:
            method = f", {self.method}" if self.method else ""
            shown |= {"mlc package": f"{self.mlc} ({self.mlc_quant}{method})"}
        return shown


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
    """Returns what the arguments come to.

    Raises:
        ConfigError: an unknown target, or an option that says something of what is not made.
    """
    from convert.pipeline import MLC, ONNX, parse_targets

    targets = parse_targets(args.target)
    compiled = tuple(target for target in targets if target not in (ONNX, MLC))
    asked = {"--target-size": args.target_size, "--resume": args.resume, "--kv": args.kv}
    for option, given in asked.items():
        if given not in (None, False) and not compiled:
            raise ConfigError(f"{option} is for bundles; choose a target such as host")
    kv = FP16 if args.kv is None else args.kv
    find_kv_format(kv)
    output = Path(args.output)
    # `.` and `..` have no name to add to.
    named = output if output.name.strip(".") else output.resolve()

    def place(target: str) -> Path | None:
        if target not in targets:
            return None
        return output if targets == (target,) else Path(f"{named}-{target}")

    return ConvertConfig(
        checkpoint=args.checkpoint,
        bundle=output if compiled else None,
        onnx=place(ONNX),
        mlc=place(MLC),
        targets=compiled,
        quant=args.quant or (SIZED_RECIPE if args.target_size else DEFAULT_RECIPE),
        kv=kv,
        mlc_quant=args.quant or MLC_RECIPE,
        mlc_python=args.mlc_python,
        method=args.method,
        target_size=args.target_size,
        samples=args.calibration,
        skip_bad=args.skip_bad,
        resume=args.resume,
    )
