"""Asks the reference, a model of the package's weights and the compiled package the same questions.

The library has no stages that could be fed one by one: what is compared is what MLC-LLM's engine
calls. These are the embeddings, the image tokens, and the logits that choose an answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from convert.mlc.opened import MlcPackage
from convert.mlc.square import message_parts, square_images
from convert.support.progress import Progress
from quantize.schemes import Array
from runtime.inputs.generation_options import GenerationOptions
from runtime.inputs.prompt import Prompt, PromptError, Tokenizer
from runtime.inputs.slices import Grid
from runtime.mlc.engine import MlcEngine
from runtime.verify.cases import Case
from runtime.verify.files.tokenizer import prompt_check
from runtime.verify.measure.answers import AnswerComparison, GreedyAnswer, Question, greedy_answer
from runtime.verify.measure.logits import Logits
from runtime.verify.measure.losses import StageLosses
from runtime.verify.measure.results import CaseResult, Outcome, ResultCache, Worst, merge
from runtime.verify.measure.steps import Steps
from runtime.verify.mlc.prompts import package_encode, package_prompt
from runtime.verify.stages import Stages, TorchStages, shape_of

SAME_WEIGHTS = "SQNR, same weights"  # a figure


@dataclass(frozen=True)
class MlcModels:
    """The three that are compared."""

    reference: TorchStages
    arithmetic: TorchStages  # float32, with the package's own weights
    engine: MlcEngine


def run_cases(
    models: MlcModels,
    package: MlcPackage,
    tokenizer: Tokenizer,
    cases: Sequence[Case],
    settings: Mapping[str, Any],
    progress: Progress,
    known: ResultCache,
) -> Outcome:
    """Measures all cases.

    Args:
        models: all of one configuration.
        package: whose prompts are compared, too.
        tokenizer: of the reference.
        cases: conversations.
        settings: `configs/verify.json`.
        progress: counts steps of all cases.
        known: what cases gave in an earlier run; gets the others.

    Raises:
        PromptError: a question and an answer to it do not fit into the package's window.
    """
    vision = models.reference.config.vision
    steps = Steps(cases, 0 if vision is None else vision.depth, progress)
    runner, found = _Runner(models, package, tokenizer, settings, steps), []
    for index, case in enumerate(cases):
        steps.start(index)
        result = known.get(case)
        if result is None:
            result = runner.run(case)
            known.add(case, result)
        found.append(result)
    steps.start(len(cases))
    return merge(found, settings["thresholds"])


class _Runner:
    """Measures one case after the other."""

    def __init__(
        self,
        models: MlcModels,
        package: MlcPackage,
        tokenizer: Tokenizer,
        settings: Mapping[str, Any],
        steps: Steps,
    ) -> None:
        assert package.tokenizer is not None, "opened with one"
        self._models, self._package, self._tokenizer = models, package, tokenizer
        self._encode, self._own = package_encode(package), Tokenizer(package.tokenizer)
        self._thresholds, self._steps = settings["thresholds"], steps
        self._options = GenerationOptions(max_new_tokens=settings["built_in"]["max_new_tokens"])
        self._window = models.engine.window
        self._picture = ""  # the latest: its digest
        self._images: list[tuple[Tensor, ...]] = []  # of each of the three: its images' tokens
        self._grid: Grid | None = None

    def run(self, case: Case) -> CaseResult:
        """Compares what the three make of a case."""
        models, worst, logits = self._models, _Losses(self._thresholds), Logits()
        picture = case.open()
        if case.picture_digest != self._picture:  # the cases of a picture follow each other
            self._images, self._grid = [()] * 3, None
            if picture is not None:
                self._compare_picture(picture, worst)
            self._picture = case.picture_digest
        prompt = self._prompt(case, worst)
        questions = [Question(prompt, images) for images in self._images]
        conversation = _Conversation(models.engine, self._embeddings(questions, worst))
        bundle = conversation.answer(models.reference.config.decoder.eos_token_id, self._options)
        self._steps.step()
        said = greedy_answer(
            models.reference, questions[0], bundle.ids, self._options, self._window
        )
        self._steps.step()
        arithmetic = greedy_answer(
            models.arithmetic, questions[1], said.ids, self._options, self._window
        )
        self._steps.step()
        rows = (
            questions[0].logits(models.reference, said.ids, self._window),
            questions[1].logits(models.arithmetic, said.ids, self._window),
            conversation.logits(said.ids),
        )
        worst.loss("LM head", "logits", *rows)
        logits.add_answer(said.ids, *rows)
        self._steps.step()
        text = self._own.decode(bundle.ids)
        answer = AnswerComparison.of(
            case, said, bundle, text, arithmetic, self._tokenizer, self._own
        )
        length = len(prompt.ids) + len(said.ids)
        return CaseResult(worst.checks(), answer, logits.positions, length)

    def _prompt(self, case: Case, worst: Worst) -> Prompt:
        """Returns the reference's prompt; compares the package's with it."""
        count, around = 0, list[str]()
        if self._images[0]:
            tags = self._package.manifest.slice_tags or ("", "")
            count, around = len(self._images[0][0]), message_parts(self._grid, tags)
        prompt = self._tokenizer.prompt(case.messages, count, grid=self._grid)
        template = self._package.chat["conv_template"]
        asked = package_prompt(template, self._encode, case.messages, count, around)
        worst.add(prompt_check("prompts", asked, prompt))
        room = self._window - len(prompt.ids)
        if room < self._options.max_new_tokens:
            raise PromptError(
                f"{case.name}: {len(prompt.ids)} tokens and an answer of "
                f"{self._options.max_new_tokens} do not fit into the package's window of "
                f"{self._window}"
            )
        return prompt

    def _compare_picture(self, picture: Image.Image, worst: _Losses) -> None:
        """Encodes each image of a picture with the three."""
        models, vision = self._models, self._models.reference.config.vision
        assert vision is not None
        images = square_images(picture, vision)
        self._steps.of_images(len(images.pixels))
        encoded = []
        for (pixels,) in images.pixels:
            tokens = _encode((models.reference, models.arithmetic), pixels, self._steps.block)
            tokens.append(models.engine.image_tokens(_levels(pixels)))
            worst.loss("resampler", "image tokens", *tokens)
            encoded.append(tokens)
        self._images, self._grid = list(zip(*encoded, strict=True)), images.grid

    def _embeddings(self, questions: Sequence[Question], worst: _Losses) -> Tensor:
        """Compares the embeddings of a prompt; returns the library's, its picture put in."""
        models, ids = self._models, questions[0].prompt.ids
        text = [models.reference.embed(ids), models.arithmetic.embed(ids), models.engine.embed(ids)]
        worst.loss("prompt embeddings", "token embeddings", *text)
        embeddings = text[2].clone()
        questions[2].put(embeddings)
        return embeddings


