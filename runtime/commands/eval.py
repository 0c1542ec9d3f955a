"""`minicpmv eval`: scores a bundle and the full-precision model beside published scores."""

from __future__ import annotations

import argparse
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convert.support.streams import print_json
from quantize.errors import ConfigError
from runtime.commands.chat_options import add_max_slices
from runtime.engine_client.options import (
    LOCAL,
    REFERENCE,
    EngineOptions,
    add_engine_arguments,
    engine_options,
)

if TYPE_CHECKING:
    from convert.bundle.manifest import Bundle
    from convert.support.progress import Progress
    from runtime.eval.items import Questions
    from runtime.eval.run import Column
    from runtime.sessions.loader import Loaded

NAME = "eval"
HELP = "score a bundle and the full-precision model on MMBench, MME, MMMU or CMMMU"
EXAMPLES = (
    ("score on MMBench", "minicpmv eval phone --benchmark mmbench --data mmbench_dev_en.tsv"),
    (
        "try 20 questions of MME on the bundle alone",
        "minicpmv eval phone --benchmark mme --data MME --limit 20 --no-reference",
    ),
)
BENCHMARKS = ("mmbench", "mme", "mmmu", "cmmmu")
FULL, BUNDLE = "full precision", "this bundle"
_OUTPUT_SUFFIX = "-eval"


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """What the user asked for."""

    bundle: Path
    benchmark: str
    data: Path
    engine: EngineOptions
    reference: str | None  # None: the checkpoint that the bundle names
    no_reference: bool
    limit: int | None
    beams: int  # of the reference
    window: int | None  # tokens; None: fits every prompt of the original
    max_slices: int | None  # of a picture; None: the model's limit
    output: Path | None

    def __post_init__(self) -> None:
        """Checks values and combinations."""
        for name in ("limit", "window", "beams"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name} is {value}; expected a positive number")
        only_bundle = self.no_reference and self.engine.engine != REFERENCE
        if self.no_reference and not only_bundle:
            raise ConfigError("--no-reference and --engine reference leave no model to score")
        if only_bundle and (self.beams > 1 or self.reference is not None):
            raise ConfigError("--beams and --reference do not work with --no-reference")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("bundle", metavar="DIR", type=Path, help="a bundle, made by convert")
    add = parser.add_argument_group("benchmark").add_argument
    add("--benchmark", choices=BENCHMARKS, required=True, help="which one")
    add(
        "--data",
        metavar="PATH",
        type=Path,
        required=True,
        help="the benchmark's file or folder, as published",
    )
    add("--limit", metavar="N", type=int, help="ask only N questions, spread evenly")
    add(
        "--window",
        metavar="N",
        type=int,
        help="context window in tokens (default: fits all prompts)",
    )
    add_max_slices(add)
    add_engine_arguments(parser, default=LOCAL)
    add = parser.add_argument_group("full-precision model").add_argument
    add(
        "--reference",
        metavar="CHECKPOINT",
        help="the full-precision model (default: the checkpoint that the bundle was made from)",
    )
    add("--no-reference", action="store_true", help="score the bundle only")
    add(
        "--beams",
        metavar="N",
        type=int,
        default=1,
        help="beams of the full-precision model's search; the original uses 3 (default: 1, greedy)",
    )
    add = parser.add_argument_group("output").add_argument
    add(
        "--output",
        metavar="FOLDER",
        type=Path,
        help="folder for the answers; a later run continues from them "
        f"(default: DIR{_OUTPUT_SUFFIX})",
    )
    add("--json", action="store_true", help="print the report as one line of JSON on stdout")


def run(args: argparse.Namespace) -> int:
    """Evaluates and prints."""
    from convert.support.console import results
    from runtime.eval.report import print_report

    names = EvalConfig.__dataclass_fields__.keys() - {"engine"}
    config = EvalConfig(
        engine=engine_options(args), **{name: getattr(args, name) for name in names}
    )
    report = evaluate(config)
    if args.json:
        print_json(report)
    else:
        print_report(report, results())
    return 0


