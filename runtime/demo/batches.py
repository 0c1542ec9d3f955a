"""Training batches: a picture with several conversations, packed behind its images.

All conversations of a picture share the same first ids (up to the picture's last tag). They are
packed one after the other; each sees the shared ids and itself only, at the positions that it would
have alone. So a picture's tokens are computed once for all of its conversations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from convert.checkpoint.config import ModelConfig, VisionConfig
from runtime.demo.questions import LANGUAGES
from runtime.demo.task import IGNORED_TARGET, Box, Subject, Task
from runtime.inputs.prompt import EOS_ID, UNKNOWN_ID, Tokenizer
from runtime.inputs.slices import Grid, images_of, limit_slices

_WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


@dataclass
class ImageSample:
    """One image of a picture, and what stands where."""

    pixels: Tensor  # (3, height, width) float32
    patch_labels: Tensor  # (C, P) int64: what stands at each patch; see `Subject.labels`
    query_labels: Tensor  # (C, Q) int64: the same for the resampler's grid


@dataclass
class TrainingSample:
    """One picture with its packed conversations."""

    images: list[ImageSample]
    ids: Tensor  # (L,) int64
    targets: Tensor  # (L,) int64: the next id where an answer is learnt
    positions: Tensor  # (L,) int64
    branch: Tensor  # (L,) int64: 0 for the shared ids, then 1, 2, …


class Details(Dataset[ImageSample]):
    """Pictures of one image each, to learn to see from; item i is a function of (seed, i) alone."""

    def __init__(self, task: Task, config: ModelConfig, *, seed: int, start: int, end: int) -> None:
        """Args: start: index of the first picture. end: index after the last."""
        assert config.vision is not None and config.resampler is not None
        assert task.detail is not None and config.vision.slices is not None
        self.draw, self.side = task.detail, config.vision.slices.scale_resolution
        self.vision, self.grid = config.vision, config.resampler.grid
        self.seed, self.start, self.end = seed, start, end

    def __len__(self) -> int:
        """Returns how many pictures there are."""
        return self.end - self.start

    def __getitem__(self, index: int) -> ImageSample:
        """Draws a picture."""
        rng = np.random.default_rng([self.seed, 1, self.start + index])
        subject = self.draw(rng, self.side)
        (pixels,) = images_of(subject.picture, self.vision).pixels
        return _label(subject, pixels, _WHOLE, self.vision, self.grid, slices=0)


class Samples(Dataset[TrainingSample]):
    """Sample i is a function of (seed, i) alone."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        task: Task,
        config: ModelConfig,
        *,
        seed: int,
        start: int,
        count: int,
        conversations: int,
    ) -> None:
        """Args: start: index of the first sample. conversations: how many a picture gets."""
        assert config.vision is not None and config.resampler is not None
        self.tokenizer, self.task, self.vision = tokenizer, task, config.vision
        self.query_grid = config.resampler.grid
        self.seed, self.start, self.count, self.conversations = seed, start, count, conversations

    def __len__(self) -> int:
        """Returns how many samples there are."""
        return self.count

    def __getitem__(self, index: int) -> TrainingSample:
        """Draws a picture and packs its conversations."""
        if not 0 <= index < self.count:
            raise IndexError(index)
        rng = np.random.default_rng([self.seed, self.start + index])
        subject = self.task.subject(rng, True)
        vision = limit_slices(self.vision, subject.max_slices)
        assert vision is not None
        images = images_of(subject.picture, vision)
        ids: list[int] = []
        targets: list[int] = []
        positions: list[int] = []
        branch: list[int] = []
        image_tokens, shared = self.query_grid**2, 0
        for k in range(self.conversations):
            example = subject.ask(LANGUAGES[k % 2], rng)
            prompt = self.tokenizer.prompt(example.messages, image_tokens, grid=images.grid)
            if not shared:
                end = prompt.picture_end(image_tokens)
                assert end is not None
                shared = end + 1
                ids += prompt.ids[:shared]
                targets += [IGNORED_TARGET] * shared
                positions += range(shared)
                branch += [0] * shared
            answer = [*self.tokenizer.encode(example.answer), EOS_ID]
            own = prompt.ids[shared:] + answer[:-1]
            ids += own
            targets += [IGNORED_TARGET] * (len(own) - len(answer)) + answer
            positions += range(shared, shared + len(own))
            branch += [k + 1] * len(own)
        labelled = []
        slices = len(images.pixels) - 1
        for pixels, box in zip(images.pixels, _boxes(images.grid), strict=True):
            of = 0 if box == _WHOLE else slices
            labelled.append(_label(subject, pixels, box, vision, self.query_grid, slices=of))
        return TrainingSample(
            images=labelled,
            ids=torch.tensor(ids),
            targets=torch.tensor(targets),
            positions=torch.tensor(positions),
            branch=torch.tensor(branch),
        )


@dataclass
class ImageGroup:
    """The images of a batch that have one shape; fields as in `ImageSample`, with N in front."""

    pixels: Tensor
    patch_labels: Tensor
    query_labels: Tensor
    index: Tensor  # (N,) int64: which of the batch's images these are


@dataclass
class Batch:
    """Samples padded to one length; fields as in `TrainingSample`, with B in front."""

    images: list[ImageGroup]
    ids: Tensor
    targets: Tensor
    positions: Tensor
    mask: Tensor  # (B, 1, L, L) booleans: true where a token may look
    placeholders: Tensor  # (B, L) booleans: where image tokens stand, in the order of the images


def collate(samples: list[TrainingSample]) -> Batch:
    """Pads samples; a padding token sees itself only."""

    def pad(name: str, value: int) -> Tensor:
        rows = [getattr(s, name) for s in samples]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)

    branch, ids = pad("branch", -1), pad("ids", EOS_ID)
    length = branch.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    row, column = branch.unsqueeze(2), branch.unsqueeze(1)
    mask = causal & ((column == 0) | (column == row)) | torch.eye(length, dtype=torch.bool)
    return Batch(
        images=group([image for sample in samples for image in sample.images]),
        ids=ids,
        targets=pad("targets", IGNORED_TARGET),
        positions=pad("positions", 0),
        mask=mask.unsqueeze(1),
        placeholders=ids == UNKNOWN_ID,
    )


def group(images: list[ImageSample]) -> list[ImageGroup]:
    """Stacks the images of each shape."""
    shapes: dict[torch.Size, list[int]] = {}
    for i, image in enumerate(images):
        shapes.setdefault(image.pixels.shape, []).append(i)
    return [
        ImageGroup(
            pixels=torch.stack([images[i].pixels for i in index]),
            patch_labels=torch.stack([images[i].patch_labels for i in index]),
            query_labels=torch.stack([images[i].query_labels for i in index]),
            index=torch.tensor(index),
        )
        for index in shapes.values()
    ]


def _label(
    subject: Subject, pixels: Tensor, box: Box, vision: VisionConfig, grid: int, *, slices: int
) -> ImageSample:
    """Labels an image (1, 3, height, width); `grid`: of the resampler."""
    rows, columns = (side // vision.patch_size for side in pixels.shape[-2:])
    return ImageSample(
        pixels[0],
        subject.labels(box, rows, columns, slices=slices),
        subject.labels(box, grid, grid, slices=slices),
    )


def _boxes(grid: Grid | None) -> Iterator[Box]:
    """Yields what each image of a picture shows: the overview all, then slices row by row."""
    yield _WHOLE
    if grid is not None:
        columns, rows = grid
        for row in range(rows):
            for column in range(columns):
                yield column / columns, row / rows, (column + 1) / columns, (row + 1) / rows
