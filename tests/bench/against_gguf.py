"""Converting a decoder, beside llama.cpp: `python -m tests.bench.against_gguf [CHECKPOINT]`.

What a user would run instead: `convert_hf_to_gguf.py`, then 4 bits with `llama_model_quantize`, the
function that `llama-quantize` calls, `--pure`, so that the tied embedding is Q4_0, too: 4.5 bits
per weight on both sides. Both get the same folder, a MiniCPMForCausalLM checkpoint with the
decoder of CHECKPOINT (default: the demo). llama.cpp's script runs in this environment, the rest in
one that is kept in the toolkit's cache; the first run makes it, with

    {command}

The two take turns, each in processes of its own: seconds, seconds of processors, peak of resident
memory. Ours also makes an engine, from the cache where that has its parts, and its golden answers;
`weights` is without these.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from convert.checkpoint.config import TEXT_ONLY
from convert.checkpoint.reader import Checkpoint
from convert.checkpoint.writer import TensorEntry, write_weights
from convert.support.console import messages, results
from quantize.errors import ToolkitError
from tests.bench import llama_build
from tests.bench.convert import ROOT
from tests.bench.rounds import LEAST_ROUNDS, Row, alternate, print_rows, report

_DECODER = "llm."  # how names of a decoder's tensors begin in a checkpoint with pictures
_PICTURES = (
    "vision_encoder",
    "drop_vision_last_layer",
    "query_num",
    "image_size",
    "patch_size",
    "max_slice_nums",
    "scale_resolution",
)  # keys of config.json
_ENGINE_PHASES = ("compile blocks", "build engines", "golden answers")
_QUANTIZE = """
import sys
import llama_cpp as llama