class _Conversation:
    """The library's logits behind a prompt and the tokens of an answer, each computed once."""

    def __init__(self, engine: MlcEngine, prompt: Tensor) -> None:
        """Args: prompt: embeddings (L, D)."""
        self._engine, self._prompt = engine, prompt
        self._ids: list[int] = []
        self._rows: list[Tensor] = []  # behind the prompt, and behind each id

    def answer(self, end: int, options: GenerationOptions) -> GreedyAnswer:
        """Answers greedily."""
        ids: list[int] = []
        while len(ids) < options.max_new_tokens:
            token = int(self.logits(ids)[-1].argmax())
            if token == end:
                return GreedyAnswer(ids, ended=True)
            ids.append(token)
        return GreedyAnswer(ids, ended=False)

    def logits(self, ids: Sequence[int]) -> Tensor:
        """Returns the logits behind the prompt and behind each id (A + 1, V)."""
        if not self._rows or self._ids != list(ids[: len(self._ids)]):
            self._engine.begin()
            self._ids, self._rows = [], [self._engine.logits(self._prompt)]
        for token in ids[len(self._ids) :]:
            self._rows.append(self._engine.logits(self._engine.embed([token])))
            self._ids.append(token)
        return torch.stack(self._rows)


class _Losses(StageLosses):
    """A library's outputs beside those of a model that rounds weights only."""

    same = SAME_WEIGHTS

    @property
    def least_same(self) -> float:
        """What half precision may cost, dB."""
        return self.thresholds["mlc_half_precision_db"]

    def reachable(self, stage: str, expected: float) -> float:
        """See `StageLosses`; the noise of half precision adds to that of the weights."""
        return -10 * math.log10(10 ** (-expected / 10) + 10 ** (-self.least_same / 10))


def _encode(
    everyone: Sequence[Stages], pixels: Tensor, on_block: Callable[[], None]
) -> list[Tensor]:
    """Maps pixels (3, S, S) to the image tokens (Q, D) of some models."""
    vision = everyone[0].config.vision
    assert vision is not None
    xs = [stages.vision_embed(pixels) for stages in everyone]
    for i in range(vision.depth):
        xs = [stages.vision_block(i, x) for stages, x in zip(everyone, xs, strict=True)]
        on_block()
    shape = shape_of(pixels, everyone[0].config)
    pairs = zip(everyone, xs, strict=True)
    return [stages.resample(stages.vision_norm(x), shape) for stages, x in pairs]


def _levels(pixels: Tensor) -> Array:
    """Returns the bytes (S, S, 3) that normalised pixels (3, S, S) come from."""
    values = (pixels.permute(1, 2, 0) * 0.5 + 0.5) * 255
    return values.round().clamp(0, 255).to(torch.uint8).numpy()
