"""Which rule an engine's decoder layers break.

Three experiments tell the parts of a layer apart. One token alone meets no other, and a rotation
that changes nothing: only products and norms are left. Several tokens within the window meet
through the KV cache, at their positions. More tokens than the window holds are forgotten.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from torch import Tensor

from convert.checkpoint.config import DecoderConfig
from runtime.reference import metrics
from runtime.reference.kv_cache import ATTENTION_SINKS
from runtime.verify.check import Cause
from runtime.verify.diagnose.stored_stages import Deviations, StoredStages
from runtime.verify.stages import LAYER_TOKENS, Stages, narrow_window

ROPE_BASES = (1e3, 1e4, 1e5, 2.5e5, 5e5, 1e6, 5e6)
_ALIKE = 8  # equal tokens
_JUMP_DB = 15.0  # wrong positions grow worse little by little, a lost entry does so at once
_ROTATIONS = {
    "without any rotation": Deviations(rotation="none"),
    "pairs of neighbours rotated instead of a head's halves": Deviations(rotation="neighbours"),
    "rotated backwards": Deviations(rotation="backwards"),
}
_WINDOWS = {
    "nothing is ever forgotten": Deviations(slides=False),
    "the pinned tokens are forgotten like others": Deviations(pins=False),
    "the pinned tokens move away without end": Deviations(far=False),
}

Variant = tuple[str, StoredStages]


class DecoderFaults:
    """Experiments with an engine's layers, and with the model of its stored tensors."""

    def __init__(
        self, bundle: Stages, stored: StoredStages, inputs: Sequence[Tensor], least_db: float
    ) -> None:
        """Args: inputs: of each layer, (L, D). least_db: SQNR from which outputs count as equal."""
        self._bundle, self._stored, self._least_db = bundle, stored, least_db
        self._inputs = [x[:LAYER_TOKENS] for x in inputs]

    def causes(self) -> list[Cause]:
        """Returns what is wrong; nothing where the stored tensors explain the layers."""
        tokens = len(self._inputs[0])
        wide, narrow = tokens + ATTENTION_SINKS + 1, narrow_window(tokens)
        for at in sorted({0, tokens // 2, tokens - 1}):
            alone = self._run([x[at : at + 1] for x in self._inputs], wide)
            if alone.wrong:
                return self._products(alone)
        together = self._run(self._inputs, wide)
        if together.wrong:
            return [self._attention(together)]
        sliding = self._run(self._inputs, narrow)
        return [self._window(sliding)] if sliding.wrong else []

    def _run(self, inputs: Sequence[Tensor], window: int) -> _FaultSearch:
        outputs = self._bundle.layers(inputs, window, ATTENTION_SINKS)
        return _FaultSearch(self._stored, self._least_db, inputs, window, outputs)

    def _products(self, run: _FaultSearch) -> list[Cause]:
        c = self._stored.config.decoder
        root = math.sqrt(c.num_hidden_layers)
        found = run.explained_by(
            [
                ("scale_depth is missing", self._configured(scale_depth=root)),
                (
                    "scale_depth is not divided by the root of the number of layers",
                    self._configured(scale_depth=c.scale_depth * root),
                ),
            ]
        )
        if found is not None and len(run.wrong) == c.num_hidden_layers:
            return [Cause("residual scale", found)]
        causes = []
        for i in run.wrong:
            error = (run.outputs[i] - run.expected(self._stored, i)).abs().amax(0)
            others = int((error > error.max() / 100).sum())
            causes.append(
                Cause(
                    f"kernels: decoder layer {i}",
                    f"{run.db(self._stored, i):.0f} dB against what its stored tensors give for "
                    f"one token; {others:,} of {len(error):,} outputs differ",
                )
            )
        return causes

    def _attention(self, run: _FaultSearch) -> Cause:
        found = run.explained_by(self._positions())
        if found is not None:
            return Cause("positions (RoPE)", found)
        row = run.first_wrong_row
        every = f"the cache is empty after every {row} tokens" if row > 1 else "tokens see no other"
        found = run.explained_by(
            [
                (every, self._stored.with_rules(Deviations(memory=row))),
                (
                    f"what the first {row} left in the cache is lost",
                    self._stored.with_rules(Deviations(lost=row)),
                ),
            ]
        )
        if found is not None:
            return Cause("KV cache", found)
        layers = ", ".join(map(str, run.wrong))
        text = f"one token alone is right; of several, token {row} is the first wrong one"
        if len(run.wrong) < len(self._inputs):
            return Cause("KV cache", f"{text}, and only in layer {layers}")
        # Whatever positions and keys are, a mean of equal values is that value.
        alike = [x[:1].expand(_ALIKE, -1).contiguous() for x in self._inputs]
        if run.jumps or self._run(alike, run.window).wrong:
            return Cause("KV cache", text)
        return Cause("positions (RoPE)", f"{text}; no known base or order explains it")

    def _window(self, run: _FaultSearch) -> Cause:
        variants = [
            (
                f"{abs(by)} token{'s' if abs(by) > 1 else ''} {'more' if by > 0 else 'fewer'} "
                "than the window holds",
                self._stored.with_rules(Deviations(window=by)),
            )
            for by in (-2, -1, 1, 2)
        ]
        variants += [(text, self._stored.with_rules(rules)) for text, rules in _WINDOWS.items()]
        found = run.explained_by(variants)
        text = (
            f"tokens that fit a window are right; with {len(self._inputs[0])} tokens in a window "
            f"of {run.window}, token {run.first_wrong_row} is the first wrong one"
        )
        return Cause("sliding window", found or text)

    def _positions(self) -> Iterator[Variant]:
        right = self._stored.config.decoder.rope_theta
        for base in ROPE_BASES:
            if base != right:
                yield (
                    f"a RoPE base of {base:,.0f}, the configuration says {right:,.0f}",
                    self._configured(rope_theta=base),
                )
        for text, rules in _ROTATIONS.items():
            yield text, self._stored.with_rules(rules)

    def _configured(self, **changes: Any) -> StoredStages:
        config = self._stored.config
        decoder: DecoderConfig = replace(config.decoder, **changes)
        return self._stored.with_config(replace(config, decoder=decoder))


class _FaultSearch:
    """What an engine's layers give for their inputs, and which of them are wrong."""

    def __init__(
        self,
        stored: StoredStages,
        least_db: float,
        inputs: Sequence[Tensor],
        window: int,
        outputs: Sequence[Tensor],
    ) -> None:
        self.inputs, self.window = inputs, window
        self._stored, self._least_db = stored, least_db
        # What a layer adds: its input passes through unchanged.
        self.outputs = [out - x for out, x in zip(outputs, inputs, strict=True)]
        self.wrong = [i for i in range(len(inputs)) if not self._explained(i)]

    def expected(self, model: StoredStages, layer: int) -> Tensor:
        x = self.inputs[layer]
        return model.layer(layer, x, self.window, ATTENTION_SINKS) - x

    def db(self, model: StoredStages, layer: int) -> float:
        return metrics.sqnr_db(self.expected(model, layer), self.outputs[layer])

    def _explained(self, layer: int) -> bool:
        right = self.expected(self._stored, layer)
        if not bool(right.isfinite().all()):  # of numbers that are none, kernels make anything
            return True
        return metrics.sqnr_db(right, self.outputs[layer]) >= self._least_db

    @property
    def first_wrong_row(self) -> int:
        """The first token of the first wrong layer that differs."""
        return next(i for i, db in enumerate(self._rows()) if not db >= self._least_db)

    @property
    def jumps(self) -> bool:
        """Whether tokens that meet others are as right as can be before the first wrong one."""
        row, rows = self.first_wrong_row, self._rows()
        return row > 1 and median(rows[1:row]) - rows[row] >= _JUMP_DB

    def _rows(self) -> list[float]:
        layer = self.wrong[0]
        pairs = zip(self.expected(self._stored, layer), self.outputs[layer], strict=True)
        return [metrics.sqnr_db(right, actual) for right, actual in pairs]

    def explained_by(self, variants: Sequence[Variant] | Iterator[Variant]) -> str | None:
        """Returns the variant that gives the first wrong layer's outputs, with its figure."""
        layer = self.wrong[0]
        db, text = max((self.db(model, layer), text) for text, model in variants)
        if db < self._least_db:
            return None
        own = self.db(self._stored, layer)
        return f"{text}: with it the model gives layer {layer} to {db:.0f} dB, without {own:.0f} dB"
