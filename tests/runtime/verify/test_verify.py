"""verify: its figures, its verdict, and that a planted fault is found where it is."""

import json
import math

import numpy as np
import pytest
import torch

from convert.bundle.manifest import Bundle
from convert.cli import main
from quantize.activations import multiply_w4a8, quantize_activations
from quantize.schemes import GroupScheme, quantize_groups
from runtime.reference import metrics
from runtime.reference.arithmetic import QuantizedLinear, hold_in_format, round_to_int8
from runtime.verify.check import Check
from tests.engine.engines import add_phone
from tests.support.needs import need_qemu
from tests.support.tiny import write_checkpoint


def test_sqnr():
    signal = torch.tensor([3.0, 4.0])
    assert metrics.sqnr_db(signal, signal) == math.inf
    assert metrics.sqnr_db(signal, signal + torch.tensor([0.0, 0.5])) == pytest.approx(20.0)
    assert metrics.sqnr_db(signal, torch.tensor([math.nan, 0.0])) == -math.inf
    assert metrics.sqnr_db(torch.zeros(2), signal) == -math.inf


def test_kl_divergence_of_a_worked_example():
    p, q = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.5, 0.25])
    expected = 0.5 * math.log(2) + 0.25 * math.log(0.5)
    assert metrics.kl_divergence(p.log()[None], q.log()[None]).item() == pytest.approx(expected)
    shifted = (q.log() + 3)[None]  # logits have no zero
    assert metrics.kl_divergence(p.log()[None], shifted).item() == pytest.approx(expected, 1e-5)


def test_a_figure_that_is_no_number_fails():
    check = Check("logits", "text positions", "KL divergence", "nats", math.nan, 0, 1, False)
    assert not check.passed


def test_the_arithmetic_model_equals_the_numpy_reference():
    """Two implementations of the same arithmetic: torch's fake quantization, numpy's integers."""
    rng = np.random.default_rng(0)
    scheme = GroupScheme.load("q4f16_1")
    weight = rng.standard_normal((48, 96)).astype(np.float32)
    x = rng.standard_normal((5, 96)).astype(np.float32)
    x[2, 32:64] = 0
    codes, scale = quantize_activations(x, scheme.group_size)
    grouped = codes.reshape(5, -1, scheme.group_size) * scale[..., None]
    np.testing.assert_allclose(
        round_to_int8(torch.from_numpy(x), scheme.group_size).numpy(),
        grouped.reshape(5, -1),
        rtol=1e-6,
    )
    linear = QuantizedLinear(
        hold_in_format(torch.from_numpy(weight), "q4", scheme, "w"), scheme.group_size
    )
    q, q_scale = quantize_groups(weight.astype(np.float16), scheme, name="w")
    expected = multiply_w4a8(x, q, q_scale, scheme)
    # Only the order of float32 sums differs.
    np.testing.assert_allclose(linear(torch.from_numpy(x)).numpy(), expected, atol=2e-5)


