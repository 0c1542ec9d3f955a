"""Opening checkpoints: every format gives the same tensors, and every defect is named."""

import gc
import logging
import os
import re
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from convert import cli
from convert.checkpoint.reader import DEMO, DEMOS, Checkpoint, demo_name
from convert.checkpoint.shards import StoredTensor
from convert.checkpoint.tensor_tables import Rule, bundle_rules
from quantize.errors import ConfigError
from runtime.reference.load import load_reference
from tests.convert.refusal import refuse
from tests.support.tiny import random_state, write_checkpoint
from tests.support.tiny_config import VOCAB_SIZE, tiny_config
from tests.support.tiny_tokenizer import wrong_tokenizers

HEAD, EMBEDDING = "llm.lm_head.weight", "llm.model.embed_tokens.weight"


def with_state(folder, change, **options):
    """Writes a checkpoint whose state `change` has edited in place."""
    state = random_state(tiny_config())
    change(state)
    return write_checkpoint(folder, state=state, **options)


@pytest.mark.parametrize("format", ["safetensors", "bin"])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_formats_give_the_same_tensors(tmp_path, format, shards, dtype):
    written = random_state(tiny_config(), head="none")
    folder = write_checkpoint(tmp_path, format=format, shards=shards, dtype=dtype)
    checkpoint = Checkpoint.open(folder)
    assert set(checkpoint.names()) == set(written)
    for name, tensor in written.items():
        read = checkpoint.read(name)
        assert read.dtype == dtype
        assert torch.equal(read, tensor.to(dtype)), name


@pytest.mark.parametrize("format", ["safetensors", "bin"])
def test_decoder_only(tmp_path, caplog, format):
    folder = write_checkpoint(tmp_path, format=format, decoder_only=True, tokenizer=False)
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.tokenizer is None
    assert any(
        r.levelno == logging.WARNING and "no tokenizer.model" in r.message for r in caplog.records
    )
    written = random_state(tiny_config(decoder_only=True), head="none")
    assert set(checkpoint.names()) == {f"llm.{name}" for name in written}
    read = checkpoint.read(EMBEDDING)
    assert torch.equal(read, written["model.embed_tokens.weight"].bfloat16())


def test_decoder_only_errors_use_the_names_in_the_file(tmp_path):
    config = tiny_config(decoder_only=True)
    state = random_state(config)
    state["model.surprise"] = state.pop("model.norm.weight")
    folder = write_checkpoint(tmp_path, config=config, state=state)
    refuse(folder, "missing: model.norm.weight", "unknown: model.surprise")


@pytest.mark.parametrize(
    ("head", "untied", "word"),
    [
        ("none", False, None),
        ("copy", False, "dropped: equals the token embedding"),
        ("different", True, "differs from the token embedding: kept"),
    ],
)
@pytest.mark.parametrize("format", ["safetensors", "bin"])
def test_head(tmp_path, caplog, format, head, untied, word):
    caplog.set_level(logging.INFO, logger="convert")
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path, format=format, head=head))
    assert checkpoint.untied_head is untied
    assert (HEAD in checkpoint.names()) is untied
    said = [r.message for r in caplog.records if HEAD in r.message]
    assert len(said) == (word is not None) and all(word in line for line in said)


def test_head_that_differs_in_its_last_value_only(tmp_path):
    def change(state):
        state[HEAD][-1, -1] += 1

    assert Checkpoint.open(with_state(tmp_path, change)).untied_head


def test_head_in_another_dtype_but_with_the_same_values(tmp_path):
    state = {name: t.bfloat16() for name, t in random_state(tiny_config()).items()}
    state[HEAD] = state[HEAD].float()
    folder = write_checkpoint(tmp_path)
    save_file(state, folder / "model.safetensors")
    assert not Checkpoint.open(folder).untied_head


def test_known_extras_are_dropped_with_their_reason(tmp_path):
    extras = (
        "llm.model.layers.1.self_attn.rotary_emb.inv_freq",
        "vpm.blocks.4.attn.qkv.weight",
        "vpm.attn_pool.latent",
    )
    folder = with_state(tmp_path, lambda s: s.update(dict.fromkeys(extras, torch.ones(3))))
    checkpoint = Checkpoint.open(folder)
    assert set(checkpoint.dropped) == {*extras, HEAD}
    assert checkpoint.dropped[extras[0]] == "recomputed from rope_theta"
    assert not set(extras) & set(checkpoint.names())


