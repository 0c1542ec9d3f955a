"""Synthetic checkpoints: names, bytes, what a model makes of them, and what is refused."""

from __future__ import annotations

import errno
import json
import zipfile
from collections import namedtuple
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image

from convert import cli
from convert.bundle.plan import Recipe, make_plan
from convert.checkpoint import synth
from convert.checkpoint import writer as checkpoint_writer
from convert.checkpoint.config import ModelConfig
from convert.checkpoint.reader import DEMOS, Checkpoint
from convert.checkpoint.synth_tokenizer import generate_tokenizer
from convert.checkpoint.writer import TensorEntry, write_weights
from convert.encode import write_weights as convert_weights
from runtime.inputs.prompt import Message, Tokenizer
from runtime.reference.load import load_reference
from runtime.sessions.chat import ChatModel
from tests.support.bundles import snapshot
from tests.support.tiny import random_state
from tests.support.tiny_config import tiny_config
from tests.support.tiny_tokenizer import tokenizer_model

SHARED = Path(__file__).resolve().parents[3] / "../shared/model"
WIDTH = 256  # of the tiny model's hidden state
# The largest that a configuration may say: half a petabyte.
VAST = {
    "vocab_size": 2**24, "hidden_size": 2**17, "intermediate_size": 2**19,
    "num_hidden_layers": 1024, "num_attention_heads": 2**12, "num_key_value_heads": 2**12,
}  # fmt: skip


def _config_file(folder: Path, **overrides: Any) -> Path:
    path = folder / "tiny.json"
    path.write_text(json.dumps(tiny_config(**overrides)))
    return path


def _synth(output: Path, *arguments: object) -> int:
    return cli.main(["synth", "-o", str(output), *map(str, arguments)])


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return _config_file(tmp_path)


