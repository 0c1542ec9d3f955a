"""The real checkpoint of 1.0, laid out by its own index and configuration; values are holes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from convert import cli
from convert import encode as encoding
from convert.bundle.plan import Plan, Recipe, make_plan
from convert.bundle.weights_file import WeightsFile
from convert.checkpoint.config import CONFIGS, ModelConfig
from convert.checkpoint.reader import Checkpoint
from convert.checkpoint.synth_tokenizer import generate_tokenizer
from convert.checkpoint.tensor_tables import HEAD
from convert.encode import write_weights
from tests.support.bundles import without_programs

GOLDEN = Path(__file__).parents[2] / "golden" / "minicpm-v-1.0"
CONFIG = CONFIGS / "model" / "minicpm-v-1.0.json"
POSITIONS = "vpm.pos_embed"
TOTAL = 6_869_931_584  # bytes, as the real index says
VOCAB, DIM, MLP, LAYERS = 122_753, 2304, 5760, 40  # of the decoder, spelled out once more
VISION, VISION_MLP, BLOCKS, GRID, QUERIES = 1152, 4304, 26, 27, 64
# The bytes of the weights file: with a head that equals the embedding, and with one of its own.
SIZES = {
    "q4f16_1": (1_978_570_624, 2_137_678_144),
    "small": (1_978_570_624, 2_137_678_144),
    "balanced": (2_106_740_480, 2_394_017_792),
    "best": (2_491_600_768, 2_778_878_080),
    "mlc": (2_390_270_400, 2_549_377_920),
}


def shapes() -> dict[str, tuple[int, ...]]:
    """Returns what the original's modules are made of, apart from the toolkit's own tables."""
    found: dict[str, tuple[int, ...]] = {
        "llm.model.embed_tokens.weight": (VOCAB, DIM),
        "llm.lm_head.weight": (VOCAB, DIM),
        "llm.model.norm.weight": (DIM,),
        POSITIONS: (1, GRID * GRID, VISION),
        "vpm.patch_embed.proj.weight": (VISION, 3, 14, 14),
        "vpm.patch_embed.proj.bias": (VISION,),
        "resampler.query": (QUERIES, DIM),
        "resampler.pos_embed": (QUERIES, DIM),
        "resampler.proj": (DIM, DIM),
        "resampler.kv_proj.weight": (DIM, VISION),
        "resampler.attn.in_proj_weight": (3 * DIM, DIM),
        "resampler.attn.in_proj_bias": (3 * DIM,),
    }
    with_bias: dict[str, tuple[int, ...]] = {"resampler.attn.out_proj": (DIM, DIM)}
    with_bias |= {f"resampler.{norm}": (DIM,) for norm in ("ln_q", "ln_kv", "ln_post")}
    with_bias["vpm.norm"] = (VISION,)
    for i in range(BLOCKS):
        block = f"vpm.blocks.{i}"
        with_bias |= {f"{block}.norm1": (VISION,), f"{block}.norm2": (VISION,)}
        with_bias |= {f"{block}.attn.qkv": (3 * VISION, VISION)}
        with_bias |= {f"{block}.attn.proj": (VISION, VISION)}
        with_bias |= {f"{block}.mlp.fc1": (VISION_MLP, VISION)}
        with_bias |= {f"{block}.mlp.fc2": (VISION, VISION_MLP)}
    for name, shape in with_bias.items():
        found |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for i in range(LAYERS):
        layer = f"llm.model.layers.{i}"
        found |= {f"{layer}.self_attn.{p}_proj.weight": (DIM, DIM) for p in "qkvo"}
        found |= {f"{layer}.mlp.{p}_proj.weight": (MLP, DIM) for p in ("gate", "up")}
        found[f"{layer}.mlp.down_proj.weight"] = (DIM, MLP)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found[f"{layer}.{norm}.weight"] = (DIM,)
    return found


def lay_out(folder: Path, values: Mapping[str, torch.Tensor]) -> Path:
    """Writes the checkpoint's folder: shards of holes, but for the values given (bfloat16)."""
    folder.mkdir()
    shutil.copyfile(CONFIG, folder / "config.json")
    for file in GOLDEN.glob("*.json"):
        shutil.copyfile(file, folder / file.name)
    (folder / "tokenizer.model").write_bytes(generate_tokenizer(VOCAB))
    index = json.loads((GOLDEN / "model.safetensors.index.json").read_text())
    of_shard: dict[str, list[str]] = {}
    for name, shard in index["weight_map"].items():
        of_shard.setdefault(shard, []).append(name)
    known, total = shapes(), 0
    for shard, names in of_shard.items():
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        starts, end = {}, 0
        for name in names:
            starts[name], end = end, end + 2 * int(np.prod(known[name]))
            offsets = [starts[name], end]
            header[name] = {"dtype": "BF16", "shape": known[name], "data_offsets": offsets}
        text = json.dumps(header).encode()
        text = text.ljust(-(-len(text) // 8) * 8)
        with (folder / shard).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in values.keys() & starts.keys():
                file.seek(8 + len(text) + starts[name])
                file.write(values[name].bfloat16().view(torch.uint8).numpy().tobytes())
            file.truncate(8 + len(text) + end)
        total += end
    assert total == index["metadata"]["total_size"] == TOTAL
    assert known.keys() == index["weight_map"].keys() and len(known) == 694
    return folder


@pytest.fixture(scope="module")
def positions() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(GRID, GRID, VISION, generator=generator).bfloat16()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, positions: torch.Tensor) -> Path:
    values = {POSITIONS: positions, HEAD: torch.ones(1)}  # a head of its own, from its first value
    return lay_out(tmp_path_factory.mktemp("real") / "MiniCPM-V", values)


def test_it_opens_with_all_its_tensors(folder: Path, positions: torch.Tensor) -> None:
    checkpoint = Checkpoint.open(folder)
    assert len(checkpoint.names()) == 694 and not checkpoint.dropped
    assert checkpoint.nbytes() == TOTAL
    assert checkpoint.untied_head
    assert checkpoint.config == ModelConfig.load(CONFIG)
    assert torch.equal(checkpoint.read(POSITIONS), positions.reshape(1, GRID * GRID, VISION))


def test_a_head_that_is_the_embedding_is_dropped(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(lay_out(tmp_path / "MiniCPM-V", {}))
    assert checkpoint.dropped == {HEAD: "equals the token embedding"}
    assert len(checkpoint.names()) == 693


@pytest.mark.parametrize("recipe", SIZES)
def test_every_recipe_holds_it(folder: Path, recipe: str) -> None:
    checkpoint = Checkpoint.open(folder)
    tied, own = (make_plan(checkpoint.config, u, Recipe.load(recipe)) for u in (False, True))
    assert (tied.nbytes, own.nbytes) == SIZES[recipe]
    assert own.parameters - tied.parameters == VOCAB * DIM


def test_conversion_starts(folder: Path, tmp_path: Path, positions: torch.Tensor) -> None:
    """Tensors of every kind of transform; the grid of 27 x 27 becomes one of 32 x 32."""
    checkpoint = Checkpoint.open(folder)
    whole = make_plan(checkpoint.config, checkpoint.untied_head, Recipe.load("q4f16_1"))
    names = {"vision.patch_embed.weight", "vision.pos_embed", "vision.blocks.25.qkv.weight"}
    names |= {"resampler.query", "resampler.key_positions", "resampler.proj.weight"}
    names |= {"llm.layers.39.qkv", "llm.layers.0.down", "llm.norm.weight"}
    few = Plan(whole.recipe, tuple(t for t in whole.tensors if t.name in names), whole.kv)
    assert len(few.tensors) == len(names)
    write_weights(checkpoint, few, tmp_path / "weights", lambda *_: None)
    stored = WeightsFile(tmp_path / "weights")
    assert stored.specs() == few.stored
    grid = positions.float().permute(2, 0, 1).unsqueeze(0)
    wide = F.interpolate(grid, size=(32, 32), mode="bicubic", antialias=True)
    expected = wide.squeeze(0).permute(1, 2, 0).reshape(1024, VISION)
    np.testing.assert_array_equal(stored["vision.pos_embed"], expected.numpy())


def test_the_command_begins_to_write(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    made: list[str] = []

    def encode(weight: Any, tensor: Any, *more: Any) -> Any:
        if len(made) == 4:
            raise KeyboardInterrupt
        made.append(tensor.name)
        return real(weight, tensor, *more)

    real = encoding.encode
    without_programs(monkeypatch)
    monkeypatch.setattr(encoding, "encode", encode)
    monkeypatch.setattr(Checkpoint, "source_hash", lambda *_: "0" * 64)  # of 6.9 GB
    command = ["convert", str(folder), "-o", str(tmp_path / "bundle"), "--target", "host"]
    code = cli.main([*command, "--method", "rtn"])
    said = capsys.readouterr()
    assert (code, said.err.splitlines()[-1]) == (cli.INTERRUPTED, "interrupted")
    assert made[:3] == [
        f"vision.{n}" for n in ("patch_embed.weight", "patch_embed.bias", "pos_embed")
    ]
    assert "LM head of its own" in said.out
