"""Chat on a bundle: compiled blocks, or the checkpoint behind it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from convert import cli
from quantize.errors import BundleError, CheckpointError, ConfigError
from runtime.chat import ChatModel, OmniLMMChat, img2base64
from runtime.loader import is_bundle, load
from runtime.sampling import GenerationOptions
from runtime.session import Session
from tests.tiny import random_state, tiny_config, write_checkpoint

QUESTION = {"role": "user", "content": "What colour is the shape?"}
RED = Image.new("RGB", (60, 40), "red")
ANSWER = GenerationOptions(max_new_tokens=8)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A checkpoint whose layers outweigh its tied embedding: it does not just repeat."""
    config = tiny_config(scale_emb=1, scale_depth=12)
    state = random_state(config, seed=4)
    state["llm.model.embed_tokens.weight"] *= 4
    state["llm.lm_head.weight"] *= 4
    folder = tmp_path_factory.mktemp("models") / "checkpoint"
    return write_checkpoint(folder, config=config, state=state, dtype=torch.float32)


@pytest.fixture(scope="module")
def bundle(checkpoint) -> Path:
    folder = checkpoint.with_name("bundle")
    assert cli.main(["convert", str(checkpoint), "-o", str(folder)]) == 0
    return folder


def test_a_bundle_is_told_from_a_checkpoint(checkpoint, bundle):
    assert is_bundle(bundle)
    assert not is_bundle(checkpoint)
    assert not is_bundle(None)
    assert not is_bundle("openbmb/MiniCPM-V")


def test_a_bundle_runs_on_compiled_blocks_and_reuses_its_cache(bundle):
    loaded = load(bundle)
    assert "local engine (q4f16_1)" in loaded.description
    session = Session(loaded.backend, loaded.tokenizer, window=48)
    messages, answers = [QUESTION], []
    for _ in range(3):
        reply = session.reply(messages, RED, ANSWER)
        fresh = Session(loaded.backend, loaded.tokenizer, window=48).reply(messages, RED, ANSWER)
        assert reply.ids == fresh.ids
        answers.append(reply)
        messages = [*messages, {"role": "assistant", "content": reply.text}, QUESTION]
    assert answers[1].statistics.reused_tokens >= answers[0].statistics.prompt_tokens - 3
    assert answers[-1].statistics.prompt_tokens > 48  # the window slid
    assert len(set(answers[0].ids)) > 2


def test_the_bundle_says_what_its_checkpoint_says(bundle):
    """Its 4-bit logits stay near the reference's: a wrong picture or scale would be far."""
    compiled, reference = load(bundle), load(bundle, engine="reference", device="cpu")
    assert "reference engine (float32, cpu)" in reference.description
    hidden = []
    for backend in (compiled.backend, reference.backend):
        image = backend.encode_image(torch.rand(1, 3, 56, 56, generator=torch.manual_seed(0)))
        cache = backend.new_cache(64, 20)
        embeds = torch.cat((backend.embed([1, 150, 101]), image, backend.embed([102, 200])))
        hidden.append(backend.logits(backend.forward(embeds, cache))[-1])
    assert torch.corrcoef(torch.stack(hidden))[0, 1] > 0.95


def test_the_api_takes_a_bundle(bundle, tmp_path):
    RED.save(tmp_path / "red.png")
    inputs = {"image": img2base64(tmp_path / "red.png"), "question": json.dumps([QUESTION])}
    omni = OmniLMMChat(bundle)
    omni.model._settings = replace(omni.model._settings, max_new_tokens=4)
    assert isinstance(omni.chat(inputs), str)


def test_beam_search_on_a_bundle_says_what_to_do(bundle):
    model = ChatModel(bundle)
    with pytest.raises(ConfigError, match="choose sampling, or one beam, or the reference engine"):
        model.chat(RED, [QUESTION])
    answer, _, config = model.chat(RED, [QUESTION], num_beams=1, max_new_tokens=4)
    assert isinstance(answer, str)
    assert config == {"num_beams": 1, "repetition_penalty": 1.2}


def test_the_command_takes_a_bundle(bundle, capsys):
    arguments = ["chat", str(bundle), "--prompt", "What?", "--greedy", "--max-new-tokens", "3"]
    assert cli.main(arguments) == 0
    assert "local engine" in capsys.readouterr().err
    assert cli.main([*arguments, "--engine", "reference", "--device", "cpu"]) == 0
    assert "reference engine" in capsys.readouterr().err


@pytest.mark.parametrize("setting", [{"device": "cpu"}, {"dtype": "float16"}])
def test_settings_of_the_reference_do_not_fit_a_bundle(bundle, setting):
    with pytest.raises(ConfigError, match="is for --engine reference"):
        load(bundle, **setting)


def test_a_bundles_own_generation_settings_are_used(bundle, tmp_path):
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    text = (copy / "generation.json").read_text("utf-8").replace("1024", "1025", 1)
    (copy / "generation.json").write_text(text)
    assert load(copy).defaults.window == 1025


def test_a_bundle_whose_checkpoint_moved_or_changed_has_no_reference(bundle, checkpoint, tmp_path):
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    manifest = json.loads((copy / "bundle.json").read_text("utf-8"))
    manifest["source"]["path"] = str(tmp_path / "gone")
    (copy / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="gone: the checkpoint that the bundle was made from"):
        load(copy, engine="reference", device="cpu")
    manifest["source"] = manifest["source"] | {"path": str(checkpoint), "sha256": "0" * 64}
    (copy / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"not the checkpoint that .* was made from"):
        load(copy, engine="reference", device="cpu")


def test_a_damaged_bundle_is_refused(bundle, tmp_path):
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    (copy / "weights.safetensors").write_bytes(b"short")
    with pytest.raises(BundleError, match=r"weights\.safetensors"):
        load(copy)
