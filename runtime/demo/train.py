"""Trains the demo checkpoint: `python -m runtime.demo.train -o FOLDER`.

A tiny MiniCPM-V of the original's architecture learns from scratch to answer questions about
drawn pictures. Two small heads, used in training only, tell from every patch and every image
token which shape is in that place. With them the vision encoder learns in minutes what answers
alone would teach it in hours.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.data import DataLoader

from convert.checkpoint.config import CONFIGS, ModelConfig
from convert.checkpoint.positions import resample_grid, sincos_grid
from convert.support.whole_file import whole_file
from runtime.demo.batches import CLASSES, IGNORED_TARGET, Batch, Samples, collate
from runtime.demo.scenes import Scene, ShapeItem, draw
from runtime.demo.tokenizer import train_tokenizer
from runtime.inputs.prompt import Tokenizer
from runtime.reference.model import MiniCPMV

log = logging.getLogger(__name__)

SEED = 20_240_501
_STORED_GRID = 9  # patches along a side of the vision model that the config names
_SAVE_EVERY_S = 300
_WARMUP = 0.03  # of the budget
_WEIGHT_DECAY = 0.02
_SAMPLE = Scene((ShapeItem("star", "red", "big", place=4),), 320, 240)  # the picture to try first


class _Resample(nn.Module):
    """Makes training update the stored position embedding, not the resampled one."""

    def __init__(self, grid: int) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, stored: Tensor) -> Tensor:
        return resample_grid(stored, self.grid, self.grid)


class _Probe(nn.Module):
    """Classifies shape, colour, size and place from a feature."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(width, count) for count in CLASSES)
        # Most cells are background; what stands on the others matters more.
        self.background = 0.1

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Compares features (B, N, D) with labels (B, 4, N)."""
        losses = []
        for k, head in enumerate(self.heads):
            logits = head(features).flatten(0, 1)
            weight = torch.ones(logits.shape[-1])
            weight[0] = self.background
            losses.append(F.cross_entropy(logits, labels[:, k].flatten(), weight))
        return torch.stack(losses).mean()


class Trainer(nn.Module):
    """The model with its two probes."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.vision is not None and config.resampler is not None
        self.model = MiniCPMV(config)
        _initialise(self.model)
        self.patch_probe = _Probe(config.vision.embed_dim)
        self.token_probe = _Probe(config.decoder.hidden_size)

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns the loss of the answers and that of the probes."""
        model = self.model
        assert model.vpm is not None and model.resampler is not None
        features = model.vpm(batch.pixels)
        tokens = model.resampler(features)
        embeds = model.llm.embed(batch.ids)
        end = batch.image_start + tokens.shape[1]
        embeds = torch.cat((embeds[:, : batch.image_start], tokens, embeds[:, end:]), dim=1)
        hidden = model.llm(embeds, positions=batch.positions, mask=batch.mask)
        learnt = batch.targets != IGNORED_TARGET
        answers = F.cross_entropy(model.llm.logits(hidden[learnt]), batch.targets[learnt])
        probes = self.patch_probe.loss(features, batch.patch_labels)
        return answers, probes + self.token_probe.loss(tokens, batch.query_labels)


def train(args: argparse.Namespace) -> None:
    """Trains for `args.minutes`, saving the checkpoint at intervals and at the end."""
    torch.manual_seed(SEED)
    source = CONFIGS / "demo" / "config.json"
    config = ModelConfig.load(source)
    args.output.mkdir(parents=True, exist_ok=True)
    if source.resolve() != (args.output / "config.json").resolve():
        shutil.copyfile(source, args.output / "config.json")
    train_tokenizer(args.output / "tokenizer.model", config.decoder.vocab_size)
    draw(_SAMPLE, np.random.default_rng(1)).picture.save(args.output / "sample.png")
    trainer = Trainer(config)
    state = args.output / "training.pt"
    first = 0
    if args.resume:
        saved = torch.load(state, weights_only=True)
        trainer.load_state_dict(saved["trainer"])
        first = saved["step"]
    matrices = [p for p in trainer.parameters() if p.dim() > 1]
    rest = [p for p in trainer.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": _WEIGHT_DECAY}, {"params": rest, "weight_decay": 0}],
        betas=(0.9, 0.98),
    )
    started = saved_at = reported = time.monotonic()
    averages = [0.0, 0.0]
    for step, batch in enumerate(_batches(config, args, first), start=first):
        now = time.monotonic()
        done = (now - started) / (args.minutes * 60)
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * _schedule(done)
        answers, probes = trainer.losses(batch)
        optimizer.zero_grad(set_to_none=True)
        (answers + args.probe_weight * probes).backward()
        torch.nn.utils.clip_grad_norm_(trainer.parameters(), 1.0)
        optimizer.step()
        for k, loss in enumerate((answers, probes)):
            averages[k] += (loss.item() - averages[k]) / min(step - first + 1, 50)
        if now - reported > 20:
            reported = now
            log.info("step %d, %.0f %%: answers %.4f, probes %.4f", step, 100 * done, *averages)
        if now - saved_at > _SAVE_EVERY_S:
            saved_at = now
            _save(trainer, args.output, state, step)
    _save(trainer, args.output, state, step)


def _batches(config: ModelConfig, args: argparse.Namespace, first: int) -> Iterator[Batch]:
    assert config.vision is not None and config.resampler is not None
    samples = Samples(
        Tokenizer(args.output / "tokenizer.model"),
        seed=SEED,
        start=first * args.batch,
        count=10_000_000,
        image_size=config.vision.image_size,
        patch_grid=config.vision.grid,
        query_grid=config.resampler.grid,
        conversations=args.conversations,
    )
    loader = DataLoader(
        samples, batch_size=args.batch, num_workers=1, collate_fn=collate, prefetch_factor=4
    )
    yield from loader


def _schedule(done: float) -> float:
    """Warm-up, then half a cosine down to a fiftieth."""
    if done < _WARMUP:
        return max(done / _WARMUP, 0.02)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (done - _WARMUP) / (1 - _WARMUP)))


def _initialise(model: MiniCPMV) -> None:
    vpm, resampler = model.vpm, model.resampler
    assert vpm is not None and resampler is not None
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not model.llm.lm_head:
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    width = vpm.patch_embed.proj.out_channels
    nn.init.normal_(model.llm.model.embed_tokens.weight, std=0.1)
    nn.init.normal_(vpm.patch_embed.proj.weight, std=0.05)
    for block in vpm.blocks:  # a residual tower starts near the identity
        assert isinstance(block.mlp, nn.Module) and isinstance(block.attn, nn.Module)
        nn.init.normal_(block.mlp.get_parameter("fc2.weight"), std=0.02)
        nn.init.normal_(block.attn.get_parameter("proj.weight"), std=0.02)
    # As strong as the differences between patches; if weaker, places are learnt much later.
    vpm.pos_embed = nn.Parameter(sincos_grid(width, _STORED_GRID, _STORED_GRID).unsqueeze(0) * 2)
    grid = resampler.patch_grid
    assert grid is not None, "the demo's pictures are squares"
    parametrize.register_parametrization(vpm, "pos_embed", _Resample(grid), unsafe=True)
    with torch.no_grad():
        embed_dim = resampler.query.shape[1]
        resampler.query.normal_(std=0.02)
        resampler.ln_q.weight.fill_(0.1)
        side = math.isqrt(resampler.query.shape[0])
        resampler.pos_embed.copy_(sincos_grid(embed_dim, side, side))
        resampler.pos_embed.requires_grad_(False)
        # Queries and keys share a rotation: a query starts by looking at its own place.
        rotation = torch.linalg.qr(torch.randn(embed_dim, embed_dim)).Q
        resampler.attn.in_proj_weight[: 2 * embed_dim] = torch.cat((rotation, rotation)) * 1.5
        nn.init.normal_(resampler.proj, std=embed_dim**-0.5)


def _save(trainer: Trainer, output: Path, state: Path, step: int) -> None:
    """Writes the checkpoint in the original's format, and what `--resume` needs."""
    torch.save({"trainer": trainer.state_dict(), "step": step}, state)
    renamed = {"vpm.parametrizations.pos_embed.original": "vpm.pos_embed"}
    tensors = {
        renamed.get(name, name): tensor.detach().to(torch.bfloat16).clone().contiguous()
        for name, tensor in trainer.model.state_dict().items()
    }
    with whole_file(output / "model.safetensors") as file:
        save_file(tensors, file, metadata={"format": "pt"})
    (output / "training.json").write_text(json.dumps({"seed": SEED, "steps": step}) + "\n")
    log.info("step %d: saved", step)


def main() -> None:
    """Reads the command line and trains."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--minutes", type=float, default=60, help="time to train")
    parser.add_argument("--batch", type=int, default=12, help="pictures in a step")
    parser.add_argument("--conversations", type=int, default=8, help="conversations per picture")
    parser.add_argument("--learning-rate", type=float, default=8e-4)
    parser.add_argument("--probe-weight", type=float, default=0.5)
    parser.add_argument("--resume", action="store_true", help="continue from OUTPUT's weights")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
