"""What comparisons make of their rounds, and what a child process says when it ends."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from convert.checkpoint.config import CONFIGS, ModelConfig
from quantize.errors import ToolkitError
from tests.bench import llama_gguf, rounds
from tests.bench.against_llama import geometry
from tests.bench.child import Child
from tests.bench.processor_time import processor_seconds
from tests.bench.rounds import Row


def row(target: float | None = 1.5, *, less_is_better: bool = False) -> Row:
    made = Row("speed", "tok/s", target, less_is_better)
    for ours, theirs in ((10, 5), (12, 10), (9, 3)):
        made.add(ours, theirs)
    return made


def test_the_median_of_the_ratios_counts() -> None:
    assert row().ratios == [2, 1.2, 3]
    assert row().reached is True
    assert row(2.1).reached is False
    assert row(None).reached is None
    assert row(less_is_better=True).ratios == [0.5, 10 / 12, 1 / 3]


def test_the_report_has_every_value() -> None:
    told = row().to_json()
    assert told["ratios"] == {"median": 2, "min": 1.2, "max": 3, "values": [2, 1.2, 3]}
    assert told["ours"]["values"] == [10, 12, 9]
    assert told["reached"] is True


def test_sides_take_turns() -> None:
    heard: list[str | int] = []
    a, b = (lambda: heard.append("a")), (lambda: heard.append("b"))
    rounds.alternate(2, a, b, on_round=heard.append)
    assert heard == ["a", "b", 1, "a", "b", 2]


def test_a_missed_target_fails_only_where_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(rounds, "features", lambda: frozenset({"avx512_vnni"}))
    assert rounds.exit_code([row(), row(None)]) == 0
    assert rounds.exit_code([row(), row(2.1)]) == 1
    monkeypatch.setattr(rounds, "features", lambda: frozenset({"avx2"}))
    assert rounds.exit_code([row(2.1)]) == 0


def test_features_are_read(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("model name\t: x\nflags\t\t: sse avx2\nflags\t\t: sse\n")
    assert rounds.features(info) == {"sse", "avx2"}
    assert rounds.features(tmp_path / "missing") == frozenset()


def test_the_other_model_has_our_shape_and_size() -> None:
    config = ModelConfig.load(CONFIGS / "model" / "minicpm-v-1.0.json").decoder
    shape = geometry(config)
    tensors = dict(llama_gguf.tensors(shape))
    assert len(tensors) == 2 + 9 * 40
    assert tensors["token_embd.weight"] == (122_753, 2304)
    assert tensors["blk.39.ffn_down.weight"] == (2304, 5760)
    weights = (2304 * 122_753 + 40 * (4 * 2304 * 2304 + 3 * 2304 * 5760)) * 4.5 / 8
    assert llama_gguf.decode_bytes(shape) == weights + 81 * 2304 * 4


def test_a_child_answers_until_it_ends(tmp_path: Path) -> None:
    answer = "import sys\nprint(sys.stdin.readline().strip().upper(), flush=True)\n"
    script = answer + "raise ValueError('why')"
    with Child("other", [sys.executable, "-c", script], tmp_path) as child:
        assert child.ask("go", n=1) == {"OP": "GO", "N": 1}
        with pytest.raises(ToolkitError, match="other ended: ValueError: why"):
            child.ask("go")


def test_time_of_a_process_grows_with_its_work() -> None:
    before = processor_seconds(os.getpid())
    assert sum(i * i for i in range(300_000)) > 0
    assert processor_seconds(os.getpid()) > before > 0
