"""Methods and recipes on real weights, beside llama.cpp's: `python -m tests.bench.real_decoder`.

SmolLM2-135M-Instruct counts as full precision. Each row is converted by `minicpmv convert`, in
a process of its own, and run by its engine; the logits of held-out text are compared with those of
the reference in PyTorch. llama.cpp quantizes the same weights with its own quantizer, and runs them
itself. KL divergence is in nats. Prose is of the kind that was calibrated on, licences and code are
not; with `--calibration built-in` none is.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convert.bundle.manifest import Bundle
from convert.checkpoint.reader import Checkpoint
from quantize.errors import ToolkitError
from quantize.methods import METHODS
from runtime.engine_client.options import EngineOptions
from runtime.engine_client.places import open_place
from runtime.reference import metrics
from runtime.reference.kv_cache import ATTENTION_SINKS
from runtime.reference.load import load_reference
from runtime.sessions.engine_session import EngineSession
from runtime.verify.stages import EngineStages, Stages, TorchStages
from tests.bench import llama_build, real_text, smollm2
from tests.bench.convert import ROOT, commit, machine
from tests.bench.real_text import Ids

WINDOW = 2 * real_text.LENGTH  # tokens
SHARES = (0.5, 0.95, 0.99, 0.999)  # percentiles of the KL divergence
ROWS = [*(("small", method) for method in METHODS), ("balanced", "gptq"), ("best", "gptq")]
PEERS = ("Q4_0", "Q4_K_S", "Q4_K_M")
Logits = Callable[[list[int]], Tensor]  # of ids, (L, V)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows",
        nargs="+",
        metavar="RECIPE:METHOD",
        help="names, or a recipe's file as convert --quant takes it (default: all)",
    )
    parser.add_argument("--peers", nargs="*", default=PEERS, choices=PEERS, help="default: all")
    parser.add_argument(
        "--calibration",
        choices=(real_text.DJANGO, real_text.BUILT_IN),
        default=real_text.DJANGO,
        help="texts: Django's documentation, or the toolkit's own set (default: django)",
    )
    parser.add_argument(
        "--samples", type=int, default=real_text.SAMPLES, help="in sequences of 256 tokens"
    )
    parser.add_argument("--threads", type=int, default=2, help="of llama.cpp (default: 2)")
    parser.add_argument("-o", "--output", type=Path, help="a JSON file to write")
    args = parser.parse_args()
    rows = [tuple(row.split(":")) for row in args.rows] if args.rows else ROWS
    try:
        with tempfile.TemporaryDirectory() as folder:
            found = list(_measure(Path(folder), rows, args))
    except ToolkitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.output is not None:
        record = {"bench": "real_decoder", "calibration": args.calibration}
        record |= {"samples": args.samples, "commit": commit(), "machine": machine(), "rows": found}
        args.output.write_text(json.dumps(record, indent=1) + "\n")
    return 0


def _measure(folder: Path, rows: list[Any], args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    model = smollm2.prepare(folder)
    texts = real_text.load(model.tokenizer, args.calibration, args.samples)
    samples = folder / "samples.jsonl"
    lines = [json.dumps({"ids": ids}) for ids in texts.samples]
    samples.write_text("\n".join(lines), "utf-8")
    comparison = Comparison(Checkpoint.open(model.checkpoint), texts.held_out)
    _print_row({"name": "full precision"} | comparison.own(), first=True)
    for recipe, method in rows:
        row = _ours(recipe, method, model.checkpoint, samples, folder, comparison)
        if args.calibration == real_text.BUILT_IN and METHODS[method].calibrated:
            row["name"] += f", {real_text.BUILT_IN} samples"
        _print_row(row)
        yield row
    for kind in args.peers:
        row = _theirs(kind, model.gguf, folder, comparison, args.threads)
        _print_row(row)
        yield row


class Comparison:
    """Held-out sequences, and what the full-precision model says of each next token."""

    def __init__(self, checkpoint: Checkpoint, held_out: dict[str, Ids]) -> None:
        self.held_out = held_out
        logits = _stages_logits(TorchStages(load_reference(checkpoint)))
        self._reference = {kind: [logits(ids) for ids in each] for kind, each in held_out.items()}

    def own(self) -> dict[str, Any]:
        """Returns the perplexity of the full-precision model, by kind."""
        return {
            kind: {"perplexity": _perplexity(self._reference[kind], each)}
            for kind, each in self.held_out.items()
        }

    def of(self, logits: Logits) -> dict[str, Any]:
        """Returns KL divergence, top-1 and perplexity of a model, by kind."""
        found = {}
        for kind, each in self.held_out.items():
            values = [logits(ids) for ids in each]
            pairs = list(zip(self._reference[kind], values, strict=True))
            kl = torch.cat([metrics.kl_divergence(*pair) for pair in pairs])
            top = torch.cat([metrics.same_top1(*pair) for pair in pairs])
            found[kind] = {
                "kl_mean": metrics.mean(kl),
                **{f"kl_p{share * 100:g}": float(kl.quantile(share)) for share in SHARES},
                "same_top1": metrics.mean(top),
                "perplexity": _perplexity(values, each),
            }
        return found


def _perplexity(logits: list[Tensor], sequences: Ids) -> float:
    total = sum(
        metrics.negative_log_likelihood(rows[:-1], torch.tensor(ids[1:]))
        for rows, ids in zip(logits, sequences, strict=True)
    )
    return float(np.exp(total / sum(len(ids) - 1 for ids in sequences)))


def _stages_logits(stages: Stages) -> Logits:
    def logits(ids: list[int]) -> Tensor:
        hidden = stages.layers([stages.embed(ids)], WINDOW, ATTENTION_SINKS)[-1]
        return stages.logits(hidden)

    return logits


def _ours(
    recipe: str, method: str, checkpoint: Path, samples: Path, folder: Path, comparison: Comparison
) -> dict[str, Any]:
    """Converts with the ordinary command, and measures what the engine says."""
    name = Path(recipe).stem
    output = folder / f"{name}-{method}"
    command = [sys.executable, "-m", "convert.cli", "convert", str(checkpoint), "-o", str(output)]
    command += ["--quant", recipe, "--method", method, "--calibration", str(samples), "--json"]
    start = time.monotonic()
    summary = json.loads(smollm2.run([*command, "--target", "host"]))
    row = {"name": f"{name}, {method}", "seconds": time.monotonic() - start}
    bundle = Bundle.open(output)
    row |= {"bytes": summary["weights_bytes"], "bits": bundle.plan.bits_per_weight}
    place = open_place(bundle, EngineOptions())
    with closing(EngineSession(place, bundle.config, window=WINDOW)) as session:
        row |= comparison.of(_stages_logits(EngineStages(session)))
    return row


def _theirs(
    kind: str, gguf: Path, folder: Path, comparison: Comparison, threads: int
) -> dict[str, Any]:
    """Quantizes with llama.cpp, and measures what it says itself."""
    program, script = str(llama_build.python()), str(ROOT / "tests/bench/llama_logits.py")
    file = folder / f"{kind}.gguf"
    start = time.monotonic()
    smollm2.run([program, script, "quantize", str(gguf), str(file), kind, str(threads)])
    row: dict[str, Any] = {"name": f"llama.cpp {kind}", "seconds": time.monotonic() - start}
    nbytes, values = file.stat().st_size, {}
    for name, each in comparison.held_out.items():
        ids, out = folder / f"{name}.json", folder / f"{name}.npy"
        ids.write_text(json.dumps(each), "utf-8")
        smollm2.run([program, script, "logits", str(file), str(ids), str(out), str(threads)])
        values[name] = np.load(out, "r")
    parameters = sum(int(np.prod(shape)) for shape in smollm2.shapes())
    row |= {"bytes": nbytes, "bits": 8 * nbytes / parameters}
    known = {tuple(ids): (name, i) for name, each in comparison.held_out.items()
             for i, ids in enumerate(each)}  # fmt: skip

    def logits(ids: list[int]) -> Tensor:
        name, index = known[tuple(ids)]
        return torch.from_numpy(np.array(values[name][index]))

    return row | comparison.of(logits)


def _print_row(row: dict[str, Any], *, first: bool = False) -> None:
    """Prints a row of the table, and before the first one its head."""
    kinds = ("prose", "licences", "code")
    if first:
        shares = ", ".join(f"{share * 100:g}" for share in SHARES)
        columns = [f"{kind}: {what}" for kind in kinds
                   for what in (f"KL mean ({shares} %)", "top-1", "perplexity")]  # fmt: skip
        head = ["", "bytes", "bits", *columns, "s"]
        print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    cells = [row["name"]]
    cells += [f"{row['bytes']:,}", f"{row['bits']:.2f}"] if "bytes" in row else ["", ""]
    for kind in kinds:
        found = row[kind]
        if "kl_mean" in found:
            tail = ", ".join(f"{found[f'kl_p{share * 100:g}']:.2g}" for share in SHARES)
            cells += [f"{found['kl_mean']:.3g} ({tail})", f"{found['same_top1']:.1%}"]
        else:
            cells += ["", ""]
        cells.append(f"{found['perplexity']:.2f}")
    cells.append(f"{row['seconds']:.0f}" if "seconds" in row else "")
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
