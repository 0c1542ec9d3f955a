"""The MLC package, against what MLC-LLM itself wrote; and MLC-LLM's compiler, as a stand-in."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convert import cli
from convert.checkpoint.reader import Checkpoint
from convert.engine.toolchain import BuildError
from convert.mlc import params as mlc_params
from convert.mlc.compile import compile_package
from convert.mlc.compilers import (
    command_for_later,
    find_compiler,
    installed,
    library_name,
)
from convert.mlc.manifest import MANIFEST, PackageManifest
from convert.mlc.opened import MlcPackage
from convert.mlc.params import mlc_names
from quantize.errors import ConfigError
from quantize.layout import unpack_mlc
from quantize.schemes import GroupScheme, dequantize_groups
from runtime.inputs.prompt import Tokenizer
from tests.support.bundles import snapshot, without_programs
from tests.support.tiny import random_state, write_checkpoint
from tests.support.tiny_config import tiny_config
from tests.support.waiting import until

GOLDEN = Path(__file__).resolve().parents[2] / "golden/mlc-q4f16_1"
SCHEME = GroupScheme.load("mlc")
TARGET = "mlc-android"
LIBRARY = library_name(TARGET, pictures=False)


def package(checkpoint: Path, output: Path, *arguments: str) -> int:
    command = ["convert", str(checkpoint), "-o", str(output), "--target", TARGET]
    return cli.main([*command, *arguments])


@pytest.mark.parametrize("which", ["tied", "untied"])
def test_every_byte_of_mlc(
    which: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    output = tmp_path / "package"
    assert package(GOLDEN / which / "checkpoint", output) == 0
    for expected in (GOLDEN / which / "expected").iterdir():
        assert (output / expected.name).read_bytes() == expected.read_bytes(), expected.name
    config = json.loads((output / "mlc-chat-config.json").read_text())
    assert config["model_config"]["tie_word_embeddings"] is (which == "tied")
    assert config["tokenizer_files"] == [] and not (output / "tokenizer.model").exists()
    captured = capsys.readouterr()
    assert "has no tokenizer.model" in caplog.text
    assert "text only, without pictures" in captured.out
    assert f"-m mlc_llm compile {output}/mlc-chat-config.json --device android" in captured.out


def test_the_decoder_of_a_minicpm_v(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_checkpoint(tmp_path / "v", head="copy")
    assert package(source, tmp_path / "p", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["mlc"]["pictures"] is False and summary["mlc"]["libraries"] == {}
    alone = write_checkpoint(
        tmp_path / "d",
        config=tiny_config(decoder_only=True),
        state={
            name.removeprefix("llm."): tensor
            for name, tensor in random_state(tiny_config(), head="none").items()
            if name.startswith("llm.")
        },
    )
    assert package(alone, tmp_path / "q") == 0
    one, other = snapshot(tmp_path / "p"), snapshot(tmp_path / "q")
    for name in (MANIFEST, "README.md"):  # they name the checkpoint
        del one[name], other[name]
    assert one == other
    config = json.loads(one["mlc-chat-config.json"])
    assert config["model_type"] == "minicpm" and config["quantization"] == "q4f16_1"
    assert config["model_config"]["tie_word_embeddings"] is True
    assert config["tokenizer_files"] == ["tokenizer.model", "tokenizer.json"]
    assert {"tokenizer.model", "tokenizer.json"} <= set(one)
    assert set(config["model_config"]) >= {"scale_emb", "scale_depth", "dim_model_base"}
    params = MlcPackage.open(tmp_path / "p").params
    assert {k: v.shape for k, v in params.items() if "lm_head" in k} == {}
    assert params["model.layers.1.self_attn.wqkv_pack.q_weight"].shape == (768, 32)


def test_the_conversation_is_the_toolkits(tmp_path: Path) -> None:
    """Turns put together as MLC-LLM does give the ids that the toolkit's own prompt has."""
    source = write_checkpoint(tmp_path / "c")
    assert package(source, tmp_path / "p") == 0
    template = json.loads((tmp_path / "p/mlc-chat-config.json").read_text())["conv_template"]
    turns = [("user", "What colour?"), ("assistant", "红色。"), ("user", "图片里有几个圆形？")]
    text = template["system_template"].replace("{system_message}", template["system_message"])
    for role, content in turns:
        text += template["roles"][role] + template["role_content_sep"]
        text += template["role_templates"][role].replace(f"{{{role}_message}}", content)
        text += template["seps"][0]
    text += template["roles"]["assistant"] + template["role_empty_sep"]
    tokenizer = Tokenizer(source / "tokenizer.model")
    messages: Any = [{"role": role, "content": content} for role, content in turns]
    ids = template["system_prefix_token_ids"] + tokenizer.encode(text)
    assert ids == tokenizer.prompt(messages, 0).ids
    assert template["stop_token_ids"] == [2]


