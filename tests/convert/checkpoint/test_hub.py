"""Checkpoints by their hub id: data only, and one line where it cannot be had."""

import huggingface_hub
import pytest

from convert.checkpoint import hub
from convert.checkpoint.reader import Checkpoint
from tests.convert.refusal import refuse
from tests.support.tiny import write_checkpoint

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
    endings = (".json", ".safetensors", ".bin", "tokenizer.model", "README.md", "LICENSE*")
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
