"""Runs the original code of MiniCPM-V 2.0 and writes what it gives.

It runs in an environment of its own, with old packages, and imports nothing of the toolkit. See
tests/golden/original-2.0/README.md. From the top folder:
PYTHON -m tests.support.record_original ORIGINAL CHECKPOINT OUTPUT
"""

from __future__ import annotations

import hashlib
import importlib
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import sentencepiece
import timm
import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer

from tests.support.original_conversations import (
    CONVERSATIONS,
    MAX_NEW_TOKENS,
    SETTINGS,
    picture,
)

KEPT = 64  # values of each tensor in the small record


def register(name: str, shape: dict) -> None:
    """Tells timm about a vision encoder that it lacks."""

    def make(pretrained=False, **options):
        for key in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
            options.pop(key, None)
        return VisionTransformer(
            img_size=int(name.rpartition("_")[2]),
            patch_size=shape["patch_size"],
            embed_dim=shape["embed_dim"],
            depth=shape["depth"],
            num_heads=shape["num_heads"],
            mlp_ratio=shape["mlp_hidden_dim"] / shape["embed_dim"],
            class_token=False,
            global_pool="map",
            **options,
        )

    make.__name__, make.__module__ = name, "timm.models.vision_transformer"
    timm.models.register_model(make)


def load(original: Path, checkpoint: Path):
    """Returns the original's model and tokenizer with a checkpoint's weights, in float32."""
    sys.path.insert(0, str(original.parent))
    code = importlib.import_module(f"{original.name}.modeling_minicpmv")
    config_class = importlib.import_module(f"{original.name}.configuration_minicpm").MiniCPMVConfig
    raw = json.loads((checkpoint / "config.json").read_text("utf-8"))
    raw.pop("architectures")
    config = config_class(**raw)
    config._attn_implementation = "eager"
    torch.set_default_dtype(torch.float32)
    table = Path(__file__).resolve().parents[2] / "configs/vision_encoders.json"
    for name, shape in json.loads(table.read_text("utf-8")).items():
        if not timm.is_model(name):
            register(name, shape)
    model = code.MiniCPMV(config)
    state = {k: v.float() for k, v in load_file(checkpoint / "model.safetensors").items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not missing, missing
    assert all(".rotary_emb." in name for name in unexpected), unexpected
    return model.eval(), tokenizer(original, checkpoint, code, raw)


def tokenizer(original: Path, checkpoint: Path, code, raw: dict):
    """Returns the original's tokenizer; its added tokens have the ids of this vocabulary."""
    from transformers import AddedToken

    settings = json.loads((original / "tokenizer_config.json").read_text("utf-8"))
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(checkpoint / "tokenizer.model"))
    ids = {
        "<slice>": raw.get("slice_start_token_id", 111),
        "</slice>": raw.get("slice_end_token_id", 112),
    }
    added, names = {}, []
    for token in settings.pop("added_tokens_decoder").values():
        name = token["content"]
        id = ids.get(name, pieces.piece_to_id(name))
        if id or name == "<unk>":
            added[id] = AddedToken(**token)
            names.append(name)
    for key in ("tokenizer_class", "auto_map"):
        settings.pop(key)
    special = settings["additional_special_tokens"]
    settings["additional_special_tokens"] = [name for name in special if name in names]
    file = str(checkpoint / "tokenizer.model")
    return code.LlamaTokenizerWrapper(vocab_file=file, added_tokens_decoder=added, **settings)


class Watched:
    """The original's `chat`, and what its parts got and gave on the way."""

    def __init__(self, model, tokens) -> None:
        self._model, self._tokenizer = model, tokens
        self.images, self.features, self.tokens = [], [], []
        self.prompt_ids, self.answer_ids = [], []
        convert, decode, transform = model._convert_to_tensors, model._decode_text, model.transform

        def converted(*arguments):
            result = convert(*arguments)
            self.prompt_ids = result["input_ids"][0].tolist()
            return result

        def decoded(ids, tokens):
            self.answer_ids = ids[0].tolist()
            return decode(ids, tokens)

        def transformed(image):
            self.images.append(image)
            return transform(image)

        model._convert_to_tensors, model._decode_text = converted, decoded
        model.transform = transformed
        model.vpm.norm.register_forward_hook(lambda *a: self.features.append(a[2][0].detach()))
        model.resampler.register_forward_hook(lambda *a: self.tokens.append(a[2][0].detach()))

    def chat(self, image, messages, settings: dict) -> str:
        """Answers, and remembers what happened."""
        for seen in (self.images, self.features, self.tokens):
            seen.clear()
        answer, _, used = self._model.chat(
            image,
            [dict(message) for message in messages],
            None,
            self._tokenizer,
            sampling=False,
            max_new_tokens=MAX_NEW_TOKENS,
            **settings,
        )
        assert used == settings
        ids = self.answer_ids[1:]
        self.answer_ids = ids[: ids.index(2) + 1] if 2 in ids else ids
        return answer

    def logits(self):
        """Returns the logits (A, V) of the answer's places."""
        embed, scale = self._model.llm.model.embed_tokens, self._model.llm.config.scale_emb
        prompt, answer = self.prompt_ids, self.answer_ids
        ids = torch.tensor([prompt + answer[:-1]])
        with torch.inference_mode():
            embeds = embed(ids) * scale
            start = self._tokenizer.im_start_id
            places = [i + 1 for i, id in enumerate(prompt) if id == start]
            assert len(places) == len(self.tokens)
            for at, tokens in zip(places, self.tokens, strict=True):
                embeds[0, at : at + len(tokens)] = tokens
            positions = torch.arange(ids.shape[1])[None]
            out = self._model.llm(inputs_embeds=embeds, position_ids=positions)
        return out.logits[0, len(prompt) - 1 :].float()


def main(original: Path, checkpoint: Path, output: Path) -> None:
    """Records all conversations: everything in `output`, and what is kept in `output/small`."""
    torch.set_num_threads(2)
    model, tokens = load(original.resolve(), checkpoint)
    watched = Watched(model, tokens)
    rows, arrays = [], {}
    for number, (size, settings, messages) in enumerate(CONVERSATIONS):
        image = None if size is None else picture(*size)
        answer = watched.chat(image, messages, SETTINGS[settings])
        for name in ("features", "tokens"):
            for i, tensor in enumerate(getattr(watched, name)):
                arrays[f"{name} {number} {i}"] = tensor.numpy()
        logits = watched.logits()
        arrays[f"logits {number}"] = logits.numpy()
        if settings == "greedy":
            assert logits.argmax(-1).tolist() == watched.answer_ids
        rows.append(
            {
                "images": [list(image.size) for image in watched.images],
                "pixels_sha256": [
                    hashlib.sha256(np.asarray(image).tobytes()).hexdigest()
                    for image in watched.images
                ],
                "prompt": runs(watched.prompt_ids),
                "answer_ids": watched.answer_ids,
                "answer": answer,
            }
        )
        print(number, size, len(watched.images), len(watched.prompt_ids), repr(answer))
    small = {key: array.ravel()[:: -(-array.size // KEPT)] for key, array in arrays.items()}
    for folder, kept in ((output, arrays), (output / "small", small)):
        folder.mkdir(parents=True, exist_ok=True)
        lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        (folder / "conversations.json").write_text(f"[\n{lines}\n]\n", "utf-8")
        np.savez(folder / "arrays.npz", **kept)


def runs(ids: list) -> list:
    """Returns ids as pairs of an id and how often it follows itself."""
    return [[id, len(list(run))] for id, run in itertools.groupby(ids)]


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
