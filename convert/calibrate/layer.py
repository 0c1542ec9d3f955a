"""One decoder layer for calibration: its computation stops before each of four linears."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from convert.calibrate.store import Stream
from quantize.awq import choose_factors
from quantize.fast import nearest_codes
from quantize.int8 import INT8_GROUP
from quantize.kernels import search_scales
from quantize.schemes import GroupScheme
from runtime.reference.arithmetic import round_to_int8
from runtime.reference.decoder import DecoderLayer, RMSNorm

_FOLD_TOKENS = 4096  # whose activations determine AWQ's factors
_RUN_TOKENS = 1024  # that a linear takes at once: fewer cost more, more do not fit the cache


@dataclass(frozen=True)
class LinearGroup:
    """Linears that share their inputs: one tensor of a bundle, rows stacked."""

    name: str  # of the bundle's tensor, after `llm.layers.N.`
    linears: tuple[str, ...]  # submodules of the reference's layer
    adds: bool = False  # whether their output is added to the hidden states


STAGES = (
    LinearGroup("qkv", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    LinearGroup("o", ("self_attn.o_proj",), adds=True),
    LinearGroup("gate_up", ("mlp.gate_proj", "mlp.up_proj")),
    LinearGroup("down", ("mlp.down_proj",), adds=True),
)


class LayerWalk:
    """Runs a stream through a layer stage by stage; `inputs` are those of the next stage's linears.

    The layer's linears may be replaced before `advance` runs them.
    """

    def __init__(self, layer: DecoderLayer, stream: Stream) -> None:
        """Args: layer: is modified. stream: each sample's hidden states (L, D)."""
        self._layer, self.stream = layer, stream
        # Attention and MLP stop before their last linear, which `advance` runs.
        self._last = {"o": layer.self_attn.o_proj, "down": layer.mlp.down_proj}
        layer.self_attn.o_proj = nn.Identity()  # type: ignore[assignment]
        layer.mlp.down_proj = nn.Identity()  # type: ignore[assignment]
        self._stage = 0
        self._output: Stream | None = None  # of this stage's linear, if it is known already
        self.inputs: Stream = [layer.input_layernorm(x) for x in stream]

    def weight(self, stage: LinearGroup) -> Tensor:
        """Returns the weights of a stage's linears, stacked: (N, K) float32."""
        return torch.cat([linear.weight for linear in map(self._linear, stage.linears)])

    def set_weight(self, stage: LinearGroup, weight: Tensor) -> None:
        """Replaces a stage's linears by the rows of `weight` (N, K), as their format rounds them.

        Args:
            stage: the current one, or a later one.
            weight: the weights with the rounding of their stored form.
        """
        sizes = [len(linear.weight) for linear in map(self._linear, stage.linears)]
        for name, rows in zip(stage.linears, torch.split(weight, sizes), strict=True):
            linear = _linear_of(rows)
            if stage.name in self._last:
                self._last[stage.name], self._output = linear, None
            else:
                parent, _, child = name.rpartition(".")
                setattr(self._layer.get_submodule(parent), child, linear)

    def targets(self, other: LayerWalk) -> Stream:
        """Returns what this stage must add to another walk's hidden states to give this walk's.

        Returns:
            (L, D) for each sample, in the unit of the stage's output.
        """
        self._output = _in_runs(self._last[STAGES[self._stage].name], self.inputs)
        scale = self._layer.residual_scale
        samples = zip(self._output, self.stream, other.stream, strict=True)
        return [out + (a - b) / scale for out, a, b in samples]

    def round_inputs(self, form: str, scheme: GroupScheme) -> None:
        """Rounds the inputs of this stage's linears; see the function of that name."""
        self.inputs = [round_inputs(x, form, scheme) for x in self.inputs]

    def advance(self) -> None:
        """Runs this stage's linears, and everything up to the inputs of the next stage."""
        layer, stage = self._layer, STAGES[self._stage].name
        if stage == "qkv":
            self.inputs = self._attend()
        elif stage == "gate_up":
            self.inputs = _in_runs(layer.mlp, self.inputs)
        else:
            output = self._output or _in_runs(self._last[stage], self.inputs)
            pairs = zip(self.stream, output, strict=True)
            self.stream, self._output = [x + out * layer.residual_scale for x, out in pairs], None
            after = layer.post_attention_layernorm
            self.inputs = [after(x) for x in self.stream] if stage == "o" else []
        self._stage += 1

    def _attend(self) -> Stream:
        """Runs q, k and v over many samples at once, then attention over each."""
        attention = self._layer.self_attn
        made: list[tuple[_Made, Stream]] = []
        for name in ("q_proj", "k_proj", "v_proj"):
            made.append((_Made(), _in_runs(getattr(attention, name), self.inputs)))
            setattr(attention, name, made[-1][0])
        out = []
        for i, x in enumerate(self.inputs):
            for module, values in made:
                module.values = values[i].unsqueeze(0)
            out.append(attention(x.unsqueeze(0), torch.arange(len(x)), None, None, 0)[0])
        return out

    def _linear(self, name: str) -> nn.Linear:
        short = name.rpartition(".")[2].removesuffix("_proj")
        module = self._last.get(short) or self._layer.get_submodule(name)
        assert isinstance(module, nn.Linear)
        return module


