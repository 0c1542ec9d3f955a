"""The cards of all that `convert` makes: what the hub reads, and that names are only shown."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from msgspec import structs
from PIL import Image

from convert.bundle.bundle_card import bundle_card
from convert.bundle.card import Accuracy, Card, write_card
from convert.bundle.folder_manifest import CARD
from convert.bundle.licence import Licence
from convert.bundle.manifest import Bundle, BundleSource
from convert.checkpoint.config import ModelConfig
from convert.mlc.card import package_card
from convert.mlc.manifest import LibraryRecord, PackageManifest
from convert.onnx.card import onnx_card
from convert.onnx.export import DATA, MODEL, OnnxReport
from convert.onnx.graph import TOKENS
from runtime.inputs.picture import preprocess
from tests.support.bundles import convert, write_bundle
from tests.support.cards import HOSTILE, ReadCard
from tests.support.tiny import write_checkpoint

SECTIONS = ["What it is", "Run it", "Accuracy", "Licence of the weights", "Upload it"]
HUB = BundleSource(path="openbmb/MiniCPM-V", sha256="5" * 64, demo=False)
KINDS = ("bundle", "mlc", "onnx")
LICENCE = Licence({"license": "apache-2.0"}, ())
TASKS = {
    "bundle": "image-text-to-text",
    "mlc": "text-generation",
    "onnx": "image-feature-extraction",
}
LIBRARIES = {"bundle": "minicpmv", "mlc": "mlc-llm", "onnx": "onnx"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of each kind, of a tiny checkpoint with a licence."""
    folder = tmp_path_factory.mktemp("cards")
    source = write_checkpoint(folder / "tiny")
    (source / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A\n")
    for kind, target in (("mlc", "mlc-android"), ("onnx", "onnx")):
        assert convert(source, folder / kind, "--target", target) == 0
    write_bundle(folder / "bundle")
    return folder


def card_of(made: Path, kind: str, source: BundleSource = HUB) -> Card:
    folder = made / kind
    if kind == "bundle":
        card = bundle_card(Bundle.open(folder))
    elif kind == "mlc":
        card = package_card(PackageManifest.read(folder))
    else:
        config = ModelConfig.load(made / "tiny" / "config.json")
        card = onnx_card(source, config, OnnxReport(tensors=1, parameters=2, nbytes=3), folder)
    return dataclasses.replace(card, source=source)


@pytest.mark.parametrize("kind", KINDS)
def test_the_header_has_what_the_hub_asks_for(made: Path, kind: str, tmp_path: Path) -> None:
    write_card(tmp_path, card_of(made, kind), LICENCE)
    read = ReadCard.of(tmp_path)
    related = {} if kind == "onnx" else {"base_model_relation": "quantized"}
    assert read.front == related | {
        "base_model": "openbmb/MiniCPM-V",
        "license": "apache-2.0",
        "language": ["en", "zh"],
        "tags": read.front["tags"],
        "pipeline_tag": TASKS[kind],
        "library_name": LIBRARIES[kind],
    }
    assert read.front["tags"][0] == "minicpm-v"
    assert read.headings[0].startswith("MiniCPM-V, ") and read.headings[1:] == SECTIONS
    assert read.html == [CARD.mark]


@pytest.mark.parametrize("kind", ["mlc", "onnx"])
def test_convert_writes_it(made: Path, kind: str) -> None:
    read = ReadCard.of(made / kind)
    assert read.front["license"] == "apache-2.0" and "base_model" not in read.front
    assert read.headings[0].startswith("tiny, ") and read.headings[1:] == SECTIONS
    files = {p.name for p in (made / kind).iterdir()} - {"README.md"}
    shown = {row[0] for row in read.rows}
    assert len(files - shown) == 1, "all but the manifest"
    assert any(row[0] == "made from" and "SHA-256" in row[1] for row in read.rows)


@pytest.mark.parametrize("kind", ["mlc", "onnx"])
def test_only_a_card_of_ours_is_replaced(
    made: Path, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(made / kind, tmp_path / "out")
    target = {"mlc": "mlc-android", "onnx": "onnx"}[kind]
    assert convert(made / "tiny", folder, "--target", target) == 0
    (folder / "README.md").write_text("# Mine\n")
    capsys.readouterr()
    assert convert(made / "tiny", folder, "--target", target) == 2
    assert "holds README.md, which is not part of the" in capsys.readouterr().err
    assert (folder / "README.md").read_text() == "# Mine\n"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", HOSTILE)
def test_names_are_shown_and_do_nothing(made: Path, kind: str, bad: str, tmp_path: Path) -> None:
    """Whatever a checkpoint, a manifest or a licence calls itself stays a name."""
    source = BundleSource(path=f"/home/{bad.replace('/', '')}", sha256=bad, demo=False)
    licence = Licence({"license": bad, "license_name": bad, "license_link": bad}, (bad, "LICENSE"))
    card = dataclasses.replace(
        card_of(made, kind, source), form=bad, files={bad: 1}, tools={"minicpmv": bad}
    )
    write_card(tmp_path, card, licence, Accuracy("Passed.", ["a", bad], [[bad, bad], ["1", "2"]]))
    plain = dataclasses.replace(card, form="a", files={"a": 1}, tools={"minicpmv": "1"}, source=HUB)
    (tmp_path / "plain").mkdir()
    write_card(
        tmp_path / "plain",
        plain,
        LICENCE,
        Accuracy("Passed.", ["a", "b"], [["c", "d"], ["1", "2"]]),
    )
    read, expected = ReadCard.of(tmp_path), ReadCard.of(tmp_path / "plain")
    known = {*expected.front, "license_name"} - {"base_model", "base_model_relation"}
    assert set(read.front) == known
    assert read.front["license"] == "other"
    assert re.fullmatch("[a-z0-9.-]{1,64}", read.front["license_name"])
    assert read.headings[1:] == SECTIONS and read.html == [CARD.mark]
    assert (read.links, read.fences) == (expected.links, expected.fences)
    assert read.kinds - {"text_special"} <= expected.kinds | {"code_inline"}
    assert [len(row) for row in read.rows] == [len(row) for row in expected.rows]
    assert CARD.is_ours(tmp_path / "README.md")


@pytest.mark.parametrize("bad", HOSTILE)
def test_a_hostile_manifest_of_a_package(made: Path, bad: str, tmp_path: Path) -> None:
    manifest = PackageManifest.read(made / "mlc")
    library = LibraryRecord(file=bad, mlc_llm=bad, abi=None, temporary_bytes=1)
    hostile = structs.replace(
        manifest, quantization=bad, recipe=bad, method=bad, why_no_tokenizer_json=bad,
        libraries={bad: library, "mlc-host": library}, tools={"minicpmv": bad},
        files={bad: manifest.files["tokenizer.model"]},
    )  # fmt: skip
    write_card(tmp_path, package_card(hostile), LICENCE)
    read = ReadCard.of(tmp_path)
    assert read.headings[1:] == SECTIONS and read.html == [CARD.mark]
    assert [fence.split()[:3] for fence in read.fences] == [
        ["mlc_llm", "chat", "DIR"], ["hf", "auth", "login"]
    ]  # fmt: skip
    assert all(link.startswith("https://") and "mlc" in link for link in read.links)
    assert {len(row) for row in read.rows} == {2}


def test_hostile_formats_and_targets_of_a_bundle(made: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(made / "bundle")
    for bad in HOSTILE:
        target = bundle.manifest.targets["host"]
        bundle.manifest = structs.replace(
            bundle.manifest, targets={"host": target, bad: target}, tools={"minicpmv": bad}
        )
        write_card(tmp_path, bundle_card(bundle), LICENCE)
        read = ReadCard.of(tmp_path)
        assert read.headings[1:] == SECTIONS and read.html == [CARD.mark] and not read.links
        assert {len(row) for row in read.rows} == {2}


@pytest.mark.parametrize(
    ("names", "front"),
    [
        ({}, {"license": "unknown"}),
        ({"license": ""}, {"license": "unknown"}),
        ({"license": "openrail++"}, {"license": "openrail++"}),
        ({"license": "My Own!"}, {"license": "other", "license_name": "my-own"}),
        ({"license": "模型"}, {"license": "other", "license_name": "own"}),
        (
            {"license": "other", "license_name": "Model License", "license_link": "LICENSE.md"},
            {"license": "other", "license_name": "model-license", "license_link": "LICENSE.md"},
        ),
        ({"license": "mit", "license_link": "javascript:alert(1)"}, {"license": "mit"}),
        ({"license": "mit", "license_link": "https://a.example/)<b>"}, {"license": "mit"}),
    ],
)
def test_a_licence_in_the_hub_s_form(names: dict[str, str], front: dict[str, str]) -> None:
    assert Licence(names, ()).front_matter() == front


def test_the_onnx_card_s_code_runs(made: Path, tmp_path: Path) -> None:
    """It gives what the model gives for the picture as the reference prepares it."""
    code = ReadCard.of(made / "onnx").fences[0]
    for name in (MODEL, DATA):
        shutil.copyfile(made / "onnx" / name, tmp_path / name)
    random = np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)
    Image.fromarray(random).save(tmp_path / "picture.jpg")
    found: dict[str, object] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        exec(code, found)
    with Image.open(tmp_path / "picture.jpg") as picture:
        pixels = preprocess(picture, 56)
    session = onnxruntime.InferenceSession(tmp_path / MODEL)
    (expected,) = session.run([TOKENS], {"pixels": pixels.numpy()})
    torch.testing.assert_close(torch.tensor(found["tokens"]), torch.tensor(expected))
    differences = [row for row in ReadCard.of(made / "onnx").rows if row[0] == TOKENS]
    assert len(differences) == 1 and float(differences[0][2]) < 1e-5


def test_the_commands_of_a_package(made: Path) -> None:
    """What is shown follows from what the package holds."""
    manifest = PackageManifest.read(made / "mlc")

    def fences(pictures: bool, *targets: str) -> list[str]:
        record = LibraryRecord(file="x", mlc_llm="1", abi=None)
        about = structs.replace(
            manifest, pictures=pictures, libraries=dict.fromkeys(targets, record)
        )
        return re.findall("```sh\n(.*)\n```", package_card(about).run)

    library = "minicpm-q4f16_1-android.tar"
    assert fences(False) == [
        f"python -m mlc_llm compile DIR/mlc-chat-config.json --device android -o DIR/{library}"
    ]
    assert fences(False, "mlc-android") == fences(True, "mlc-android", "mlc-host") == []
    assert fences(False, "mlc-host") == [
        "mlc_llm chat DIR --model-lib DIR/minicpm-q4f16_1-host.so --device cpu"
    ]
