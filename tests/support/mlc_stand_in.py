"""What stands for a compiled MLC package: PyTorch with the package's weights, in half precision.

For tests of what verify makes of a library; `tests/convert/mlc/test_real_mlc.py` has the real one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from convert.checkpoint.reader import Checkpoint
from convert.mlc.opened import MlcPackage
from runtime.reference.arithmetic import Inputs, apply_arithmetic
from runtime.reference.kv_cache import KVCache
from runtime.reference.load import load_reference
from runtime.verify.files.stored_weights import load_stored
from runtime.verify.mlc.tensors import PackageTensors


class TorchEngine:
    """See `runtime.mlc.engine.MlcEngine`; what it returns is rounded to float16, as a library's."""

    image_scale = logits_scale = 1.0  # of a library with a fault

    def __init__(self, package: MlcPackage, checkpoint: Checkpoint) -> None:
        model = load_stored(
            load_reference(checkpoint), PackageTensors(package), inputs=Inputs.FLOAT
        )
        self._model = apply_arithmetic(model, package.plan, stored=True, inputs=Inputs.FLOAT)
        self.window = package.window
        self.begin()

    @torch.inference_mode()
    def image_tokens(self, picture: np.ndarray) -> Tensor:
        """See `MlcEngine`."""
        pixels = torch.from_numpy(picture).permute(2, 0, 1).float() / 127.5 - 1
        tokens = self._model.encode_image(pixels.unsqueeze(0))[0]
        return (tokens * self.image_scale).half().float()

    @torch.inference_mode()
    def embed(self, ids: Sequence[int]) -> Tensor:
        """See `MlcEngine`."""
        return self._model.llm.embed(torch.tensor([list(ids)]))[0].half().float()

    def begin(self) -> None:
        """See `MlcEngine`."""
        count = self._model.config.decoder.num_hidden_layers
        self._cache, self._next = KVCache(count, window=self.window, pinned=4), 0

    @torch.inference_mode()
    def logits(self, embeddings: Tensor) -> Tensor:
        """See `MlcEngine`."""
        positions = torch.arange(self._next, self._next + len(embeddings))
        self._next += len(embeddings)
        self._cache.extend(positions)
        x = embeddings.unsqueeze(0)
        for i, layer in enumerate(self._model.llm.model.layers):
            x = layer(x, positions, None, self._cache, i)
        return (self._model.llm.logits(x)[0, -1] * self.logits_scale).half().float()