def round_inputs(x: Tensor, form: str, scheme: GroupScheme) -> Tensor:
    """Rounds a linear's inputs (L, K) as the kernel of its format does."""
    group = _group_size(form, scheme)
    return x if group is None else round_to_int8(x, group)


def _group_size(form: str, scheme: GroupScheme) -> int | None:
    return {"q4": scheme.group_size, "q8": INT8_GROUP}.get(form)


class _Made(nn.Module):
    """Stands in for a linear whose outputs are there already."""

    values: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return self.values


def token_runs(samples: Sequence[Tensor], tokens: int) -> Iterator[slice]:
    """Cuts samples (L, K) into runs of at least `tokens` tokens, the last one perhaps fewer."""
    first = count = 0
    for i, sample in enumerate(samples, 1):
        count += len(sample)
        if count >= tokens or i == len(samples):
            yield slice(first, i)
            first, count = i, 0


def _in_runs(function: Callable[[Tensor], Tensor], samples: Stream) -> Stream:
    """Applies what treats tokens alike to many samples at once."""
    out: Stream = []
    for run in token_runs(samples, _RUN_TOKENS):
        some = samples[run]
        out += torch.split(function(torch.cat(some)), [len(x) for x in some])
    return out


def _linear_of(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    return linear


def fold_layer(
    layer: DecoderLayer, stream: Stream, scheme: GroupScheme, stages: Collection[str]
) -> None:
    """Folds AWQ's factors into a layer's norms, values and up projection; its output is the same.

    Args:
        layer: is modified.
        stream: its input: each sample's hidden states (L, D).
        scheme: the number format whose loss determines the factors.
        stages: the names of those in that format; the weights of the others stay as they are.
    """
    inputs = _stage_inputs(layer, stream)
    attention, mlp = layer.self_attn, layer.mlp
    linears = {stage.name: [layer.get_submodule(n) for n in stage.linears] for stage in STAGES}

    def factors(stage: str) -> Tensor:
        weights = [linear.get_parameter("weight") for linear in linears[stage]]
        return choose_factors(weights, inputs[stage], lambda w: _searched(w, scheme))

    for stage, norm in (
        ("qkv", layer.input_layernorm),
        ("gate_up", layer.post_attention_layernorm),
    ):
        if stage not in stages:
            continue
        exact = _fold_norm(norm, factors(stage))
        for linear in linears[stage]:
            linear.get_parameter("weight").mul_(exact)
    # With grouped-query attention a row of values feeds several inputs, so nothing is folded.
    own_values = attention.v_proj.weight.shape[0] == attention.o_proj.weight.shape[1]
    if own_values and {"qkv", "o"} <= set(stages):
        _fold_rows(attention.v_proj, attention.o_proj, factors("o"))
    if {"gate_up", "down"} <= set(stages):
        _fold_rows(mlp.up_proj, mlp.down_proj, factors("down"))


def _fold_norm(norm: RMSNorm, factors: Tensor) -> Tensor:
    """Divides a norm's weight, rounds it to float16, and returns the exact divisors."""
    before = norm.weight.clone()
    after = (before / factors).half().float()
    usable = (after != 0) & after.isfinite()
    norm.weight.copy_(torch.where(usable, after, before))
    return torch.where(usable, before / after, 1.0)


def _fold_rows(before: nn.Linear, after: nn.Linear, factors: Tensor) -> None:
    before.weight.div_(factors.unsqueeze(-1))
    after.weight.mul_(factors)


def _stage_inputs(layer: DecoderLayer, stream: Stream) -> dict[str, Tensor]:
    """Returns the inputs of each stage's linears, (L, K) for a few thousand tokens."""
    some: Stream = []
    for sample in stream:
        if sum(map(len, some)) >= _FOLD_TOKENS:
            break
        some.append(sample)
    walk = LayerWalk(copy.deepcopy(layer), some)
    inputs = {}
    for stage in STAGES:
        inputs[stage.name] = torch.cat(walk.inputs)
        walk.advance()
    return inputs


def _searched(weight: Tensor, scheme: GroupScheme) -> Tensor:
    """Returns weights (N, K) rounded to codes with searched scales."""
    groups = weight.view(len(weight), -1, scheme.group_size)
    scale = search_scales(groups, scheme, None)
    return (nearest_codes(groups, scale, scheme) * scale).view_as(weight)