@pytest.mark.parametrize("method", ["mse", "awq"])
def test_any_method_fits_mlcs_layout(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINICPMV_CACHE", str(tmp_path / "cache"))
    source = write_checkpoint(tmp_path / "c")
    lines = tmp_path / "samples.jsonl"
    questions = [{"question": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(40)]
    lines.write_text("\n".join(map(json.dumps, questions)))
    assert package(source, tmp_path / "rtn") == 0
    arguments = ("--method", method, "--calibration", str(lines))
    assert package(source, tmp_path / "p", *arguments) == 0
    plain, params = (MlcPackage.open(tmp_path / name).params for name in ("rtn", "p"))
    assert {k: v.shape for k, v in params.items()} == {k: v.shape for k, v in plain.items()}
    name = "model.layers.0.mlp.gate_up_proj"
    codes = unpack_mlc(params[f"{name}.q_weight"])
    assert codes.max() == 15, "all codes are used"
    values = dequantize_groups(codes, params[f"{name}.q_scale"], SCHEME)
    state = random_state(tiny_config(), head="none")
    at = "llm.model.layers.0.mlp"
    original = np.concatenate(
        [state[f"{at}.{part}_proj.weight"].numpy() for part in ("gate", "up")]
    )
    cosine = (values * original).sum() / np.linalg.norm(values) / np.linalg.norm(original)
    assert cosine > 0.9
    norm = params["model.layers.0.input_layernorm.weight"]
    folded = not np.array_equal(norm, plain["model.layers.0.input_layernorm.weight"])
    assert folded == (method == "awq")


def test_names_are_in_the_order_of_a_checkpoint() -> None:
    names = list(mlc_names(12, True).values())
    assert names[0] == "lm_head" and names[-1] == "model.norm.weight"
    layers = list(dict.fromkeys(n.split(".")[2] for n in names if ".layers." in n))
    assert layers == ["0", "1", "10", "11", "2", "3", "4", "5", "6", "7", "8", "9"]


def test_files_are_cut_as_tvm_cuts_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tvmjs = pytest.importorskip("tvm.contrib.tvmjs", reason="TVM's own writer is the reference")
    monkeypatch.setattr(mlc_params, "SHARD_BYTES", 1 << 20)
    sizes = [700_000, 300_000, 100_000, 524_288, 400_000, 648_576, 1_048_576, 8, 2_000_000, 5]
    arrays = {f"t{i}": np.full(n // 2 + 1, i, np.float16) for i, n in enumerate(sizes)}
    shards = mlc_params._Shards(tmp_path)
    for name, values in arrays.items():
        shards.add(name, values)
    parameters = sum(values.size for values in arrays.values())
    shards.finish(parameters)
    total = float(sum(values.nbytes for values in arrays.values()))
    metadata = {
        "ParamSize": len(arrays), "ParamBytes": total, "BitsPerParam": total * 8.0 / parameters
    }  # fmt: skip
    (tmp_path / "tvm").mkdir()
    tvmjs.dump_tensor_cache(
        arrays, str(tmp_path / "tvm"), meta_data=metadata, shard_cap_mb=1, show_progress=False
    )
    expected = snapshot(tmp_path / "tvm")
    assert len(expected) > 5
    assert {name: (tmp_path / name).read_bytes() for name in expected} == expected


def stand_in(folder: Path, probe: str, compiler: str = "exit 9") -> str:
    """Writes a Python that answers the probe and compiles as it is told."""
    path = folder / "python"
    script = f'#!/bin/sh\nif [ "$1" = -c ]; then\n{probe}\nexit\nfi\necho "$@" > {folder}/command\n'
    path.write_text(f"{script}{compiler}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


KNOWS = """echo 'a line of somebody else'; echo '{"version": "0.20", "model": true}'"""
COMPILES = 'for last; do :; done\nprintf library > "$last"'


def test_goes_on_to_compile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    python = stand_in(tmp_path, KNOWS, COMPILES)
    source = write_checkpoint(tmp_path / "c")
    assert package(source, tmp_path / "p", "--mlc-python", python) == 0
    assert f"compiled by mlc_llm 0.20: {tmp_path}/p/{LIBRARY}" in capsys.readouterr().out
    assert (tmp_path / "p" / LIBRARY).read_bytes() == b"library"
    words = (tmp_path / "command").read_text().split()
    config = f"{tmp_path}/p/mlc-chat-config.json"
    assert words[:-1] == ["-m", "mlc_llm", "compile", config, "--device", "android", "-o"]
    assert words[-1].endswith(f"/{LIBRARY}")
    assert cli.main(["info", str(tmp_path / "p")]) == 0
    shown = capsys.readouterr().out
    assert "not part of this package: text only" in shown
    assert f"mlc-android: {LIBRARY}, by mlc_llm 0.20" in shown
    assert package(source, tmp_path / "p") == 0, "the library is a listed file of ours"
    assert not (tmp_path / "p" / LIBRARY).exists()


PLANNED = {"embed": 2.25, "image_embed": 112.05, "prefill": 15.66, "batch_verify": 480.0}


def logged(planned: dict[str, float], stream: str = "&1") -> str:
    """Returns shell commands that say what MLC-LLM says of planned memory."""
    line = "[x] INFO estimate_memory_usage.py:57: [Memory usage] Function `{}`: {:.2f} MB"
    return "\n".join(f"echo '{line.format(*one)}' >{stream}" for one in planned.items())


@pytest.mark.parametrize("stream", ["&1", "&2"])
def test_memory_that_a_library_takes(
    stream: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What several conversations at once would take does not count."""
    python = stand_in(tmp_path, KNOWS, f"{COMPILES}\n{logged(PLANNED, stream)}")
    source = write_checkpoint(tmp_path / "c")
    assert package(source, tmp_path / "p", "--mlc-python", python, "--json") == 0
    expected = round((2.25 + 112.05 + 15.66) * 2**20)
    summary = json.loads(capsys.readouterr().out)
    assert summary["mlc"]["temporary_bytes"] == {TARGET: expected}
    assert PackageManifest.read(tmp_path / "p").libraries[TARGET].temporary_bytes == expected
    assert cli.main(["info", str(tmp_path / "p")]) == 0
    shown = "136 MB (129.96 MiB) beside weights and KV cache"
    assert f"takes {shown}" in capsys.readouterr().out
    assert package(source, tmp_path / "q", "--mlc-python", python) == 0
    assert shown in capsys.readouterr().out
    assert "meant for a phone" not in caplog.text


def test_more_memory_than_is_meant_for_a_phone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    python = stand_in(tmp_path, KNOWS, f"{COMPILES}\n{logged({'prefill': 238.43})}")
    source = write_checkpoint(tmp_path / "c")
    assert package(source, tmp_path / "p", "--mlc-python", python) == 0
    assert f"{LIBRARY} takes 250 MB (238.43 MiB) beside" in caplog.text
    caplog.clear()
    command = ["convert", str(source), "-o", str(tmp_path / "h"), "--mlc-python", python]
    assert cli.main([*command, "--target", "mlc-host"]) == 0
    assert "meant for a phone" not in caplog.text, "this machine is no phone"


def test_memory_of_which_nothing_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    python = stand_in(tmp_path, KNOWS, COMPILES)
    source = write_checkpoint(tmp_path / "c")
    assert package(source, tmp_path / "p", "--mlc-python", python) == 0
    assert cli.main(["info", str(tmp_path / "p")]) == 0
    assert "beside weights" not in capsys.readouterr().out
    assert PackageManifest.read(tmp_path / "p").libraries[TARGET].temporary_bytes is None


def test_command_of_compilation(tmp_path: Path) -> None:
    command = installed("py", "1").compile_command(TARGET, Path("my packages/p"), Path("out.tar"))
    assert command[:5] == ["py", "-m", "mlc_llm", "compile", "my packages/p/mlc-chat-config.json"]
    assert command[5:] == ["--device", "android", "-o", "out.tar"]
    later = command_for_later(TARGET, Path("my packages/p"), None)
    assert later.startswith("python -m mlc_llm compile 'my packages/p/mlc-chat-config.json'")
    assert later.endswith(f"'my packages/p/{LIBRARY}'")


def test_not_installed(tmp_path: Path) -> None:
    assert find_compiler(stand_in(tmp_path, "echo null")) is None
    assert find_compiler(None) is None or "mlc_llm" in sys.modules


@pytest.mark.parametrize(
    ("probe", "problem"),
    [
        ("""echo '{"version": "0.1", "model": false}'""", r"mlc_llm 0\.1 does not know .* minicpm"),
        ("echo 'ImportError: no libtvm' >&2; exit 1", "cannot be used: ImportError: no libtvm"),
        ("exit 3", "cannot be used: exit code 3"),
        ("echo gibberish", "cannot be used: gibberish"),
        ("echo 5", "cannot be used: 5"),
    ],
)
def test_an_mlc_that_cannot_be_used(
    probe: str, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    python = stand_in(tmp_path, probe)
    with pytest.raises(ConfigError, match=problem):
        find_compiler(python)
    source = write_checkpoint(tmp_path / "c")
    assert package(source, tmp_path / "p", "--mlc-python", python) == 2
    assert not (tmp_path / "p").exists(), "it is found out before the work"
    assert python in capsys.readouterr().err


def test_no_such_python(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--mlc-python .*/none: cannot be run: No such file"):
        find_compiler(str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("compiler", "problem"),
    [
        ("echo first; echo 'TVMError: no OpenCL' >&2; exit 1", "TVMError: no OpenCL"),
        ("echo said on stdout; exit 1", "said on stdout"),
        ("exit 1", "no message"),
        ("exit 0", "it wrote no library"),
        (f"{COMPILES}; echo 'OSError: disk full' >&2; exit 1", "OSError: disk full"),
        (f"{COMPILES}; kill -9 $$", "killed, perhaps for want of memory"),
        (f"{COMPILES}; kill -11 $$", "ended by signal 11"),
    ],
)
def test_a_compilation_that_fails(
    compiler: str, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    python = stand_in(tmp_path, KNOWS, compiler)
    source = write_checkpoint(tmp_path / "c")
    assert package(source, tmp_path / "p", "--mlc-python", python) == 2
    message = capsys.readouterr().err
    assert problem in message and "the package itself is whole" in message
    assert f"{python} -m mlc_llm compile" in message
    files = snapshot(tmp_path / "p")
    assert LIBRARY not in files and "params_shard_0.bin" in files
    assert set(files) == {*json.loads(files[MANIFEST])["files"], MANIFEST, "README.md"}
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_the_second_compilation_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first library is a part of the package, the second is not there."""
    fails = f'case "$*" in *llvm*) {COMPILES.splitlines()[-1]}; exit 1;; esac'
    python = stand_in(tmp_path, KNOWS, f"for last; do :; done\n{fails}\n{COMPILES}")
    source, output = write_checkpoint(tmp_path / "c"), tmp_path / "p"
    command = ["convert", str(source), "-o", str(output), "--mlc-python", python]
    assert cli.main([*command, "--target", f"{TARGET},mlc-host"]) == 2
    assert "--device llvm" in capsys.readouterr().err
    manifest = PackageManifest.read(output)
    assert set(manifest.libraries) == {TARGET}
    assert f"| library, `{TARGET}` | `{LIBRARY}`" in (output / "README.md").read_text("utf-8")
    assert set(os.listdir(output)) == {*manifest.files, MANIFEST, "README.md"}


def test_a_compilation_that_is_interrupted(tmp_path: Path) -> None:
    begun, output = tmp_path / "begun", tmp_path / "p"
    python = stand_in(tmp_path, KNOWS, f"{COMPILES}\necho > {begun}\nexec sleep 600")
    source = write_checkpoint(tmp_path / "c")
    command = [sys.executable, "-m", "convert.cli", "convert", str(source), "-o", str(output)]
    command += ["--target", TARGET, "--mlc-python", python]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        until(lambda: begun.exists() or process.poll() is not None)
        process.terminate()
        process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    manifest = PackageManifest.read(output)
    assert not manifest.libraries
    assert set(os.listdir(output)) == {*manifest.files, MANIFEST, "README.md"}
    assert set(os.listdir(tmp_path)) == {"begun", "c", "command", "p", "python"}


def test_a_python_that_vanishes(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "c")
    assert package(source, tmp_path / "p") == 0
    with pytest.raises(BuildError, match="No such file"):
        compile_package(installed(str(tmp_path / "gone"), "1"), TARGET, tmp_path / "p")


def test_beside_a_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_programs(monkeypatch)
    source = write_checkpoint(tmp_path / "c")
    command = ["convert", str(source), "-o", str(tmp_path / "b"), "--target", "host,mlc-android"]
    assert cli.main([*command, "--method", "rtn"]) == 0
    assert (tmp_path / "b/bundle.json").is_file()
    assert (tmp_path / "b-mlc" / MANIFEST).is_file()


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    narrow = tiny_config(decoder_only=True, hidden_size=80, num_attention_heads=4)
    source = write_checkpoint(tmp_path / "narrow", config=narrow)
    assert package(source, tmp_path / "p") == 2
    assert "q4 needs a matrix whose width is a multiple of 32" in capsys.readouterr().err
    good = write_checkpoint(tmp_path / "c")
    assert package(good, tmp_path / "p", "--method", "magic") == 2
    assert "method 'magic' is unknown; known: rtn, mse" in capsys.readouterr().err
    (tmp_path / "p").mkdir()
    (tmp_path / "p/mine.txt").write_text("mine")
    assert package(good, tmp_path / "p") == 2
    assert "exists but holds no MLC package" in capsys.readouterr().err
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for text in ("[", "{}", '{"format": "minicpmv-mlc-package", "format_version": 3}'):
        (damaged / MANIFEST).write_text(text)
        assert cli.main(["info", str(damaged)]) == 2


def test_a_head_that_the_config_promises(tmp_path: Path) -> None:
    config = tiny_config(decoder_only=True, tie_word_embeddings=False)
    source = write_checkpoint(tmp_path / "c", config=config, head="none")
    from quantize.errors import CheckpointError

    with pytest.raises(CheckpointError, match=r"tie_word_embeddings is false\): lm_head\.weight"):
        Checkpoint.open(source)
