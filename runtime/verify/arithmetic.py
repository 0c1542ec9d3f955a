"""A model of the bundle's arithmetic: the reference, rounded where a bundle rounds.

It is built from the full-precision checkpoint and the recipe alone, in other code than the
bundle's kernels: 4-bit weights, int8 activations per group, float16 vision weights, norms and KV
cache. Only what calibration chose comes from the bundle: see `runtime.verify.stored`. What it
loses against the reference is what the recipe costs; a bundle that loses more has a fault.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantize.activations import MAX_INT8
from quantize.schemes import GroupScheme, dequantize_groups, quantize_groups
from runtime.reference.decoder import RMSNorm
from runtime.reference.kv_cache import KVCache
from runtime.reference.model import MiniCPMV


class QuantizedLinear(nn.Module):
    """A linear without bias: 4-bit weights times activations rounded to int8 per group."""

    def __init__(self, weight: Tensor, group_size: int) -> None:
        """Args: weight: (N, K) float32, already rounded by the scheme."""
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.group_size = group_size

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., K) to (..., N)."""
        return F.linear(round_to_int8(x, self.group_size), self.weight)


class Float16KVCache(KVCache):
    """A KV cache that stores float16."""

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Rounds what is added; see `KVCache`."""
        return super().append(layer, k.half().to(k.dtype), v.half().to(v.dtype))


def round_to_int8(x: Tensor, group_size: int) -> Tensor:
    """Rounds groups of activations (..., K) to multiples of max|x| / 127."""
    groups = x.unflatten(-1, (-1, group_size))  # type: ignore[no-untyped-call]
    scale = groups.abs().amax(-1, keepdim=True) / MAX_INT8
    rounded = torch.where(scale > 0, (groups / scale).round() * scale, 0)
    out: Tensor = rounded.flatten(-2)
    return out


def round_to_scheme(weight: Tensor, scheme: GroupScheme, name: str) -> Tensor:
    """Quantizes a weight (N, K) and gives it back as float32."""
    half = weight.detach().cpu().to(torch.float16).numpy()
    return torch.from_numpy(dequantize_groups(*quantize_groups(half, scheme, name=name), scheme))


@torch.no_grad()
def apply_arithmetic(model: MiniCPMV, scheme: GroupScheme, *, stored: bool = False) -> MiniCPMV:
    """Rounds a reference model in place, and returns it.

    Args:
        model: full precision.
        scheme: the decoder's number format.
        stored: the decoder's matrices are rounded already, as a bundle stores them.
    """

    def rounded(weight: Tensor, name: str) -> Tensor:
        return weight.detach() if stored else round_to_scheme(weight, scheme, name)

    for name, module in list(model.llm.model.named_modules()):
        if isinstance(module, nn.Linear):
            parent, _, child = name.rpartition(".")
            quantized = QuantizedLinear(rounded(module.weight, name), scheme.group_size)
            setattr(model.llm.model.get_submodule(parent), child, quantized)
        elif isinstance(module, RMSNorm):
            module.weight.copy_(module.weight.half())
    embedding = model.llm.model.embed_tokens
    tied = model.llm.lm_head.weight is embedding.weight
    embedding.weight = nn.Parameter(rounded(embedding.weight, "embed_tokens"), requires_grad=False)
    head = embedding.weight if tied else rounded(model.llm.lm_head.weight, "lm_head")
    model.llm.lm_head = QuantizedLinear(head.data, scheme.group_size)  # type: ignore[assignment]
    _round_vision(model)
    return model


def _round_vision(model: MiniCPMV) -> None:
    """Rounds matrices to float16; a bundle keeps all that is small in float32."""
    if model.vpm is None or model.resampler is None:
        return
    for module in (*model.vpm.modules(), *model.resampler.modules()):
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.weight.copy_(module.weight.half())
    resampler = model.resampler
    resampler.proj.copy_(resampler.proj.half())
    # The queries' projection, and that of the keys' positions, are folded in float32; rounding
    # both here is a bound from above, four orders of magnitude below the 4-bit decoder's loss.
    resampler.attn.in_proj_weight.copy_(resampler.attn.in_proj_weight.half())
