"""The full-precision model as verify asks it: each result is read where it is kept, else computed.

What the reference computes depends on checkpoint, questions and window alone, not on the bundle.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from convert.checkpoint.config import ModelConfig, VisionConfig
from convert.checkpoint.reader import Checkpoint
from convert.support.progress import Progress
from convert.support.versions import VERSION
from quantize.schemes import Array
from runtime.inputs.generation_options import GenerationOptions
from runtime.inputs.picture_format import PictureError
from runtime.inputs.prompt import Tokenizer
from runtime.inputs.slices import Cut, Images, images_of, plan_cut
from runtime.verify.cases import Case
from runtime.verify.measure.answers import GreedyAnswer, Question, greedy_answer
from runtime.verify.measure.kept import Kept, ReferenceFile, ReferenceWriter, named
from runtime.verify.measure.patterns import PATTERNS, pattern_side
from runtime.verify.request import Request
from runtime.verify.stages import LAYER_TOKENS, Shape, Stages

_FLOAT = 4  # bytes
_SMALL = 1 << 14  # bytes of a case: its answer, and what it loses in 16 bits


class Reference:
    """The full-precision model's stages; loads the model only for what is not kept."""

    def __init__(
        self, config: ModelConfig, load: Callable[[], Stages], kept: Kept | None = None
    ) -> None:
        """Args: config: of the checkpoint. load: the model. kept: results of it, if any."""
        self.config = config
        self._load, self._kept = load, kept

    @cached_property
    def model(self) -> Stages:
        """The model itself, loaded when it is first needed."""
        return self._load()

    def images(self, picture: Image.Image) -> Images:
        """See `Stages`."""
        assert self.config.vision is not None
        return images_of(picture, self.config.vision)

    def vision_embed(self, pixels: Tensor) -> Tensor:
        """See `Stages`."""
        return self._once("vision_embed", [], [pixels], lambda: self.model.vision_embed(pixels))

    def vision_block(self, index: int, x: Tensor) -> Tensor:
        """See `Stages`."""
        return self._once("vision_block", [index], [x], lambda: self.model.vision_block(index, x))

    def vision_norm(self, x: Tensor) -> Tensor:
        """See `Stages`."""
        return self._once("vision_norm", [], [x], lambda: self.model.vision_norm(x))

    def resample(self, features: Tensor, shape: Shape) -> Tensor:
        """See `Stages`."""
        return self._once(
            "resampler", shape, [features], lambda: self.model.resample(features, shape)
        )

    def embed(self, ids: Sequence[int]) -> Tensor:
        """See `Stages`."""
        return self._once("embed", ids, [], lambda: self.model.embed(ids))

    def layers(self, inputs: Sequence[Tensor], window: int, pinned: int) -> list[Tensor]:
        """See `Stages`."""
        if self._kept is None:
            return self.model.layers(inputs, window, pinned)
        outputs = self._once(
            "layers",
            [window, pinned],
            inputs,
            lambda: torch.stack(self.model.layers(inputs, window, pinned)),
        )
        return list(outputs)

    def logits(self, hidden: Tensor) -> Tensor:
        """See `Stages`."""
        return self._once("logits", [], [hidden], lambda: self.model.logits(hidden))

    def answer(
        self, question: Question, draft: Sequence[int], options: GenerationOptions, window: int
    ) -> GreedyAnswer:
        """Answers greedily; see `greedy_answer`."""
        name = ""
        if self._kept is not None:
            starts = question.prompt.image_starts
            settings = [window, options.max_new_tokens, len(starts), *starts]
            images = [tokens.numpy() for tokens in question.images]
            name = named("answer", [*settings, *question.prompt.ids], images)
            found = self._kept.get(name)
            if found is not None:
                return GreedyAnswer(*json.loads(found.tobytes()))
        said = greedy_answer(self.model, question, draft, options, window)
        if self._kept is not None:
            text = json.dumps([said.ids, said.ended]).encode()
            self._kept.add(name, np.frombuffer(text, np.uint8))
        return said

    def _once(
        self,
        stage: str,
        settings: Sequence[int],
        inputs: Sequence[Tensor],
        compute: Callable[[], Tensor],
    ) -> Tensor:
        if self._kept is None:
            return compute()
        arrays: list[Array] = [x.numpy() for x in inputs]
        name = named(stage, settings, arrays)
        found = self._kept.get(name)
        if found is not None:
            return torch.from_numpy(found)
        output = compute()
        self._kept.add(name, output.numpy())
        return output


@contextmanager
def kept_results(
    request: Request,
    checkpoint: Checkpoint,
    cases: Sequence[Case],
    window: int,
    max_new_tokens: int,
    progress: Progress,
) -> Iterator[Kept | None]:
    """Opens the file of the reference's results that was asked for; None if none was.

    Args:
        request: may name a file to read or to write.
        checkpoint: the reference.
        cases: all questions.
        window: of all models, tokens.
        max_new_tokens: of an answer.
        progress: counts what is checked of a file.

    Raises:
        ReferenceResultsError: see `ReferenceFile` and `ReferenceWriter`.
    """
    about = {
        "reference": checkpoint.source_hash(),
        "toolkit": VERSION,
        "cases": sorted(case.digest for case in cases),
        "window": window,
        "max_new_tokens": max_new_tokens,
    }
    if request.reference_results is not None:
        yield ReferenceFile(request.reference_results, about, progress)
    elif request.save_reference is not None:
        most = results_bytes(checkpoint, cases, max_new_tokens)
        with ReferenceWriter(request.save_reference, about, most) as writer:
            yield writer
    else:
        yield None


def results_bytes(checkpoint: Checkpoint, cases: Sequence[Case], max_new_tokens: int) -> int:
    """Returns how many bytes the reference's results of some cases take at most."""
    assert checkpoint.tokenizer is not None
    config = checkpoint.config
    tokenizer = Tokenizer(checkpoint.tokenizer, config)
    decoder, vision, resampler = config.decoder, config.vision, config.resampler
    width, depth = decoder.hidden_size, decoder.num_hidden_layers
    values = LAYER_TOKENS * width * depth
    queries, cuts = 0, dict[str, Cut]()
    if vision is not None and resampler is not None:
        queries, cuts = resampler.query_num, _cuts(cases, vision)
        sizes = [size for cut in cuts.values() for size in cut.sizes]
        sizes += [(pattern_side(vision),) * 2] * len(PATTERNS)
        patches = sum(w * h for w, h in sizes) // vision.patch_size**2 * vision.embed_dim
        values += (vision.depth + 2) * patches + len(sizes) * queries * width
    for case in cases:
        cut = cuts.get(case.picture_digest)
        tokens, grid = (0, None) if cut is None else (queries, cut.grid)
        length = len(tokenizer.prompt(case.messages, tokens, grid=grid).ids) + max_new_tokens
        values += length * (width * (depth + 1) + decoder.vocab_size)
    return values * _FLOAT + len(cases) * _SMALL


def _cuts(cases: Sequence[Case], vision: VisionConfig) -> dict[str, Cut]:
    """Returns how each picture is cut, by its digest; not of one that cannot be asked about."""
    cuts: dict[str, Cut] = {}
    square = (vision.image_size, vision.image_size)
    for case in cases:
        if case.picture is None or case.picture_digest in cuts:
            continue
        if vision.slices is None:  # whatever is in the file
            cuts[case.picture_digest] = Cut(square, None, square)
            continue
        with suppress(PictureError):  # refused, or left out, when it is asked
            cuts[case.picture_digest] = plan_cut(case.picture().size, vision)
    return cuts