def test_last_vision_block_is_not_dropped_where_it_runs(tmp_path):
    config = tiny_config(drop_vision_last_layer=False)
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path, config=config))
    assert "vpm.blocks.4.attn.qkv.weight" in checkpoint.names()


@pytest.mark.parametrize("grid", [1, 3, 4, 9])
def test_any_square_grid_of_positions(tmp_path, grid):
    positions = {"vpm.pos_embed": torch.zeros(1, grid * grid, 144)}
    Checkpoint.open(with_state(tmp_path, lambda s: s.update(positions)))


def test_all_defects_stand_in_one_error(tmp_path):
    def change(state):
        del state["resampler.proj"], state["vpm.norm.bias"]
        state["vpm.surprise.weight"] = torch.zeros(2)
        state["resampler.query"] = torch.zeros(9, 255)
        state["vpm.pos_embed"] = torch.zeros(1, 10, 144)
        state[HEAD] = torch.zeros(3)

    folder = with_state(tmp_path, change)
    refuse(
        folder,
        str(folder),
        "6 tensors do not fit",
        "missing: vpm.norm.bias, resampler.proj;",
        "unknown: vpm.surprise.weight;",
        "resampler.query is [9, 255], expected [9, 256]",
        "vpm.pos_embed is [1, 10, 144], expected [1, any square number, 144]",
        "llm.lm_head.weight is [3], expected [501, 256]",
    )


def test_long_lists_are_capped_with_a_count(tmp_path):
    def change(state):
        for name in [n for n in state if n.startswith("vpm.")]:
            del state[name]

    folder = with_state(tmp_path, change)
    refuse(folder, "53 tensors do not fit", "and 45 more")


@pytest.mark.parametrize("format", ["safetensors", "bin"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.int8])
def test_wrong_dtype(tmp_path, format, dtype):
    folder = write_checkpoint(tmp_path, format=format, dtype=dtype)
    refuse(folder, "wrong dtype: ", "expected bfloat16, float16, float32")


@pytest.mark.filterwarnings("ignore:Validating sparse tensor:UserWarning")
def test_sparse_tensor(tmp_path):
    state = random_state(tiny_config())
    folder = write_checkpoint(tmp_path, format="bin")
    torch.save(state | {"resampler.proj": torch.eye(256).to_sparse()}, folder / "pytorch_model.bin")
    refuse(folder, "wrong dtype: resampler.proj is torch.sparse_coo float32")


# --- What is there at all


def test_no_folder(tmp_path):
    refuse(tmp_path / "absent", str(tmp_path / "absent"), "no such folder", "Hugging Face id")


@pytest.mark.parametrize("name", DEMOS)
def test_a_demo_has_a_name(name, tmp_path, monkeypatch):
    """A folder here of that name is meant before it."""
    monkeypatch.chdir(tmp_path)
    assert Checkpoint.open(name).path == DEMOS[name]
    assert demo_name(name) == name
    write_checkpoint(tmp_path / name)
    assert Checkpoint.open(name).path == Path(name)
    assert demo_name(name) is None


def test_no_name_is_the_first_demo():
    assert Checkpoint.open(None).path == Checkpoint.open("demo").path == DEMO
    assert demo_name(None) == "demo"


def test_a_file_is_no_folder(tmp_path):
    folder = write_checkpoint(tmp_path)
    refuse(folder / "model.safetensors", "a file; expected a checkpoint's folder")


def test_no_config(tmp_path):
    refuse(tmp_path, "it has no config.json")


def test_another_architecture(tmp_path):
    folder = write_checkpoint(tmp_path)
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    with pytest.raises(ConfigError, match="LlamaForCausalLM"):
        Checkpoint.open(folder)


def test_no_weights(tmp_path):
    folder = write_checkpoint(tmp_path)
    (folder / "model.safetensors").unlink()
    refuse(folder, "has no weights: expected model.safetensors or pytorch_model.bin")


def test_safetensors_are_preferred(tmp_path):
    folder = write_checkpoint(tmp_path)
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    assert folder / "pytorch_model.bin" not in Checkpoint.open(folder).files


def test_multimodal_without_tokenizer(tmp_path):
    refuse(write_checkpoint(tmp_path, tokenizer=False), "lacks tokenizer.model")


