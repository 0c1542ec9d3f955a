"""Files of a folder from outside that are no files, and numbers that nobody can count with."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from convert import cli
from convert.bundle.errors import BundleError
from convert.bundle.manifest import Bundle
from convert.calibrate.samples import CalibrationError, read_samples
from convert.checkpoint.reader import Checkpoint
from convert.mlc.manifest import FORMAT_VERSION, KIND, MANIFEST, PackageManifest
from convert.support.output_folder import OutputFolder, OutputFolderError
from quantize.errors import CheckpointError, ConfigError
from runtime.inputs.defaults import DEFAULTS, GenerationDefaults
from runtime.inputs.prompt import Tokenizer
from runtime.sessions.chat import img2base64
from tests.convert.support.test_regular_file import in_time
from tests.support.bundles import write_bundle
from tests.support.tiny import write_checkpoint
from tests.support.tiny_config import tiny_config

INDEX = "model.safetensors.index.json"
SHARD = "model-00001-of-00002.safetensors"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("hostile") / "bundle")


def pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def device(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def refused(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    """Returns what a command said in its one line of an error; fails where it waits."""
    capsys.readouterr()
    codes: list[int] = []
    assert in_time(lambda: codes.append(cli.main(list(command)))) is None
    lines = capsys.readouterr().err.splitlines()
    assert codes == [2] and len(lines) == 1, lines
    return lines[0]


@pytest.fixture(autouse=True)
def in_any_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)  # the main thread's alone


@pytest.mark.parametrize("put", [pipe, device])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.model", INDEX, SHARD])
def test_in_a_checkpoint(
    tmp_path: Path, name: str, put: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint", shards=2)
    put(folder / name)
    said = refused(capsys, "info", str(folder))
    assert f"{folder / name}: cannot be read: a " in said
    assert "expected a regular file" in said


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_in_place_of_the_weights(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint")
    (folder / "model.safetensors").unlink()
    pipe(folder / name)
    assert "a named pipe" in refused(capsys, "info", str(folder))


@pytest.mark.parametrize("put", [pipe, device])
@pytest.mark.parametrize(
    "name", ["bundle.json", "weights.safetensors", "tokenizer.model", "generation.json"]
)
def test_in_a_bundle(
    bundle: Path,
    tmp_path: Path,
    name: str,
    put: Callable[[Path], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    put(folder / name)
    for command in ("info", "verify", "bench"):
        assert str(folder / name) in refused(capsys, command, str(folder))
    if name == "bundle.json":  # what has no manifest of ours is not replaced
        checkpoint = bundle.with_name("bundle-checkpoint")
        said = refused(capsys, "convert", str(checkpoint), "-o", str(folder))
        assert f"{folder}: exists but holds no bundle" in said


FILE = {"size": 7, "sha256": "0"}
LIBRARY = {"file": "a.tar", "mlc_llm": "1", "abi": "0.27"}


def test_an_mlc_package(tmp_path: Path) -> None:
    pipe(tmp_path / MANIFEST)
    assert isinstance(in_time(lambda: PackageManifest.read(tmp_path)), BundleError)
    assert isinstance(in_time(lambda: OutputFolder(tmp_path, KIND)), OutputFolderError)


def put_package(folder: Path, **changed: Any) -> None:
    """Writes the manifest of an MLC package."""
    raw = {"format": KIND.format, "format_version": FORMAT_VERSION, "model": tiny_config()}
    raw |= {"quantization": "q4f16_1", "recipe": "mlc", "method": "rtn", "pictures": True}
    raw |= {"source": {"path": "c", "sha256": "0", "demo": False}, "tools": {}, "parameters": 1}
    raw |= {"weights_bytes": 1, "files": {"a.tar": FILE}, "libraries": {"mlc-android": LIBRARY}}
    raw |= {"why_no_tokenizer_json": "no tokenizer"}
    (folder / MANIFEST).write_text(json.dumps(raw | changed))


@pytest.mark.parametrize(
    "record",
    [None, 7, {}, {"size": 7}, *(FILE | {"size": n} for n in ("7", True, 1.5)), FILE | {"x": 1}],
)
def test_records_of_an_mlc_package(tmp_path: Path, record: Any) -> None:
    put_package(tmp_path)
    assert cli.main(["info", str(tmp_path)]) == 0
    put_package(tmp_path, files={"a.tar": FILE, "params.bin": record})
    with pytest.raises(BundleError, match=r"mlc-package\.json: files: params\.bin: "):
        PackageManifest.read(tmp_path)


@pytest.mark.parametrize(
    "record",
    [
        *(None, "a.tar", {}, {"file": "a.tar", "mlc_llm": "1"}, LIBRARY | {"mlc_llm": 1}),
        *(LIBRARY | {"abi": 0.27}, LIBRARY | {"file": "b.tar"}, LIBRARY | {"file": ["a.tar"]}),
        LIBRARY | {"temporary_bytes": "1"},
    ],
)
def test_libraries_of_an_mlc_package(tmp_path: Path, record: Any) -> None:
    put_package(tmp_path, libraries={"mlc-android": record})
    with pytest.raises(BundleError, match=r"(libraries: |library for )mlc-android"):
        PackageManifest.read(tmp_path)


def test_what_a_manifest_says_of_tokenizer_json(tmp_path: Path) -> None:
    for wrong in ({"why_no_tokenizer_json": None}, {"files": {"tokenizer.json": FILE}}):
        put_package(tmp_path, libraries={}, **wrong)
        with pytest.raises(BundleError, match="why_no_tokenizer_json contradicts files"):
            PackageManifest.read(tmp_path)
    put_package(tmp_path, why_no_tokenizer_json=[])
    with pytest.raises(BundleError, match="why_no_tokenizer_json"):
        PackageManifest.read(tmp_path)


def test_other_files(tmp_path: Path) -> None:
    path = tmp_path / "x"
    pipe(path)
    error = in_time(lambda: read_samples(path, pictures=True, skip_bad=False))
    assert isinstance(error, CalibrationError)
    assert isinstance(in_time(lambda: Tokenizer(path)), CheckpointError)
    assert isinstance(in_time(lambda: GenerationDefaults.load(path)), ConfigError)
    assert "a named pipe" in str(in_time(lambda: img2base64(str(path))))


HUGE = "9" * 5000
NUMBERS = ["1e400", HUGE, "NaN", "-Infinity", "1000000000", '"\\ud800"']


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("key", ["num_hidden_layers", "rms_norm_eps", "eos_token_id", "image_size"])
def test_numbers_of_a_configuration(
    bundle: Path, tmp_path: Path, key: str, number: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """For all readers of one, at once: 10^9 layers made them wait for hours."""
    path = tmp_path / "config.json"
    text = json.dumps(tiny_config(eos_token_id=2) | {key: "VALUE"})
    path.write_text(text.replace('"VALUE"', number))
    said = refused(capsys, "info", str(path))
    assert str(path) in said and len(said) < 500
    refused(capsys, "synth", "--config", str(path), "-o", str(tmp_path / "out"))
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    manifest = json.loads((folder / "bundle.json").read_text())
    manifest["model"][key] = "VALUE"
    (folder / "bundle.json").write_text(json.dumps(manifest).replace('"VALUE"', number))
    assert str(folder / "bundle.json") in refused(capsys, "info", str(folder))


@pytest.mark.parametrize(
    "change",
    [
        {"bits": 10**9},
        {"bits": 4.5},
        {"bits": True},
        {"group_size": 10**200},
        {"group_size": 0},
        {"group_size": "32"},
        {"zero_point": -1},
        {"max_code": 10**9},
        {"name": 7},
        {"method": ["rtn"]},
        {"tensors": [{"pattern": "*", "format": ["q4"], "why": ""}]},
    ],
)
def test_numbers_of_a_recipe(
    bundle: Path, tmp_path: Path, change: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    manifest = json.loads((folder / "bundle.json").read_text())
    manifest["quantization"] |= change
    (folder / "bundle.json").write_text(json.dumps(manifest))
    assert str(folder / "bundle.json") in refused(capsys, "info", str(folder))
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(manifest["quantization"]))
    refused(capsys, "info", str(recipe))


@pytest.mark.parametrize(
    "change",
    [
        {"window": 10**12},
        {"window": 1024.5},
        {"window": True},
        {"max_new_tokens": 10**9},
        {"sample": {"do_sample": True, "temperature": 10**200}},
        {"sample": {"do_sample": True, "top_k": 10**30}},
        {"beam": {"num_beams": 10**6}},
    ],
)
def test_numbers_of_generation(tmp_path: Path, change: dict[str, Any]) -> None:
    raw = json.loads(DEFAULTS.read_text())
    (raw if "window" in change else raw["sets"]["OmniLMMChat"]).update(change)
    path = tmp_path / "generation.json"
    path.write_text(json.dumps(raw))
    with pytest.raises(ConfigError, match=f"{path}.*expected"):
        GenerationDefaults.load(path)


@pytest.mark.parametrize("place", ["files", "source"])
def test_half_of_a_pair_in_a_path(
    bundle: Path, tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    manifest = json.loads((folder / "bundle.json").read_text())
    if place == "files":
        manifest["files"]["\ud800"] = manifest["files"]["tokenizer.model"]
    else:
        manifest["source"]["path"] = "/\udcff"
    (folder / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="lone surrogate"):
        Bundle.open(folder)
    assert "surrogate" in refused(capsys, "info", str(folder))
    checkpoint = write_checkpoint(tmp_path / "checkpoint", shards=2)
    index = json.loads((checkpoint / INDEX).read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], "\ud800.safetensors")
    (checkpoint / INDEX).write_text(json.dumps(index))
    assert "surrogate" in refused(capsys, "info", str(checkpoint))


def test_a_checkpoint_that_no_bundle_can_name(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint \udcff")
    with pytest.raises(CheckpointError, match="no text in UTF-8"):
        Checkpoint.open(folder)
