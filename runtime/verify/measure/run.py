"""Runs reference, arithmetic model and bundle through every stage, and compares.

Each stage gets the reference's own input, so that a fault shows where it is and nowhere else;
logits and answers then show what is left of the whole.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image
from torch import Tensor

from convert.checkpoint.config import CONFIGS
from convert.support.progress import Progress
from runtime.inputs.generation_options import GenerationOptions
from runtime.inputs.picture_format import PictureError
from runtime.inputs.prompt import Message, Prompt, PromptError, Tokenizer
from runtime.reference.kv_cache import ATTENTION_SINKS
from runtime.sessions.engine_session import EngineSession
from runtime.sessions.session import Reply
from runtime.verify.cases import Case
from runtime.verify.files.tokenizer import prompt_check, text_check
from runtime.verify.measure.answers import AnswerComparison, GreedyAnswer, Question, greedy_answer
from runtime.verify.measure.choices import choice_checks
from runtime.verify.measure.logits import Logits
from runtime.verify.measure.losses import StageLosses
from runtime.verify.measure.noise import NoiseFloor
from runtime.verify.measure.patterns import PATTERNS, compare_patterns
from runtime.verify.measure.pictures import EncodedPicture, compare_picture
from runtime.verify.measure.reference import Reference
from runtime.verify.measure.results import CaseResult, Outcome, ResultCache, merge
from runtime.verify.measure.steps import Steps
from runtime.verify.stages import LAYER_TOKENS, EngineStages, Stages, narrow_window

_LOG = logging.getLogger(__name__)


def load_settings() -> dict[str, Any]:
    """Reads `configs/verify.json`."""
    settings: dict[str, Any] = json.loads((CONFIGS / "verify.json").read_text("utf-8"))
    return settings


@dataclass(frozen=True)
class EngineUnderTest:
    """A bundle's engine."""

    stages: EngineStages
    session: EngineSession
    tokenizer: Tokenizer  # of the bundle's own file

    def reply(
        self, messages: Sequence[Message], picture: Image.Image | None, options: GenerationOptions
    ) -> Reply:
        """Answers a question; asks again where the engine's machine went away meanwhile."""
        self.session.reset()  # no case may hang on the one before
        return self.session.ask(lambda _: self.session.reply(messages, picture, options))


@dataclass(frozen=True)
class Models:
    """The models that are compared."""

    reference: Reference
    arithmetic: Stages
    bundle: EngineUnderTest
    noise: NoiseFloor | None = None  # the reference in 16 bits

    @property
    def stages(self) -> tuple[Stages, ...]:
        """Those of reference, arithmetic, bundle, and of the reference in 16 bits if it runs."""
        others = (self.reference, self.arithmetic, self.bundle.stages)
        return others if self.noise is None else (*others, self.noise.stages)


def run_cases(
    models: Models,
    tokenizer: Tokenizer,
    cases: Sequence[Case],
    settings: Mapping[str, Any],
    window: int,
    progress: Progress,
    known: ResultCache,
    *,
    skip_bad: bool = False,
    with_patterns: bool = False,
) -> Outcome:
    """Measures all cases.

    Args:
        models: reference, arithmetic model and bundle; all of one configuration.
        tokenizer: of the reference.
        cases: conversations.
        settings: `configs/verify.json`.
        window: context window of all three.
        progress: counts steps of all cases.
        known: what cases gave in an earlier run; gets the others.
        skip_bad: warn of cases that cannot be asked, and go on.
        with_patterns: compare synthetic patterns, too, where there is a vision encoder.

    Raises:
        PictureError: a picture is gone.
        PromptError: a question does not fit into the window; no case can be asked.
    """
    vision = models.reference.config.vision
    patterns = len(PATTERNS) if with_patterns and vision is not None else 0
    steps = Steps(cases, 0 if vision is None else vision.depth, progress, patterns)
    noise = models.noise
    losses = None if noise is None else noise.known(cases)
    if losses is not None:
        models = replace(models, noise=None)  # its loss was measured earlier
    runner, found = _Runner(models, tokenizer, settings, window, steps), []
    for index, case in enumerate(cases):
        steps.start(index)
        result = known.get(case)
        if result is None:
            result = _ask(runner, case, skip_bad=skip_bad)
            if result is None:
                continue
            if losses is not None:
                result = losses[case.digest].put(result)
            elif noise is not None:
                noise.add(case, result)
            known.add(case, result)
        found.append(result)
    steps.start(len(cases))
    if not found:
        raise PromptError("no case could be asked; see the warnings")
    outcome = merge(found, settings["thresholds"])
    if not patterns:
        return outcome
    checks = compare_patterns(models.stages[:3], settings["thresholds"], steps)
    return replace(outcome, checks=[*checks, *outcome.checks])


def _ask(runner: _Runner, case: Case, *, skip_bad: bool) -> CaseResult | None:
    """Measures a case; returns None if it cannot be asked and is to be skipped then."""
    try:
        return runner.run(case)
    except (PictureError, PromptError) as error:
        if not skip_bad:
            raise type(error)(f"{case.name}: {error}") from error
        _LOG.warning("%s: %s: left out", case.name, error)
        return None