def _state(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return {name: checkpoint.read(name) for name in checkpoint.names()}


@pytest.mark.parametrize("decoder_only", [False, True])
def test_names_and_shapes_are_those_of_a_checkpoint(decoder_only: bool) -> None:
    """The test model's table is spelled out apart from the toolkit's."""
    raw = tiny_config(decoder_only=decoder_only)
    entries = synth.stored_tensors(ModelConfig.from_json(raw), "bfloat16")
    shapes = {entry.name: entry.shape for entry in entries}
    expected = {name: tuple(t.shape) for name, t in random_state(raw).items()}
    if not decoder_only:  # the encoder's name says 126 pixels, the test model stores another grid
        expected["vpm.pos_embed"] = (1, 9 * 9, 144)
    assert shapes == expected


def test_the_shapes_of_2_0() -> None:
    """The published checkpoint's, `../shared/model/minicpm-v-2.0.md`."""
    entries = synth.stored_tensors(synth.load_config("minicpm-v-2.0"), "bfloat16")
    shapes = {entry.name: entry.shape for entry in entries}
    assert len(entries) == 694
    assert round(sum(entry.count for entry in entries) / 1e5) == 34350
    assert shapes["llm.lm_head.weight"] == (122753, 2304)
    blocks = {name.split(".")[2] for name in shapes if name.startswith("vpm.blocks.")}
    assert len(blocks) == 26 and not any(".attn_pool." in name for name in shapes)


def test_the_real_model_s_shapes() -> None:
    entries = synth.stored_tensors(synth.load_config("minicpm-v-1.0"), "bfloat16")
    shapes = {entry.name: entry.shape for entry in entries}
    assert shapes["vpm.pos_embed"] == (1, 729, 1152)
    assert shapes["llm.lm_head.weight"] == (122753, 2304)
    assert sum(entry.count for entry in entries) == pytest.approx(3.43e9, rel=2e-3)


def test_the_real_model_s_manifest() -> None:
    """That of the original's 4-bit build: undone here what it joined, packed and derived."""
    path = SHARED / "minicpm-v" / "ndarray-cache.json"
    if not path.is_file():
        pytest.skip("the real model's manifest is not at hand")
    records = [r for file in json.loads(path.read_text())["records"] for r in file["records"]]
    found = {record["name"]: tuple(record["shape"]) for record in records}
    expected: dict[str, tuple[int, ...]] = {}
    for entry in synth.stored_tensors(synth.load_config("minicpm-v-1.0"), "bfloat16"):
        expected[entry.name] = entry.shape
    del expected["llm.lm_head.weight"]
    del expected["vpm.pos_embed"], found["vpm.pos_embed"], found["resampler.pos_embed_k"]
    for name in [n for n in found if n.endswith((".q_scale", ".q_zero"))]:
        del found[name]
    for name in [n for n in found if n.endswith(".q_weight")]:
        rows, words = found.pop(name)
        found[name.replace(".q_weight", ".weight")] = (rows, words * 8)
    joined = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
    for name in list(found):
        for whole, parts in joined.items():
            if f".{whole}." in name and name.startswith("llm."):
                rows, width = found.pop(name)
                for part in parts:
                    found[name.replace(whole, part)] = (rows // len(parts), width)
    for kind in ("weight", "bias"):
        parts = [found.pop(f"resampler.attn.{p}_proj.{kind}") for p in "qkv"]
        found[f"resampler.attn.in_proj_{kind}"] = (sum(p[0] for p in parts), *parts[0][1:])
    assert found == expected


def test_the_seed_decides_every_byte(tiny: Path, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "two", "other")]
    for folder, seed, threads in zip(folders, (3, 3, 4), (1, 4, 4), strict=True):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            assert _synth(folder, "--config", tiny, "--seed", seed) == 0
        finally:
            torch.set_num_threads(before)
    one, two, other = map(snapshot, folders)
    assert one == two
    assert one["tokenizer.model"] == other["tokenizer.model"]
    first, last = (_state(Checkpoint.open(folders[i])) for i in (0, 2))
    assert all(not torch.equal(first[name], last[name]) for name in first)


@pytest.mark.parametrize("name", ["llm.model.layers.0.mlp.down_proj.weight", "vpm.pos_embed"])
def test_the_pieces_do_not_matter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (1, 50, 144) if name == "vpm.pos_embed" else (256, 320)

    def values() -> list[np.ndarray[Any, Any]]:
        return list(synth._values(name, shape, "float32", 1))

    whole = np.concatenate(values())
    for size in (64, 1028):
        monkeypatch.setattr(synth, "_PIECE", size)
        pieces = values()
        assert len(pieces) > 5
        np.testing.assert_array_equal(np.concatenate(pieces), whole)


def test_the_distribution() -> None:
    shape = (4001, 256)  # odd, so that the last piece is short
    name = "llm.model.layers.0.self_attn.q_proj.weight"
    values = np.concatenate(list(synth._values(name, shape, "float32", 0))).view(np.float32)
    normal = values.astype(np.float64) * 16  # standard deviation 1 / sqrt(256)
    assert normal.size == 4001 * 256
    # Of a million values; the bounds are six standard errors.
    assert abs(normal.mean()) < 0.006
    assert normal.var() == pytest.approx(1, abs=0.009)
    assert (normal**4).mean() == pytest.approx(3, abs=0.06)
    rows = normal.reshape(shape)
    assert np.abs(rows[:-1] * rows[1:]).mean() == pytest.approx(2 / np.pi, abs=0.005)
    assert abs((rows[:, :-1] * rows[:, 1:]).mean()) < 0.006


def test_outlier_channels(tiny: Path, tmp_path: Path) -> None:
    """The same in the embedding and in every layer; the final norm takes them back."""
    assert _synth(tmp_path / "out", "--config", tiny, "--dtype", "fp32") == 0
    state = _state(Checkpoint.open(tmp_path / "out"))

    def outliers(sizes: torch.Tensor) -> set[int]:
        return set((sizes > 4 * sizes.median()).nonzero().flatten().tolist())

    columns = state["llm.model.embed_tokens.weight"].std(dim=0)
    channels = outliers(columns)
    assert len(channels) == synth.OUTLIERS
    for layer in range(2):
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            rows = state[f"llm.model.layers.{layer}.{name}.weight"].std(dim=1)
            assert outliers(rows) == channels
    rest = sorted(set(range(WIDTH)) - channels)
    ratio = columns[sorted(channels)].mean() / columns[rest].mean()
    assert ratio.item() == pytest.approx(synth.OUTLIER_FACTOR, rel=0.1)
    norm = state["llm.model.norm.weight"]
    assert (norm[sorted(channels)] * synth.OUTLIER_FACTOR).mean().item() == pytest.approx(1, 0.2)
    assert outliers(state["vpm.pos_embed"][0].std(dim=0)) == outliers(
        state["vpm.blocks.1.mlp.fc2.weight"].std(dim=1)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_model_of_full_depth_computes_sane_numbers(tmp_path: Path, dtype: torch.dtype) -> None:
    config = _config_file(tmp_path, num_hidden_layers=40)
    assert _synth(tmp_path / "out", "--config", config) == 0
    model = load_reference(Checkpoint.open(tmp_path / "out"), dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 501, (1, 24), generator=generator)
    pixels = torch.rand(1, 3, 56, 56, generator=generator) * 2 - 1
    with torch.inference_mode():
        image, text = model.encode_image(pixels.to(dtype)), model.llm.embed(ids)
        hidden = model.llm(torch.cat((image, text), dim=1))
        logits = model.llm.logits(hidden)
    for values, low, high in ((image, 0.3, 4), (text, 0.3, 4), (hidden, 0.3, 4), (logits, 0.1, 4)):
        assert values.isfinite().all()
        assert low < values.float().std().item() < high


@pytest.mark.parametrize("format", ["safetensors", "bin"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_shards_are_what_hugging_face_reads(tmp_path: Path, format: str, dtype: str) -> None:
    config = ModelConfig.from_json(tiny_config())
    limit = 500_000
    (tmp_path / "tokenizer.model").write_bytes(tokenizer_model())
    heard: list[tuple[int, int]] = []
    entries = synth.write_synthetic(
        tmp_path,
        config,
        dtype=dtype,
        seed=0,
        format=format,
        progress=lambda _, done, total: heard.append((done, total)),
        shard_bytes=limit,
    )
    assert heard[-1] == (heard[-1][1],) * 2
    assert heard == sorted(heard)
    checkpoint = Checkpoint.open(tmp_path)
    assert not checkpoint.untied_head
    assert list(checkpoint.dropped) == ["llm.lm_head.weight"]
    state = _state(checkpoint)
    assert {t.dtype for t in state.values()} == {getattr(torch, dtype)}
    split = huggingface_hub.split_torch_state_dict_into_shards(
        {e.name: torch.empty(e.shape, dtype=getattr(torch, dtype), device="meta") for e in entries},
        max_shard_size=limit,
        filename_pattern=f"{checkpoint_writer.FORMATS[format]}{{suffix}}.{format}",
    )
    assert len(split.filename_to_tensors) > 3
    index = json.loads(next(tmp_path.glob("*.index.json")).read_text())
    assert index["weight_map"] == split.tensor_to_filename
    assert index["metadata"] == split.metadata
    # The values in one file and in the other format.
    whole = tmp_path / "whole"
    whole.mkdir()
    (whole / "tokenizer.model").write_bytes(tokenizer_model())
    other = "safetensors" if format == "bin" else "bin"
    synth.write_synthetic(
        whole, config, dtype=dtype, seed=0, format=other, progress=lambda *_: None
    )
    assert not list(whole.glob("*.index.json"))
    same = _state(Checkpoint.open(whole))
    assert all(torch.equal(same[name], state[name]) for name in state)


@pytest.mark.parametrize("large", [False, True])
def test_the_zip_format_is_torch_s(
    large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:
        monkeypatch.setattr(checkpoint_writer, "_LARGE", 1)
    expected = {"a": torch.arange(15.0).view(3, 5), "b": torch.ones(1), "c": torch.rand(2, 3, 4)}
    entries = [TensorEntry(name, tuple(t.shape), "float32") for name, t in expected.items()]
    write_weights(tmp_path, entries, lambda e: [expected[e.name].numpy().reshape(-1)], format="bin")
    path = tmp_path / "pytorch_model.bin"
    for mapped in (False, True):
        loaded = torch.load(path, weights_only=True, mmap=mapped)
        assert list(loaded) == list(expected)
        for name, tensor in expected.items():
            assert torch.equal(loaded[name], tensor)
            assert loaded[name].is_contiguous()
            if mapped:
                assert loaded[name].data_ptr() % 64 == 0
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


def test_the_generated_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(generate_tokenizer(30_000))
    tokenizer = Tokenizer(path)
    assert tokenizer.vocab_size == 30_000
    assert (tokenizer.image_start_id, tokenizer.image_end_id) == (101, 102)
    for text in (" What  is this?\n", "这个图形是什么颜色？", "🙂 <image> \x00é"):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert 101 not in ids
    assert len(tokenizer.encode("that")) < 4  # longer pieces are found
    prompt = tokenizer.prompt([Message(role="user", content="What?")], 9)
    assert prompt.ids[prompt.image_start or 0 :][:9] == [0] * 9


def test_a_checkpoint_with_slices(tmp_path: Path) -> None:
    """Its tokenizer has reserved pieces where the tags of slices are."""
    path = tmp_path / "sliced.json"
    slices = {"slice_mode": True, "max_slice_nums": 9, "scale_resolution": 56}
    path.write_text(json.dumps(tiny_config(**slices)))
    assert _synth(tmp_path / "out", "--config", path) == 0
    checkpoint = Checkpoint.open(tmp_path / "out")
    assert checkpoint.tokenizer is not None
    tokenizer = Tokenizer(checkpoint.tokenizer, checkpoint.config)
    prompt = tokenizer.prompt([Message(role="user", content="What?")], 9, grid=(2, 1))
    assert prompt.ids.index(111) < prompt.ids.index(112)
    with ChatModel(tmp_path / "out", device="cpu") as model:
        picture = Image.new("RGB", (100, 60), "red")
        question = [Message(role="user", content="What?")]
        model.chat(picture, question, sampling=True, max_new_tokens=1)


@pytest.mark.parametrize("name", DEMOS)
def test_a_demo_s_shape(name: str, tmp_path: Path) -> None:
    """Random weights in the shapes of a demo's checkpoint, with its tokenizer."""
    tokenizer = DEMOS[name] / "tokenizer.model"
    assert _synth(tmp_path / "out", "--config", name, "--tokenizer", tokenizer) == 0
    made, demo = (_state(Checkpoint.open(source)) for source in (tmp_path / "out", name))
    assert {n: t.shape for n, t in made.items()} == {n: t.shape for n, t in demo.items()}


def test_it_can_be_converted(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _synth(tmp_path / "out", "--config", tiny, "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["config"]["tokenizer"] == "generated"
    files = [p for p in (tmp_path / "out").iterdir() if p.suffix == ".safetensors"]
    assert 0 < sum(p.stat().st_size for p in files) - summary["bytes"] < 50_000  # the headers
    checkpoint = Checkpoint.open(tmp_path / "out")
    plan = make_plan(checkpoint.config, checkpoint.untied_head, Recipe.load("q4f16_1"))
    convert_weights(checkpoint, plan, tmp_path / "weights", lambda *_: None)
    assert (tmp_path / "weights").stat().st_size == plan.nbytes


def test_a_tokenizer_is_copied(tiny: Path, tmp_path: Path) -> None:
    given = tmp_path / "given.model"
    given.write_bytes(tokenizer_model())
    assert _synth(tmp_path / "out", "--config", tiny, "--tokenizer", given) == 0
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == tokenizer_model()


def test_an_earlier_one_is_replaced(tiny: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    for seed, format in ((0, "safetensors"), (1, "bin")):
        assert _synth(output, "--config", tiny, "--seed", seed, "--format", format) == 0
    assert sorted(p.name for p in output.iterdir()) == [
        "config.json", "pytorch_model.bin", "synth.json", "tokenizer.model",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--config", "minicpm-v-9"], "minicpm-v-1.0, minicpm-v-2.0, demo"),
        (["--config", "TMP"], "is unknown"),
        (["--config", "TMP/empty"], "cannot be read as JSON"),
        (["--config", "TMP/tiny.json", "--tokenizer", "TMP/empty"], "is empty"),
        (["--config", "TMP/tiny.json", "--tokenizer", "TMP/none"], "cannot be read: No such"),
        (["--config", "TMP/tiny.json", "--tokenizer", "TMP/large.model"], "has 502 pieces"),
        (["--config", "TMP/few.json"], "a generated tokenizer needs 366"),
        (["--config", "TMP/vast.json"], "free some space"),
        (["--config", "TMP/tiny.json", "--output", "TMP"], "synth.json is missing or not ours"),
    ],
)
def test_refusals(
    tiny: Path,
    tmp_path: Path,
    arguments: list[str],
    problem: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").write_text("")
    (tmp_path / "large.model").write_bytes(generate_tokenizer(502))
    (tmp_path / "few.json").write_text(json.dumps(tiny_config(vocab_size=300)))
    (tmp_path / "vast.json").write_text(json.dumps(tiny_config(**VAST)))
    before = sorted(tmp_path.iterdir())
    arguments = [argument.replace("TMP", str(tmp_path)) for argument in arguments]
    assert _synth(tmp_path / "out", *arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert problem in lines[0]
    assert sorted(tmp_path.iterdir()) == before


def test_no_space(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr("convert.support.output_folder.shutil.disk_usage", lambda _: usage(10_000))
    assert _synth(tmp_path / "out", "--config", tiny) == 2
    assert "the checkpoint takes about" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [tiny]


def test_a_disk_that_runs_full_leaves_nothing(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint_writer, "_write_values", fail)
    assert _synth(tmp_path / "a" / "out", "--config", tiny) == 2
    assert "the disk became full while the checkpoint was written" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [tiny]
