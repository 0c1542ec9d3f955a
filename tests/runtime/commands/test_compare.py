"""`compare`: rows from verify, bench and eval, the table, the plot, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from convert import cli
from quantize.errors import ConfigError
from runtime.commands import bench as bench_command
from runtime.commands import compare as compare_command
from runtime.commands.compare_plot import SUFFIXES, check_plot, draw
from runtime.engine_client.options import EngineOptions
from runtime.verify import verify
from tests.support.eval_data import mmbench_row, write_mmbench


@pytest.fixture(scope="module")
def searched(checkpoint: Path, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle's sister: the same formats, scales that were searched."""
    folder = tmp_path_factory.mktemp("bundles") / "searched"
    command = ["convert", str(checkpoint), "-o", str(folder), "--target", "host"]
    assert cli.main([*command, "--quant", "q4f16_1", "--method", "mse"]) == 0
    return folder


def rows() -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "weights_bytes": size << 20,
            "kl_nats": {"text": loss, "answer": loss / 10},
        }
        for name, size, loss in (("small", 10, 0.3), ("large", 30, 0.01), ("middle", 20, 0.1))
    ]


def test_two_bundles(
    bundle: Path, searched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_mmbench(tmp_path / "dev.tsv", [mmbench_row(1), mmbench_row(2)])
    plot = tmp_path / "plot.svg"
    command = ["compare", str(bundle), str(searched), "--threads", "1", "--rounds", "1"]
    command += ["--benchmark", "mmbench", "--data", str(data), "--limit", "1"]
    assert cli.main([*command, "--plot", str(plot), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    first, second = found["bundles"]
    assert (first["name"], second["name"]) == ("bundle", "searched")
    assert (first["method"], second["method"]) == ("rtn", "mse")
    assert first["weights_bytes"] == second["weights_bytes"]
    for row in (first, second):
        assert set(row["kl_nats"]) == {"image", "text", "answer"}
        assert all(value >= 0 for value in row["kl_nats"].values())
        assert 0 <= row["same_answers"] <= 1
        assert row["decode_tok_s"] > 0
        assert row["image_encode_ms"] > 0
        assert row["benchmark"]["scored"] == 1
    assert second["kl_nats"] != first["kl_nats"]
    drawn = plot.read_text("utf-8")
    assert drawn.startswith("<?xml")
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_the_table(
    bundle: Path, searched: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Of what verify and bench say; both are tested by themselves."""
    from runtime.verify.check import Check
    from runtime.verify.measure.answers import AnswerComparison
    from runtime.verify.report.report import Report

    def stand_in(path: Path, **options: Any) -> Report:
        loss = 0.5 if path == bundle else 0.25
        checks = [
            Check("logits", "at text tokens", "KL divergence", "nats", loss, 0, 1, False),
            Check("logits", "at text tokens", "same top-1", "", 1 - loss, 1, 0.6, True),
        ]
        answers = [
            AnswerComparison("1", "?", "a", "a", "a"),
            AnswerComparison("2", "?", "a", "b", "a"),
        ]
        return Report("x", "y", "z", "fp16", "local", 10, 5, checks, answers, 1.0)

    def bench(config: Any) -> dict[str, Any]:
        return {"figures": {"decode_tok_s": {"median": 1234.5}}, "peak_rss_bytes": 1}

    monkeypatch.setattr(verify, "verify", stand_in)
    monkeypatch.setattr(bench_command, "bench", bench)
    assert cli.main(["compare", str(bundle), str(searched)]) == 0
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split()[:5] == ["bundle", "quantization", "weights", "bits", "KL"]
    assert "KL text" in header and "KL image" not in header
    for part in ("bundle", "q4f16_1", "0.5", "50.0 %", "1,234.5", "FAILED"):
        assert part in first
    for part in ("searched", "q4f16_1, mse", "0.25", "passed"):
        assert part in second


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_plot_is_the_same_each_time(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    paths = [tmp_path / f"{i}{suffix}" for i in range(2)]
    for path in paths:
        check_plot(path)
        draw(path, rows())
    begins = {".svg": b"<?xml", ".png": b"\x89PNG", ".pdf": b"%PDF"}[suffix]
    assert paths[0].read_bytes().startswith(begins)
    assert len(list(tmp_path.iterdir())) == 2
    if suffix == ".png":
        assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_loss_of_nothing_is_drawn_too(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw(tmp_path / "plot.svg", [row | {"kl_nats": {"text": 0.0}} for row in rows()])
    assert (tmp_path / "plot.svg").stat().st_size > 1000


def config(*bundles: str, **more: Any) -> compare_command.CompareConfig:
    given: dict[str, Any] = {
        "bundles": tuple(map(Path, bundles)), "engine": EngineOptions(), "reference": None,
        "window": 1024, "rounds": 3, "benchmark": None, "data": None, "limit": None, "plot": None,
    }  # fmt: skip
    return compare_command.CompareConfig(**(given | more))


@pytest.mark.parametrize(
    ("bundles", "more", "expected"),
    [
        (("a",), {}, "two or more"),
        (("a", "b", "a"), {}, "two or more different"),
        (("a", "b"), {"rounds": 0}, "--rounds is 0"),
        (("a", "b"), {"window": -1}, "--window is -1"),
        (("a", "b"), {"benchmark": "mme"}, "need each other"),
        (("a", "b"), {"data": Path("x")}, "need each other"),
        (("a", "b"), {"limit": 3}, "--limit needs"),
    ],
)
def test_what_is_refused(bundles: tuple[str, ...], more: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        config(*bundles, **more)


def test_plots_that_cannot_be_drawn(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ends in \.svg"):
        check_plot(tmp_path / "plot.gif")
    with pytest.raises(ConfigError, match="no folder"):
        check_plot(tmp_path / "none" / "plot.svg")


def test_bundles_of_different_models(
    bundle: Path, demo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["compare", str(bundle), str(demo)]) == 2
    assert "made from another checkpoint" in capsys.readouterr().err
