"""Trains a demo checkpoint: `python -m runtime.demo.train -o FOLDER`.

A tiny MiniCPM-V of the original's architecture learns from scratch to answer questions about
drawn pictures. Two small heads, used in training only, tell from every patch and every image
token what is in that place. With them the vision encoder learns in minutes what answers alone
would teach it in hours.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.data import DataLoader, Dataset

from convert.checkpoint.config import ModelConfig, VisionConfig
from convert.checkpoint.positions import resample_grid, sincos_grid
from convert.support.whole_file import whole_file
from runtime.demo.batches import Batch, Details, ImageGroup, Samples, collate, group
from runtime.demo.task import IGNORED_TARGET, TASKS, Task
from runtime.demo.tokenizer import train_tokenizer
from runtime.inputs.prompt import Tokenizer
from runtime.reference.model import MiniCPMV

log = logging.getLogger(__name__)

SEED = 20_240_501
_SAVE_EVERY_S = 300
_WARMUP = 0.03  # of the steps
_DETAIL_WARMUP = 60  # steps
_GAIN = 1.0  # of the first filters
_WEIGHT_DECAY = 0.02


class _Resample(nn.Module):
    """Makes training update the stored position embedding, not the resampled one."""

    def __init__(self, grid: int) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, stored: Tensor) -> Tensor:
        return resample_grid(stored, self.grid, self.grid)


class _Probe(nn.Module):
    """Tells from a feature what is there: a class of each kind."""

    def __init__(self, width: int, classes: tuple[int, ...]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(width, count) for count in classes)
        # Most cells are background; what stands on the others matters more.
        self.background = 0.1

    def loss(self, features: list[Tensor], labels: list[Tensor]) -> Tensor:
        """Compares features (N, P, D) with labels (N, C, P); an item for each shape of image."""
        flat = torch.cat([f.flatten(0, 1) for f in features])
        of_all = torch.cat([of.transpose(1, 2).flatten(0, 1) for of in labels])
        losses = []
        for k, head in enumerate(self.heads):
            logits = head(flat)
            weight = torch.ones(logits.shape[-1])
            weight[0] = self.background
            losses.append(
                F.cross_entropy(logits, of_all[:, k], weight, ignore_index=IGNORED_TARGET)
            )
        return torch.stack(losses).mean()


class Trainer(nn.Module):
    """The model with its two probes."""

    def __init__(self, config: ModelConfig, task: Task) -> None:
        super().__init__()
        assert config.vision is not None and config.resampler is not None
        self.model = MiniCPMV(config)
        _initialise(self.model, task)
        self.encoder_learns = task.detail is None  # from questions, too
        self.patch_probe = _Probe(config.vision.embed_dim, task.classes)
        self.token_probe = _Probe(config.decoder.hidden_size, task.classes)

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns the loss of the answers and that of the probes."""
        model = self.model
        with torch.set_grad_enabled(self.encoder_learns):
            tokens, probes = self.look(batch.images)
        embeds = model.llm.embed(batch.ids)
        embeds[batch.placeholders] = tokens.flatten(0, 1)
        hidden = model.llm(embeds, positions=batch.positions, mask=batch.mask)
        learnt = batch.targets != IGNORED_TARGET
        answers = F.cross_entropy(model.llm.logits(hidden[learnt]), batch.targets[learnt])
        return answers, probes

    def look(self, images: list[ImageGroup]) -> tuple[Tensor, Tensor]:
        """Returns image tokens (N, Q, D) in the order of the images, and the loss of the probes."""
        vpm, resampler = self.model.vpm, self.model.resampler
        assert vpm is not None and resampler is not None
        features, tokens = [], []
        for of in images:
            rows, columns = (side // vpm.patch_size for side in of.pixels.shape[-2:])
            features.append(vpm(of.pixels))
            tokens.append(resampler(features[-1], (rows, columns)))
        probes = self.patch_probe.loss(features, [of.patch_labels for of in images])
        probes = probes + self.token_probe.loss(tokens, [of.query_labels for of in images])
        return torch.cat(tokens)[torch.cat([of.index for of in images]).argsort()], probes


def train(args: argparse.Namespace) -> None:
    """Trains for the task's steps, saving the checkpoint at intervals and at the end."""
    torch.manual_seed(SEED)
    task: Task = TASKS[args.task]
    source = task.folder / "config.json"
    config = ModelConfig.load(source)
    args.output.mkdir(parents=True, exist_ok=True)
    if source.resolve() != (args.output / "config.json").resolve():
        shutil.copyfile(source, args.output / "config.json")
    train_tokenizer(args.output / "tokenizer.model", config, task)
    task.sample().save(args.output / "sample.png")
    trainer = Trainer(config, task)
    optimizer = _optimizer(trainer)
    state = args.output / "training.pt"
    steps, first = task.detail_steps + task.steps, 0
    if args.resume:
        saved = torch.load(state, weights_only=True)
        trainer.load_state_dict(saved["trainer"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
    saved_at = reported = time.monotonic()
    averages = [0.0, 0.0]
    for step, losses in enumerate(_losses(trainer, config, task, args, first), start=first):
        for parameters in optimizer.param_groups:
            parameters["lr"] = task.learning_rate * _schedule(step, task.detail_steps, steps)
        answers, probes = losses
        optimizer.zero_grad(set_to_none=True)
        (answers + args.probe_weight * probes).backward()
        torch.nn.utils.clip_grad_norm_(trainer.parameters(), 1.0)
        optimizer.step()
        for k, loss in enumerate(losses):
            averages[k] += (loss.item() - averages[k]) / min(step - first + 1, 50)
        now = time.monotonic()
        if now - reported > 20:
            reported = now
            log.info("step %d of %d: answers %.4f, probes %.4f", step + 1, steps, *averages)
        if now - saved_at > _SAVE_EVERY_S or step + 1 == steps:
            saved_at = now
            _save(trainer, optimizer, args.output, state, step + 1)


def _optimizer(trainer: Trainer) -> torch.optim.Optimizer:
    matrices = [p for p in trainer.parameters() if p.dim() > 1]
    rest = [p for p in trainer.parameters() if p.dim() <= 1]
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": _WEIGHT_DECAY}, {"params": rest, "weight_decay": 0}],
        betas=(0.9, 0.98),
    )


def _losses(
    trainer: Trainer, config: ModelConfig, task: Task, args: argparse.Namespace, first: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the losses of answers and probes of every step."""
    end = task.detail_steps
    if first < end:
        images = Details(
            task, config, seed=SEED, start=first * task.detail_batch, end=end * task.detail_batch
        )
        for groups in _loader(images, task.detail_batch, group):
            yield torch.zeros(()), trainer.look(groups)[1]
    start = max(first - end, 0)
    samples = Samples(
        Tokenizer(args.output / "tokenizer.model", config),
        task,
        config,
        seed=SEED,
        start=start * task.batch,
        count=(task.steps - start) * task.batch,
        conversations=task.conversations,
    )
    for batch in _loader(samples, task.batch, collate):
        yield trainer.losses(batch)


def _loader(dataset: Dataset[Any], batch: int, collate: Callable[[Any], Any]) -> DataLoader[Any]:
    return DataLoader(
        dataset, batch_size=batch, num_workers=1, collate_fn=collate, prefetch_factor=4
    )


def _schedule(step: int, details: int, steps: int) -> float:
    """Warm-up, then half a cosine down to a fiftieth; before, a warm-up of the steps of detail."""
    if step < details:
        return min((step + 1) / _DETAIL_WARMUP, 1)
    done = (step - details) / (steps - details)
    if done < _WARMUP:
        return max(done / _WARMUP, 0.02)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (done - _WARMUP) / (1 - _WARMUP)))


def _initialise(model: MiniCPMV, task: Task) -> None:
    vpm, resampler, vision = model.vpm, model.resampler, model.config.vision
    assert vpm is not None and resampler is not None and vision is not None
    assert model.config.resampler is not None
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
    stored = vision.trained_grid
    strength = 1 if task.detail else 2
    vpm.pos_embed = nn.Parameter(sincos_grid(width, stored, stored).unsqueeze(0) * strength)
    if task.detail is not None:
        vpm.patch_embed.proj.weight.data.copy_(_cosines(width, vision.patch_size))
    if vision.slices is None:
        parametrize.register_parametrization(vpm, "pos_embed", _Resample(vision.grid), unsafe=True)
    with torch.no_grad():
        embed_dim = resampler.query.shape[1]
        resampler.query.normal_(std=0.02)
        resampler.ln_q.weight.fill_(0.1)
        resampler.pos_embed.copy_(_query_positions(vision, model.config.resampler.grid, embed_dim))
        resampler.pos_embed.requires_grad_(False)
        # Queries and keys share a rotation: a query starts by looking at its own place.
        rotation = torch.linalg.qr(torch.randn(embed_dim, embed_dim)).Q
        resampler.attn.in_proj_weight[: 2 * embed_dim] = torch.cat((rotation, rotation)) * 1.5
        nn.init.normal_(resampler.proj, std=embed_dim**-0.5)


def _cosines(width: int, patch: int) -> Tensor:
    """Makes filters (width, 3, patch, patch) that keep the fine structure of a patch.

    They are the lowest frequencies of the two-dimensional cosine transform: two thirds of the width
    of brightness, the rest of two differences of colours. Random filters lose most of a stroke.
    """
    steps = (torch.arange(patch) + 0.5) * math.pi / patch
    waves = torch.stack([(steps * k).cos() for k in range(patch)])
    waves = F.normalize(waves, dim=1)
    order = sorted(itertools.product(range(patch), repeat=2), key=lambda at: (sum(at), at))
    filters = []
    sixth = width // 6
    for colours, count in (
        ((1, 1, 1), width - 2 * sixth),
        ((1, -1, 0), sixth),
        ((0.5, 0.5, -1), sixth),
    ):
        colour = F.normalize(torch.tensor(colours, dtype=torch.float32), dim=0)
        for down, across in order[:count]:
            gain = _GAIN if down or across else _GAIN / patch  # the mean is much larger
            plane = torch.outer(waves[down], waves[across]) * gain
            filters.append(colour.view(3, 1, 1) * plane)
    return torch.stack(filters)


def _query_positions(vision: VisionConfig, grid: int, width: int) -> Tensor:
    """Makes the queries' positions (grid * grid, width).

    Keys whose positions are interpolated from the queries' fit them. With slices a key's position
    is its own row and column: a query then gets the mean position of the patches in its place.
    """
    if vision.slices is None:
        return sincos_grid(width, grid, grid)
    patches = round(vision.slices.scale_resolution / vision.patch_size / grid)
    positions = sincos_grid(width, grid * patches, grid * patches)
    return positions.view(grid, patches, grid, patches, width).mean((1, 3)).flatten(0, 1)


def _save(
    trainer: Trainer, optimizer: torch.optim.Optimizer, output: Path, state: Path, step: int
) -> None:
    """Writes the checkpoint in the original's format, and what `--resume` needs."""
    states = {"trainer": trainer.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    with whole_file(state) as file:
        torch.save(states, file)
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
    parser.add_argument("--task", choices=TASKS, default="demo", help="which demo")
    parser.add_argument("--probe-weight", type=float, default=0.5)
    parser.add_argument("--resume", action="store_true", help="continue an interrupted training")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