def _verify(capsys, *arguments):
    capsys.readouterr()
    code = main(["verify", *map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


def _overwrite(folder, name, change):
    """Changes a stored tensor in place; the manifest's hash is then wrong, its size is not."""
    bundle = Bundle.open(folder)
    view = bundle.weights()[name]
    path = folder / "weights.safetensors"
    raw = bytearray(path.read_bytes())
    where = raw.find(view.tobytes())
    assert where > 0
    changed = change(np.array(view))
    assert changed.nbytes == view.nbytes
    raw[where : where + view.nbytes] = changed.tobytes()
    path.write_bytes(raw)


def test_a_good_bundle_passes(bundle, capsys):
    code, report = _verify(capsys, bundle)
    assert (code, report["passed"], report["failed_stages"]) == (0, True, [])
    assert report["engine"] == "local"
    stages = list(dict.fromkeys(check["stage"] for check in report["checks"]))
    assert stages == [
        "files",
        "weights",
        "codes",
        "tokenizer",
        "settings",
        "golden answers",
        "synthetic patterns",
        "preprocessing",
        "vision encoder",
        "vision features",
        "resampler",
        "prompt embeddings",
        "decoder layers",
        "sliding window",
        "hidden states",
        "LM head",
        "sampling",
        "logits",
        "answers",
    ]
    kinds = {c["name"] for c in report["checks"] if c["stage"] == "logits"}
    assert kinds == {"at image tokens", "at text tokens", "at answer tokens"}
    layers = {c["name"] for c in report["checks"] if c["stage"] == "decoder layers"}
    assert layers == {"layer 0", "layer 1"}


def test_the_phones_engine_passes(copy, capsys):
    need_qemu()
    add_phone(copy)
    code, report = _verify(capsys, copy, "--engine", "qemu")
    assert (code, report["failed_stages"], report["engine"]) == (0, [], "qemu")


def test_the_table_is_readable(bundle, capsys):
    assert main(["verify", str(bundle)]) == 0
    out = capsys.readouterr().out
    assert "passed" in out and "decoder layers" in out and "KL divergence" in out


@pytest.mark.parametrize(
    ("tensor", "change", "stage", "name"),
    [
        (
            "vision.blocks.1.fc1.weight.q_scale",
            lambda t: t[:, ::-1].copy(),
            "vision encoder",
            "block 1",
        ),
        ("vision.pos_embed", lambda t: np.roll(t, 1, axis=0), "vision encoder", "patch embedding"),
        ("resampler.key_positions", lambda t: t * 0, "resampler", "from features"),
        ("llm.layers.1.down.q_scale", lambda t: t * np.float16(1.5), "decoder layers", "layer 1"),
        ("llm.layers.0.qkv.q_weight", lambda t: t ^ 0x11, "decoder layers", "layer 0"),
        (
            "llm.embed.q_scale",
            lambda t: t * np.float16(1.5),
            "prompt embeddings",
            "token embeddings",
        ),
        (
            "llm.norm.weight",
            lambda t: t[::-1].copy() * np.float16(2),
            "LM head",
            "logits",
        ),
    ],
)
def test_an_altered_tensor_is_found_where_it_is(copy, capsys, tensor, change, stage, name):
    _overwrite(copy, tensor, change)
    code, report = _verify(capsys, copy)
    assert code == 1
    assert {"files", "weights", stage} <= set(report["failed_stages"])
    failed = {(c["stage"], c["name"]) for c in report["checks"] if not c["passed"]}
    assert (stage, name) in failed
    stored = tensor.removesuffix(".q_scale").removesuffix(".q_weight")
    assert ("weights", stored) in failed
    # Every stage gets the reference's input, so no other block or layer is blamed.
    local = {n for s, n in failed if s == stage and s in ("vision encoder", "decoder layers")}
    assert local <= {name}


def test_an_altered_program_is_not_run(copy, capsys):
    opened = Bundle.open(copy)
    program = opened.program("host").path
    raw = bytearray(program.read_bytes())
    raw[len(raw) // 2] ^= 1
    program.write_bytes(raw)
    assert main(["verify", str(copy)]) == 2
    assert "altered" in capsys.readouterr().err


def test_a_reference_that_is_not_the_source_is_refused(bundle, tmp_path, capsys):
    other = write_checkpoint(tmp_path / "other", seed=5)
    assert main(["verify", str(bundle), "--reference", str(other)]) == 2
    assert "not the checkpoint" in capsys.readouterr().err


def test_a_reference_that_is_gone_is_named(copy, capsys):
    manifest = json.loads((copy / "bundle.json").read_text())
    manifest["source"]["path"] = "/nowhere/checkpoint"
    (copy / "bundle.json").write_text(json.dumps(manifest))
    assert main(["verify", str(copy)]) == 2
    error = capsys.readouterr().err
    assert "/nowhere/checkpoint" in error and "--reference" in error
