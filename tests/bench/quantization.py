"""What recipes and methods leave of the demo: `python -m tests.bench.quantization [-o FILE]`.

Every row is a bundle, converted in a process of its own and run by its engine: KL divergence to
the full-precision model, its 99th percentile and the same likeliest token, at image, text and
answer positions of conversations that neither training nor calibration saw; and how many unseen
questions are answered exactly. Prints a table in Markdown; `-o` writes all as JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convert.bundle.manifest import KIND, Bundle
from convert.bundle.plan import Recipe, make_plan
from convert.calibrate.built_in import default_samples
from convert.calibrate.calibration import calibrate
from convert.checkpoint.config import CONFIGS, ModelConfig
from convert.checkpoint.reader import DEMO_NAME, Checkpoint
from convert.conversion.bundle_writer import write_bundle
from convert.conversion.config import ConvertConfig
from convert.conversion.conversion import Conversion
from convert.support.measure import peak_rss_bytes
from convert.support.output_folder import OutputFolder
from convert.support.progress import silent
from quantize.methods import METHODS, find_method
from runtime.demo.evaluate import WINDOW, evaluate
from runtime.demo.questions import LANGUAGES, random_example
from runtime.demo.scenes import draw, random_scene
from runtime.demo.task import TASKS
from runtime.engine_client.options import EngineOptions
from runtime.engine_client.places import open_place
from runtime.inputs.prompt import Tokenizer
from runtime.reference import metrics
from runtime.reference.kv_cache import KVCache, pinned_tokens
from runtime.reference.load import load_reference
from runtime.sessions.engine_session import EngineSession
from runtime.sessions.loader import load
from runtime.verify.stages import EngineStages, Stages, TorchStages, shape_of
from tests.bench.convert import ROOT, commit, machine

SEED = 20_260_303  # of the conversations whose logits are compared
KINDS = ("image", "text", "answer")
ROWS = [
    *(("small", method) for method in METHODS),
    ("balanced", "gptq"),
    ("best", "gptq"),
    ("mlc", "rtn"),
]
FULL_SIZE = CONFIGS / "model" / "minicpm-v-1.0.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="+", metavar="RECIPE:METHOD", help="default: all")
    parser.add_argument("--pictures", type=int, default=100, help="whose logits are compared")
    parser.add_argument("--questions", type=int, default=1000, help="in each language")
    parser.add_argument("-o", "--output", type=Path, help="a JSON file to write")
    parser.add_argument("--convert", nargs=3, help=argparse.SUPPRESS)  # a row's own process
    args = parser.parse_args()
    if args.convert:
        print(json.dumps(convert(args.convert[0], args.convert[1], Path(args.convert[2]))))
        return
    rows = [tuple(row.split(":")) for row in args.rows] if args.rows else ROWS
    cases = Cases(args.pictures)
    results: list[dict[str, Any]] = [{"recipe": "full precision"} | accuracy(None, args.questions)]
    print_row(results[0], first=True)
    for recipe, method in rows:
        results.append(measure(recipe, method, cases, args.questions))
        print_row(results[-1])
    record = {
        "bench": "quantization",
        "pictures": args.pictures,
        "questions": args.questions,
        "commit": commit(),
        "machine": machine(),
        "rows": results,
    }
    if args.output is not None:
        args.output.write_text(json.dumps(record, indent=1) + "\n")


def convert(recipe_name: str, method: str, folder: Path) -> dict[str, Any]:
    """Converts the demo and says what it took; run in a process of its own."""
    start = time.monotonic()
    checkpoint = Checkpoint.open(None)
    recipe = Recipe.load(recipe_name).with_method(method)
    plan = make_plan(checkpoint.config, checkpoint.untied_head, recipe)
    config = ConvertConfig(checkpoint=None, outputs={}, targets=("host",))
    conversion = Conversion(config, checkpoint)
    output = OutputFolder(folder, KIND)
    calibrated, peak = None, 0
    with tempfile.TemporaryDirectory() as home, output as partial:
        if find_method(method).calibrated:
            samples = default_samples(demo=DEMO_NAME, pictures=True)
            calibrated = calibrate(checkpoint, plan, samples, Path(home), silent)
        seconds, peak = time.monotonic() - start, peak_rss_bytes()
        write_bundle(conversion, plan, partial, calibrated)
        output.commit()
    real = make_plan(ModelConfig.load(FULL_SIZE), False, recipe)
    return {
        "bytes": plan.nbytes,
        "bits_per_weight": plan.bits_per_weight,
        "full_size_bytes": real.nbytes,
        "quantize_seconds": seconds,
        "quantize_peak_rss_bytes": peak,
    }


class Cases:
    """Conversations, and what the full-precision model says of each next token."""

    def __init__(self, pictures: int) -> None:
        checkpoint = Checkpoint.open(None)
        assert checkpoint.tokenizer is not None and checkpoint.config.resampler is not None
        queries = checkpoint.config.resampler.query_num
        tokenizer = Tokenizer(checkpoint.tokenizer, checkpoint.config)
        stages = TorchStages(load_reference(checkpoint), KVCache)
        self._cases = []
        for i in range(pictures):
            rng = np.random.default_rng([SEED, i])
            scene = random_scene(rng)
            picture = draw(scene, rng).picture
            for language in LANGUAGES:
                example = random_example(scene, language, rng)
                prompt = tokenizer.prompt(example.messages, queries)
                assert prompt.image_start is not None
                ids = prompt.ids + tokenizer.encode(example.answer)
                end = prompt.image_start + queries
                kinds = ["text"] * prompt.image_start + ["image"] * queries
                kinds += ["text"] * (len(prompt.ids) - 1 - end)
                kinds += ["answer"] * (len(ids) - len(kinds))
                logits = _logits(stages, picture, ids, prompt.image_start)
                self._cases.append((picture, ids, prompt.image_start, kinds, logits.half()))

    def compare(self, stages: Stages) -> dict[str, Any]:
        """Returns mean and 99th percentile of the KL divergence, and the share of same top-1."""
        losses: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}
        same: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}
        for picture, ids, start, kinds, reference in self._cases:
            logits = _logits(stages, picture, ids, start)
            kl = metrics.kl_divergence(reference.float(), logits)
            top = metrics.same_top1(reference.float(), logits)
            for kind in KINDS:
                at = torch.tensor([k == kind for k in kinds])
                losses[kind].append(kl[at])
                same[kind].append(top[at])
        summary = {}
        for kind in (*KINDS, "all"):
            names = KINDS if kind == "all" else (kind,)
            kl = torch.cat([part for name in names for part in losses[name]])
            top = torch.cat([part for name in names for part in same[name]])
            summary[kind] = {
                "kl_mean": metrics.mean(kl),
                "kl_p99": float(kl.quantile(0.99)),
                "same_top1": metrics.mean(top),
            }
        return summary


def _logits(stages: Stages, picture: Any, ids: Sequence[int], start: int) -> Tensor:
    """Runs a picture and ids through a model, stage by stage: (L, V)."""
    (square,) = stages.images(picture).pixels
    x = stages.vision_embed(square[0])
    assert stages.config.vision is not None
    for i in range(stages.config.vision.depth):
        x = stages.vision_block(i, x)
    tokens = stages.resample(stages.vision_norm(x), shape_of(square[0], stages.config))
    embeds = stages.embed(ids).clone()
    embeds[start : start + len(tokens)] = tokens
    hidden = stages.layers([embeds], WINDOW, pinned_tokens(start + len(tokens)))[-1]
    return stages.logits(hidden)


def accuracy(bundle: Path | None, questions: int) -> dict[str, Any]:
    """Returns the share of questions that are answered exactly, by language."""
    with closing(load(bundle).open_session(window=WINDOW)) as session:
        scores = evaluate(session, TASKS[DEMO_NAME], questions)
    return {"accuracy": {language: scores[language]["all"].accuracy for language in LANGUAGES}}


def measure(recipe: str, method: str, cases: Cases, questions: int) -> dict[str, Any]:
    """Converts, compares and asks."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bundle"
        command = [sys.executable, "-m", "tests.bench.quantization", "--convert"]
        done = subprocess.run(
            [*command, recipe, method, str(path)], cwd=ROOT, stdout=subprocess.PIPE, check=True
        )
        row = {"recipe": recipe, "method": method} | json.loads(done.stdout)
        bundle = Bundle.open(path)
        place = open_place(bundle, EngineOptions())
        with closing(EngineSession(place, bundle.config, window=WINDOW)) as session:
            row |= cases.compare(EngineStages(session))
        return row | accuracy(path, questions)


def print_row(row: dict[str, Any], *, first: bool = False) -> None:
    """Prints a row of the table, and before the first one its head."""
    kl = [f"KL, {kind}: mean, p99" for kind in (*KINDS, "all")]
    head = ["recipe", "method", "bytes", "bits per weight", "full size, MB", *kl]
    head += ["same top-1", "English", "Chinese", "seconds", "peak RSS, MiB"]
    if first:
        print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    cells = [row["recipe"]]
    if "method" in row:
        cells += [row["method"], f"{row['bytes']:,}", f"{row['bits_per_weight']:.2f}"]
        cells.append(f"{row['full_size_bytes'] / 1e6:,.0f}")
        figures = (row[kind] for kind in (*KINDS, "all"))
        cells += [f"{figure['kl_mean']:.2g}, {figure['kl_p99']:.2g}" for figure in figures]
        cells.append(f"{row['all']['same_top1']:.2%}")
    else:
        cells += [""] * (len(head) - 5)
    cells += [f"{row['accuracy'][language]:.1%}" for language in LANGUAGES]
    if "method" in row:
        cells.append(f"{row['quantize_seconds']:.1f}")
        cells.append(f"{row['quantize_peak_rss_bytes'] / 2**20:,.0f}")
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
