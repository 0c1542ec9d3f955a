"""Where a difference comes from: tensors, one stage's kernels, or a rule that an engine has wrong.

Every stage is fed the reference's own input, and compared with a model of the arithmetic that is
computed from the very tensors which the bundle stores. If both say the same, the tensors explain
the stage; if not, the engine does something else, and the well-known mistakes are tried on the
model until one explains what it says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from convert.bundle.manifest import Bundle
from convert.checkpoint.reader import Checkpoint
from convert.support.progress import Progress
from runtime.inputs.prompt import Tokenizer
from runtime.reference import metrics
from runtime.verify.cases import Case
from runtime.verify.check import Cause, Check
from runtime.verify.diagnose.decoder_faults import DecoderFaults
from runtime.verify.diagnose.picture_faults import picture_cause
from runtime.verify.diagnose.stored_stages import Deviations, StoredStages
from runtime.verify.diagnose.weight_faults import weight_causes
from runtime.verify.files.contents import Contents
from runtime.verify.files.tokenizer import tokenizer_causes
from runtime.verify.measure.answers import Question
from runtime.verify.measure.choices import choices_causes
from runtime.verify.measure.patterns import STAGE as PATTERN_STAGE
from runtime.verify.measure.patterns import draw_pattern
from runtime.verify.measure.pictures import CUT, PIXELS
from runtime.verify.measure.run import Models
from runtime.verify.stages import Shape, Stages, shape_of

# The stages whose parts are tried one by one; the rest is made of them.
_PICTURES = frozenset({CUT, PIXELS})
_VISION = frozenset({"vision encoder", "vision features"})
_RESAMPLER = frozenset({"resampler"})
_PATTERNS = frozenset({PATTERN_STAGE})  # go through both
_EMBEDDINGS = frozenset({"prompt embeddings"})
_DECODER = frozenset({"decoder layers", "sliding window", "hidden states"})
_HEAD = frozenset({"LM head"})
_ALL = frozenset({"logits", "answers"})
_FACTOR = 0.01  # a smaller one is rounding, not a missing factor


def find_causes(
    checks: Sequence[Check],
    bundle: Bundle,
    checkpoint: Checkpoint,
    models: Models,
    tokenizer: Tokenizer,
    cases: Sequence[Case],
    contents: Contents,
    thresholds: Mapping[str, float],
    progress: Progress,
) -> list[Cause]:
    """Looks for what makes checks fail; asks nothing where all passed.

    Args:
        checks: of the files, the tensors and the stages.
        bundle: as it is stored.
        checkpoint: what it was made from.
        models: that were compared.
        tokenizer: of the reference.
        cases: what was asked.
        contents: what files without weights say.
        thresholds: of `configs/verify.json`.
        progress: receives the start and the end of the search.

    Returns:
        The causes in the order of the data; at least one if a check failed.
    """
    failed = [check for check in checks if not check.passed]
    stages = {check.stage for check in failed}
    if not failed:
        return []
    progress("look for the cause", 0, 1)
    assert bundle.tokenizer is not None and checkpoint.tokenizer is not None
    read = tokenizer_causes(failed, bundle.tokenizer, checkpoint.tokenizer)
    if read:
        stages -= {"answers"}  # other words are what it makes of them
    causes = weight_causes(failed, bundle, checkpoint, thresholds["loss_margin_db"])
    stored = StoredStages(bundle.config, bundle.plan, bundle.weights())
    engine, reference = models.bundle.stages, models.reference
    parts = Parts(reference, engine, stored, tokenizer, thresholds)
    causes += parts.causes([*_failed_pattern(failed, bundle), *cases], stages)
    if not causes:  # choices can only be judged by an engine whose stages are right
        causes += choices_causes(failed)
    causes = [*read, *contents.causes, *causes]
    if not causes:
        causes += contents.answers
    if not causes:
        worst = next((check for check in failed if check.stage not in _ALL), failed[0])
        why = (
            "no tensor and no part explains it alone: each does what it should to at least "
            f"{thresholds['same_arithmetic_db']:g} dB; a recipe that keeps more bits loses less"
        )
        causes.append(Cause(f"{worst.stage}: {worst.name}", why))
    progress("look for the cause", 1, 1)
    return causes


def _failed_pattern(failed: Sequence[Check], bundle: Bundle) -> list[Case]:
    """Returns the pattern whose stages failed, where those of all other pictures passed."""
    names = [check.name for check in failed if check.stage == PATTERN_STAGE]
    vision = bundle.config.vision
    if not names or vision is None or {c.stage for c in failed} & (_VISION | _RESAMPLER):
        return []
    name = names[0].rpartition(", ")[0]
    picture = partial(draw_pattern, name, vision)
    return [Case(name, ({"role": "user", "content": ""},), picture, name)]


@dataclass(frozen=True)
class _Inputs:
    """What the reference feeds its own stages, for one case."""

    pixels: Tensor | None  # of the picture's last image
    shape: Shape  # of that
    blocks: list[Tensor]  # and last the norm's
    features: Tensor | None
    ids: list[int]
    layers: list[Tensor]
    hidden: Tensor


class Parts:
    """Compares an engine's parts, one by one, with what the stored tensors give."""

    def __init__(
        self,
        reference: Stages,
        engine: Stages,
        stored: StoredStages,
        tokenizer: Tokenizer,
        thresholds: Mapping[str, float],
    ) -> None:
        """Args: reference, engine: are fed. stored: of the engine's bundle. Others: as above."""
        self._reference, self._engine, self._stored = reference, engine, stored
        self._tokenizer, self._thresholds = tokenizer, thresholds
        self._least_db = thresholds["same_arithmetic_db"]

    def causes(self, cases: Sequence[Case], stages: Collection[str]) -> list[Cause]:
        """Returns what is wrong in the parts that failed stages are made of."""
        failed = set(stages)
        causes = self._pictures(cases) if failed & _PICTURES else []
        tests: list[tuple[frozenset[str], Callable[[_Inputs], list[Cause]]]] = [
            (_EMBEDDINGS, self._embeddings),
            (_DECODER, self._layers),
            (_HEAD, self._head),
        ]
        if self._stored.config.vision is not None:
            picture = [
                (_VISION | _PATTERNS, self._vision),
                (_RESAMPLER | _PATTERNS, self._resampler),
            ]
            tests = [*picture, *tests]
        wanted = [test for names, test in tests if names & failed]
        if not wanted and not causes and failed & _ALL:
            wanted = [test for _, test in tests]  # each within its limits, but not together
        if wanted:
            inputs = self._inputs(cases[0])
            for test in wanted:
                causes += test(inputs)
        return causes

    def _inputs(self, case: Case) -> _Inputs:
        """Runs the reference's stages on a case."""
        stages, config = self._reference, self._reference.config
        pixels = features = grid = None
        shape, blocks = (0, 0), list[Tensor]()
        tokens: list[Tensor] = []
        if (picture := case.open()) is not None:
            assert config.vision is not None
            images = stages.images(picture)
            grid = images.grid
            for image in images.pixels:
                pixels, shape = image[0], shape_of(image[0], config)
                blocks = [stages.vision_embed(pixels)]
                for i in range(config.vision.depth):
                    blocks.append(stages.vision_block(i, blocks[-1]))
                features = stages.vision_norm(blocks[-1])
                tokens.append(stages.resample(features, shape))
        prompt = self._tokenizer.prompt(case.messages, len(tokens[0]) if tokens else 0, grid=grid)
        embeds = stages.embed(prompt.ids).clone()
        Question(prompt, tuple(tokens)).put(embeds)
        outputs = stages.layers([embeds], len(prompt.ids) + 1, 1)
        layers = [embeds, *outputs[:-1]]
        return _Inputs(pixels, shape, blocks, features, prompt.ids, layers, outputs[-1])

    def _pictures(self, cases: Sequence[Case]) -> list[Cause]:
        limit = self._thresholds["preprocessing_levels"]
        seen = {case.picture_digest: case for case in cases if case.picture is not None}
        for case in seen.values():
            picture = case.open()
            assert picture is not None
            right, actual = (s.images(picture) for s in (self._reference, self._engine))
            assert self._stored.config.vision is not None
            cause = picture_cause(
                picture, self._stored.config.vision, right, actual, limit, self._least_db
            )
            if cause is not None:
                return [cause]
        return []

    def _vision(self, inputs: _Inputs) -> list[Cause]:
        engine, stored = self._engine, self._stored
        if inputs.pixels is None:
            return []
        bare = stored.with_rules(Deviations(positions=False))
        causes = self._part(
            "vision patch embedding",
            engine.vision_embed(inputs.pixels),
            stored.vision_embed(inputs.pixels),
            {"positions are missing": lambda: bare.vision_embed(_given(inputs.pixels))},
        )
        tanh = stored.with_rules(Deviations(gelu="tanh"))
        for i, x in enumerate(inputs.blocks[:-1]):
            causes += self._part(
                f"vision block {i}",
                engine.vision_block(i, x) - x,
                stored.vision_block(i, x) - x,
                {"GELU by tanh": lambda i=i, x=x: tanh.vision_block(i, x) - x},  # type: ignore[misc]
            )
        x = inputs.blocks[-1]
        return causes + self._part("vision norm", engine.vision_norm(x), stored.vision_norm(x))

    def _resampler(self, inputs: _Inputs) -> list[Cause]:
        if inputs.features is None:
            return []
        x, bare = inputs.features, self._stored.with_rules(Deviations(positions=False))
        return self._part(
            "resampler",
            self._engine.resample(x, inputs.shape),
            self._stored.resample(x, inputs.shape),
            {
                "the keys' positions are missing": lambda: bare.resample(x, inputs.shape),
                **self._interpolated_keys(x, inputs.shape),
            },
        )

    def _interpolated_keys(self, x: Tensor, shape: Shape) -> dict[str, Callable[[], Tensor]]:
        """Returns the mistake of a model with slices whose keys are those of one without."""
        vision = self._stored.config.vision
        if vision is None or vision.slices is None:
            return {}
        interpolated = self._stored.with_rules(Deviations(interpolated_keys=True))
        text = "the keys' positions are interpolated from the queries', as for a square"
        return {text: lambda: interpolated.resample(x, shape)}

    def _embeddings(self, inputs: _Inputs) -> list[Cause]:
        actual, right = self._engine.embed(inputs.ids), self._stored.embed(inputs.ids)
        scale = self._stored.config.decoder.scale_emb
        factor = self._factor(actual, right)
        if factor is None:
            return self._part("token embeddings", actual, right)
        missing = abs(factor * scale - 1) < _FACTOR
        why = "scale_emb is missing" if missing else "another factor than scale_emb"
        return [Cause("embedding scale", f"{why}: {_times(factor)} what {scale:g} times gives")]

    def _layers(self, inputs: _Inputs) -> list[Cause]:
        faults = DecoderFaults(self._engine, self._stored, inputs.layers, self._least_db)
        return faults.causes()

    def _head(self, inputs: _Inputs) -> list[Cause]:
        actual, right = (s.logits(inputs.hidden) for s in (self._engine, self._stored))
        divisor = self._stored.config.decoder.logits_divisor
        factor = self._factor(actual, right)
        if factor is None:
            return self._part("LM head", actual, right)
        missing = abs(factor / divisor - 1) < _FACTOR
        why = "dim_model_base is ignored" if missing else "another divisor"
        return [Cause("logit scale", f"{why}: {_times(factor)} what dividing by {divisor:g} gives")]

    def _part(
        self,
        name: str,
        actual: Tensor,
        right: Tensor,
        mistakes: Mapping[str, Callable[[], Tensor]] | None = None,
    ) -> list[Cause]:
        """Compares a part with what the stored tensors give, and tries mistakes if it differs."""
        own = metrics.sqnr_db(right, actual)
        if own >= self._least_db or not bool(right.isfinite().all()):
            return []  # of numbers that are none, kernels make anything
        for text, make in (mistakes or {}).items():
            db = metrics.sqnr_db(make(), actual)
            if db >= self._least_db:
                why = f"{text}: with that the model gives it to {db:.0f} dB, without {own:.0f} dB"
                return [Cause(f"kernels: {name}", why)]
        why = f"{own:.0f} dB against what its stored tensors give; {_spread(actual, right)}"
        return [Cause(f"kernels: {name}", why)]

    def _factor(self, actual: Tensor, right: Tensor) -> float | None:
        """Returns by what a part is too large, if that is all that is wrong with it."""
        factor = float((actual * right).sum() / right.square().sum())
        if not math.isfinite(factor) or abs(factor - 1) < _FACTOR:
            return None
        return factor if metrics.sqnr_db(right * factor, actual) >= self._least_db else None


def _given(pixels: Tensor | None) -> Tensor:
    assert pixels is not None
    return pixels


def _times(factor: float) -> str:
    return f"{factor:.4g} times"


def _spread(actual: Tensor, right: Tensor) -> str:
    """Says how many of a part's rows and outputs (L, D) differ."""
    error = (actual - right).abs()
    wrong = ~(error <= right.abs().mean() / 10)
    rows, columns = wrong.any(1), wrong.any(0)
    return (
        f"{int(rows.sum()):,} of {len(rows):,} rows and {int(columns.sum()):,} of "
        f"{len(columns):,} outputs differ much"
    )
