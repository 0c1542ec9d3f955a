"""Chat on a bundle: its engine, or the checkpoint behind it."""

from __future__ import annotations

import gc
import io
import json
import os
import re
import shutil
import signal
import sys
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from convert import cli
from convert.bundle.errors import BundleError
from convert.bundle.manifest import MANIFEST, TOKENIZER, BundleSource, FileRecord
from convert.checkpoint.reader import DEMOS, Checkpoint
from quantize.errors import CheckpointError, ConfigError
from runtime.engine_client.options import EngineOptions
from runtime.inputs.generation_options import GenerationOptions
from runtime.sessions.chat import ChatModel, OmniLMMChat, img2base64
from runtime.sessions.engine_session import EngineSession
from runtime.sessions.loader import find_source, is_bundle, load, source_problem
from tests.support.stop import stop
from tests.support.tiny_tokenizer import wrong_tokenizers

QUESTION = {"role": "user", "content": "What colour is the shape?"}
RED = Image.new("RGB", (60, 40), "red")
ANSWER = GenerationOptions(max_new_tokens=8)


def test_a_bundle_is_told_from_a_checkpoint(checkpoint, bundle):
    assert is_bundle(bundle)
    assert not is_bundle(checkpoint)
    assert not is_bundle(None)
    assert not is_bundle("openbmb/MiniCPM-V")


