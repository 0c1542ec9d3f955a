"""Every engine of a bundle must give the golden answers that convert recorded on the host."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from convert import golden
from convert.bundle.manifest import GOLDEN, GOLDEN_PICTURE, Bundle, FileRecord
from convert.bundle.targets import HOST, PHONE
from convert.conversion.bundle_writer import add_golden
from runtime.engine_client.client import LOCAL, QEMU, EngineClient, EngineError, engine_command
from runtime.engine_client.protocol import ErrorCode, Field
from tests.engine.engines import Built


@pytest.fixture(scope="module")
def bundle(phone_built: Built, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle for host and phone, with golden answers."""
    folder = tmp_path_factory.mktemp("golden") / "bundle"
    shutil.copytree(phone_built.bundle, folder)
    manifest = Bundle.open(folder).manifest
    stages: list[tuple[str, int, int]] = []
    added = add_golden(folder, manifest, lambda *stage: stages.append(stage))
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


def test_beside_each_id_stand_the_likeliest_tokens(bundle: Bundle) -> None:
    for prompt in json.loads((bundle.path / GOLDEN).read_text())["prompts"]:
        assert len(prompt["steps"]) == len(prompt["ids"])
        for token, step in zip(prompt["ids"], prompt["steps"], strict=True):
            logits = [entry["logit"] for entry in step["top"]]
            assert len(logits) == 16 and logits == sorted(logits, reverse=True)
            assert step["top"][0]["id"] == token  # greedy


@pytest.mark.parametrize(("by", "passed"), [(0.4, True), (-0.4, True), (0.7, False), (-9, False)])
@pytest.mark.parametrize("step", [0, 2])
def test_logits_are_compared_within_a_tolerance(
    step: int, by: float, passed: bool, bundle: Bundle, tmp_path: Path
) -> None:
    def change(prompt: dict[str, Any]) -> None:
        prompt["steps"][step]["top"][9]["logit"] += by

    assert _check(bundle, tmp_path, change) is passed


@pytest.mark.parametrize(
    ("gap", "tolerance", "passed"), [(0.1, 99, True), (100, 99, False), (None, 99, False)]
)
def test_an_answer_may_differ_where_two_tokens_were_as_likely(
    gap: float | None, tolerance: float, passed: bool, bundle: Bundle, tmp_path: Path
) -> None:
    """Simulates a bundle whose converting machine found another token slightly likelier."""

    def change(prompt: dict[str, Any]) -> None:
        first, second = prompt["steps"][0]["top"][:2]
        prompt["ids"] = [second["id"]]
        second["logit"] = first["logit"]
        first["logit"] -= 0 if gap is None else gap
        prompt["steps"] = [{"top": [second] if gap is None else [second, first]}]

    assert _check(bundle, tmp_path, change, tolerance) is passed


def test_bad_golden_prompts_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    changes: list[Callable[[dict[str, Any]], None]] = [
        lambda prompt: prompt["steps"].append(prompt["steps"][0]),
        lambda prompt: prompt["steps"][0].update(top=[]),
        lambda prompt: prompt["steps"][0]["top"][0].update(id=1 << 30),
        lambda prompt: prompt["steps"][0]["top"][0].update(logit="9"),
        lambda prompt: prompt.pop("steps"),
    ]
    for i, change in enumerate(changes):
        with pytest.raises(EngineError) as error:
            _check(bundle, tmp_path / str(i), change)
        assert error.value.code == ErrorCode.INVALID_BUNDLE


def _check(
    bundle: Bundle,
    folder: Path,
    change: Callable[[dict[str, Any]], None],
    tolerance: float | None = None,
) -> bool:
    """Runs the host engine's self-check with an altered last prompt, one without a picture."""
    shutil.copytree(bundle.path, folder / "bundle")
    path = folder / "bundle" / GOLDEN
    golden = json.loads(path.read_text())
    golden["prompts"] = golden["prompts"][-1:]
    golden["tolerance"] = tolerance or golden["tolerance"]
    change(golden["prompts"][0])
    path.write_text(json.dumps(golden))
    manifest = bundle.manifest
    structs.replace(manifest, files={**manifest.files, GOLDEN: FileRecord.of(path)}).write(
        path.parent
    )
    with EngineClient(engine_command(LOCAL, bundle.program(HOST))) as client:
        client.load(path.parent, window=256)
        passed = client.self_check()[Field.PASSED]
    return bool(passed)


def test_only_an_engine_that_runs_here_can_answer(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert add_golden(bundle.path, bundle.manifest, lambda *_: None) is bundle.manifest
    monkeypatch.undo()
    assert golden.can_answer(bundle, HOST)
    assert not golden.can_answer(bundle, "android-x86_64")
