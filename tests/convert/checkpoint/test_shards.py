"""Sharded, damaged and hostile weight files: each is refused with its name and its defect."""

import json
import os
import shutil
import struct
import zipfile

import pytest
import torch

from convert.checkpoint.reader import Checkpoint
from tests.convert.refusal import refuse
from tests.support.tiny import random_state, write_checkpoint
from tests.support.tiny_config import tiny_config

EMBEDDING = "llm.model.embed_tokens.weight"


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
