"""`verify --engine mlc` with a stand-in for the library: what passes, what fails, and why."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from convert import cli
from convert.bundle.errors import BundleError
from convert.bundle.manifest import BundleSource, FileRecord
from convert.bundle.plan import Recipe
from convert.checkpoint.config import CONFIGS
from convert.checkpoint.reader import Checkpoint
from convert.mlc.manifest import MANIFEST, LibraryRecord, PackageManifest
from convert.mlc.opened import MlcPackage
from convert.mlc.package import make_mlc_plan, write_package
from convert.mlc.square import message_parts
from convert.support.progress import silent
from runtime.inputs.prompt import Tokenizer
from runtime.mlc.engine import HOST, find_library
from runtime.verify.mlc import run
from runtime.verify.mlc.prompts import package_encode, package_prompt
from runtime.verify.report.report import Report
from runtime.verify.verify import verify
from tests.support.cards import ReadCard
from tests.support.mlc_stand_in import TorchEngine

LIBRARY = "minicpm_v-q4f16_1-host.so"


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return Checkpoint.open(CONFIGS / "demo")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, checkpoint: Checkpoint) -> Path:
    """A package of the demo with a file in the library's place."""
    folder = tmp_path_factory.mktemp("mlc") / "package"
    folder.mkdir()
    plan = make_mlc_plan(checkpoint.config, False, Recipe.load("mlc"), pictures=True)
    source = BundleSource(path="demo", sha256=checkpoint.source_hash(), demo=True)
    write_package(checkpoint, source, plan, folder, silent)
    add_library(folder)
    return folder


def add_library(folder: Path, abi: str | None = "0.27") -> None:
    (folder / LIBRARY).write_bytes(b"a library")
    record = LibraryRecord(file=LIBRARY, mlc_llm="1.0", abi=abi)
    PackageManifest.read(folder).with_library(HOST, folder / LIBRARY, record)


@pytest.fixture
def package(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(made, tmp_path / "package")


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, checkpoint: Checkpoint) -> type[TorchEngine]:
    """The engine that runs in the library's place; one picture is asked about."""

    class Engine(TorchEngine):
        pass

    load = run.load_settings

    def fewer() -> dict[str, Any]:
        settings = load()
        settings["built_in"] |= {"pictures": 1, "max_new_tokens": 12}
        return settings

    monkeypatch.setattr(run, "load_settings", fewer)
    monkeypatch.setattr(run, "library_engine", lambda _, package: Engine(package, checkpoint))
    return Engine


def sign(folder: Path, *names: str) -> None:
    """Writes the hashes of changed files into the manifest, as a toolkit with a fault would."""
    manifest = PackageManifest.read(folder)
    new = {name: FileRecord.of(folder / name) for name in names}
    structs.replace(manifest, files={**manifest.files, **new}).write(folder)


def told(report: Report) -> dict[str, str]:
    return {cause.where: cause.why for cause in report.causes}


