"""Faults for verify to find: altered bundles and faulty engines."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from msgspec import structs
from PIL import Image
from sentencepiece import sentencepiece_model_pb2 as messages
from torch import Tensor

from convert.bundle.manifest import TOKENIZER, WEIGHTS, Bundle, BundleSource, FileRecord
from convert.checkpoint.reader import Checkpoint
from runtime.engine_client.options import LOCAL, EngineOptions
from runtime.engine_client.place import Device
from runtime.engine_client.places import open_place
from runtime.inputs.prompt import Tokenizer
from runtime.inputs.slices import Images
from runtime.reference.arithmetic import RoundedKVCache, apply_arithmetic
from runtime.reference.load import load_reference
from runtime.sessions.engine_session import EngineSession
from runtime.verify.cases import built_in_cases
from runtime.verify.check import Cause, Check
from runtime.verify.diagnose.isolate import find_causes
from runtime.verify.files.contents import check_contents
from runtime.verify.files.weights import BundleTensors, check_files, check_tensors
from runtime.verify.measure.reference import Reference
from runtime.verify.measure.results import ResultCache
from runtime.verify.measure.run import EngineUnderTest, Models, load_settings, run_cases
from runtime.verify.stages import EngineStages, TorchStages

WINDOW, SLICES_WINDOW = 256, 512  # tokens; the latter where a picture is several images
Arrays = dict[str, np.ndarray]


def alter_tensors(folder: Path, change: Callable[[Arrays], Arrays]) -> None:
    """Changes stored tensors in place, and the manifest's hash with them.

    Args:
        folder: a bundle.
        change: gets all stored tensors, and returns the new ones of the same shapes and types.
    """
    weights, path = Bundle.open(folder).weights(), folder / WEIGHTS
    old = {name: np.array(weights[name]) for name in weights}
    raw = bytearray(path.read_bytes())
    new = change(old)
    places = {name: raw.find(old[name].tobytes()) for name in new}  # before any is moved
    for name, values in new.items():
        assert (values.shape, values.dtype) == (old[name].shape, old[name].dtype)
        at = places[name]
        assert at > 0
        raw[at : at + values.nbytes] = values.tobytes()
    alter_file(folder, WEIGHTS, lambda _: bytes(raw))


def alter_file(folder: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    """Changes a file of a bundle, and its size and hash in the manifest."""
    path = folder / name
    path.write_bytes(change(path.read_bytes()))
    record = FileRecord.of(path)

    def correct(manifest: dict[str, Any]) -> None:
        manifest["files"][name] = {"size": record.size, "sha256": record.sha256}

    alter_manifest(folder, correct)


def alter_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes what a manifest says."""
    path = folder / "bundle.json"
    manifest = json.loads(path.read_text("utf-8"))
    change(manifest)
    path.write_text(json.dumps(manifest), "utf-8")


def alter_tokenizer(folder: Path, change: Callable[[Any], None]) -> None:
    """Changes a bundle's SentencePiece model."""

    def changed(content: bytes) -> bytes:
        model = messages.ModelProto.FromString(content)
        change(model)
        result: bytes = model.SerializeToString()
        return result

    alter_file(folder, TOKENIZER, changed)


def exchange(model: Any, *pairs: tuple[str, str]) -> None:
    """Swaps ids of pieces of a SentencePiece model."""
    ids = {piece.piece: i for i, piece in enumerate(model.pieces)}
    for a, b in pairs:
        one, other = (model.pieces[ids[piece]] for piece in (a, b))
        one.piece, other.piece = other.piece, one.piece


def alter_config(bundle: Path, checkpoint: Path, to: Path, **changes: Any) -> Path:
    """Copies a bundle and makes its checkpoint and manifest disagree with its program.

    Args:
        bundle: stays as it is, as does its checkpoint.
        checkpoint: that it was made from.
        to: a new folder.
        changes: of `config.json`.
    """
    source = to / "checkpoint"
    shutil.copytree(checkpoint, source)
    config = json.loads((source / "config.json").read_text()) | changes
    (source / "config.json").write_text(json.dumps(config))
    shutil.copytree(bundle, to / "bundle")
    manifest = Bundle.open(bundle).manifest
    about = BundleSource(path=str(source), sha256=Checkpoint.open(source).source_hash(), demo=False)
    model = {**manifest.model, **changes}
    structs.replace(manifest, source=about, model=model).write(to / "bundle")
    return to / "bundle"


class OtherText(EngineStages):
    """An engine that replaces a letter of its text."""

    def text(self, ids: Sequence[int]) -> str:
        return super().text(ids).replace("e", "a")


class Bilinear(EngineStages):
    """An engine that resizes bilinearly."""

    def images(self, picture: Image.Image) -> Images:
        assert self.config.vision is not None
        side = self.config.vision.image_size
        return super().images(picture.resize((side, side), Image.Resampling.BILINEAR))


class BlueFirst(EngineStages):
    """An engine that swaps the red and blue channels."""

    def images(self, picture: Image.Image) -> Images:
        images = super().images(picture)
        return replace(images, pixels=tuple(pixels.flip(1) for pixels in images.pixels))


class ShortWindow(EngineStages):
    """An engine whose window holds one token less."""

    def layers(self, inputs: Sequence[Tensor], window: int, pinned: int) -> list[Tensor]:
        return super().layers(inputs, window - 1, pinned)


class NothingPinned(EngineStages):
    """An engine that pins one token only, whatever was requested."""

    def layers(self, inputs: Sequence[Tensor], window: int, pinned: int) -> list[Tensor]:
        return super().layers(inputs, window, 1)


