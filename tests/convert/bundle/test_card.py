"""A bundle's README.md: what it says, whose it is, and what becomes of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, metadata_load
from msgspec import structs

from convert.bundle.bundle_card import bundle_card
from convert.bundle.card import Accuracy, write_card
from convert.bundle.errors import BundleError
from convert.bundle.licence import Licence
from convert.bundle.manifest import KIND, Bundle, BundleSource
from convert.cli import main
from convert.support.output_folder import OutputFolderError, check_free
from runtime.verify.verify import verify

NOTHING = Licence({}, ())


@pytest.fixture
def bundle(demo: Path, tmp_path: Path) -> Bundle:
    """A copy of the demo's bundle, made from a checkpoint of the hub."""
    folder = shutil.copytree(demo, tmp_path / "bundle")
    manifest = Bundle.open(folder).manifest
    source = BundleSource(path="openbmb/MiniCPM-V", sha256=manifest.source.sha256, demo=False)
    structs.replace(manifest, source=source).write(folder)
    return Bundle.open(folder)


def front(bundle: Bundle) -> dict[str, Any]:
    found = metadata_load(bundle.path / "README.md")
    assert found is not None
    return found


def test_the_hub_reads_a_card(bundle: Bundle) -> None:
    write_card(bundle.path, bundle_card(bundle), Licence({"license": "apache-2.0"}, ()))
    assert front(bundle) == {
        "base_model": "openbmb/MiniCPM-V",
        "base_model_relation": "quantized",
        "language": ["en", "zh"],
        "library_name": "minicpmv",
        "license": "apache-2.0",
        "pipeline_tag": "image-text-to-text",
        "tags": ["minicpm-v", "quantized", "on-device", "android"],
    }
    text = ModelCard.load(bundle.path / "README.md").text
    for said in (
        "# MiniCPM-V, q4f16_1",
        f"SHA-256 `{bundle.manifest.source.sha256}`",
        f"{bundle.plan.bits_per_weight:.2f} bits per weight",
        "`host`, `android-arm64`",
        "| pictures | 168 px, 12 x 12 patches |",
        "| `weights.safetensors` |",
        "minicpmv chat DIR",
        "minicpmv apk DIR",
        "Not measured yet: `minicpmv verify DIR --card`",
        "names `apache-2.0`",
        "hf upload USER/NAME DIR .",
    ):
        assert said in text, said


def test_a_demo_is_from_no_hub_and_no_licence_is_made_up(demo: Path) -> None:
    found = metadata_load(demo / "README.md")
    assert found is not None and "base_model" not in found and found["license"] == "unknown"
    assert "The checkpoint's files do not say" in (demo / "README.md").read_text("utf-8")


def test_a_local_checkpoint_s_folder_stays_private(bundle: Bundle) -> None:
    source = BundleSource(path="/home/somebody/secret/model", sha256="0" * 64, demo=False)
    structs.replace(bundle.manifest, source=source).write(bundle.path)
    changed = Bundle.open(bundle.path)
    write_card(bundle.path, bundle_card(changed), NOTHING)
    text = (bundle.path / "README.md").read_text("utf-8")
    assert "# model, q4f16_1" in text and "secret" not in text


@pytest.mark.parametrize(
    ("card", "files", "names"),
    [
        (None, [], {}),
        ("no front matter", ["LICENSE", "LICENCE.txt", "license"], {}),
        ("---\nlicense: mit\n---\n", [], {"license": "mit"}),
        (
            "---\nlicense: other\nlicense_name: own\nlicense_link: https://a.example\n---\n# A",
            ["COPYING"],
            {
                "license": "other",
                "license_name": "own",
                "license_link": "https://a.example",
            },
        ),
        ("---\nlicense: [mit, apache-2.0]\n---\n", [], {}),
        ("---\n- a\n---\n", [], {}),
        ("---\nlicense: {\n---\n", [], {}),
    ],
)
def test_a_licence_is_what_the_checkpoint_says(
    tmp_path: Path, card: str | None, files: list[str], names: dict[str, str]
) -> None:
    for file in files:
        (tmp_path / file).write_text("text")
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert Licence.of(tmp_path) == Licence(names, tuple(sorted(files)))


def test_a_licence_s_text_is_named(bundle: Bundle) -> None:
    names = {"license": "other", "license_name": "own", "license_link": "https://a.example"}
    write_card(bundle.path, bundle_card(bundle), Licence(names, ("LICENSE",)))
    assert {key: front(bundle)[key] for key in names} == names
    text = (bundle.path / "README.md").read_text("utf-8")
    assert "names `own` (https://a.example)" in text and "has `LICENSE`" in text


def test_only_a_card_of_ours_is_replaced(bundle: Bundle) -> None:
    check_free(bundle.path, KIND)
    path = bundle.path / "README.md"
    path.write_text("# Mine\n")
    with pytest.raises(OutputFolderError, match=r"holds README\.md, which is not part"):
        check_free(bundle.path, KIND)
    with pytest.raises(BundleError, match=r"README\.md: not a card of minicpmv's"):
        write_card(bundle.path, bundle_card(bundle), NOTHING)
    path.unlink()
    path.symlink_to("nothing")
    with pytest.raises(BundleError, match="not a card"):
        write_card(bundle.path, bundle_card(bundle), NOTHING)
    path.unlink()
    write_card(bundle.path, bundle_card(bundle), NOTHING)
    check_free(bundle.path, KIND)


def test_figures_stand_in_a_table(bundle: Bundle) -> None:
    write_card(
        bundle.path,
        bundle_card(bundle),
        NOTHING,
        Accuracy("It passed.", ["a", "b"], [["x|y", "1"]]),
    )
    text = (bundle.path / "README.md").read_text("utf-8")
    assert "It passed.\n\n| a | b |\n| --- | --- |\n| x\\|y | 1 |" in text
    assert "Not measured yet" not in text


def test_verify_writes_its_figures_and_alters_nothing(demo: Path, tmp_path: Path) -> None:
    folder, data = shutil.copytree(demo, tmp_path / "bundle"), tmp_path / "own.jsonl"
    data.write_text(json.dumps({"question": "Hello!"}), "utf-8")
    before = (folder / "bundle.json").read_bytes()
    assert main(["verify", str(folder), "--data", str(data), "--card"]) == 0
    text = (folder / "README.md").read_text("utf-8")
    assert "(engine local, 1 question) and **passed**" in text
    assert "| logits: at text tokens | KL divergence, nats |" in text
    assert (folder / "bundle.json").read_bytes() == before
    Bundle.open(folder).verify_hashes()
    (folder / "README.md").write_text("# Mine\n")
    with pytest.raises(BundleError, match="not a card"):
        verify(folder, data=data, card=True)
