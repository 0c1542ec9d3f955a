"""Does an engine choose the tokens that its own logits say?"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from runtime.verify.check import Cause, Check

STAGE = "sampling"
_TIE = 1e-3  # of the logits' range: closer ones may be chosen either way


def choice_checks(chosen: Sequence[int], logits: Tensor) -> list[Check]:
    """Compares an answer's greedy choices with the likeliest tokens.

    Args:
        chosen: the engine's ids (A,), with its end token if it came to that.
        logits: (A or more, V): the engine's own over them, from the prompt's last id on.
    """
    same, repeated = [], 0
    for i, token in enumerate(chosen):
        row = logits[i]
        same.append(bool(row[token] >= row.max() - _TIE * (row.max() - row.min())))
        repeated += not same[-1] and int(row.argmax()) in chosen[:i]
    return [
        _check(name, part, repeated)
        for name, part in (("first token", same[:1]), ("later tokens", same[1:]))
        if part
    ]


def choices_causes(failed: Sequence[Check]) -> list[Cause]:
    """Says what wrong choices point to, in an engine whose stages are right.

    Args:
        failed: checks that did not pass; those of other stages do not count.
    """
    checks = {check.name: check for check in failed if check.stage == STAGE}
    if not checks:
        return []
    check = next(iter(checks.values()))
    others, count = (int(check.detail[key]) for key in ("others", "choices"))
    text = f"{others} of {count} greedy choices of an answer are not the likeliest token"
    if "first token" in checks:
        return [Cause("sampling", "the first token of an answer is not the likeliest")]
    if check.detail["repeated"] == others:
        why = f"{text}, each time because that stood there already: a repetition penalty?"
        return [Cause("sampling", why)]
    why = f"{text}, but the first is: decoding does not find what the prefill left"
    return [Cause("KV cache", why)]


def _check(name: str, same: Sequence[bool], repeated: int) -> Check:
    share = sum(same) / len(same)
    detail = {"choices": len(same), "others": len(same) - sum(same), "repeated": repeated}
    return Check(STAGE, name, "likeliest of own logits", "", share, 1, 1, True, detail)
