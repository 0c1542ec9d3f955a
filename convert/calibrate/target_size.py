"""`--target-size`: chooses the formats that lose least within a number of bytes, by measurement.

Each part of the model (the vision encoder, the token embedding, all layers' qkv, …) is stored in
each format that has a kernel, one part at a time, with the rest of the model in full precision. The
loss is the KL divergence of the logits. Losses of several parts nearly add up, so the best choice
within a size follows from a table. Float16 counts as lossless. 4-bit codes are measured with
searched scales; calibration, which loses less, comes after the choice.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from convert.bundle.plan import FORMATS, Plan, Recipe, make_plan, stored_specs
from convert.calibrate.layer import STAGES, LayerWalk, round_inputs
from convert.calibrate.pictures import encode_pictures, put_images
from convert.calibrate.samples import CalibrationSample, TokenizedSample, tokenize
from convert.calibrate.store import Stream
from convert.checkpoint.reader import Checkpoint
from convert.checkpoint.tensor_tables import EMBEDDING, HEAD
from convert.support.progress import Progress
from quantize.errors import ConfigError, ShapeError
from quantize.fast import quantize_weight
from quantize.methods import METHODS
from quantize.schemes import GroupScheme, dequantize_groups
from runtime.reference import metrics
from runtime.reference.arithmetic import apply_vision_arithmetic, round_to_format
from runtime.reference.decoder import DecoderLayer
from runtime.reference.load import VISION, load_reference

LOSSLESS = "f16_tiled"
_PLAIN = ("f16", "f32")  # formats of tensors that no kernel multiplies
_SAMPLES = 16  # the number of samples whose logits are compared
_UNITS = {"MB": 10**6, "GB": 10**9, "MiB": 2**20, "GiB": 2**30}
# Patterns of the bundle's tensors that share one format.
PARTS = {
    "vision encoder": tuple(f"vision.blocks.*.{n}.weight" for n in ("qkv", "proj", "fc1", "fc2")),
    "resampler": ("resampler.*proj.weight",),
    "token embedding": ("llm.embed",),
    "LM head": ("llm.head",),
    **{f"layers' {stage.name}": (f"llm.layers.*.{stage.name}",) for stage in STAGES},
}
_VISUAL = ("vision encoder", "resampler")

Losses = Mapping[tuple[str, str], float]  # by part and format: mean KL divergence, nats


@dataclass(frozen=True)
class Choice:
    """A recipe that fits the size, and its expected loss."""

    recipe: Recipe
    formats: Mapping[str, str]  # by part
    loss: float  # mean KL divergence, nats: the sum of the losses of its parts


def parse_size(text: str) -> int:
    """Reads a size such as `1.9GB`, `1900MB` or `1.8GiB`.

    Raises:
        ConfigError: not a size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(MB|GB|MiB|GiB)", text.strip())
    size = round(float(match[1]) * _UNITS[match[2]]) if match else 0
    if not match or size <= 0:
        raise ConfigError(f"--target-size {text!r:.40}: expected a size such as 1.9GB or 1800MiB")
    return size


def choose_recipe(checkpoint: Checkpoint, base: Recipe, size: int, losses: Losses) -> Choice:
    """Returns the recipe with the smallest loss within a size.

    Args:
        checkpoint: the model to convert.
        base: gives the number format, the method, and the formats of tensors outside all parts.
        size: bytes of the weights file.
        losses: from `measure_losses`.

    Raises:
        ConfigError: no choice fits; see `smallest_size`.
    """
    frontier: list[tuple[int, float, dict[str, str]]] = [(0, 0.0, {})]
    for part, formats in part_formats(checkpoint, base).items():
        grown = [
            (nbytes + more, loss + losses.get((part, form), 0.0), {**chosen, part: form})
            for nbytes, loss, chosen in frontier
            for form, more in formats.items()
        ]
        frontier = []
        for state in sorted(grown, key=lambda state: state[:2]):
            if not frontier or state[1] < frontier[-1][1]:  # a larger one must lose less
                frontier.append(state)
    smallest_size(checkpoint, base, size)
    for _, loss, chosen in reversed(frontier):
        recipe = with_formats(base, chosen, losses)
        if make_plan(checkpoint.config, checkpoint.untied_head, recipe).nbytes <= size:
            return Choice(recipe, chosen, loss)
    raise AssertionError("the smallest choice fits")