@pytest.mark.parametrize("name", DEMOS)
def test_the_source_of_a_demo_s_bundle(name, tmp_path, monkeypatch):
    """Its name means the demo, whatever stands where the command runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    source = BundleSource(path=name, sha256=Checkpoint.open(DEMOS[name]).source_hash(), demo=True)
    found = find_source(source)
    assert found.path == DEMOS[name]
    assert source_problem(source, tmp_path / "bundle", found) is None


def test_a_bundle_runs_on_its_engine_and_reuses_its_cache(bundle):
    loaded = load(bundle)
    assert "local engine (q4f16_1, fp16 KV cache)" in loaded.description
    session = loaded.open_session(window=48)
    messages, answers = [QUESTION], []
    for _ in range(3):
        reply = session.reply(messages, RED, ANSWER)
        with closing(loaded.open_session(window=48)) as fresh:
            assert reply.ids == fresh.reply(messages, RED, ANSWER).ids
        answers.append(reply)
        messages = [*messages, {"role": "assistant", "content": reply.text}, QUESTION]
    session.close()
    assert answers[1].statistics.reused_tokens >= answers[0].statistics.prompt_tokens - 3
    assert answers[-1].statistics.prompt_tokens > 48  # the window slid
    assert len(set(answers[0].ids)) > 1


def test_the_api_takes_a_bundle(bundle, tmp_path):
    RED.save(tmp_path / "red.png")
    inputs = {"image": img2base64(tmp_path / "red.png"), "question": json.dumps([QUESTION])}
    omni = OmniLMMChat(bundle, threads=1)
    omni.model._settings = replace(omni.model._settings, max_new_tokens=4)
    assert isinstance(omni.chat(inputs), str)
    process = omni.model.session.client()._process
    del omni
    gc.collect()
    assert process.exit_code == 0, "the engine ends with the object"


def test_beam_search_on_a_bundle_says_what_to_do(bundle):
    with ChatModel(bundle) as model:
        with pytest.raises(ConfigError, match="choose sampling, or one beam, or --engine ref"):
            model.chat(RED, [QUESTION])
        answer, _, config = model.chat(RED, [QUESTION], num_beams=1, max_new_tokens=4)
    assert isinstance(answer, str)
    assert config == {"num_beams": 1, "repetition_penalty": 1.2}


def test_the_command_takes_a_bundle(bundle, capsys):
    arguments = ["chat", str(bundle), "--prompt", "What?", "--greedy", "--max-new-tokens", "3"]
    assert cli.main(arguments) == 0
    assert "local engine" in capsys.readouterr().err
    assert cli.main([*arguments, "--threads", "1"]) == 0
    assert cli.main([*arguments, "--engine", "reference", "--device", "cpu"]) == 0
    assert "reference engine" in capsys.readouterr().err


@pytest.mark.parametrize("setting", [{"device": "cpu"}, {"dtype": "float16"}])
def test_settings_of_the_reference_do_not_fit_a_bundle(bundle, setting):
    with pytest.raises(ConfigError, match="is for --engine reference"):
        load(bundle, **setting)


def test_a_conversation_survives_its_engine(bundle, monkeypatch, capsys):
    """In a terminal: the engine dies of the second question, which is then asked again."""
    monkeypatch.setattr("runtime.engine_client.client._IDLE_SECONDS", 0)  # it was at work
    reply, turns = EngineSession.reply, []

    def dying(self, messages, *rest, **named):
        turns.append(len(messages))
        if len(turns) == 2:
            pid = self.client()._process.pid
            stop(pid)
            threading.Timer(1.5, os.kill, (pid, signal.SIGKILL)).start()
        return reply(self, messages, *rest, **named)

    monkeypatch.setattr(EngineSession, "reply", dying)
    keyboard = io.StringIO("What?\nAnd?\nAnd?\n")
    monkeypatch.setattr(keyboard, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", keyboard)
    assert cli.main(["chat", str(bundle), "--greedy", "--max-new-tokens", "5"]) == 0
    assert turns == [1, 3, 3]
    err = capsys.readouterr().err
    assert "EngineDiedError: host: has ended (signal 9)" in err
    assert "the next question starts the engine again" in err
    assert err.count("answer 5 tokens") == 2


def test_a_picture_can_be_cancelled(bundle, monkeypatch, capsys, tmp_path):
    """As by Ctrl-C right after the question: no answer, no trace; the next one is answered."""
    reply, turns = EngineSession.reply, []

    def impatient(self, messages, *rest, cancelled, **named):
        turns.append(len(messages))
        return reply(self, messages, *rest, cancelled=lambda: len(turns) == 1, **named)

    monkeypatch.setattr(EngineSession, "reply", impatient)
    Image.new("RGB", (2000, 2000), "red").save(tmp_path / "large.png")
    monkeypatch.setattr(sys, "stdin", io.StringIO("What?\nWhat?\n"))
    arguments = ["--image", str(tmp_path / "large.png"), "--greedy", "--max-new-tokens", "3"]
    assert cli.main(["chat", str(bundle), *arguments]) == 0
    assert turns == [1, 1]
    err = capsys.readouterr().err
    assert "cancelled while encoding the picture" in err
    assert "answer 3 tokens" in err


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
    with pytest.raises(CheckpointError, match="gone: the checkpoint that this was made from"):
        load(copy, EngineOptions(engine="reference"), device="cpu")
    manifest["source"] = manifest["source"] | {"path": str(checkpoint), "sha256": "0" * 64}
    (copy / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"not the checkpoint that .* was made from"):
        load(copy, EngineOptions(engine="reference"), device="cpu")


def test_a_damaged_bundle_is_refused(bundle, tmp_path):
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    (copy / "weights.safetensors").write_bytes(b"short")
    with pytest.raises(BundleError, match=r"weights\.safetensors"):
        load(copy)


@pytest.mark.parametrize("which", ["empty", "a space before text", "more pieces"])
@pytest.mark.parametrize("command", ["info", "chat", "verify", "serve", "bench"])
def test_a_wrong_tokenizer_in_a_bundle(
    bundle: Path, tmp_path: Path, which: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that the manifest names just so: no command begins to work with it."""
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    content, says = wrong_tokenizers()[which]
    (folder / TOKENIZER).write_bytes(content)
    manifest = json.loads((folder / MANIFEST).read_text())
    record = FileRecord.of(folder / TOKENIZER)
    manifest["files"][TOKENIZER] = {"size": record.size, "sha256": record.sha256}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    more = {"chat": ["--prompt", "What?"]}.get(command, [])
    assert cli.main([command, str(folder), *more]) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert re.search(rf"Error: .*tokenizer\.model: .*({says})", line), line