def evaluate(config: EvalConfig) -> dict[str, Any]:
    """Evaluates; returns what `--json` prints.

    Raises:
        ToolkitError: no bundle, no benchmark, or an engine that cannot run it.
    """
    from convert.bundle.manifest import Bundle
    from convert.support.console import Bars, messages
    from runtime.eval.report import report
    from runtime.eval.run import read_questions
    from runtime.inputs.slices import limit_slices

    started = time.monotonic()
    bundle = Bundle.open(config.bundle)
    vision = limit_slices(bundle.config.vision, config.max_slices)
    with messages().status("reading the benchmark"):
        questions = read_questions(config.benchmark, config.data, config.limit)
    columns: dict[str, Column] = {}
    with Bars() as bars:
        for name, engine in _models(config).items():

            def progress(_: str, done: int, total: int, /, name: str = name) -> None:
                bars(name, done, total)

            loaded = _load(config, bundle, engine, bars)
            columns[name] = _column(config, bundle, questions, engine, loaded, progress)
    return report(
        config.benchmark,
        questions,
        columns,
        {
            "bundle": str(config.bundle),
            "quantization": bundle.plan.recipe.scheme.name,
            "engine": config.engine.engine,
            "data": str(config.data),
            "limit": config.limit,
            "max_slices": config.max_slices,
            "seconds": round(time.monotonic() - started, 1),
        },
        slices=vision is not None and vision.slices is not None,
    )


def _models(config: EvalConfig) -> dict[str, EngineOptions]:
    """Returns the models to run, by the title of their column."""
    full = FULL if config.beams == 1 else f"{FULL}, {config.beams} beams"
    if config.engine.engine == REFERENCE:
        return {full: config.engine}
    models = {} if config.no_reference else {full: EngineOptions(engine=REFERENCE)}
    return models | {BUNDLE: config.engine}


def _column(
    config: EvalConfig,
    bundle: Bundle,
    questions: Questions,
    engine: EngineOptions,
    loaded: Loaded,
    progress: Progress,
) -> Column:
    from convert.bundle.results_file import identity
    from runtime.eval.results import Results
    from runtime.eval.run import answer_all
    from runtime.inputs.generation_options import GenerationOptions
    from runtime.inputs.prompt import ORIGINAL_PROMPT_LIMIT

    is_reference = engine.engine == REFERENCE
    beams = config.beams if is_reference else 1
    # The search of the original's `model.chat`, without sampling, gave the published scores.
    settings = loaded.defaults.named(loaded.defaults.settings).choose(False, {"num_beams": beams})
    longest = max(item.max_new_tokens for item in questions.items)
    window = config.window or ORIGINAL_PROMPT_LIMIT + longest
    source = bundle.manifest.source.sha256
    about = {
        "benchmark": questions.name,
        "model": source if is_reference else identity(bundle),
        "engine": engine.engine,
        "window": window,
        "settings": settings,
        # Answers of earlier versions, which have no such entry, stay valid.
        **({} if config.max_slices is None else {"max_slices": config.max_slices}),
    }
    folder = config.output or config.bundle.with_name(config.bundle.name + _OUTPUT_SUFFIX)
    name = f"{questions.name}-{engine.engine}" + (f"-{beams}-beams" if beams > 1 else "")
    name += "" if config.max_slices is None else f"-{config.max_slices}-slices"
    with (
        Results(folder / f"{name}.jsonl", about) as results,
        closing(loaded.open_session(window=window)) as session,
    ):
        return answer_all(
            config.benchmark,
            questions,
            session,
            lambda tokens: GenerationOptions(max_new_tokens=tokens, **settings),
            results,
            progress,
            max_slices=config.max_slices,
        )


def _load(config: EvalConfig, bundle: Bundle, engine: EngineOptions, copied: Progress) -> Loaded:
    from runtime.sessions.loader import load, open_source

    if engine.engine != REFERENCE:
        return load(config.bundle, engine, progress=copied)
    source = config.bundle
    if config.reference is not None:
        source = open_source(bundle, config.reference).path
    return load(source, engine, dtype="float32")
