"""What both sides of the comparison of conversions are given, and what is measured of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from convert.checkpoint.reader import Checkpoint
from quantize.errors import ToolkitError
from tests.bench.against_gguf import run, write_decoder
from tests.support.tiny import Head, write_checkpoint


@pytest.mark.parametrize("head", ["copy", "different"])
@pytest.mark.parametrize("decoder_only", [False, True])
def test_the_decoder_is_a_checkpoint_of_its_own(
    head: Head, decoder_only: bool, tmp_path: Path
) -> None:
    source = write_checkpoint(tmp_path / "c", head=head, decoder_only=decoder_only, shards=2)
    whole = Checkpoint.open(source)
    write_decoder(whole, tmp_path / "decoder")
    decoder = Checkpoint.open(tmp_path / "decoder")
    assert decoder.config.vision is None
    assert decoder.config.decoder == whole.config.decoder
    assert decoder.untied_head == (head == "different")
    names = {name for name in whole.names() if name.startswith("llm.")}
    assert set(decoder.names()) == names
    for name in names:
        assert decoder.read(name).dtype == torch.bfloat16
        assert torch.equal(decoder.read(name), whole.read(name))


def test_a_decoder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "c", decoder_only=True, tokenizer=False)
    with pytest.raises(ToolkitError, match=r"has no tokenizer\.model, which a GGUF file needs"):
        write_decoder(Checkpoint.open(source), tmp_path / "decoder")


def test_what_a_program_took() -> None:
    work = "x = bytes(200 << 20); y = sum(range(10**6)); print('done')"
    used = run("worker", [sys.executable, "-c", work], 1)
    assert used.output == "done\n"
    assert used.peak_rss_bytes > 200 << 20
    assert used.processor_seconds > 0
    with pytest.raises(ToolkitError, match="worker ended with 3: no room"):
        run(
            "worker",
            [sys.executable, "-c", "import sys; print('no room', file=sys.stderr); exit(3)"],
            1,
        )
