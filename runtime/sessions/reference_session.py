"""One conversation after the other with the PyTorch model, nothing computed twice.

Every request carries the whole conversation. It is tokenized whole; what the KV cache already
holds of it is kept, and the rest is prefilled. A second question, another try and an edited turn
are all this one rule.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from convert.checkpoint.config import VisionConfig
from convert.support.progress import Progress, silent
from runtime.engine_client.protocol import Stage, Stop
from runtime.inputs.callbacks import Cancelled, OnLogprobs, OnText
from runtime.inputs.generation_options import GenerationOptions
from runtime.inputs.prompt import (
    ASSISTANT,
    ORIGINAL_PROMPT_LIMIT,
    USER,
    Message,
    Prompt,
    PromptError,
    Tokenizer,
    check_question,
)
from runtime.inputs.slices import images_of, limit_slices
from runtime.reference.kv_cache import pinned_tokens
from runtime.sessions.backend import Backend, Cache
from runtime.sessions.beam import beam_search
from runtime.sessions.generate import Generation, generate
from runtime.sessions.session import Reply, Statistics, check_window, nothing, require_vision
from runtime.sessions.streaming import TextStream

Key = int | tuple[str, int]  # a token's id; for an image token the picture's hash and its index

_PICTURES_KEPT = 8  # whose image tokens are remembered: 0.6 MB for each image at full size


@dataclass(frozen=True)
class _Image:
    """What the vision encoder gets, and by which it is known."""

    pixels: Tensor  # (1, 3, height, width) float32
    digest: str

    @staticmethod
    def of(pixels: Tensor) -> _Image:
        """Computes the digest."""
        digest = hashlib.sha256(repr(pixels.shape).encode())
        digest.update(pixels.contiguous().numpy().tobytes())
        return _Image(pixels, digest.hexdigest())


@dataclass(frozen=True)
class _Request:
    """A conversation, tokenized and checked against the window."""

    prompt: Prompt
    keys: list[Key]
    pinned: int  # tokens from the start that stay visible


@dataclass(frozen=True)
class _Picture:
    """A picture's images, and by which it is known."""

    images: list[_Image]
    grid: tuple[int, int] | None  # columns and rows of its slices
    digest: str  # of all images

    @staticmethod
    def of(picture: Image.Image, vision: VisionConfig) -> _Picture:
        """Cuts and resizes a picture as the model's geometry says."""
        cut = images_of(picture, vision)
        images = [_Image.of(pixels) for pixels in cut.pixels]
        digest = hashlib.sha256(repr((cut.grid, [one.digest for one in images])).encode())
        return _Picture(images, cut.grid, digest.hexdigest())


