"""Training batches: a picture with several conversations, packed behind one image.

All conversations of a picture share the same first ids (up to `</image>`). They are packed one
after the other; each sees the shared ids and itself only, at the positions that it would have
alone. So a picture's tokens are computed once for all of its conversations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from runtime.demo.questions import LANGUAGES, random_example
from runtime.demo.scenes import COLOURS, PLACES, SHAPES, SIZES, ShapeItem, draw, random_scene
from runtime.inputs.picture import preprocess
from runtime.inputs.prompt import EOS_ID, Tokenizer

IGNORED_TARGET = -100
_SINGLE = 0.15  # share of pictures with one item: their questions are learnt first, and soon
# Of shape, colour, size and place; 0 is the background.
CLASSES = (len(SHAPES) + 1, len(COLOURS) + 1, len(SIZES) + 1, PLACES + 1)


@dataclass
class TrainingSample:
    """One picture with its packed conversations."""

    pixels: Tensor  # (3, S, S) float32
    ids: Tensor  # (L,) int64
    targets: Tensor  # (L,) int64: the next id where an answer is learnt
    positions: Tensor  # (L,) int64
    branch: Tensor  # (L,) int64: 0 for the shared ids, then 1, 2, …
    image_start: int
    patch_labels: Tensor  # (4, P) int64: what stands at each patch; see `CLASSES`
    query_labels: Tensor  # (4, Q) int64: the same for the resampler's grid


class Samples(Dataset[TrainingSample]):
    """Sample i is a function of (seed, i) alone."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        seed: int,
        start: int,
        count: int,
        image_size: int,
        patch_grid: int,
        query_grid: int,
        conversations: int,
    ) -> None:
        """Args: start: index of the first sample. conversations: how many a picture gets."""
        self.tokenizer, self.seed, self.start, self.count = tokenizer, seed, start, count
        self.image_size, self.conversations = image_size, conversations
        self.patch_grid, self.query_grid = patch_grid, query_grid

    def __len__(self) -> int:
        """Returns how many samples there are."""
        return self.count

    def __getitem__(self, index: int) -> TrainingSample:
        """Draws a picture and packs its conversations."""
        if not 0 <= index < self.count:
            raise IndexError(index)
        rng = np.random.default_rng([self.seed, self.start + index])
        scene = random_scene(rng, _SINGLE)
        drawing = draw(scene, rng)
        ids: list[int] = []
        targets: list[int] = []
        positions: list[int] = []
        branch: list[int] = []
        shared = image_start = 0
        for k in range(self.conversations):
            example = random_example(scene, LANGUAGES[k % 2], rng)
            prompt = self.tokenizer.prompt(example.messages, self.query_grid**2)
            assert prompt.image_start is not None
            image_start = prompt.image_start
            if not shared:
                shared = image_start + self.query_grid**2 + 1
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
        table = torch.tensor([[0] * len(CLASSES), *map(_classes, scene.items)])
        return TrainingSample(
            pixels=preprocess(drawing.picture, self.image_size)[0],
            ids=torch.tensor(ids),
            targets=torch.tensor(targets),
            positions=torch.tensor(positions),
            branch=torch.tensor(branch),
            image_start=image_start,
            patch_labels=_labels(drawing.labels, self.patch_grid, table),
            query_labels=_labels(drawing.labels, self.query_grid, table),
        )


@dataclass
class Batch:
    """Samples padded to one length; fields as in `TrainingSample`, with B in front."""

    pixels: Tensor
    ids: Tensor
    targets: Tensor
    positions: Tensor
    mask: Tensor  # (B, 1, L, L) booleans: true where a token may look
    image_start: int
    patch_labels: Tensor
    query_labels: Tensor


def collate(samples: list[TrainingSample]) -> Batch:
    """Pads samples; a padding token sees itself only."""

    def pad(name: str, value: int) -> Tensor:
        rows = [getattr(s, name) for s in samples]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)

    branch = pad("branch", -1)
    length = branch.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    row, column = branch.unsqueeze(2), branch.unsqueeze(1)
    mask = causal & ((column == 0) | (column == row)) | torch.eye(length, dtype=torch.bool)
    return Batch(
        pixels=torch.stack([s.pixels for s in samples]),
        ids=pad("ids", EOS_ID),
        targets=pad("targets", IGNORED_TARGET),
        positions=pad("positions", 0),
        mask=mask.unsqueeze(1),
        image_start=samples[0].image_start,
        patch_labels=torch.stack([s.patch_labels for s in samples]),
        query_labels=torch.stack([s.query_labels for s in samples]),
    )


def _classes(item: ShapeItem) -> list[int]:
    """Returns an item's labels, as `CLASSES` counts them."""
    shape, colour, size = (
        names.index(name) + 1
        for names, name in ((SHAPES, item.shape), (COLOURS, item.colour), (SIZES, item.size))
    )
    return [shape, colour, size, item.place + 1]


def _labels(drawn: Image.Image, grid: int, table: Tensor) -> Tensor:
    """Returns what stands at each cell of a grid: (4, grid * grid)."""
    cells = drawn.resize((grid, grid), Image.Resampling.NEAREST)
    index = torch.from_numpy(np.asarray(cells, dtype=np.int64).reshape(-1))
    return table[index].T.contiguous()
