"""Calibration: quantizes the decoder layer by layer, on samples that run through the model.

Two streams of hidden states pass from layer to layer: `wanted`, those of the full-precision model,
and `seen`, those of the layers quantized so far, for the same samples. One layer is in memory at a
time, and the state after each layer is saved to disk.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from convert.bundle.plan import Plan
from convert.calibrate.layer import STAGES, LayerWalk, LinearGroup, fold_layer, token_runs
from convert.calibrate.pictures import encode_pictures, put_images
from convert.calibrate.samples import CalibrationSample, TokenizedSample, tokenize
from convert.calibrate.store import CalibratedWeights, CalibrationStore, Stream
from convert.checkpoint.reader import Checkpoint
from convert.checkpoint.tensor_tables import EMBEDDING, HEAD
from convert.support.progress import Progress
from quantize.fast import quantize_weight
from quantize.gptq import Compensation, Inputs, Tokens, choose_damping
from quantize.methods import find_method
from quantize.schemes import GroupScheme, dequantize_groups
from runtime.reference.arithmetic import round_to_format, round_to_int8
from runtime.reference.decoder import DecoderLayer, RMSNorm
from runtime.reference.load import VISION, load_reference

VERSION = 11  # of the computation; folders of another version are not resumed
# A tied embedding is also looked up: the weight of its error there, as a fraction of the mean power
# of the head's inputs. Half or twice this value measured about the same.
_LOOKUP = 0.3
# One sample of so many tells what a tied head gets: it is damped so much that more change little,
# and they would run through the whole model once more.
HEAD_SAMPLES = 4
HELD_OUT = 4  # one sample of so many judges the damping
_CHUNK_TOKENS = 4096  # whose inputs are accumulated at once


@torch.no_grad()
def calibrate(
    checkpoint: Checkpoint,
    plan: Plan,
    samples: Sequence[CalibrationSample],
    home: Path,
    progress: Progress,
) -> CalibratedWeights:
    """Quantizes the tensors that a plan stores in 4 bits with its recipe's method.

    Args:
        checkpoint: must have a tokenizer.
        plan: of the checkpoint; tensors outside the decoder count as exact.
        samples: conversations, with pictures if the model has a vision encoder.
        home: the folder for results; an interrupted run of the same work resumes there.
        progress: receives the stages completed.

    Raises:
        CalibrationError: a sample does not suit the model.
        CheckpointError: a tensor holds NaN or infinity.
    """
    tokenized = tokenize(samples, checkpoint)
    about = {
        "version": VERSION,
        "torch": torch.__version__,
        "checkpoint": checkpoint.source_hash(),
        "scheme": asdict(plan.recipe.scheme) | {"name": ""},
        "method": plan.recipe.method,
        "formats": _formats(plan),
        "samples": [sample.digest for sample in tokenized],
    }
    run = _CalibrationRun(checkpoint, plan, CalibrationStore(home, about), progress)
    return run.run(tokenized)


class _CalibrationRun:
    """One calibration."""

    def __init__(
        self, checkpoint: Checkpoint, plan: Plan, store: CalibrationStore, progress: Progress
    ) -> None:
        self._checkpoint, self._store, self._progress = checkpoint, store, progress
        self._scheme: GroupScheme = plan.recipe.scheme
        self._method = find_method(plan.recipe.method)
        self._formats = _formats(plan)
        self._depth = checkpoint.config.decoder.num_hidden_layers
        quantized = [name for name, form in self._formats.items() if form == "q4"]
        compensated = quantized if self._method.compensate else []
        self._tied_head = "llm.embed" in compensated and not checkpoint.untied_head
        self._head = "llm.head" in compensated
        self._images: list[Tensor | None] | None = None
        self._first = self._depth if self._tied_head else 0  # units of work before the layers

    def run(self, samples: Sequence[TokenizedSample]) -> CalibratedWeights:
        ends = [name for name, there in (("embed", self._tied_head), ("head", self._head)) if there]
        if not all(map(self._store.has, [*ends, *map(_part, range(self._depth))])):
            self._quantize_layers(*self._begin(samples))
        return self._store.finish()

    def _begin(self, samples: Sequence[TokenizedSample]) -> tuple[int, list[Stream]]:
        """Returns how many layers are quantized already, and the streams after them."""
        resumed = self._store.load_stream("layers")
        if resumed is not None and all(self._store.has(_part(i)) for i in range(resumed[0])):
            return resumed
        if self._tied_head and not self._store.has("embed"):
            self._quantize_embedding(self._reference_stream(samples))
        images = self._encode_pictures(samples)
        wanted = self._embed(samples, images, rounded=False)
        streams = [wanted]
        if self._method.compensate:
            streams.append(self._embed(samples, images, rounded=True))
        self._store.save_stream("layers", 0, streams)
        return 0, streams

    def _reference_stream(self, samples: Sequence[TokenizedSample]) -> Stream:
        """Returns the output of the full-precision model's last layer, for some samples."""
        resumed = self._store.load_stream("reference")
        if resumed is None:
            images = self._encode_pictures(samples)[::HEAD_SAMPLES]
            resumed = 0, [self._embed(samples[::HEAD_SAMPLES], images, rounded=False)]
        done, (stream,) = resumed
        for i in range(done, self._depth):
            self._report(i)
            walk = LayerWalk(self._load_layer(i), stream)
            for _ in STAGES:
                walk.advance()
            stream = walk.stream
            self._store.save_stream("reference", i + 1, [stream])
        return stream

    def _quantize_embedding(self, hidden: Stream) -> None:
        """Quantizes an embedding that is also the LM head."""
        seen, held_out = self._head_inputs(hidden, hidden)
        compensation = Compensation(seen + held_out, self._scheme, name=EMBEDDING)
        codes = compensation.round(self._checkpoint.read(EMBEDDING), _LOOKUP)
        self._store.save("embed", {"llm.embed": codes}, {})

    def _quantize_layers(self, done: int, streams: list[Stream]) -> None:
        for i in range(done, self._depth):
            self._report(self._first + 4 * i)
            streams = self._quantize_layer(i, streams)
            self._store.save_stream("layers", i + 1, streams)
        if self._head:
            inputs = self._head_inputs(streams[1], streams[0])
            codes = self._compensate(self._checkpoint.read(HEAD).float(), inputs, HEAD)
            self._store.save("head", {"llm.head": codes}, {})
        self._report(self._first + 4 * self._depth)

    def _quantize_layer(self, i: int, streams: list[Stream]) -> list[Stream]:
        """Quantizes layer i, saves it, and returns the streams after it."""
        layer = self._load_layer(i)
        small: dict[str, Tensor] = {}
        if self._method.fold:
            names = (stage.name for stage in STAGES)
            stages = [n for n in names if self._formats[f"llm.layers.{i}.{n}"] == "q4"]
            fold_layer(layer, streams[0], self._scheme, stages)
            small = {f"llm.layers.{i}.{name}": norm.weight for name, norm in _norms(layer)}
        walks = []
        if self._method.compensate:
            rounded = copy.deepcopy(layer)
            for _, norm in _norms(rounded):
                norm.weight.copy_(norm.weight.half())
            walks = [LayerWalk(rounded, streams[1])]
        walks = [LayerWalk(layer, streams[0]), *walks]
        codes = {}
        for k, stage in enumerate(STAGES):
            weight = walks[0].weight(stage)
            name = f"llm.layers.{i}.{stage.name}"
            form = self._formats[name]
            if self._method.compensate:
                walks[1].round_inputs(form, self._scheme)
            if form == "q4":
                codes[name] = self._round(weight, walks, stage, name)
                stored = self._dequantize(codes[name])
            else:
                stored = round_to_format(weight, form, self._scheme, name)
            if self._method.compensate:
                walks[1].set_weight(stage, stored)
            for walk in walks:
                walk.advance()
            self._report(self._first + 4 * i + k + 1)
        self._store.save(_part(i), codes, small)
        return [walk.stream for walk in walks]

    def _round(
        self, weight: Tensor, walks: Sequence[LayerWalk], stage: LinearGroup, name: str
    ) -> tuple[Tensor, Tensor]:
        if not self._method.compensate:
            half = weight.half().numpy()
            q, scale = quantize_weight(half, self._scheme, self._method, name=name)
            return torch.from_numpy(q), torch.from_numpy(scale)
        full, rounded = walks
        aims = full.targets(rounded) if stage.adds else full.inputs
        tokens = map(Tokens, rounded.inputs, aims)
        inputs = _split(tokens, weight.shape[1], targets=stage.adds)
        return self._compensate(weight, inputs, name)

    def _compensate(
        self, weight: Tensor, inputs: tuple[Inputs, Inputs], name: str
    ) -> tuple[Tensor, Tensor]:
        damping = choose_damping(weight, *inputs, self._scheme, name=name)
        compensation = Compensation(inputs[0] + inputs[1], self._scheme, name=name)
        return compensation.compensate(weight, damping)

    def _head_inputs(self, seen: Stream, wanted: Stream) -> tuple[Inputs, Inputs]:
        config = self._checkpoint.config.decoder
        norm = load_reference(self._checkpoint, only=("llm.model.norm.",)).llm.model.norm
        seen, wanted = ([norm(x) / config.logits_divisor for x in s] for s in (seen, wanted))
        rounded = [round_to_int8(x, self._scheme.group_size) for x in seen]
        return _split(map(Tokens, rounded, wanted), config.hidden_size)

    def _load_layer(self, i: int) -> DecoderLayer:
        model = load_reference(self._checkpoint, only=(f"llm.model.layers.{i}.",))
        layer = model.llm.model.layers[i]
        assert isinstance(layer, DecoderLayer)
        return layer

    def _encode_pictures(self, samples: Sequence[TokenizedSample]) -> list[Tensor | None]:
        """Returns each sample's image tokens (I, Q, D)."""
        if self._images is not None:
            return self._images
        if all(sample.images is None for sample in samples):
            return [None] * len(samples)
        model = load_reference(self._checkpoint, only=VISION)
        self._images = encode_pictures(model, samples, self._progress)
        return self._images

    def _embed(
        self, samples: Sequence[TokenizedSample], images: Sequence[Tensor | None], *, rounded: bool
    ) -> Stream:
        """Returns the first layer's inputs; `rounded`: from the quantized embedding."""
        used, places = torch.unique(torch.cat([s.ids for s in samples]), return_inverse=True)
        rows = self._checkpoint.read(EMBEDDING)[used]
        if rounded and self._tied_head:
            codes = CalibratedWeights(self._store.folder).codes("llm.embed")
            assert codes is not None, "it was quantized first"
            q, scale = (torch.from_numpy(part)[used] for part in codes)
            rows = self._dequantize((q, scale))
        elif rounded and self._formats["llm.embed"] == "q4":
            half = rows.half().numpy()
            parts = quantize_weight(half, self._scheme, self._method, name=EMBEDDING)
            rows = torch.from_numpy(dequantize_groups(*parts, self._scheme))
        elif rounded:
            rows = round_to_format(rows, self._formats["llm.embed"], self._scheme, EMBEDDING)
        rows = rows.float() * self._checkpoint.config.decoder.scale_emb
        stream = []
        lengths = [len(sample.ids) for sample in samples]
        for sample, image, where in zip(samples, images, places.split(lengths), strict=True):
            embeds = rows[where]
            put_images(embeds, sample, image)
            stream.append(embeds)
        return stream

    def _dequantize(self, codes: tuple[Tensor, Tensor]) -> Tensor:
        q, scale = codes
        return torch.from_numpy(dequantize_groups(q.numpy(), scale.numpy(), self._scheme))

    def _report(self, done: int) -> None:
        self._progress("calibration", done, self._first + 4 * self._depth)


