"""What single tensors would gain in int8: estimated for all at once, measured for a few sets.

The estimate is half the derivative of the logits' KL divergence, at the model as it is stored,
along the way of each tensor from its codes to int8: the loss grows with the square of the errors,
so these halves add up to all of it. One pass forward and one back give that of every tensor. The
sets of tensors that it proposes are then measured: each is stored in int8, and the model runs. Two
sets share the layers before the first one that they treat differently. One decoder layer is in
memory at a time, and for the estimate each sample's hidden states before every layer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convert.bundle.plan import PlannedTensor
from convert.calibrate.layer import STAGES, LayerWalk, LinearGroup, round_inputs
from convert.calibrate.pictures import encode_pictures, put_images
from convert.calibrate.samples import TokenizedSample
from convert.calibrate.store import Stream
from convert.checkpoint.reader import Checkpoint
from convert.checkpoint.tensor_tables import EMBEDDING, HEAD
from convert.support.progress import Progress
from quantize.methods import find_method
from runtime.reference import metrics
from runtime.reference.arithmetic import apply_vision_arithmetic, round_to_format
from runtime.reference.decoder import DecoderLayer, RMSNorm
from runtime.reference.load import VISION, load_reference
from runtime.verify.files.weights import StoredTensors

RAISED = "q8"
EMBED, LM_HEAD = "llm.embed", "llm.head"
TensorSet = frozenset[str]  # names of a bundle's tensors


class Raising:
    """Runs samples through the model in full precision, as stored, and with tensors in int8."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        stored: StoredTensors,
        samples: Sequence[TokenizedSample],
        progress: Progress,
    ) -> None:
        """Runs the full-precision model.

        Args:
            checkpoint: that the bundle was made from.
            stored: the bundle's tensors.
            samples: conversations whose logits are compared.
            progress: receives the layers done.
        """
        self._checkpoint, self._stored, self._samples = checkpoint, stored, samples
        self._progress = progress
        self._plan, self._scheme = stored.plan, stored.plan.recipe.scheme
        self._tensors = {tensor.name: tensor for tensor in self._plan.tensors}
        self._depth = checkpoint.config.decoder.num_hidden_layers
        self._images = [self._encode(rounded=rounded) for rounded in (False, True)]
        self._head = LM_HEAD if checkpoint.untied_head else EMBED
        norm = load_reference(checkpoint, only=("llm.model.norm.",)).llm.model.norm
        self._norms = norm, _half(copy.deepcopy(norm))
        stream = self._embed(None)
        for _, layer in self._layers("the model in full precision"):
            stream = _run(layer, stream, lambda *_: None)
        self._exact = stream

    @torch.no_grad()
    def measure(self, sets: Collection[TensorSet]) -> dict[TensorSet, float]:
        """Returns the mean KL divergence of the logits in nats, with sets of tensors in int8."""
        shared = {one & {EMBED}: self._embed(one) for one in sets}
        seen: TensorSet = frozenset({EMBED})
        for i, layer in self._layers("measure sets of tensors"):
            names = frozenset(f"llm.layers.{i}.{stage.name}" for stage in STAGES)
            after: dict[TensorSet, Stream] = {}
            for one in sets:
                key = one & (seen | names)
                if key not in after:
                    after[key] = self._rounded_layer(i, layer, shared[one & seen], one)
            shared, seen = after, seen | names
        return self._divergences({one: shared[one & seen] for one in sets})

    def estimate(self) -> dict[str, float]:
        """Returns about what each 4-bit tensor would gain in int8, in nats."""
        gains: dict[str, float] = {}
        with torch.no_grad():
            before = [self._embed(frozenset())]
            for i, layer in self._layers("the model as stored"):
                before.append(self._rounded_layer(i, layer, before[-1], frozenset()))
        slopes = self._head_slopes(before.pop(), gains)
        for i, layer in self._layers("estimate gains", backwards=True):
            slopes = self._layer_slopes(i, layer, before.pop(), slopes, gains)
        self._embedding_slope(slopes, gains)
        return gains

    def _layers(self, stage: str, *, backwards: bool = False) -> Iterator[tuple[int, DecoderLayer]]:
        """Yields the layers in full precision, each loaded when its turn comes."""
        for done in range(self._depth):
            self._progress(stage, done, self._depth)
            i = self._depth - 1 - done if backwards else done
            loaded = load_reference(self._checkpoint, only=(f"llm.model.layers.{i}.",))
            layer = loaded.llm.model.layers[i]
            assert isinstance(layer, DecoderLayer)
            if find_method(self._plan.recipe.method).fold:
                self._fold(i, layer)
            yield i, layer
        self._progress(stage, self._depth, self._depth)

    @torch.no_grad()
    def _fold(self, i: int, layer: DecoderLayer) -> None:
        """Folds factors into a layer as a bundle has them; it computes the same.

        A stored norm says what its followers were multiplied with. What the rows of values and of
        the up projection were divided by follows from their codes, to some 0.1 %.
        """
        attention, mlp = layer.self_attn, layer.mlp
        for name, norm, followers in (
            (
                "input_norm",
                layer.input_layernorm,
                [attention.q_proj, attention.k_proj, attention.v_proj],
            ),
            ("post_norm", layer.post_attention_layernorm, [mlp.gate_proj, mlp.up_proj]),
        ):
            stored = self._stored.hold(self._tensors[f"llm.layers.{i}.{name}.weight"]).float()
            for linear in followers:
                linear.weight.mul_(torch.where(stored != 0, norm.weight / stored, 1.0))
            norm.weight.copy_(stored)
        pairs = (
            ("qkv", attention.v_proj, attention.o_proj),
            ("gate_up", mlp.up_proj, mlp.down_proj),
        )
        for name, before, after in pairs:
            if len(before.weight) == after.weight.shape[1]:  # else AWQ folds nothing there
                tensor = self._tensors[f"llm.layers.{i}.{name}"]
                rows = self._stored.hold(tensor).float()[-len(before.weight) :]
                exact = before.weight
                factors = (rows * exact).sum(-1) / exact.square().sum(-1)
                factors = torch.where(factors > 0, factors, 1.0)  # not of a row of zeros
                before.weight.mul_(factors.unsqueeze(-1))
                after.weight.div_(factors)

    def _rounded_layer(
        self, i: int, layer: DecoderLayer, stream: Stream, raised: TensorSet
    ) -> Stream:
        """Runs a layer as stored, but for tensors that are raised."""

        def replace(walk: LayerWalk, stage: LinearGroup) -> None:
            name = f"llm.layers.{i}.{stage.name}"
            form = self._form(name, raised)
            weight = self._weight(name, walk.weight(stage), form)
            walk.round_inputs(form, self._scheme)
            walk.set_weight(stage, weight)

        return _run(_half_norms(copy.deepcopy(layer)), stream, replace)

    def _weight(self, name: str, exact: Tensor, form: str) -> Tensor:
        """Returns a tensor (N, K) as it is stored, or rounded to another format."""
        tensor = self._tensors[name]
        if form == tensor.format:
            return self._stored.hold(tensor).float()
        return round_to_format(exact, form, self._scheme, name)

    def _rows(self, tensor: PlannedTensor, rows: slice | Tensor, form: str | None) -> Tensor:
        """Returns rows of the embedding or the head; `form`: None: exact."""
        exact = self._checkpoint.read(HEAD if tensor.name == LM_HEAD else EMBEDDING)[rows]
        if form is None:
            return exact.float()
        if form == tensor.format:
            return self._stored.hold(tensor)[rows].float()
        return round_to_format(exact.float(), form, self._scheme, tensor.name)

    def _form(self, name: str, raised: TensorSet) -> str:
        return RAISED if name in raised else self._tensors[name].format

    def _embed(self, raised: TensorSet | None) -> Stream:
        """Returns the first layer's inputs; `raised`: None: in full precision."""
        form = None if raised is None else self._form(EMBED, raised)
        stream = []
        for sample, image in zip(self._samples, self._images[raised is not None], strict=True):
            embeds = self._rows(self._tensors[EMBED], sample.ids, form)
            embeds = embeds * self._checkpoint.config.decoder.scale_emb
            put_images(embeds, sample, image)
            stream.append(embeds)
        return stream

    def _encode(self, *, rounded: bool) -> list[Tensor | None]:
        """Returns each sample's image tokens (I, Q, D), of the checkpoint or as stored."""
        if all(sample.images is None for sample in self._samples):
            return [None] * len(self._samples)
        model = load_reference(self._checkpoint, only=VISION)
        if rounded:
            apply_vision_arithmetic(model, self._plan)
        return encode_pictures(model, self._samples)

    def _divergences(self, streams: Mapping[TensorSet, Stream]) -> dict[TensorSet, float]:
        """Compares the logits of last layers' outputs, by the sets that are raised there."""
        exact = self._matrix(None)
        forms = {one: self._form(self._head, one) for one in streams}
        heads = {form: self._matrix(form) for form in set(forms.values())}
        found: dict[TensorSet, list[Tensor]] = {one: [] for one in streams}
        for k, x in enumerate(self._exact):
            reference = self._normed(x) @ exact.T
            for one, stream in streams.items():
                hidden = self._normed(stream[k], half=True)
                hidden = round_inputs(hidden, forms[one], self._scheme)
                logits = hidden @ heads[forms[one]].T
                found[one].append(metrics.kl_divergence(reference, logits))
        return {one: metrics.mean(torch.cat(kl)) for one, kl in found.items()}

    def _matrix(self, form: str | None) -> Tensor:
        """Returns the LM head (V, D) float32."""
        return self._rows(self._tensors[self._head], slice(None), form)

    def _normed(self, x: Tensor, *, half: bool = False) -> Tensor:
        """Returns a hidden state (L, D) as the LM head takes it."""
        out: Tensor = self._norms[half](x) / self._checkpoint.config.decoder.logits_divisor
        return out

    def _head_slopes(self, stream: Stream, gains: dict[str, float]) -> Stream:
        """Returns the derivative of the mean KL divergence by the last layer's output (L, D)."""
        form = self._tensors[self._head].format
        exact, now = self._matrix(None), self._matrix(form)
        head = _Toward(now, self._step(self._head, exact, now))
        count, slopes = sum(map(len, stream)), []
        for x, expected in zip(stream, self._exact, strict=True):
            x = x.detach().requires_grad_()
            reference = F.log_softmax(self._normed(expected) @ exact.T, dim=-1)
            logits = F.log_softmax(head(self._normed(x, half=True)), dim=-1)
            kl = F.kl_div(logits, reference, reduction="sum", log_target=True) / count
            kl.backward()  # type: ignore[no-untyped-call]
            slopes.append(_slope(x))
        head.add_gain(self._head, gains)
        return slopes

    def _layer_slopes(
        self, i: int, layer: DecoderLayer, stream: Stream, slopes: Stream, gains: dict[str, float]
    ) -> Stream:
        """Takes the derivative by a layer's output back to its input; adds its tensors' gains."""
        _half_norms(layer)
        ways: dict[str, list[_Toward]] = {}
        for stage in STAGES:
            name = f"llm.layers.{i}.{stage.name}"
            linears: list[Tensor] = [
                layer.get_submodule(path).get_parameter("weight") for path in stage.linears
            ]
            whole = torch.cat(linears)
            now = self._weight(name, whole, self._tensors[name].format)
            step = self._step(name, whole, now)
            sizes = [len(rows) for rows in linears]
            steps = [None] * len(sizes) if step is None else torch.split(step, sizes)
            pairs = zip(torch.split(now, sizes), steps, strict=True)
            ways[name] = [_Toward(*pair) for pair in pairs]
            for path, way in zip(stage.linears, ways[name], strict=True):
                parent, _, child = path.rpartition(".")
                setattr(layer.get_submodule(parent), child, way)
        before = []
        for x, slope in zip(stream, slopes, strict=True):
            x = x.detach().requires_grad_()
            layer(x.unsqueeze(0), torch.arange(len(x)), None, None, i)[0].backward(slope)
            before.append(_slope(x))
        for name, row in ways.items():
            for way in row:
                way.add_gain(name, gains)
        return before

    def _embedding_slope(self, slopes: Stream, gains: dict[str, float]) -> None:
        """Adds what the looked up rows of the embedding would gain."""
        tensor = self._tensors[EMBED]
        if tensor.format != "q4":
            return
        scale = self._checkpoint.config.decoder.scale_emb
        for sample, slope, image in zip(self._samples, slopes, self._images[1], strict=True):
            rows = [self._rows(tensor, sample.ids, form) for form in (RAISED, tensor.format)]
            change = (rows[0] - rows[1]) * scale * slope
            put_images(change, sample, None if image is None else torch.zeros_like(image))
            gains[EMBED] = gains.get(EMBED, 0.0) - float(change.sum()) / 2

    def _step(self, name: str, exact: Tensor, now: Tensor) -> Tensor | None:
        """Returns the way (N, K) of a 4-bit tensor to int8; None of another one."""
        if self._tensors[name].format != "q4":
            return None
        return round_to_format(exact, RAISED, self._scheme, name) - now