def test_a_right_package_passes(
    package: Path, stand_in: object, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["verify", str(package), "--engine", "mlc", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] and report["engine"] == "mlc" and report["kv_cache"] == "fp16"
    assert len(report["answers"]) == 2 and all(answer["same"] for answer in report["answers"])
    stages = {check["stage"] for check in report["checks"]}
    assert stages == {
        *("files", "weights", "codes", "tokenizer", "settings", "resampler"),
        *("prompt embeddings", "LM head", "logits", "answers"),
    }
    same = [c["value"] for c in report["checks"] if c["metric"] == "SQNR, same weights"]
    assert len(same) == 3 and all(float(value) > 60 for value in same), "only float16 is between"


def test_the_card_gets_the_figures(
    package: Path, stand_in: object, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = (package / MANIFEST).read_bytes()
    assert cli.main(["verify", str(package), "--engine", "mlc", "--card"]) == 0
    text = (package / "README.md").read_text("utf-8")
    assert "compared the package with the checkpoint in float32 (engine mlc, 2 questions)" in text
    read = ReadCard.of(package)
    assert read.front["library_name"] == "mlc-llm"
    assert read.front["pipeline_tag"] == "image-text-to-text"
    rows = {(row[0], row[1]) for row in read.rows if len(row) == 4}
    assert ("resampler: image tokens", "SQNR, dB") in rows
    assert ("logits: at answer tokens", "KL divergence, nats") in rows
    assert not any("same weights" in figure for _, figure in rows)
    assert "noise floor" not in text and "Not measured" not in text
    assert (package / MANIFEST).read_bytes() == manifest
    (package / "README.md").write_text("# Mine\n")
    with pytest.raises(BundleError, match="not a card"):
        verify(package, engine="mlc", card=True)
    assert cli.main(["verify", str(package), "--engine", "mlc", "--sensitivity", "f.json"]) == 2
    assert "--sensitivity is for a bundle" in capsys.readouterr().err


def test_report_and_resume(package: Path, stand_in: object, tmp_path: Path) -> None:
    first = verify(package, engine="mlc", report=tmp_path / "report")
    again = verify(package, engine="mlc", report=tmp_path / "report")
    assert (first.earlier_cases, again.earlier_cases) == (0, 2)
    assert again.passed and "image tokens" in str(again.to_json()["checks"])
    page = (tmp_path / "report/index.html").read_text()
    assert "Passed" in page and "TVM&#39;s virtual machine" in page
    assert "what the stored weights alone cost" in page


@pytest.mark.parametrize(
    ("fault", "stages"), [("image_scale", "resampler"), ("logits_scale", "LM head")]
)
def test_a_library_that_computes_otherwise(
    fault: str, stages: str, package: Path, stand_in: type[TorchEngine]
) -> None:
    setattr(stand_in, fault, 1.1)
    report = verify(package, engine="mlc")
    assert not report.passed and stages in report.failed_stages
    assert (
        "computes other " in told(report)["the library"] and stages in told(report)["the library"]
    )


def put_byte(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x55
    path.write_bytes(data)


def test_an_altered_file(package: Path, stand_in: object) -> None:
    put_byte(package / "params_shard_0.bin", -1)
    report = verify(package, engine="mlc")
    assert told(report) == {"params_shard_0.bin": "altered: the SHA-256 is not the manifest's"}


def test_an_altered_library_is_not_run(package: Path, stand_in: object) -> None:
    put_byte(package / LIBRARY, 0)
    with pytest.raises(BundleError, match=rf"{LIBRARY}: altered.* is not run"):
        verify(package, engine="mlc")


def test_a_tensor_of_another_layer(package: Path, stand_in: object) -> None:
    """Two matrices of the same shape in each other's place; every hash is right."""
    cache = package / "tensor-cache.json"
    raw = json.loads(cache.read_text())
    records = {one["name"]: one for shard in raw["records"] for one in shard["records"]}
    one, other = (records[f"model.layers.{i}.self_attn.o_proj.q_weight"] for i in (0, 1))
    one["byteOffset"], other["byteOffset"] = other["byteOffset"], one["byteOffset"]
    cache.write_text(json.dumps(raw))
    sign(package, cache.name)
    report = verify(package, engine="mlc")
    assert told(report)["llm.layers.0.o, llm.layers.1.o"].startswith("stored otherwise")
    assert "the library" not in told(report)


def test_a_changed_template(package: Path, stand_in: object) -> None:
    path = package / "mlc-chat-config.json"
    raw = json.loads(path.read_text())
    raw["conv_template"]["roles"]["assistant"] = "<AI>:"
    raw["temperature"] = 2.0
    path.write_text(json.dumps(raw))
    sign(package, path.name)
    report = verify(package, engine="mlc")
    assert "conv_template.roles.assistant is '<AI>:'; expected '<AI>'" in told(report)[path.name]
    assert "temperature is 2.0" in told(report)[path.name]
    assert "prompts" in {check.name for check in report.failures}


def test_exchanged_words(package: Path, stand_in: object) -> None:
    path = package / "tokenizer.model"
    model = ModelProto.FromString(path.read_bytes())
    one, other = model.pieces[-1], model.pieces[-2]
    one.piece, other.piece = other.piece, one.piece
    path.write_bytes(model.SerializeToString())
    sign(package, path.name)
    report = verify(package, engine="mlc")
    assert f"{one.piece!r} has the id of" in told(report)[path.name]
    assert "tokenizer.json" not in told(report)


def test_a_tokenizer_json_with_other_ids(package: Path, stand_in: object) -> None:
    path = package / "tokenizer.json"
    raw = json.loads(path.read_text("utf-8"))
    raw["model"]["merges"].reverse()
    path.write_text(json.dumps(raw))
    sign(package, path.name)
    report = verify(package, engine="mlc")
    assert "where tokenizer.model gives" in told(report)[path.name]
    assert "prompt" not in told(report) and "detokenizer" not in told(report)
    assert {"prompts", path.name} <= {check.name for check in report.failures}
    path.write_text("{}")
    sign(package, path.name)
    with pytest.raises(BundleError, match=r"tokenizer\.json: not a tokenizer of Hugging Face"):
        verify(package, engine="mlc")


@pytest.mark.parametrize("messages", [1, 3])
@pytest.mark.parametrize("image_tokens", [0, 64])
def test_prompts_are_the_toolkits(
    messages: int, image_tokens: int, made: Path, checkpoint: Checkpoint
) -> None:
    package = MlcPackage.open(made)
    assert package.tokenizer is not None
    texts = ("Where is the 红色 circle?\n", "Left.", "还有呢？")
    turns: Any = [
        {"role": ("user", "assistant")[i % 2], "content": text}
        for i, text in enumerate(texts[:messages])
    ]
    template, encode = package.chat["conv_template"], package_encode(package)
    around = message_parts(None) if image_tokens else []
    found = package_prompt(template, encode, turns, image_tokens, around)
    assert found == Tokenizer(package.tokenizer).prompt(turns, image_tokens)


@pytest.mark.parametrize(
    ("abi", "problem"),
    [("0.26", "compiled for apache-tvm 0.26"), (None, "compiled by an installed mlc_llm")],
)
def test_a_library_of_another_abi(abi: str | None, problem: str, package: Path) -> None:
    add_library(package, abi)
    with pytest.raises(BundleError, match=rf"{problem}.*--mlc-abi 0\.27"):
        find_library(MlcPackage.open(package))


def test_no_library(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = PackageManifest.read(package)
    structs.replace(manifest, libraries={}).write(package)
    assert cli.main(["verify", str(package), "--engine", "mlc"]) == 2
    said = capsys.readouterr().err
    assert "holds no library for mlc-host (libraries: none)" in said and "--mlc-source" in said


def test_a_file_that_is_no_library(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", str(package), "--engine", "mlc"]) == 2
    said = capsys.readouterr().err
    assert f"{LIBRARY}: cannot be loaded: " in said and said.count("\n") == 1


def change_cache(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "tensor-cache.json"
    raw = json.loads(path.read_text())
    change(raw["records"][0])
    path.write_text(json.dumps(raw))
    sign(folder, path.name)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda shard: shard.update(dataPath="../../etc/passwd"), "is not a file of the package"),
        (lambda shard: shard["records"][0].update(shape=[1 << 40]), "does not follow from"),
        (lambda shard: shard["records"][0].update(dtype="object"), "does not follow from"),
        (lambda shard: shard["records"][0].update(name="x"), "parameter x does not follow"),
        (lambda shard: shard["records"][0].update(byteOffset=1 << 40), "does not lie in"),
        (lambda shard: shard["records"][0].update(byteOffset=-1), "does not lie in"),
        (lambda shard: shard["records"][0].update(nbytes=1), "does not lie in"),
        (lambda shard: shard["records"].append(shard["records"][0]), "does not follow from"),
        (lambda shard: shard["records"].pop(), "is missing"),
        (lambda shard: shard.update(records=7), "Expected `array`"),
    ],
)
def test_a_hostile_list_of_parameters(
    change: Callable[[dict[str, Any]], None], problem: str, package: Path
) -> None:
    change_cache(package, change)
    with pytest.raises(BundleError, match=rf"tensor-cache\.json: .*{problem}"):
        MlcPackage.open(package)


def test_another_models_package(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = PackageManifest.read(package)
    source = BundleSource(path="demo", sha256="0" * 64, demo=True)
    structs.replace(manifest, source=source).write(package)
    assert cli.main(["verify", str(package), "--engine", "mlc"]) == 2
    assert "not the checkpoint that" in capsys.readouterr().err


def test_the_wrong_engine(
    package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["verify", str(package)]) == 2
    assert "a package for MLC-LLM; to verify it: --engine mlc" in capsys.readouterr().err
    (tmp_path / "bundle.json").write_text("{}")
    assert cli.main(["verify", str(tmp_path), "--engine", "mlc"]) == 2
    assert f"{tmp_path / MANIFEST}: cannot be read" in capsys.readouterr().err
    for option in ("--threads", "--window", "--save-reference", "--reference-results"):
        assert cli.main(["verify", str(package), "--engine", "mlc", option, "2"]) == 2
        assert f"{option} is for a bundle's engine" in capsys.readouterr().err


def test_weights_are_read_as_they_were_written(made: Path, checkpoint: Checkpoint) -> None:
    params = MlcPackage.open(made).params
    assert len(params) == len(set(params)) and "model.embed_tokens.q_weight" in params
    original = checkpoint.read("llm.model.norm.weight").float().numpy()
    stored = params["model.norm.weight"]
    assert stored.dtype == np.float16
    np.testing.assert_array_equal(stored.astype(np.float32), original.astype(np.float16))
