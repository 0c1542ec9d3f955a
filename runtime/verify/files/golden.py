"""A bundle's golden answers: asked as convert asks, complete, and what the engine still says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from convert.bundle.manifest import GOLDEN, GOLDEN_PICTURE, Bundle
from convert.checkpoint.config import ModelConfig
from convert.golden import golden_picture, golden_questions, golden_settings
from convert.support.progress import Progress
from quantize.errors import ToolkitError
from runtime.engine_client.protocol import Field
from runtime.inputs.picture_file import picture_bytes
from runtime.inputs.prompt import Tokenizer
from runtime.inputs.slices import plan_cut
from runtime.verify.check import Cause, Check
from runtime.verify.files.differences import differences
from runtime.verify.files.tokenizer import prompt_check, text_check
from runtime.verify.stages import EngineStages

STAGE, SELF_CHECK = "golden answers", "self-check"
_ANSWERED = ("ids", "steps")  # of a prompt: the engine's answer when the bundle was made


def file_problems(golden: Any, config: ModelConfig) -> list[str]:
    """Says where a `golden.json` asks or expects something else than convert would have it.

    A file that asks less, or expects less, would let an engine pass that answers wrongly.
    """
    expected = golden_questions(with_pictures=config.vision is not None)
    asked = golden
    if isinstance(golden, dict) and isinstance(golden.get("prompts"), list):
        asked = golden | {"prompts": [_question(prompt) for prompt in golden["prompts"]]}
    problems = list(differences(asked, expected, ""))
    if problems:
        return problems
    return [
        f"prompts[{i}].{problem}"
        for i, prompt in enumerate(golden["prompts"])
        for problem in _answer_problems(prompt, golden["tolerance"], config)
    ]


def picture_problems(bundle: Bundle) -> list[str]:
    """Says whether a bundle's golden picture is not the one that convert shows."""
    if GOLDEN_PICTURE not in bundle.manifest.files:
        return ["missing"]
    same = (bundle.path / GOLDEN_PICTURE).read_bytes() == picture_bytes(golden_picture())
    return [] if same else ["not the picture that convert shows"]


def text_checks(
    golden: Mapping[str, Any], config: ModelConfig, tokenizer: Tokenizer, engine: EngineStages
) -> list[Check]:
    """Compares what the engine makes of golden prompts and answers with what the reference does."""
    queries = 0 if config.resampler is None else config.resampler.query_num
    cut = None
    if config.vision is not None and config.vision.slices is not None:
        cut = plan_cut(golden_picture().size, config.vision)
    checks = []
    for i, prompt in enumerate(golden["prompts"], 1):
        messages, image_tokens = prompt["messages"], queries if prompt["image"] else 0
        grid = cut.grid if cut is not None and prompt["image"] else None
        right = tokenizer.prompt(messages, image_tokens, grid=grid)
        asked = engine.prompt(messages, image_tokens, grid)
        checks.append(prompt_check(f"golden prompt {i}", asked, right))
        said, text = engine.text(prompt["ids"]), tokenizer.decode(prompt["ids"])
        checks.append(text_check(f"golden answer {i}", said, text))
    return checks


def answer_checks(
    engine: EngineStages, count: int, progress: Progress
) -> tuple[list[Check], list[Cause]]:
    """Has the engine check itself, as a phone does; returns checks, and what it says otherwise."""
    progress(SELF_CHECK, 0, count)
    try:
        answers = engine.self_check(lambda _, done, total: progress(SELF_CHECK, done, total))
    except ToolkitError as error:
        cause = Cause(GOLDEN, f"the engine cannot check itself: {error}")
        return [_check("all prompts", False)], [cause]
    checks = [
        _check(f"prompt {i}", bool(answer[Field.PASSED])) for i, answer in enumerate(answers, 1)
    ]
    causes = [
        Cause(GOLDEN, _difference(i, answer))
        for i, answer in enumerate(answers, 1)
        if not answer[Field.PASSED]
    ]
    return checks, causes


def _question(prompt: Any) -> Any:
    """Returns what a prompt says before its answer."""
    if not isinstance(prompt, dict):
        return prompt
    return {key: value for key, value in prompt.items() if key not in _ANSWERED}


def _answer_problems(prompt: Mapping[str, Any], tolerance: float, config: ModelConfig) -> list[str]:
    """Says what an answer lacks, or has that no greedy answer can have."""
    ids, steps = prompt.get("ids"), prompt.get("steps")
    if not isinstance(ids, list) or not all(type(i) is int for i in ids) or not ids:
        return ["ids is no answer: expected a list of token ids"]
    if not isinstance(steps, list) or len(steps) != len(ids):
        return [f"steps does not have the {len(ids)} entries that its ids ask for"]
    count = min(golden_settings()["top"], config.decoder.vocab_size)
    for i, (step, chosen) in enumerate(zip(steps, ids, strict=True)):
        logits = _logits(step)
        if logits is None or len(logits) != count:
            return [f"steps[{i}] does not have the logits of {count} tokens"]
        if not logits.get(chosen, -math.inf) >= max(logits.values()) - tolerance:
            return [f"steps[{i}] has a likelier token than its id, {chosen}"]
    return []


def _logits(step: Any) -> dict[int, float] | None:
    """Returns a step's logits by token; None where it has something else."""
    try:
        found = {entry["id"]: entry["logit"] for entry in step["top"]}
    except (TypeError, KeyError):
        return None
    numbers = all(type(i) is int and isinstance(x, float) for i, x in found.items())
    return found if numbers and all(map(math.isfinite, found.values())) else None


def _check(name: str, passed: bool) -> Check:
    return Check(STAGE, name, SELF_CHECK, "", float(passed), 1, 1, True)


def _difference(i: int, answer: Mapping[str, Any]) -> str:
    said, expected = answer[Field.TEXT], answer[Field.EXPECTED]
    asked = f"prompt {i}, {answer[Field.QUESTION]!r:.80}"
    if said == expected:
        return f"{asked}: the engine's logits differ from those in the file"
    return f"{asked}: the engine answers {said!r:.80}, the file has {expected!r:.80}"