asked = llama.llama_model_quantize_default_params()
asked.ftype = llama.LLAMA_FTYPE_MOSTLY_Q4_0
asked.pure = True
asked.nthread = int(sys.argv[3])
sys.exit(llama.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), asked))
"""


@dataclass(frozen=True)
class Used:
    """What a process took."""

    seconds: float
    processor_seconds: float  # with those of processes that it waited for
    peak_rss_bytes: int
    output: str  # what it printed


def main() -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").format(command=llama_build.NATIVE.command),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", nargs="?", help="default: the demo checkpoint")
    parser.add_argument(
        "--rounds",
        type=int,
        default=LEAST_ROUNDS,
        help="after one to warm up; default: %(default)s",
    )
    parser.add_argument("--threads", type=int, default=2, help="of each side (default: 2)")
    parser.add_argument("--folder", type=Path, help="for the files, three times the decoder's size")
    parser.add_argument("--json", action="store_true", help="print one line of JSON on stdout")
    args = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            rows, more = compare(Checkpoint.open(args.checkpoint), Path(folder), args)
    except ToolkitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps(report("against_gguf", rows, args.rounds, **more)))
    else:
        print_rows(results(), rows, "ours", "llama.cpp")
        sizes = f"weights: {more['our_bytes'] / 1e6:,.1f} MB, {more['their_bytes'] / 1e6:,.1f} MB"
        results().print(sizes, soft_wrap=True)
    return 0


def compare(
    checkpoint: Checkpoint, folder: Path, args: argparse.Namespace
) -> tuple[list[Row], dict[str, Any]]:
    """Measures both; returns the rows, and what else there is to say.

    Raises:
        ToolkitError: one of the two fails; its last line says why.
    """
    decoder = folder / "decoder"
    write_decoder(checkpoint, decoder)
    sides = _Sides(decoder, folder, args.threads)
    told = messages().print
    alternate(1, sides.ours, sides.theirs, on_round=lambda i: told("warmed up"))
    sides.rows = _rows()
    alternate(
        args.rounds,
        sides.ours,
        sides.theirs,
        on_round=lambda i: told(f"round {i} of {args.rounds}"),
    )
    more = {
        "checkpoint": str(args.checkpoint or "demo"),
        "threads": args.threads,
        "llama_cpp_python": llama_build.VERSION,
        "checkpoint_bytes": sum(path.stat().st_size for path in decoder.glob("*.safetensors")),
        "our_bytes": sides.our_bytes,
        "their_bytes": sides.their_bytes,
    }
    return list(sides.rows.values()), more


def write_decoder(checkpoint: Checkpoint, folder: Path) -> None:
    """Writes the decoder of a checkpoint as a checkpoint of its own, as it is stored.

    The LM head is left out where it equals the embedding: both sides then take that for both.

    Raises:
        ToolkitError: there is no tokenizer, which llama.cpp's script cannot do without.
    """
    if checkpoint.tokenizer is None:
        raise ToolkitError(f"{checkpoint.path}: has no tokenizer.model, which a GGUF file needs")
    folder.mkdir()
    tensors: dict[str, TensorEntry] = {}
    for name in checkpoint.names():
        if name.startswith(_DECODER):
            values = checkpoint.read(name)
            dtype = str(values.dtype).removeprefix("torch.")
            tensors[name] = TensorEntry(name.removeprefix(_DECODER), tuple(values.shape), dtype)
    names = {tensor.name: name for name, tensor in tensors.items()}

    def read(tensor: TensorEntry) -> Iterator[Any]:
        yield checkpoint.read(names[tensor.name]).contiguous().view(torch.uint8).numpy().reshape(-1)

    write_weights(folder, list(tensors.values()), read, format="safetensors")
    source = checkpoint.config.source
    config = {key: value for key, value in source.items() if key not in _PICTURES}
    config |= {"architectures": [TEXT_ONLY], "model_type": "minicpm"}
    config |= {"tie_word_embeddings": not checkpoint.untied_head}
    # What llama.cpp's script asks for, where it is not left to its default.
    config.setdefault("max_position_embeddings", 4096)
    (folder / "config.json").write_text(json.dumps(config, indent=2), "utf-8")
    shutil.copyfile(checkpoint.tokenizer, folder / "tokenizer.model")


class _Sides:
    """What each side does in a round, and the rows that come of it."""

    def __init__(self, decoder: Path, folder: Path, threads: int) -> None:
        self._decoder, self._folder, self._threads = decoder, folder, threads
        self.rows = _rows()
        self.our_bytes = self.their_bytes = 0

    def ours(self) -> None:
        """Converts with this toolkit."""
        command = [sys.executable, "-m", "convert.cli", "convert", str(self._decoder), "--json"]
        used = run(
            "minicpmv",
            [*command, "-o", str(self._folder / "ours"), "--quant", "q4f16_1"],
            self._threads,
        )
        summary = json.loads(used.output)
        engine = [summary["phases"].get(name) for name in _ENGINE_PHASES]
        known = [phase for phase in engine if phase is not None]
        self.rows["whole"].ours.append(used.seconds)
        self.rows["weights"].ours.append(used.seconds - sum(p["seconds"] for p in known))
        computed = used.processor_seconds - sum(p["processor_seconds"] for p in known)
        self.rows["weights, of processors"].ours.append(computed)
        self.rows["peak memory"].ours.append(used.peak_rss_bytes / 2**20)
        self.our_bytes = summary["weights_bytes"]

    def theirs(self) -> None:
        """Converts with llama.cpp."""
        whole, small = self._folder / "whole.gguf", self._folder / "q4_0.gguf"
        script = llama_build.source() / "convert_hf_to_gguf.py"
        command = [sys.executable, str(script), str(self._decoder), "--outfile", str(whole)]
        first = run("convert_hf_to_gguf.py", command, self._threads)
        command = [str(llama_build.python()), "-c", _QUANTIZE, str(whole), str(small)]
        second = run("llama_model_quantize", [*command, str(self._threads)], self._threads)
        seconds = first.seconds + second.seconds
        self.rows["whole"].theirs.append(seconds)
        self.rows["weights"].theirs.append(seconds)
        computed = first.processor_seconds + second.processor_seconds
        self.rows["weights, of processors"].theirs.append(computed)
        peak = max(first.peak_rss_bytes, second.peak_rss_bytes)
        self.rows["peak memory"].theirs.append(peak / 2**20)
        self.their_bytes = small.stat().st_size
        whole.unlink()
        small.unlink()


def run(name: str, command: Sequence[str], threads: int) -> Used:
    """Runs a program to its end.

    Raises:
        ToolkitError: it fails; its last line says why.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as log:
        start = time.monotonic()
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=log)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.monotonic() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        for file in (out, log):
            file.seek(0)
        if process.returncode:
            last = (log.read().strip().splitlines() or ["no message"])[-1]
            raise ToolkitError(f"{name} ended with {process.returncode}: {last}")
        computed = used.ru_utime + used.ru_stime
        return Used(seconds, computed, used.ru_maxrss * 1024, out.read())


def _rows() -> dict[str, Row]:
    rows = [
        Row("weights", "s", less_is_better=True),
        Row("weights, of processors", "s", less_is_better=True),
        Row("whole", "s", less_is_better=True),
        Row("peak memory", "MiB", less_is_better=True),
    ]
    return {row.name: row for row in rows}


if __name__ == "__main__":
    sys.exit(main())