def _split(
    samples: Iterable[Tokens], width: int, *, targets: bool = False
) -> tuple[Inputs, Inputs]:
    """Sums up the samples that choose codes, and those (every fourth) that choose the damping."""
    parts: tuple[list[Tokens], list[Tokens]] = [], []
    for i, sample in enumerate(samples):
        parts[i % HELD_OUT == HELD_OUT - 1].append(sample)
    chosen, held_out = (Inputs.of(_joined(part), width, targets=targets) for part in parts)
    return chosen, held_out


def _joined(samples: Sequence[Tokens]) -> Iterator[Tokens]:
    """Yields many tokens at once."""
    for run in token_runs([sample.seen for sample in samples], _CHUNK_TOKENS):
        some = samples[run]
        yield Tokens(torch.cat([s.seen for s in some]), torch.cat([s.aim for s in some]))


def _formats(plan: Plan) -> dict[str, str]:
    """Returns the formats of the decoder's tensors."""
    return {t.name: t.format for t in plan.tensors if t.name.startswith("llm.")}


def _norms(layer: DecoderLayer) -> list[tuple[str, RMSNorm]]:
    return [
        ("input_norm.weight", layer.input_layernorm),
        ("post_norm.weight", layer.post_attention_layernorm),
    ]


def _part(i: int) -> str:
    return f"layer-{i:03d}"
