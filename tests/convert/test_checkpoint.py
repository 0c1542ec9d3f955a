"""Opening checkpoints: every format gives the same tensors, and every defect is named."""

import gc
import json
import logging
import os
import shutil
import struct
import weakref
import zipfile

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file

from convert import hub
from convert.checkpoint import Checkpoint
from convert.shards import StoredTensor
from convert.weights import Rule, bundle_rules
from quantize.errors import CheckpointError, ConfigError
from runtime.reference.load import load_reference
from tests.tiny import (
    VOCAB_SIZE,
    random_state,
    tiny_config,
    tokenizer_model,
    write_checkpoint,
)

HEAD, EMBEDDING = "llm.lm_head.weight", "llm.model.embed_tokens.weight"


def refuse(source, *says):
    """Asserts that opening fails in one line that says these things."""
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(source)
    message = str(caught.value)
    assert "\n" not in message
    for part in says:
        assert part in message, message


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


def test_damaged_tokenizer(tmp_path):
    folder = write_checkpoint(tmp_path)
    (folder / "tokenizer.model").write_bytes(tokenizer_model()[:-100])
    refuse(folder, "tokenizer.model: not a SentencePiece model")


def test_tokenizer_larger_than_the_vocabulary(tmp_path):
    folder = write_checkpoint(tmp_path, config=tiny_config(vocab_size=499))
    refuse(folder, f"has {VOCAB_SIZE} pieces, more than the 499 rows")


def test_tokenizer_smaller_than_the_vocabulary(tmp_path):
    Checkpoint.open(write_checkpoint(tmp_path, config=tiny_config(vocab_size=503)))


# --- Shards and their index


def edit_index(folder, edit):
    (path,) = folder.glob("*.index.json")
    index = json.loads(path.read_text())
    edit(index["weight_map"])
    path.write_text(json.dumps(index))


def test_missing_shard(tmp_path):
    folder = write_checkpoint(tmp_path, shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    refuse(folder, "model-00002-of-00003.safetensors: no such file")


@pytest.mark.parametrize("format", ["safetensors", "bin"])
def test_same_tensor_in_two_shards(tmp_path, format):
    folder = write_checkpoint(tmp_path, shards=2, format=format)
    first, second = sorted(folder.glob(f"*.{format}"))
    index = next(folder.glob("*.index.json"))
    # One name of the second shard more in the first: made by writing all into the first.
    whole = write_checkpoint(tmp_path / "whole", format=format)
    shutil.copy(next(whole.glob(f"*.{format}")), first)
    assert index.is_file()
    refuse(folder, "duplicate: ", f"in {first.name} and {second.name}")


def test_index_names_a_tensor_that_no_shard_has(tmp_path):
    folder = write_checkpoint(tmp_path, shards=2)
    edit_index(folder, lambda m: m.update({"llm.ghost": "model-00001-of-00002.safetensors"}))
    refuse(folder, "in the index but in no shard: llm.ghost")


def test_index_names_the_wrong_shard(tmp_path):
    folder = write_checkpoint(tmp_path, shards=2)
    files = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    wrong = {files[0]: files[1], files[1]: files[0]}
    edit_index(folder, lambda m: m.update({EMBEDDING: wrong[m[EMBEDDING]]}))
    refuse(folder, "in another shard than the index says: llm.model.embed_tokens.weight")


def test_index_forgets_a_tensor(tmp_path):
    folder = write_checkpoint(tmp_path, shards=2)
    edit_index(folder, lambda m: m.pop(EMBEDDING))
    refuse(folder, f"not in model.safetensors.index.json: {EMBEDDING}")


@pytest.mark.parametrize(
    "shard",
    ["../model.safetensors", "/etc/x.safetensors", "a\\b.safetensors", "..", "a.py", "", 7, None],
)
def test_index_that_leads_elsewhere(tmp_path, shard):
    folder = write_checkpoint(tmp_path / "inside", shards=2)
    write_checkpoint(tmp_path)
    edit_index(folder, lambda m: m.update({EMBEDDING: shard}))
    refuse(folder, "model.safetensors.index.json")


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "[" * 100_000]
)
def test_damaged_index(tmp_path, content):
    folder = write_checkpoint(tmp_path, shards=2)
    (folder / "model.safetensors.index.json").write_text(content)
    refuse(folder, "model.safetensors.index.json")


# --- Damaged and hostile safetensors


def rewrite_header(path, edit):
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    edit(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])


def overlap(header):
    query = header["resampler.query"]
    header["resampler.pos_embed"]["data_offsets"] = query["data_offsets"]