class _Runner:
    """Measures one case after the other."""

    def __init__(
        self,
        models: Models,
        tokenizer: Tokenizer,
        settings: Mapping[str, Any],
        window: int,
        steps: Steps,
    ) -> None:
        self._steps = steps
        self._models, self._tokenizer, self._window = models, tokenizer, window
        self._thresholds = settings["thresholds"]
        self._options = GenerationOptions(max_new_tokens=settings["built_in"]["max_new_tokens"])
        self._picture = ""  # the latest: its digest
        self._encoded = EncodedPicture(None, ())
        self._slid = False  # the window was tried; it does not depend on the words

    def run(self, case: Case) -> CaseResult:
        """Compares what the models make of a case."""
        models, worst, logits = self._models, StageLosses(self._thresholds), Logits()
        picture, window = case.open(), self._window
        # The bundle is asked first: what it says, the others try at once, and say their own.
        reply = models.bundle.reply(case.messages, picture, self._options)
        bundle = GreedyAnswer.of(reply)
        self._steps.step()
        if case.picture_digest != self._picture:  # the cases of a picture follow each other
            self._encoded = EncodedPicture(None, ())
            if picture is not None:
                self._encoded = compare_picture(models.stages, picture, worst, self._steps)
            self._picture = case.picture_digest
        prompt, asked = self._prompts(case)
        worst.add(prompt_check("prompts", asked, prompt))
        worst.add(text_check("answers", reply.text, self._tokenizer.decode(reply.ids)))
        nothing: tuple[tuple[Tensor, ...], ...] = ((),) * len(models.stages)
        questions = [Question(prompt, images) for images in self._encoded.images or nothing]
        said = models.reference.answer(questions[0], bundle.ids, self._options, window)
        self._steps.step()
        ids = prompt.ids + said.ids
        slide, self._slid = not self._slid, True
        ends = _compare_decoder(models, questions, ids, window, worst, self._steps, slide=slide)
        logits.add(prompt, ids, self._queries(case), *ends)
        arithmetic = greedy_answer(models.arithmetic, questions[1], said.ids, self._options, window)
        half = None
        if models.noise is not None:
            draft, stages = said.ids, models.noise.stages
            half = greedy_answer(stages, questions[3], draft, self._options, window)
        own = ends[2][len(prompt.ids) - 1 :]
        if (bundle.ids, asked) != (said.ids, prompt):
            # What it chose from is what it made of the question, whether that is right or not.
            question = replace(questions[2], prompt=asked)
            own = question.logits(models.bundle.stages, bundle.ids, window)
        chosen = bundle.ids + [models.reference.config.decoder.eos_token_id] * bundle.ended
        for check in choice_checks(chosen, own):
            worst.add(check)
        answer = AnswerComparison.of(
            case,
            said,
            bundle,
            reply.text,
            arithmetic,
            self._tokenizer,
            models.bundle.tokenizer,
            half,
        )
        return CaseResult(worst.checks(), answer, logits.positions, len(ids))

    def _queries(self, case: Case) -> int:
        """Returns the number of image tokens of each image of a case's picture."""
        resampler = self._models.reference.config.resampler
        return resampler.query_num if case.picture is not None and resampler else 0

    def _prompts(self, case: Case) -> tuple[Prompt, Prompt]:
        """Returns what the reference makes of a case's conversation, and what the engine does."""
        queries, grid = self._queries(case), self._encoded.grid
        asked = self._models.bundle.stages.prompt(case.messages, queries, grid)
        return self._tokenizer.prompt(case.messages, queries, grid=grid), asked


def _compare_decoder(
    models: Models,
    questions: Sequence[Question],
    ids: Sequence[int],
    window: int,
    worst: StageLosses,
    steps: Steps,
    *,
    slide: bool,
) -> list[Tensor]:
    """Compares embeddings, layers and logits over a prompt and the reference's answer to it.

    Returns:
        All models' own logits (L, V).
    """
    everyone = models.stages
    text = [stages.embed(ids).clone() for stages in everyone]
    worst.loss("prompt embeddings", "token embeddings", *text)
    if questions[0].images:
        for question, embeds in zip(questions, text, strict=True):
            question.put(embeds)
        worst.loss("prompt embeddings", "with picture", *text)
    pinned = questions[0].pinned
    whole = [
        stages.layers([embeds], window, pinned)
        for stages, embeds in zip(everyone, text, strict=True)
    ]
    steps.step()
    inputs = [text[0], *whole[0][:-1]]
    # The reference's layers have had these inputs.
    others = everyone[1:]
    apart = [whole[0], *(stages.layers(inputs, window, pinned) for stages in others)]
    steps.step()
    for i, outputs in enumerate(zip(*apart, strict=True)):
        # What a layer adds: its input passes through unchanged, and would hide its errors.
        worst.loss("decoder layers", f"layer {i}", *(o - inputs[i] for o in outputs))
    if slide:
        _compare_window(models, inputs, worst)
    worst.loss("hidden states", "end to end", *(outputs[-1] for outputs in whole))
    heads = [stages.logits(whole[0][-1]) for stages in everyone]
    worst.loss("LM head", "logits", *heads)
    return [
        heads[0],
        *(s.logits(o[-1]) for s, o in zip(others, whole[1:], strict=True)),
    ]


def _compare_window(models: Models, inputs: Sequence[Tensor], worst: StageLosses) -> None:
    """Compares layers whose window is so narrow that these few tokens overflow it."""
    everyone = models.stages
    rows = [x[:LAYER_TOKENS] for x in inputs]
    narrow = narrow_window(len(rows[0]))
    outputs = [stages.layers(rows, narrow, ATTENTION_SINKS) for stages in everyone]
    for i, layer in enumerate(zip(*outputs, strict=True)):
        worst.loss("sliding window", f"layer {i}", *(o - rows[i] for o in layer))