def smallest_size(checkpoint: Checkpoint, base: Recipe, size: int) -> int:
    """Returns the size in bytes of the smallest choice.

    Raises:
        ConfigError: it is larger than `size`.
    """
    table = part_formats(checkpoint, base)
    least = {part: min(formats, key=formats.__getitem__) for part, formats in table.items()}
    recipe = with_formats(base, least)
    smallest = make_plan(checkpoint.config, checkpoint.untied_head, recipe).nbytes
    if smallest > size:
        raise ConfigError(
            f"--target-size {size / 1e6:,.2f} MB: too small; the smallest recipe for this model "
            f"takes {smallest / 1e6:,.2f} MB"
        )
    return smallest


@torch.no_grad()
def measure_losses(
    checkpoint: Checkpoint, base: Recipe, samples: Sequence[CalibrationSample], progress: Progress
) -> Losses:
    """Measures the loss of each part in each format; one decoder layer is in memory at a time.

    Args:
        checkpoint: must have a tokenizer.
        base: gives the number format.
        samples: conversations, of which a few are used.
        progress: receives the layers done.

    Raises:
        CalibrationError: a sample does not suit the model.
        CheckpointError: a tensor holds NaN or infinity.
    """
    few = few_samples(samples, checkpoint)
    table = part_formats(checkpoint, base)
    variants = [(part, form) for part, row in table.items() for form in row if form != LOSSLESS]
    measured = _Measurement(checkpoint, base, few)
    streams = measured.begin(variants)
    depth = checkpoint.config.decoder.num_hidden_layers
    for i in range(depth):
        progress("measure formats", i, depth)
        measured.layer(i, streams)
    progress("measure formats", depth, depth)
    return measured.losses(streams)