class ReferenceSession:
    """A PyTorch model, its tokenizer, and the cache of the latest conversation; see `Session`."""

    def __init__(
        self, backend: Backend, tokenizer: Tokenizer, *, window: int, as_original: bool = False
    ) -> None:
        """Loads nothing.

        Args:
            backend: the model.
            tokenizer: its own.
            window: tokens that a token may see.
            as_original: cut long prompts silently, and take turns in any order.
        """
        check_window(window)
        self.backend, self.tokenizer, self.config = backend, tokenizer, backend.config
        self.window, self._as_original = window, as_original
        self._images: OrderedDict[str, Tensor] = OrderedDict()  # image tokens (Q, D), by digest
        self.reset()

    def close(self) -> None:
        """See `Session`; there is nothing to end."""

    def reset(self) -> None:
        """See `Session`."""
        self._cache: Cache | None = None
        self._cached: list[Key] = []
        self._pinned = 0

    def reply(
        self,
        messages: Sequence[Message],
        picture: Image.Image | None,
        options: GenerationOptions,
        *,
        max_slices: int | None = None,
        on_text: OnText = lambda text: None,
        on_logprobs: OnLogprobs = lambda step: None,
        on_progress: Progress = silent,
        cancelled: Cancelled = lambda: False,
    ) -> Reply:
        """See `Session`; an image is encoded in one go, and can be cancelled only before."""
        vision = limit_slices(self.config.vision, max_slices)
        shown = None
        if picture is not None:
            shown = _Picture.of(picture, require_vision(self.config) if vision is None else vision)
        request = self._request(messages, shown)
        try:
            hooks = (on_text, on_logprobs, on_progress, cancelled)
            return self._reply(request, shown, options, *hooks)
        except BaseException:
            self.reset()  # whatever stopped it, the cache may be half-written
            raise

    def _reply(
        self,
        request: _Request,
        picture: _Picture | None,
        options: GenerationOptions,
        on_text: OnText,
        on_logprobs: OnLogprobs,
        on_progress: Progress,
        cancelled: Cancelled,
    ) -> Reply:
        start = time.perf_counter()
        encode = picture is not None and any(i.digest not in self._images for i in picture.images)
        images = None if picture is None else self._image_tokens(picture, on_progress, cancelled)
        if picture is not None and images is None:
            return nothing()
        encoded = time.perf_counter()
        cache, reused = self._rewind(request)
        hidden = self._prefill(request, images, cache, reused, on_progress, cancelled)
        stream = TextStream(self.tokenizer, on_text, options.stop)
        if hidden is None:
            prefilled = time.perf_counter()
            generation = Generation([], [], 0, Stop.CANCELLED)
            self._cached = request.keys[: cache.length]
        else:
            logits = self.backend.logits(hidden[-1:])[0].cpu()
            prefilled = time.perf_counter()
            generation = self._generate(cache, logits, options, stream, on_logprobs, cancelled)
            self._cached = [*request.keys, *generation.cached]
        text = stream.finish(generation.ids)
        return Reply(
            text,
            generation.ids,
            Statistics(
                encode_ms=(encoded - start) * 1000 if encode else 0.0,
                prefill_ms=(prefilled - encoded) * 1000,
                decode_ms=(time.perf_counter() - prefilled) * 1000,
                prompt_tokens=len(request.keys),
                reused_tokens=reused,
                generated_tokens=len(generation.ids),
                decode_steps=generation.steps,
                stop=generation.stop,
            ),
        )

    def _generate(
        self,
        cache: Cache,
        logits: Tensor,
        options: GenerationOptions,
        stream: TextStream,
        on_logprobs: OnLogprobs,
        cancelled: Cancelled,
    ) -> Generation:
        if options.num_beams > 1:  # the best way is known at its end only: nothing to stream
            return beam_search(self.backend, cache, logits, options, cancelled=cancelled)
        return generate(
            self.backend,
            cache,
            logits,
            options,
            on_token=stream.add,
            on_logprobs=on_logprobs,
            cancelled=cancelled,
            stopped=lambda: stream.stopped,
        )

    def _image_tokens(
        self, picture: _Picture, on_progress: Progress, cancelled: Cancelled
    ) -> list[Tensor] | None:
        """Returns each image's tokens (Q, D), encoded or remembered; None if cancelled."""
        encoded = False
        for done, image in enumerate(picture.images, 1):
            if image.digest not in self._images:
                # One image cannot be cancelled, but between several there is a place for it.
                if encoded and cancelled():
                    return None
                self._images[image.digest] = self.backend.encode_image(image.pixels)
                encoded = True
                on_progress(Stage.ENCODE, done, len(picture.images))
            self._images.move_to_end(image.digest)
        while len(self._images) > _PICTURES_KEPT * self._most_images():
            self._images.popitem(last=False)
        return [self._images[image.digest] for image in picture.images]

    def _most_images(self) -> int:
        """Returns how many images a picture may become."""
        vision = self.config.vision
        return 1 if vision is None or vision.slices is None else 1 + vision.slices.max_slice_nums

    def _request(self, messages: Sequence[Message], picture: _Picture | None) -> _Request:
        """Tokenizes a conversation and checks that it fits."""
        resampler = self.config.resampler
        image_tokens = resampler.query_num if picture and resampler else 0
        check_question(messages, as_original=self._as_original)
        prompt = self.tokenizer.prompt(
            messages,
            image_tokens,
            grid=None if picture is None else picture.grid,
            as_original=self._as_original,
        )
        end = prompt.picture_end(image_tokens)
        if self._as_original:
            _check_cut(end)
            prompt = prompt.cut(ORIGINAL_PROMPT_LIMIT)
        keys: list[Key] = list(prompt.ids)
        if picture is not None:
            for n, start in enumerate(prompt.image_starts):
                of_image = range(n * image_tokens, (n + 1) * image_tokens)
                keys[start : start + image_tokens] = [(picture.digest, i) for i in of_image]
        pinned = pinned_tokens(end)
        last = len(self.tokenizer.encode(USER + messages[-1]["content"] + ASSISTANT))
        self._check_fit(min(last, len(keys) - pinned), pinned, len(keys), bool(prompt.slice_starts))
        return _Request(prompt, keys, pinned)

    def _check_fit(self, last: int, pinned: int, total: int, has_slices: bool) -> None:
        """Earlier turns may slide out of the window; the last one may not."""
        room = self.window - pinned
        if room > 0 and last <= room:
            return
        fewer = " or a lower --max-slices" if has_slices else ""
        raise PromptError(
            f"the prompt has {total} tokens; its last turn takes {last}, and the context window of "
            f"{self.window} has room for {max(room, 0)} beside {pinned} pinned ones: "
            f"shorten the turn, or try a larger --window{fewer}"
        )

    def _rewind(self, request: _Request) -> tuple[Cache, int]:
        """Takes the cache back to what it shares with a request; returns it and its length."""
        limit = len(request.keys) - 1  # the last token must run: its logits are the answer's start
        shared = next(
            (i for i, (a, b) in enumerate(zip(self._cached, request.keys, strict=False)) if a != b),
            min(len(self._cached), len(request.keys)),
        )
        reused, cache = min(shared, limit), self._cache
        if cache is None or self._pinned != request.pinned or not reused:
            cache = None
        elif cache.length > reused and not cache.truncate(reused):
            cache = None
        if cache is None:
            cache, reused = self.backend.new_cache(self.window, request.pinned), 0
        self._cache, self._pinned = cache, request.pinned
        return cache, reused

    def _prefill(
        self,
        request: _Request,
        images: Sequence[Tensor] | None,
        cache: Cache,
        reused: int,
        on_progress: Progress,
        cancelled: Cancelled,
    ) -> Tensor | None:
        """Runs what the cache lacks, in chunks; returns the last hidden states, None if cancelled.

        A chunk is as long as the window, so that the attention's scores stay small.
        """
        ids, hidden = request.prompt.ids, None
        for start in range(reused, len(ids), self.window):
            if cancelled():
                return None
            embeds = self.backend.embed(ids[start : start + self.window])
            for image, at in zip(images or (), request.prompt.image_starts, strict=True):
                embeds = _put(embeds, image.to(embeds), at - start)
            hidden = self.backend.forward(embeds, cache)
            on_progress(Stage.PREFILL, cache.length - reused, len(ids) - reused)
        return hidden


def _check_cut(picture_end: int | None) -> None:
    """Raises PromptError where cutting a prompt as the original does would cut its picture."""
    if picture_end is not None and picture_end >= ORIGINAL_PROMPT_LIMIT:
        raise PromptError(
            f"the picture takes {picture_end + 1:,} tokens with what stands before it, more than "
            f"the {ORIGINAL_PROMPT_LIMIT:,} of a prompt that the original keeps: leave out "
            "as_original"
        )


def _put(embeds: Tensor, image: Tensor, at: int) -> Tensor:
    """Returns embeds (L, D) with those of image (Q, D) that fall into it, the first at `at`."""
    first, last = max(at, 0), min(at + image.shape[0], embeds.shape[0])
    if first >= last:
        return embeds
    return torch.cat((embeds[:first], image[first - at : last - at], embeds[last:]))
