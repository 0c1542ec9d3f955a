"""The full-size table, made of planted figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.bench import full_size
from tests.bench.against_gguf import Used
from tests.bench.against_llama import MEMORY_LIMIT
from tests.bench.full_size import FLOAT32, INT8, LLAMA, Line, make_table, print_lines
from tests.bench.rounds import Row

CONVERTED = {"wall_s": 128.4, "peak_rss_bytes": 1843 << 20}
VERIFIED = Used(650.0, 1000.0, 12345 << 20, "{}")


def measured(**changes: Any) -> dict[str, Any]:
    figures = {
        "load_ms": {"median": 56.0},
        "ttft_first_ms": {"median": 5600.0},
        "ttft_second_ms": {"median": 360.0},
        "prefill_1024_tok_s": {"median": 102.0},
        "read_bytes_s": {"median": 3e10},
        "decode_share_of_limit": {"median": 0.58},
    }
    return {"figures": figures, "window": 1024, "peak_rss_bytes": 2700 << 20} | changes


def llama() -> list[Row]:
    return [
        Row("decode", "tok/s", 1.05, False, [11.0, 12.0, 10.0], [5.0, 10.0, 4.0]),
        Row(MEMORY_LIMIT, "tok/s", 0.9, False, [11.0, 12.0, 10.0], [20.0, 20.0, 20.0]),
        Row("load", "ms", None, True, [50.0, 60.0, 70.0], [200.0, 300.0, 140.0]),
    ]


def onnx() -> list[Row]:
    ours = [4.0, 5.0, 6.0]
    return [
        Row("encode, float32", "ms", 3.0, True, ours, [16.0, 15.0, 18.0]),
        Row("encode, int8", "ms", 1.2, True, ours, [8.0, 5.0, 9.0]),
    ]


def gguf() -> list[Row]:
    return [Row("weights", "s", None, True, [20.0, 30.0, 25.0], [50.0, 60.0, 50.0])]


def table(**changes: Any) -> dict[str, Line]:
    lines = make_table(CONVERTED, VERIFIED, measured(**changes), llama(), onnx(), gguf())
    return {line.name: line for line in lines}


def test_lines_stand_in_the_order_in_which_they_are_measured() -> None:
    assert list(table()) == [
        "convert",
        "convert, peak memory",
        "verify",
        "verify, peak memory",
        "load to ready",
        "first token, first question",
        "first token, second question",
        "prefill 1024",
        "decode, of the memory's limit",
        "peak memory, window 1024",
        "decoder: decode",
        "decoder: load",
        "picture: encode",
        "conversion: weights",
    ]


def test_our_own_figures_come_in_the_table_s_units() -> None:
    lines = table()
    figures = {name: (line.ours, line.unit) for name, line in lines.items()}
    assert figures["convert"] == (128.4, "s")
    assert figures["convert, peak memory"] == (1843, "MiB")
    assert figures["verify"] == (650, "s")
    assert figures["verify, peak memory"] == (12345, "MiB")
    assert figures["first token, second question"] == (pytest.approx(0.36), "s")
    assert figures["decode, of the memory's limit"] == (pytest.approx(58), "%")
    assert figures["peak memory, window 1024"] == (2700, "MiB")
    assert all(not lines[name].others for name in list(lines)[:10])


def test_another_program_has_its_median_and_the_median_of_the_ratios() -> None:
    decode, load = (table()[f"decoder: {name}"] for name in ("decode", "load"))
    assert (decode.ours, decode.others[LLAMA].value) == (11, 5)
    assert decode.others[LLAMA].ratio == 2.2  # of 2.2, 1.2 and 2.5
    assert table()["conversion: weights"].others[LLAMA].ratio == 2  # of 2.5, 2 and 2
    assert (load.ours, load.others[LLAMA].value) == (60, 200)
    assert load.others[LLAMA].ratio == 4  # of 4, 5 and 2; the medians' would be 3.33


def test_both_kinds_of_a_model_share_a_line() -> None:
    encode = table()["picture: encode"]
    assert encode.ours == 5
    assert {name: (other.value, other.ratio) for name, other in encode.others.items()} == {
        FLOAT32: (16, 3),
        INT8: (8, 1.5),
    }


def test_what_could_not_be_measured_has_no_line() -> None:
    lines = table(figures={}, peak_rss_bytes=None)
    measured_apart = ["decoder: decode", "decoder: load", "picture: encode", "conversion: weights"]
    assert list(lines)[4:] == measured_apart


def test_the_printed_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_lines(list(table().values()))
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 15
    row = next(line for line in printed if line.startswith("picture: encode"))
    assert row.split() == [
        *("picture:", "encode", "ms", "5", "–", "16", "(3.00x)", "8", "(1.50x)"),
        *("python", "-m", "tests.bench.against_onnx"),
    ]
    assert "1,843" in printed[2]


def test_a_missing_bundle_is_said_in_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.argv", ["full_size", str(tmp_path / "none"), str(tmp_path)])
    assert full_size.main() == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_json_has_every_line_and_its_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["full_size", "DIR", "FULL", "--json"])
    monkeypatch.setattr(full_size, "measure", lambda args: (list(table().values()), {"more": 1}))
    assert full_size.main() == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["bench"], told["more"], len(told["lines"])) == ("full_size", 1, 14)
    line = next(line for line in told["lines"] if line["name"] == "decoder: decode")
    assert line["others"] == {LLAMA: {"value": 5.0, "ratio": 2.2}}
    assert line["command"] == "python -m tests.bench.against_llama"
