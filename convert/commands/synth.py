"""`minicpmv synth`: writes a checkpoint with random weights, for experiments at any size."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from convert.support.json_text import json_text
from convert.support.streams import print_json
from quantize.errors import CheckpointError

if TYPE_CHECKING:
    from convert.checkpoint.config import ModelConfig

NAME = "synth"
HELP = "write a checkpoint with random weights, for experiments at any size"
EXAMPLES = (
    ("write one of the size of MiniCPM-V 1.0, 6.9 GB", "minicpmv synth -o build/full"),
    (
        "write a small one, in the demo's shape",
        "minicpmv synth -o build/small --config demo --dtype fp16",
    ),
)
MANIFEST, FORMAT = "synth.json", "minicpmv-synth"
_BESIDE_WEIGHTS = 2**24  # bytes: tokenizer, index, headers


@dataclass(frozen=True, kw_only=True)
class SynthConfig:
    """What the user asked for."""

    output: Path
    config: str  # see `convert.checkpoint.synth.load_config`
    dtype: str  # a key of `convert.checkpoint.shards.FLOATS`
    seed: int
    format: str  # a key of `convert.checkpoint.writer.FORMATS`
    tokenizer: Path | None  # None: a generated one

    def shown(self) -> dict[str, str]:
        """Returns the settings by the names that users know."""
        shown = {key: str(value) for key, value in asdict(self).items()}
        return shown | {"tokenizer": str(self.tokenizer or "generated")}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    add = parser.add_argument_group("model").add_argument
    add(
        "--config",
        metavar="NAME",
        default="minicpm-v-1.0",
        help="shape of the model: a name in configs/model, demo, demo-2.0, or the path of a "
        "config.json (default: %(default)s, 6.9 GB)",
    )
    add(
        "--dtype",
        choices=("bf16", "fp16", "fp32"),
        default="bf16",
        help="type of the stored weights (default: %(default)s)",
    )
    add(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="seed of the weights; equal seeds give equal bytes (default: %(default)s)",
    )
    add(
        "--tokenizer",
        type=Path,
        metavar="FILE",
        help="a tokenizer.model to copy (default: generate one of the right size)",
    )
    add = parser.add_argument_group("output").add_argument
    add("-o", "--output", type=Path, metavar="DIR", required=True, help="folder to write")
    add(
        "--format",
        choices=("safetensors", "bin"),
        default="safetensors",
        help="file format of the weights (default: %(default)s)",
    )
    add("--json", action="store_true", help="print the summary as JSON on stdout")


def run(args: argparse.Namespace) -> int:
    """Writes the checkpoint and returns the exit code."""
    from convert.checkpoint.synth import DTYPES, load_config, stored_tensors, write_synthetic
    from convert.support.console import Bars, Size, messages, results
    from convert.support.measure import peak_rss_bytes
    from convert.support.output_folder import FolderKind, OutputFolder

    start = time.monotonic()
    asked = SynthConfig(
        output=args.output,
        config=args.config,
        dtype=DTYPES[args.dtype],
        seed=args.seed,
        format=args.format,
        tokenizer=args.tokenizer,
    )
    console = messages() if args.json else results()
    for key, value in asked.shown().items():
        console.print(f"{key:14}{value}", markup=False, soft_wrap=True)
    output = OutputFolder(
        asked.output, FolderKind(manifest=MANIFEST, format=FORMAT, noun="checkpoint")
    )
    config = load_config(asked.config)
    nbytes = sum(tensor.nbytes for tensor in stored_tensors(config, asked.dtype))
    output.require_space(nbytes + _BESIDE_WEIGHTS)
    tokenizer = _tokenizer(asked.tokenizer, config)
    with Bars() as bars, output as folder:
        (folder / "tokenizer.model").write_bytes(tokenizer)
        tensors = write_synthetic(
            folder,
            config,
            dtype=asked.dtype,
            seed=asked.seed,
            format=asked.format,
            progress=bars,
        )
        _write_manifest(folder, asked)
        bars("bring to disk", 0, 0)
        output.commit()
    seconds = time.monotonic() - start
    summary = {
        "config": asked.shown(),
        "tensors": len(tensors),
        "parameters": sum(tensor.count for tensor in tensors),
        "bytes": nbytes,
        "seconds": round(seconds, 2),
        "mb_s": round(nbytes / seconds / 1e6, 1),
        "peak_rss_bytes": peak_rss_bytes(),
    }
    if args.json:
        print_json(summary)
    else:
        counts = f"{len(tensors):,} tensors, {summary['parameters']:,} parameters, {Size(nbytes)}"
        speed = f"{seconds:.1f} s, {summary['mb_s']:,.0f} MB/s"
        peak = f"peak memory {Size(peak_rss_bytes())}"
        console.print(f"{'weights':14}{counts}", markup=False, soft_wrap=True)
        console.print(f"{'took':14}{speed}, {peak}", markup=False, soft_wrap=True)
    return 0


def _tokenizer(path: Path | None, config: ModelConfig) -> bytes:
    """Returns the bytes of `tokenizer.model`: a copy, checked, or a generated one."""
    from convert.checkpoint.synth_tokenizer import generate_tokenizer
    from convert.checkpoint.tokenizer_file import check_tokenizer, open_tokenizer
    from convert.support.regular_file import read_regular

    vocab_size = config.decoder.vocab_size
    if path is None:
        slices = None if config.vision is None else config.vision.slices
        return generate_tokenizer(vocab_size, slices=slices)
    pieces = open_tokenizer(path)
    if pieces.vocab_size() != vocab_size:
        raise CheckpointError(
            f"{path}: has {pieces.vocab_size():,} pieces; the configuration's vocab_size is "
            f"{vocab_size:,}: use the model's own tokenizer, or leave out --tokenizer"
        )
    check_tokenizer(path, pieces, config)
    return read_regular(path)


def _write_manifest(folder: Path, asked: SynthConfig) -> None:
    """Records what wrote the folder, so that another run may replace it."""
    files = {path.name: {"size": path.stat().st_size} for path in sorted(folder.iterdir())}
    shown = asked.shown()
    del shown["output"]
    raw = {"format": FORMAT, "made_from": shown, "files": files}
    (folder / MANIFEST).write_text(json_text(raw, indent=1) + "\n", "utf-8")