def few_samples(
    samples: Sequence[CalibrationSample], checkpoint: Checkpoint
) -> list[TokenizedSample]:
    """Returns a few samples, spread over all, as the model reads them.

    Raises:
        CalibrationError: one does not suit the model.
    """
    return tokenize(samples[:: max(1, -(-len(samples) // _SAMPLES))], checkpoint)


Variant = tuple[str, str]  # part and format
_EXACT: Variant = ("", LOSSLESS)


class _Measurement:
    """Runs the same samples through variants of a model."""

    def __init__(
        self, checkpoint: Checkpoint, base: Recipe, samples: Sequence[TokenizedSample]
    ) -> None:
        self._checkpoint, self._base, self._samples = checkpoint, base, samples
        self._scheme: GroupScheme = base.scheme

    def begin(self, variants: Sequence[Variant]) -> dict[Variant, Stream]:
        """Returns the first layer's inputs of every variant."""
        used = torch.unique(torch.cat([sample.ids for sample in self._samples]))
        rows = self._checkpoint.read(EMBEDDING)[used].float()
        exact = self._images(None)
        streams = {_EXACT: self._embed(used, rows, exact)}
        for variant in variants:
            part, form = variant
            images = self._images(variant) if part in _VISUAL else exact
            mine = self._rounded(rows, form, EMBEDDING) if part == "token embedding" else rows
            streams[variant] = self._embed(used, mine, images)
        return streams

    def layer(self, i: int, streams: dict[Variant, Stream]) -> None:
        """Runs all streams through a layer."""
        layer = load_reference(self._checkpoint, only=(f"llm.model.layers.{i}.",)).llm.model.layers[
            i
        ]
        assert isinstance(layer, DecoderLayer)
        for variant, stream in streams.items():
            walk = LayerWalk(copy.deepcopy(layer), stream)
            for stage in STAGES:
                if variant[0] == f"layers' {stage.name}":
                    weight = self._rounded(walk.weight(stage), variant[1], stage.name)
                    walk.round_inputs(variant[1], self._scheme)
                    walk.set_weight(stage, weight)
                walk.advance()
            streams[variant] = walk.stream

    def losses(self, streams: Mapping[Variant, Stream]) -> Losses:
        """Compares the logits of the variants with those of the exact model."""
        untied, c = self._checkpoint.untied_head, self._checkpoint.config.decoder
        norm = load_reference(self._checkpoint, only=("llm.model.norm.",)).llm.model.norm
        exact = self._checkpoint.read(HEAD if untied else EMBEDDING).float()
        part = "LM head" if untied else "token embedding"
        reference = [norm(x) / c.logits_divisor @ exact.T for x in streams[_EXACT]]
        losses = {}
        for variant, stream in streams.items():
            if variant == _EXACT:
                continue
            head = self._rounded(exact, variant[1], "LM head") if variant[0] == part else None
            kl = []
            for expected, x in zip(reference, stream, strict=True):
                hidden = norm(x) / c.logits_divisor
                if head is not None:
                    hidden = round_inputs(hidden, variant[1], self._scheme)
                logits = hidden @ (exact if head is None else head).T
                kl.append(metrics.kl_divergence(expected, logits))
            losses[variant] = metrics.mean(torch.cat(kl))
        return losses

    def _embed(self, used: Tensor, rows: Tensor, images: Sequence[Tensor | None]) -> Stream:
        stream = []
        for sample, image in zip(self._samples, images, strict=True):
            embeds = rows[torch.searchsorted(used, sample.ids)]
            embeds = embeds * self._checkpoint.config.decoder.scale_emb
            put_images(embeds, sample, image)
            stream.append(embeds)
        return stream

    def _images(self, variant: Variant | None) -> list[Tensor | None]:
        """Returns each sample's image tokens (I, Q, D), with one visual part in another format."""
        if all(sample.images is None for sample in self._samples):
            return [None] * len(self._samples)
        model = load_reference(self._checkpoint, only=VISION)
        if variant is not None:
            apply_vision_arithmetic(model, self._vision_plan(*variant))
        return encode_pictures(model, self._samples)

    def _vision_plan(self, part: str, form: str) -> Plan:
        """Returns a plan that stores one part in a format, and the rest without loss."""
        lossless = dict.fromkeys(_VISUAL, LOSSLESS) | {part: form}
        recipe = with_formats(self._base, lossless)
        return make_plan(self._checkpoint.config, self._checkpoint.untied_head, recipe)

    def _rounded(self, weight: Tensor, form: str, name: str) -> Tensor:
        if form != "q4":
            return round_to_format(weight, form, self._scheme, name)
        parts = quantize_weight(weight.half().numpy(), self._scheme, METHODS["mse"], name=name)
        return torch.from_numpy(dequantize_groups(*parts, self._scheme))


def part_formats(checkpoint: Checkpoint, base: Recipe) -> dict[str, dict[str, int]]:
    """Returns the size in bytes of each part of a model in each format that can store it."""
    table: dict[str, dict[str, int]] = {}
    for part, patterns in PARTS.items():
        probe = with_formats(base, {part: LOSSLESS})
        plan = make_plan(checkpoint.config, checkpoint.untied_head, probe)
        mine = [t for t in plan.tensors if any(fnmatchcase(t.name, p) for p in patterns)]
        if not mine:
            continue
        table[part] = {}
        for form in (form for form in FORMATS if form not in _PLAIN):
            try:
                specs = [stored_specs(t.name, t.rule.shape, form, base.scheme) for t in mine]
            except ShapeError:  # the width is not a multiple of the group size
                continue
            table[part][form] = sum(spec.nbytes for tensor in specs for spec in tensor)
    return table


def with_formats(base: Recipe, formats: Mapping[str, str], losses: Losses | None = None) -> Recipe:
    """Returns a recipe with other formats for some parts, and the reasons.

    Args:
        base: the recipe.
        formats: by part.
        losses: what the formats cost, for the reasons.
    """
    rows = []
    for part, form in formats.items():
        why = part
        if losses is not None:
            why += f": alone, KL {losses.get((part, form), 0.0):.2g}"
        rows += [{"pattern": p, "format": form, "why": why} for p in PARTS[part]]
    return Recipe.from_json({**base.source, "tensors": [*rows, *base.source["tensors"]]})


def with_tensors(base: Recipe, formats: Mapping[str, str], why: str) -> Recipe:
    """Returns a recipe with other formats for some tensors, by their names in a bundle."""
    rows = [{"pattern": name, "format": form, "why": why} for name, form in formats.items()]
    return Recipe.from_json({**base.source, "tensors": [*rows, *base.source["tensors"]]})
