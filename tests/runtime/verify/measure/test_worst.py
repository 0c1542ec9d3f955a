import pytest
import torch

from runtime.verify.measure.losses import StageLosses
from runtime.verify.measure.run import load_settings


@pytest.mark.parametrize(
    ("stage", "off", "passes"),
    [
        ("vision encoder", 1e-4, True),  # 80 dB: words of 16 bits in its attention
        ("vision features", 1e-3, True),
        ("resampler", 1e-4, True),
        ("vision encoder", 3e-3, False),  # 50 dB: a fault
        ("decoder layers", 1e-4, False),  # where there are no such words
        ("LM head", 1e-4, False),
    ],
)
def test_stages_that_a_recipe_keeps_exact(stage: str, off: float, passes: bool) -> None:
    """Matrices in float16 of a checkpoint in bfloat16 lose nothing: the model of the arithmetic
    expects hundreds of decibels, which no sum of an engine reaches."""
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(64, 64, generator=generator)
    noise = torch.randn(64, 64, generator=generator)
    worst = StageLosses(load_settings()["thresholds"])
    worst.loss(stage, "one", reference, reference + 1e-7 * noise, reference + off * noise)
    checks = [check for check in worst.checks() if check.metric == "SQNR"]
    assert [check.passed for check in checks] == [passes]
