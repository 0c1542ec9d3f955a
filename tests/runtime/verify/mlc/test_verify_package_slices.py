"""`verify --engine mlc` for a package of a model with slices: the same squares for all three."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from convert import cli
from convert.bundle.manifest import BundleSource
from convert.bundle.plan import Recipe
from convert.checkpoint.reader import Checkpoint
from convert.mlc.manifest import LibraryRecord, PackageManifest
from convert.mlc.package import make_mlc_plan, write_package
from convert.support.progress import silent
from runtime.mlc.engine import HOST
from runtime.verify.mlc import run
from tests.support.mlc_stand_in import TorchEngine
from tests.support.original_conversations import picture
from tests.support.slices import write_slices_checkpoint

LIBRARY = "minicpm_v-q4f16_1-host.so"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with a file in the library's place, and questions about two pictures."""
    folder = tmp_path_factory.mktemp("mlc")
    checkpoint = Checkpoint.open(write_slices_checkpoint(folder / "checkpoint"))
    package = folder / "package"
    package.mkdir()
    plan = make_mlc_plan(checkpoint.config, False, Recipe.load("mlc"), pictures=True)
    source = BundleSource(path=str(checkpoint.path), sha256=checkpoint.source_hash(), demo=False)
    write_package(checkpoint, source, plan, package, silent)
    (package / LIBRARY).write_bytes(b"a library")
    record = LibraryRecord(file=LIBRARY, mlc_llm="1.0", abi="0.27")
    PackageManifest.read(package).with_library(HOST, package / LIBRARY, record)
    lines = []
    for size in ((300, 200), (600, 500)):
        name = f"{size[0]}.png"
        picture(*size).save(folder / name)
        lines.append(json.dumps({"image": name, "question": "What is in the picture?"}))
    (folder / "questions.jsonl").write_text("\n".join(lines), "utf-8")
    return package


class Engine(TorchEngine):
    """Notes the images that it encodes, and may have a fault."""

    seen: list[tuple[int, ...]]

    def image_tokens(self, picture: Any) -> Any:
        self.seen.append(picture.shape)
        return super().image_tokens(picture)


@pytest.mark.parametrize("fault", [False, True])
def test_verify(
    made: Path, fault: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = Checkpoint.open(made.with_name("checkpoint"))
    load = run.load_settings

    def fewer() -> dict[str, Any]:
        settings = load()
        settings["built_in"] |= {"max_new_tokens": 4}
        return settings

    monkeypatch.setattr(run, "load_settings", fewer)
    monkeypatch.setattr(run, "library_engine", lambda _, package: Engine(package, checkpoint))
    monkeypatch.setattr(Engine, "seen", [], raising=False)
    monkeypatch.setattr(Engine, "image_scale", 1.05 if fault else 1.0)
    questions = str(made.with_name("questions.jsonl"))
    code = cli.main(["verify", str(made), "--engine", "mlc", "--data", questions, "--json"])
    report = json.loads(capsys.readouterr().out)
    assert Engine.seen == [(448, 448, 3)] * (1 + 3)
    found = {(c["name"], c["metric"]): c for c in report["checks"]}
    (prompts,) = [check for check in report["checks"] if check["name"] == "prompts"]
    assert prompts["passed"], "of one image, and of an overview with slices"
    assert found["image tokens", "SQNR, same weights"]["passed"] is not fault
    assert (code, report["passed"]) == ((1, False) if fault else (0, True))