class _Toward(nn.Module):
    """A linear with the weights `now + way * step`, of which `way`, 0, has a derivative."""

    def __init__(self, now: Tensor, step: Tensor | None) -> None:
        """Args: now, step: (N, K)."""
        super().__init__()
        self.now, self.step = now, step
        self.way = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., K) to (..., N)."""
        out = F.linear(x, self.now)
        # The step's own slope by x counts for nothing at 0.
        return out if self.step is None else out + self.way * F.linear(x.detach(), self.step)

    def add_gain(self, name: str, gains: dict[str, float]) -> None:
        """Adds about what going all the way would gain."""
        if self.step is not None and self.way.grad is not None:
            gains[name] = gains.get(name, 0.0) - float(self.way.grad) / 2


def _run(
    layer: DecoderLayer, stream: Stream, replace: Callable[[LayerWalk, LinearGroup], None]
) -> Stream:
    """Runs a layer; `replace` may change a stage's linears before they run."""
    with torch.no_grad():
        walk = LayerWalk(layer, stream)
        for stage in STAGES:
            replace(walk, stage)
            walk.advance()
    return walk.stream


def _half_norms(layer: DecoderLayer) -> DecoderLayer:
    """Rounds a layer's norms to float16, as a bundle stores them; returns the layer."""
    for norm in (layer.input_layernorm, layer.post_attention_layernorm):
        _half(norm)
    return layer


@torch.no_grad()
def _half(norm: RMSNorm) -> RMSNorm:
    norm.weight.copy_(norm.weight.half())
    return norm


def _slope(x: Tensor) -> Tensor:
    assert x.grad is not None
    return x.grad
