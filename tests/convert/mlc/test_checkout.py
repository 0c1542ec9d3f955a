"""A checkout of MLC-LLM: recognised, refused; what its compiler cannot do is named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from convert import cli
from convert.checkpoint.config import ModelConfig
from convert.mlc.checkout import PACKAGE, TESTED_COMMITS, MlcCheckout
from convert.mlc.manifest import MANIFEST
from convert.mlc.vision_config import MlcVisionConfig
from quantize.errors import ConfigError
from tests.support.bundles import snapshot
from tests.support.tiny import write_checkpoint
from tests.support.tiny_config import tiny_config

TESTED, OTHER = TESTED_COMMITS[0], "1" * 40
FILES = {
    "cli/__init__.py": "",
    "cli/compile.py": "def main(arguments):\n    raise RuntimeError('two\\nlines')\n",
    "compiler_pass/__init__.py": "",
    "compiler_pass/pipeline.py": "",
    "compiler_pass/lift_global_buffer_alloc.py": "def remove_global_buf_alloc(func):\n    pass\n",
    "model/minicpm/minicpm_model.py": "",
}


def write_checkout(folder: Path, **changed: str) -> Path:
    """Writes what looks like a checkout, as far as it is looked at before the compiler runs."""
    for name, text in (FILES | {name.replace("__", "/"): t for name, t in changed.items()}).items():
        path = folder / PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def write_git(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("files", "commit"),
    [
        ({".git/HEAD": f"{TESTED}\n"}, TESTED),
        ({".git/HEAD": "ref: refs/heads/main\n", ".git/refs/heads/main": f"{OTHER}\n"}, OTHER),
        (
            {
                ".git/HEAD": "ref: refs/heads/a/b\n",
                ".git/packed-refs": f"# pack-refs\n{OTHER} refs/heads/a\n{TESTED} refs/heads/a/b\n",
            },
            TESTED,
        ),
        (
            {
                ".git": "gitdir: real/worktrees/w\n",
                "real/worktrees/w/HEAD": "ref: refs/heads/w\n",
                "real/worktrees/w/commondir": "../..\n",
                "real/refs/heads/w": f"{TESTED}\n",
            },
            TESTED,
        ),
        ({}, None),
        ({".git/HEAD": "ref: ../../etc/passwd\n"}, None),
        ({".git/HEAD": "ref: refs/heads/none\n"}, None),
        ({".git/HEAD": "nonsense\n"}, None),
        ({".git": "\x00"}, None),
    ],
)
def test_its_commit(files: dict[str, str], commit: str | None, tmp_path: Path) -> None:
    write_git(write_checkout(tmp_path), files)
    checkout = MlcCheckout.open(tmp_path)
    assert checkout.commit == commit
    assert checkout.is_tested == (commit == TESTED)
    if commit == TESTED:
        assert checkout.warning is None
    else:
        assert checkout.warning is not None and TESTED in checkout.warning


def test_what_would_block_is_not_read(tmp_path: Path) -> None:
    (write_checkout(tmp_path) / ".git").mkdir()
    os.mkfifo(tmp_path / ".git/HEAD")
    assert MlcCheckout.open(tmp_path).commit is None


def test_a_folder_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="no such folder; expected a checkout of mlc-llm"):
        MlcCheckout.open(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"python/mlc_llm/cli/compile\.py is missing"):
        MlcCheckout.open(tmp_path)
    source = write_checkpoint(tmp_path / "c")
    assert convert(source, tmp_path, tmp_path / "p") == 2
    assert not (tmp_path / "p").exists(), "it is refused before the work"
    assert "not a checkout of mlc-llm" in capsys.readouterr().err


@pytest.mark.parametrize(("size", "queries", "patch"), [(448, 64, 56), (168, 64, 21), (56, 9, 18)])
def test_the_patch_that_mlc_counts_with(size: int, queries: int, patch: int) -> None:
    config = tiny_config(image_size=size, query_num=queries)
    vision = MlcVisionConfig.of(ModelConfig.from_json(config))
    assert (vision.patch_size, size**2 // vision.patch_size**2) == (patch, queries)
    assert MlcVisionConfig.from_json(vision.to_json()) == vision


def test_image_tokens_that_mlc_cannot_count() -> None:
    config = ModelConfig.from_json(tiny_config(image_size=14, query_num=121))
    with pytest.raises(ConfigError, match="14 pixels gives 121 image tokens, which MLC-LLM cannot"):
        MlcVisionConfig.of(config)


def convert(source: Path, checkout: Path, output: Path, *more: str) -> int:
    command = ["convert", str(source), "-o", str(output), "--mlc-source", str(checkout)]
    return cli.main([*command, "--target", "mlc-android", *more])


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        (
            {"compiler_pass__lift_global_buffer_alloc.py": ""},
            "drift lifted-buffers (kernels are built without a buffer_map)",
        ),
        ({}, "No module named 'mlc_llm.loader'"),
    ],
)
def test_a_checkout_that_has_moved_on(
    changed: dict[str, str],
    problem: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The drift is named, with a commit that works; the package stays, whole."""
    checkout, source = write_checkout(tmp_path / "mlc", **changed), write_checkpoint(tmp_path / "c")
    before = snapshot(checkout)
    assert convert(source, checkout, tmp_path / "p") == 2
    message = capsys.readouterr().err
    assert problem in message and "the package itself is whole" in message
    assert "was not tried with this apache-tvm" in caplog.text
    if "drift" in problem:
        assert f"git -C {checkout} checkout {TESTED}" in message
    made = snapshot(tmp_path / "p")
    assert MANIFEST in made and not any(name.endswith((".tar", ".so")) for name in made)
    assert snapshot(checkout) == before, "nothing is written into a checkout"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--mlc-abi", "0.25"), "--mlc-abi 0.25 is unknown; known: 0.27, 0.26"),
        (("--mlc-python", "python3"), "--mlc-source and --mlc-python: give one of them"),
        (("--mlc-pictures",), "--mlc-pictures: the checkpoint has no vision encoder"),
    ],
)
def test_options_that_do_not_go_together(
    arguments: tuple[str, ...],
    problem: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkout = write_checkout(tmp_path / "mlc")
    source = write_checkpoint(tmp_path / "c", config=tiny_config(decoder_only=True))
    assert convert(source, checkout, tmp_path / "p", *arguments) == 2
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--target", "mlc-host", "--mlc-pictures"), "--mlc-pictures needs --mlc-source"),
        (("--target", "mlc-host", "--mlc-abi", "0.26"), "--mlc-abi needs --mlc-source"),
        (("--mlc-python", "python3"), "--mlc-python is for MLC-LLM; choose a target such as"),
    ],
)
def test_options_without_a_checkout(
    arguments: tuple[str, ...],
    problem: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["convert", "-o", str(tmp_path / "p"), *arguments]) == 2
    assert problem in capsys.readouterr().err
