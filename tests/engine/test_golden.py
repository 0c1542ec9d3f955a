"""What convert has the host's engine answer, every engine of the bundle must answer too."""

from __future__ import annotations

import json
import shutil

import pytest

from convert import golden, pipeline
from convert.bundle import GOLDEN, GOLDEN_PICTURE, Bundle
from runtime.engine_client import LOCAL, QEMU, EngineClient, engine_command
from runtime.protocol import Field
from tests.engine.engines import HOST, PHONE, Built


@pytest.fixture(scope="module")
def bundle(phone: Built, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle for host and phone, with golden answers."""
    folder = tmp_path_factory.mktemp("golden") / "bundle"
    shutil.copytree(phone.bundle, folder)
    manifest = Bundle.open(folder).manifest
    stages: list[tuple[str, int, int]] = []
    added = pipeline.add_golden(folder, manifest, lambda *stage: stages.append(stage))
    assert set(added.files) - set(manifest.files) == {GOLDEN, GOLDEN_PICTURE}
    count = len(json.loads(golden.PROMPTS.read_text())["prompts"])
    assert ("golden answers", count, count) in stages
    opened = Bundle.open(folder)
    opened.verify_hashes()
    return opened


@pytest.mark.parametrize(("engine", "target"), [(LOCAL, HOST), (QEMU, PHONE)])
def test_every_engine_gives_the_golden_answers(engine: str, target: str, bundle: Bundle) -> None:
    with EngineClient(engine_command(engine, bundle.program(target))) as client:
        client.load(bundle.path, window=256)
        result = client.self_check()
        prompts = json.loads((bundle.path / GOLDEN).read_text())["prompts"]
        assert len(result[Field.CHECKS]) == len(prompts)
        assert all(prompt["ids"] for prompt in prompts)
        assert result[Field.PASSED] is True


def test_only_an_engine_that_runs_here_can_answer(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(golden.platform, "machine", lambda: "arm64")
    assert pipeline.add_golden(bundle.path, bundle.manifest, lambda *_: None) is bundle.manifest
    monkeypatch.undo()
    assert golden.can_answer(bundle, HOST)
    assert not golden.can_answer(bundle, "android-x86_64")
