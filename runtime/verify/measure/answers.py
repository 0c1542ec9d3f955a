"""Greedy answers of the models that are compared, and what they are given for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from runtime.engine_client.protocol import Stop
from runtime.inputs.generation_options import GenerationOptions
from runtime.inputs.prompt import Prompt, Tokenizer
from runtime.inputs.sampling import Sampler
from runtime.reference.kv_cache import pinned_tokens
from runtime.sessions.session import Reply
from runtime.verify.cases import Case
from runtime.verify.stages import Stages


@dataclass(frozen=True)
class GreedyAnswer:
    """A greedy answer."""

    ids: list[int]  # without the end token
    ended: bool  # with the end token, rather than at the length limit

    @staticmethod
    def of(reply: Reply) -> GreedyAnswer:
        """Converts a session's reply."""
        return GreedyAnswer(reply.ids, reply.statistics.stop == Stop.EOS)


@dataclass(frozen=True)
class Question:
    """A prompt and its picture, as one of the models sees them."""

    prompt: Prompt
    images: tuple[Tensor, ...]  # image tokens (Q, D) of the picture's images; none without one

    @property
    def pinned(self) -> int:
        """Tokens from the start that stay in the window."""
        if not self.images:
            return pinned_tokens(None)
        return pinned_tokens(self.prompt.picture_end(len(self.images[0])))

    def put(self, embeds: Tensor) -> None:
        """Puts the image tokens into embeddings (L, D) of the prompt.

        An engine may have laid out another number of images than there are; it has a fault then.
        """
        for start, tokens in zip(self.prompt.image_starts, self.images, strict=False):
            embeds[start : start + len(tokens)] = tokens

    def hidden(self, stages: Stages, answer: Sequence[int], window: int) -> Tensor:
        """Returns the last layer's output over the prompt and an answer (L, D)."""
        embeds = stages.embed([*self.prompt.ids, *answer]).clone()
        self.put(embeds)
        return stages.layers([embeds], window, self.pinned)[-1]

    def logits(self, stages: Stages, answer: Sequence[int], window: int, start: int = 0) -> Tensor:
        """Returns the logits that choose an answer's tokens and the next one (A + 1, V).

        Args:
            stages: the model.
            answer: A ids.
            window: context window.
            start: leave so many out at the beginning.
        """
        hidden = self.hidden(stages, answer, window)
        return stages.logits(hidden[len(self.prompt.ids) - 1 + start :].contiguous())


@dataclass(frozen=True)
class AnswerComparison:
    """One conversation's greedy answers."""

    case: str
    question: str
    reference: str
    bundle: str
    arithmetic: str
    reference_pieces: list[str] = field(default_factory=list)  # the tokenizer's, without an end
    bundle_pieces: list[str] = field(default_factory=list)
    given: str = ""  # with the question: the user's expected answer
    half: str | None = None  # of the reference in 16 bits; None where it was not asked

    @staticmethod
    def of(
        case: Case,
        reference: GreedyAnswer,
        bundle: GreedyAnswer,
        text: str,
        arithmetic: GreedyAnswer,
        tokenizer: Tokenizer,
        own: Tokenizer,
        half: GreedyAnswer | None = None,
    ) -> AnswerComparison:
        """Makes it from the models' answers.

        Args:
            case: what they were asked.
            reference: its answer.
            bundle: its answer.
            text: what its engine itself makes of that.
            arithmetic: the answer of the arithmetic's model.
            tokenizer: of the reference.
            own: of the bundle.
            half: the answer of the reference in 16 bits, if it was asked.
        """
        return AnswerComparison(
            case.name,
            case.messages[-1]["content"],
            tokenizer.decode(reference.ids).strip(),
            text.strip(),
            tokenizer.decode(arithmetic.ids).strip(),
            tokenizer.pieces(reference.ids),
            own.pieces(bundle.ids),
            case.answer,
            None if half is None else tokenizer.decode(half.ids).strip(),
        )

    @property
    def same(self) -> bool:
        """Says whether the bundle answers what the reference answers."""
        return self.reference == self.bundle

    @property
    def first_difference(self) -> int | None:
        """The index of the first token that differs, which may be the end; None: none does."""
        if self.reference_pieces == self.bundle_pieces:
            return None
        pairs = zip(self.reference_pieces, self.bundle_pieces, strict=False)
        shorter = min(len(self.reference_pieces), len(self.bundle_pieces))
        return next((i for i, (a, b) in enumerate(pairs) if a != b), shorter)


@torch.inference_mode()
def greedy_answer(
    stages: Stages,
    question: Question,
    draft: Sequence[int],
    options: GenerationOptions,
    window: int,
) -> GreedyAnswer:
    """Answers with the likeliest token, again and again.

    A draft changes nothing but the time it takes: its tokens run at once, and what the model itself
    says is read from their logits; from the first other token on, it goes on token by token.

    Args:
        stages: the model; one that computes the tokens of a pass before only once.
        question: what to answer.
        draft: what the model may say.
        options: greedy.
        window: context window.
    """
    sampler, end = Sampler(options), stages.config.decoder.eos_token_id
    tried, ids = list(draft[: options.max_new_tokens]), list[int]()
    while True:
        for row in question.logits(stages, tried, window, len(ids)):
            token = sampler.choose(row, ids)
            if token == end:
                return GreedyAnswer(ids, ended=True)
            ids.append(token)
            if len(ids) == options.max_new_tokens:
                return GreedyAnswer(ids, ended=False)
            if ids != tried[: len(ids)]:
                break
        tried = list(ids)