@pytest.mark.parametrize("which", wrong_tokenizers())
def test_wrong_tokenizers(tmp_path, which, capsys):
    """At once, whatever command is asked: nothing is written or computed before."""
    folder = write_checkpoint(tmp_path / "checkpoint")
    content, says = wrong_tokenizers()[which]
    (folder / "tokenizer.model").write_bytes(content)
    output = tmp_path / "out"
    for command in (
        ["info", str(folder)],
        ["convert", str(folder), "-o", str(output), "--target", "host"],
        ["chat", str(folder), "--prompt", "What?"],
        ["serve", str(folder)],
    ):
        assert cli.main(command) == 2
        (line,) = capsys.readouterr().err.splitlines()[-1:]
        assert re.search(rf"^CheckpointError: .*tokenizer\.model: .*({says})", line), line
    assert not output.exists()


def test_tokenizer_larger_than_the_vocabulary(tmp_path):
    folder = write_checkpoint(tmp_path, config=tiny_config(vocab_size=499))
    refuse(folder, f"has {VOCAB_SIZE} pieces, more than the 499 rows")


def test_tokenizer_smaller_than_the_vocabulary(tmp_path):
    """Rows may be padded, to a multiple of 256 at most."""
    Checkpoint.open(write_checkpoint(tmp_path / "a", config=tiny_config(vocab_size=512)))
    Checkpoint.open(write_checkpoint(tmp_path / "b", config=tiny_config(vocab_size=756)))
    folder = write_checkpoint(tmp_path / "c", config=tiny_config(vocab_size=757))
    refuse(folder, f"has {VOCAB_SIZE} pieces, fewer than the 757 rows")


# --- Sizes, hash, memory


def test_parts_add_up(tmp_path):
    state = random_state(tiny_config(), head="different")
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path, head="different"))
    parts = {part.name: part for part in checkpoint.parts()}
    names = ["vision encoder", "resampler", "decoder embedding", "decoder layers", "LM head"]
    assert list(parts) == names
    assert sum(p.parameters for p in parts.values()) == sum(t.numel() for t in state.values())
    assert checkpoint.nbytes() == sum(p.nbytes for p in parts.values())
    assert all(p.nbytes == 2 * p.parameters for p in parts.values())
    assert parts["LM head"].parameters == VOCAB_SIZE * 256


def test_source_hash_covers_every_file(tmp_path):
    folder = write_checkpoint(tmp_path, shards=2)
    seen = []
    size = sum(file.stat().st_size for file in folder.iterdir())
    before = Checkpoint.open(folder).source_hash(lambda *state: seen.append(state))
    assert seen[-1] == ("hash checkpoint", size, size)
    for file in sorted(folder.iterdir()):
        kept = file.read_bytes()
        changed = kept.replace(b" ", b"\n", 1) if file.suffix == ".json" else bytearray(kept)
        if file.suffix == ".safetensors":
            changed[-1] ^= 1
        if file.suffix != ".model":
            file.write_bytes(changed)
            assert Checkpoint.open(folder).source_hash() != before, file.name
            file.write_bytes(kept)
    (folder / "README.md").write_text("not part of the model")
    assert Checkpoint.open(folder).source_hash() == before


def test_source_hash_is_computed_once(tmp_path):
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path))
    first = checkpoint.source_hash()
    assert checkpoint.source_hash(lambda *_: pytest.fail("hashed again")) == first


@pytest.mark.parametrize("format", ["safetensors", "bin"])
def test_only_one_tensor_is_held(tmp_path, monkeypatch, format):
    """Loading holds one tensor of the file at a time; a bundle's rule at most its sources."""
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path, format=format))
    held, most = [], []
    read = StoredTensor.read

    def counted(self):
        tensor = read(self)
        held.append(weakref.ref(tensor))
        most.append(sum(ref() is not None for ref in held))
        return tensor

    monkeypatch.setattr(StoredTensor, "read", counted)
    model = load_reference(checkpoint)
    assert len(most) == len(checkpoint.names()) and max(most) == 1
    for row in bundle_rules(checkpoint.config, checkpoint.untied_head):
        if isinstance(row, Rule):
            held.clear(), most.clear()
            row.make(checkpoint.read)
            assert max(most) <= len(row.sources)
    assert model is not None


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="needs Linux")
@pytest.mark.parametrize("format", ["safetensors", "bin"])
def test_files_are_not_mapped_after_reading(tmp_path, format):
    """A model in float32 from a float32 file must not be the file's mapping."""
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path, format=format, dtype=torch.float32))

    def mapped():
        gc.collect()
        with open("/proc/self/maps") as maps:
            return any(str(tmp_path) in line for line in maps)

    tensor = checkpoint.read(EMBEDDING)
    assert mapped(), "the tensor was copied into memory"
    del tensor
    model = load_reference(checkpoint)
    assert not mapped()
    assert model.llm.model.embed_tokens.weight.is_contiguous()