def beyond_the_end(header):
    last = max(header.values(), key=lambda t: t.get("data_offsets", [0, 0])[1])
    last["data_offsets"][1] += 1 << 40
    last["shape"] = [1 << 39]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:4]),
        lambda path: path.write_bytes(path.read_bytes()[:1000]),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes() + b"\0"),
        lambda path: path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:]),
        lambda path: path.write_bytes(os.urandom(4096)),
        lambda path: rewrite_header(path, overlap),
        lambda path: rewrite_header(path, beyond_the_end),
        lambda path: rewrite_header(path, lambda h: h["resampler.query"].pop("shape")),
        lambda path: rewrite_header(path, lambda h: h["resampler.query"]["shape"].append(2)),
        lambda path: rewrite_header(path, lambda h: h["resampler.query"].update(shape=[-9, -256])),
    ],
    ids=[
        "empty", "no header", "half a header", "truncated", "oversized", "huge header", "noise",
        "overlapping", "beyond the end", "no shape", "shape and bytes differ", "negative",
    ],
)  # fmt: skip
def test_damaged_safetensors(tmp_path, damage):
    folder = write_checkpoint(tmp_path, shards=2)
    path = folder / "model-00002-of-00002.safetensors"
    if "resampler.query" not in path.read_bytes()[:20_000].decode("latin-1"):
        path = folder / "model-00001-of-00002.safetensors"
    damage(path)
    refuse(folder, f"{path}: damaged")


def test_git_lfs_pointer(tmp_path):
    folder = write_checkpoint(tmp_path)
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid 1")
    refuse(folder, "a Git LFS pointer", "git lfs pull")


# --- Damaged and hostile pickles


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_pickled_code_is_refused_and_never_run(tmp_path):
    folder, marker = write_checkpoint(tmp_path, format="bin"), tmp_path / "was_run"
    torch.save({"x": Bomb(marker)}, folder / "pytorch_model.bin")
    refuse(folder, "pytorch_model.bin: refused", "code or objects")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"epoch": 3}, "entry 'epoch' is a int"),
        ({"model": {"x": torch.ones(1)}}, "entry 'model' is a dict"),
        ({3: torch.ones(1)}, "entry 3 is a Tensor"),
        ([torch.ones(1)], "holds a list"),
    ],
)
def test_pickle_that_is_no_state_dict(tmp_path, content, says):
    folder = write_checkpoint(tmp_path, format="bin")
    torch.save(content, folder / "pytorch_model.bin")
    refuse(folder, "pytorch_model.bin", says, "expected a state dict")


@pytest.mark.parametrize("kept", [0, 100, -1000])
def test_truncated_pickle(tmp_path, kept):
    folder = write_checkpoint(tmp_path, format="bin")
    path = folder / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:kept])
    refuse(folder, "pytorch_model.bin: truncated")


def test_pickle_of_old_pytorch(tmp_path):
    folder = write_checkpoint(tmp_path, format="bin")
    path = folder / "pytorch_model.bin"
    torch.save({"x": torch.ones(1)}, path, _use_new_zipfile_serialization=False)
    refuse(folder, "pytorch_model.bin", "PyTorch 1.6")


def test_compressed_pickle(tmp_path):
    folder = write_checkpoint(tmp_path, format="bin")
    path = folder / "pytorch_model.bin"
    with zipfile.ZipFile(path) as plain:
        entries = {name: plain.read(name) for name in plain.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in entries.items():
            packed.writestr(name, data)
    refuse(folder, "compressed entries")


def test_parameters_in_a_pickle_are_tensors(tmp_path):
    folder = write_checkpoint(tmp_path, format="bin")
    state = {n: torch.nn.Parameter(t) for n, t in random_state(tiny_config()).items()}
    torch.save(state, folder / "pytorch_model.bin")
    assert not Checkpoint.open(folder).read(EMBEDDING).requires_grad


# --- The hub


@pytest.mark.parametrize("format", ["safetensors", "bin"])
def test_hub_id_fetches_data_only(tmp_path, monkeypatch, format):
    folder, asked = write_checkpoint(tmp_path, format=format), []

    def snapshot_download(repo_id, allow_patterns):
        assert repo_id == "openbmb/MiniCPM-V"
        asked.append(allow_patterns)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert Checkpoint.open("openbmb/MiniCPM-V").path == folder
    assert any("pytorch_model*.bin" in patterns for patterns in asked) is (format == "bin")
    endings = (".json", ".safetensors", ".bin", "tokenizer.model")
    assert all(pattern.endswith(endings) for patterns in asked for pattern in patterns)


def test_hub_offline(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    refuse("openbmb/MiniCPM-V", "openbmb/MiniCPM-V: ", "no connection", "try a local folder")


def test_hub_error_is_one_line(monkeypatch):
    def fail(*_, **__):
        raise OSError("first line\nsecond line")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    refuse("openbmb/MiniCPM-V", "first line second line", "try a local folder")


def test_local_folder_wins_over_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "openbmb" / "MiniCPM-V")
    assert Checkpoint.open("openbmb/MiniCPM-V").untied_head is False


@pytest.mark.parametrize("name", ["model", "/a/b", "../a", "a/b/c", "./a", "a/..", "a b/c"])
def test_paths_are_no_hub_ids(name):
    assert not hub.is_hub_id(name)


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
    before = Checkpoint.open(folder).source_hash(lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] == sum(f.stat().st_size for f in folder.iterdir())
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