class LostCache(EngineStages):
    """An engine whose cache has lost the entries of the first 16 tokens."""

    def layers(self, inputs: Sequence[Tensor], window: int, pinned: int) -> list[Tensor]:
        whole = super().layers(inputs, window, pinned)
        if len(inputs[0]) <= 16:
            return whole
        later = super().layers([x[16:] for x in inputs], window, pinned)
        return [torch.cat((a[:16], b)) for a, b in zip(whole, later, strict=True)]


class MixedCache(EngineStages):
    """An engine whose second layer reads another token's entry from one cache slot."""

    def layers(self, inputs: Sequence[Tensor], window: int, pinned: int) -> list[Tensor]:
        whole = super().layers(inputs, window, pinned)
        if len(inputs) == 1 or len(inputs[0]) < 8:
            return whole
        swapped = inputs[1].clone()
        swapped[2] = inputs[1][5]
        other = super().layers([inputs[0], swapped], window, pinned)[1]
        return [whole[0], torch.cat((whole[1][:3], other[3:]))]


class OneLevel(EngineStages):
    """An engine that loses pictures of one level, which no scene is."""

    def vision_embed(self, pixels: Tensor) -> Tensor:
        out = super().vision_embed(pixels)
        return out if pixels.min() < pixels.max() else out.roll(1, 0)


class BadBlock(EngineStages):
    """An engine whose kernel omits the last outputs of the second vision block."""

    def vision_block(self, index: int, x: Tensor) -> Tensor:
        out = super().vision_block(index, x)
        if index == 1:
            out[:, -16:] = x[:, -16:]
        return out


class BadLayer(EngineStages):
    """An engine whose kernel omits outputs of the first decoder layer."""

    def layers(self, inputs: Sequence[Tensor], window: int, pinned: int) -> list[Tensor]:
        outputs = super().layers(inputs, window, pinned)
        outputs[0][:, 32:48] = inputs[0][:, 32:48]
        return outputs


class Penalty(EngineSession):
    """An engine whose greedy decoding penalises repetition."""

    def reply(self, messages: Any, picture: Any, options: Any, **hooks: Any) -> Any:
        return super().reply(messages, picture, replace(options, repetition_penalty=5.0), **hooks)


class Shouting(EngineSession):
    """An engine whose text does not match its token ids."""

    def reply(self, messages: Any, picture: Any, options: Any, **hooks: Any) -> Any:
        reply = super().reply(messages, picture, options, **hooks)
        return replace(reply, text=f"{reply.text}!")


class Warm(EngineSession):
    """An engine that samples where it should take the likeliest token."""

    def reply(self, messages: Any, picture: Any, options: Any, **hooks: Any) -> Any:
        warm = replace(options, do_sample=True, temperature=3.0, seed=1)
        return super().reply(messages, picture, warm, **hooks)


class Verified:
    """The reference models that the bundles of a checkpoint are compared with."""

    def __init__(self, folder: Path, checkpoint: Path | None = None) -> None:
        """Args: folder: a bundle. checkpoint: by default the one that its manifest names."""
        bundle = Bundle.open(folder)
        self.checkpoint = Checkpoint.open(checkpoint or bundle.manifest.source.path)
        assert self.checkpoint.tokenizer is not None
        self.tokenizer = Tokenizer(self.checkpoint.tokenizer, self.checkpoint.config)
        rounded = apply_arithmetic(load_reference(self.checkpoint, lazy=True), bundle.plan)
        self.arithmetic = TorchStages(rounded, partial(RoundedKVCache, bundle.plan.kv))
        vision = self.checkpoint.config.vision
        self.window = WINDOW if vision is None or vision.slices is None else SLICES_WINDOW
        model = TorchStages(load_reference(self.checkpoint))
        self.reference = Reference(self.checkpoint.config, lambda: model)

    def causes(
        self,
        folder: Path,
        *,
        runs: Path | None = None,
        stages: type[EngineStages] = EngineStages,
        session: type[EngineSession] = EngineSession,
        pretended: Sequence[Check] = (),
    ) -> tuple[list[Check], list[Cause]]:
        """Verifies a bundle; returns the checks that failed, and the causes.

        Args:
            folder: the bundle.
            runs: the bundle that the engine runs instead.
            stages, session: what stands for the engine.
            pretended: checks to add to those that were made.
        """
        bundle, settings = Bundle.open(folder), load_settings()
        settings["built_in"] |= {"pictures": 1, "max_new_tokens": 8}
        thresholds, silent = settings["thresholds"], lambda stage, done, total: None
        checks = check_files(
            bundle.path, bundle.manifest.files, bundle.program("host").path, silent
        )
        checks += check_tensors(
            BundleTensors(bundle.plan, bundle.weights()), self.checkpoint, thresholds, silent
        )
        cases = built_in_cases(settings["built_in"], self.checkpoint.config.vision)
        place: Device = open_place(Bundle.open(runs or folder), EngineOptions(engine=LOCAL))
        with closing(session(place, bundle.config, window=self.window)) as running:
            engine = stages(running)
            contents = check_contents(bundle, self.checkpoint, engine, silent)
            checks += contents.checks
            assert bundle.tokenizer is not None
            own = EngineUnderTest(engine, running, Tokenizer(bundle.tokenizer))
            models = Models(self.reference, self.arithmetic, own)
            outcome = run_cases(
                models,
                self.tokenizer,
                cases,
                settings,
                self.window,
                silent,
                ResultCache(),
                with_patterns=True,
            )
            checks += [*outcome.checks, *pretended]
            causes = find_causes(
                checks,
                bundle,
                self.checkpoint,
                models,
                self.tokenizer,
                cases,
                contents,
                thresholds,
                silent,
            )
        return [check for check in checks if not check.passed], causes
