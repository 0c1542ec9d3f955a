"""Sessions: what is reused, what is streamed, what is refused."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from PIL import Image
from torch import Tensor

from convert.checkpoint.config import ModelConfig
from quantize.errors import ConfigError
from runtime.engine_client.protocol import Stage, Stop
from runtime.inputs.generation_options import GenerationOptions
from runtime.inputs.picture_format import PictureError
from runtime.inputs.prompt import Message, PromptError, Tokenizer
from runtime.reference.model import MiniCPMV
from runtime.sessions.backend import ReferenceBackend
from runtime.sessions.reference_session import ReferenceSession, _put
from runtime.sessions.session import Reply
from runtime.sessions.streaming import TextStream
from tests.support.compare import randomize
from tests.support.tiny_config import tiny_config
from tests.support.tiny_tokenizer import tokenizer_model

ANSWER = GenerationOptions(max_new_tokens=6)
BEAMS = GenerationOptions(max_new_tokens=6, num_beams=3, repetition_penalty=1.2)
RED = Image.new("RGB", (60, 40), "red")
BLUE = Image.new("RGB", (60, 40), "blue")
QUESTION = "What colour is the shape?"


class Counting(ReferenceBackend):
    """Counts what it is asked to do."""

    def __init__(self, model: MiniCPMV) -> None:
        super().__init__(model)
        self.pictures, self.prefilled = 0, []

    def encode_image(self, pixels: Tensor) -> Tensor:
        self.pictures += 1
        return super().encode_image(pixels)

    def forward(self, embeds: Tensor, cache) -> Tensor:
        if embeds.dim() == 2 and embeds.shape[0] > 1:
            self.prefilled.append(embeds.shape[0])
        return super().forward(embeds, cache)


def make_backend(**config) -> Counting:
    """A random model whose layers outweigh its tied embedding: it does not just repeat."""
    model = MiniCPMV(ModelConfig.from_json(tiny_config(scale_emb=1, scale_depth=12, **config)))
    randomize(model)
    return Counting(model)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(tokenizer_model())
    return Tokenizer(path)


@pytest.fixture
def session(tokenizer) -> ReferenceSession:
    return ReferenceSession(make_backend(), tokenizer, window=512)


def user(*texts: str) -> list[Message]:
    """Turns of user and assistant, a user's first."""
    return [{"role": "assistant" if i % 2 else "user", "content": t} for i, t in enumerate(texts)]


def assert_same_as_fresh(
    session: ReferenceSession, messages, picture, options, reply: Reply
) -> None:
    """A session that never saw anything answers alike."""
    fresh = ReferenceSession(session.backend, session.tokenizer, window=session.window)
    expected = fresh.reply(messages, picture, options)
    assert reply.ids == expected.ids
    assert expected.statistics.reused_tokens == 0


@pytest.mark.parametrize("options", [ANSWER, BEAMS])
def test_a_second_question_reuses_the_first(session, options):
    first = session.reply(user(QUESTION), RED, options)
    assert first.statistics.reused_tokens == 0
    messages = user(QUESTION, first.text, "How many circles are there?")
    second = session.reply(messages, RED, options)
    # All of the first prompt but its last pieces, which may merge with the answer.
    assert second.statistics.reused_tokens >= first.statistics.prompt_tokens - 3
    assert session.backend.pictures == 1
    assert (first.statistics.encode_ms > 0, second.statistics.encode_ms) == (True, 0)
    assert_same_as_fresh(session, messages, RED, options, second)


SLICES = {"slice_mode": True, "max_slice_nums": 4, "scale_resolution": 42, "patch_size": 14}
# The tokenizer of the tests has reserved pieces here.
SLICES |= {"slice_start_token_id": 98, "slice_end_token_id": 99}
LARGE = Image.radial_gradient("L").resize((120, 90)).convert("RGB")


@pytest.fixture
def sliced(tmp_path) -> ReferenceSession:
    (tmp_path / "tokenizer.model").write_bytes(tokenizer_model())
    backend = make_backend(**SLICES)
    tokenizer = Tokenizer(tmp_path / "tokenizer.model", backend.config)
    return ReferenceSession(backend, tokenizer, window=512)


def test_slices_are_encoded_once_and_counted(sliced):
    progress = []
    first = sliced.reply(
        user(QUESTION), LARGE, ANSWER, on_progress=lambda *event: progress.append(event)
    )
    images = sliced.backend.pictures
    assert images == 5  # an overview and 2 x 2
    assert progress[:images] == [(Stage.ENCODE, i + 1, images) for i in range(images)]
    again = sliced.reply(user(QUESTION, first.text, "Why?"), LARGE, ANSWER)
    assert sliced.backend.pictures == images
    assert again.statistics.reused_tokens >= first.statistics.prompt_tokens - 3
    assert_same_as_fresh(sliced, user(QUESTION, first.text, "Why?"), LARGE, ANSWER, again)


def test_each_image_is_where_its_placeholders_are(sliced, monkeypatch):
    """The overview first, then slices row by row; images are numbered by their tokens' values."""
    backend, seen = sliced.backend, []
    forward = type(backend).forward

    def encode(pixels: Tensor) -> Tensor:
        backend.pictures += 1
        return torch.full((9, 256), 1000.0 + backend.pictures)

    def watched(embeds: Tensor, cache) -> Tensor:
        seen.append(embeds)
        return forward(backend, embeds, cache)

    monkeypatch.setattr(backend, "encode_image", encode)
    monkeypatch.setattr(backend, "forward", watched)
    sliced.reply(user(QUESTION), LARGE, ANSWER)
    prompt = sliced.tokenizer.prompt(user(QUESTION), 9, grid=(2, 2))
    numbers = seen[0][:, 0] * (seen[0] > 999).all(1)
    expected = torch.zeros(len(prompt.ids))
    for number, start in enumerate(prompt.image_starts, 1):
        expected[start : start + 9] = 1000.0 + number
    assert torch.equal(numbers, expected)


def test_encoding_is_cancelled_between_images(sliced):
    asked = []

    def cancelled() -> bool:
        asked.append(sliced.backend.pictures)
        return sliced.backend.pictures == 2

    reply = sliced.reply(user(QUESTION), LARGE, ANSWER, cancelled=cancelled)
    assert (reply.statistics.stop, reply.ids, sliced.backend.pictures) == (Stop.CANCELLED, [], 2)
    assert sliced.reply(user(QUESTION), LARGE, ANSWER).ids
    assert sliced.backend.pictures == 5  # what was encoded is remembered


def test_fewer_slices_reuse_the_overview(sliced):
    whole = sliced.reply(user(QUESTION), LARGE, ANSWER)
    assert sliced.backend.pictures == 5
    overview = sliced.reply(user(QUESTION), LARGE, ANSWER, max_slices=1)
    assert sliced.backend.pictures == 5
    assert overview.statistics.encode_ms == 0
    assert overview.statistics.prompt_tokens < whole.statistics.prompt_tokens
    fresh = ReferenceSession(sliced.backend, sliced.tokenizer, window=512)
    assert fresh.reply(user(QUESTION), LARGE, ANSWER, max_slices=1).ids == overview.ids


@pytest.mark.parametrize("picture", [LARGE, None])
def test_a_limit_of_slices_that_the_model_cannot_have(sliced, session, picture):
    for limit in (0, 5, True, 1.0):
        with pytest.raises(ConfigError, match=r"this model takes 1 .* to 4"):
            sliced.reply(user(QUESTION), picture, ANSWER, max_slices=limit)
    with pytest.raises(ConfigError, match="one square: leave it out"):
        session.reply(user(QUESTION), picture, ANSWER, max_slices=1)


def test_slices_stay_in_the_window(sliced):
    """All of the picture is pinned; what does not fit beside it is refused with numbers."""
    sliced.reply(user(QUESTION), LARGE, ANSWER)
    pinned = sliced._pinned
    assert pinned == sliced.tokenizer.prompt(user(QUESTION), 9, grid=(2, 2)).ids.index(99) + 1
    narrow = ReferenceSession(sliced.backend, sliced.tokenizer, window=pinned + 5)
    with pytest.raises(
        PromptError, match=f"room for 5 beside {pinned} pinned .*lower --max-slices"
    ):
        narrow.reply(user(QUESTION), LARGE, ANSWER)


def test_a_picture_that_the_original_would_cut_is_refused(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(tokenizer_model())
    backend = make_backend(**SLICES | {"max_slice_nums": 200})
    tokenizer = Tokenizer(tmp_path / "tokenizer.model", backend.config)
    session = ReferenceSession(backend, tokenizer, window=4096, as_original=True)
    with pytest.raises(PromptError, match=r"picture takes 2,.*2,048.*as_original"):
        session.reply(user(QUESTION), LARGE.resize((600, 600)), ANSWER)


def test_asking_again_runs_only_the_last_token(session):
    first = session.reply(user(QUESTION), RED, ANSWER)
    again = session.reply(user(QUESTION), RED, ANSWER)
    assert again.ids == first.ids
    assert again.statistics.reused_tokens == first.statistics.prompt_tokens - 1


def test_an_edited_turn_reuses_what_stands_before_it(session, tokenizer):
    session.reply(user("What colour is the shape?"), RED, ANSWER)
    messages = user("What colour is the circle?")
    edited = session.reply(messages, RED, ANSWER)
    pinned = 3 + 2 + 9  # <s><用户>, both tags and the picture, at least
    assert pinned <= edited.statistics.reused_tokens < edited.statistics.prompt_tokens - 1
    assert_same_as_fresh(session, messages, RED, ANSWER, edited)


def test_another_picture_is_another_prefix(session):
    session.reply(user(QUESTION), RED, ANSWER)
    blue = session.reply(user(QUESTION), BLUE, ANSWER)
    assert blue.statistics.reused_tokens <= 5
    assert_same_as_fresh(session, user(QUESTION), BLUE, ANSWER, blue)
    session.backend.pictures = 0
    red = session.reply(user(QUESTION), RED, ANSWER)
    assert session.backend.pictures == 0  # its image tokens were kept
    assert_same_as_fresh(session, user(QUESTION), RED, ANSWER, red)


def test_a_picture_more_or_less_starts_anew(session):
    session.reply(user(QUESTION), RED, ANSWER)
    text = session.reply(user(QUESTION), None, ANSWER)
    assert text.statistics.reused_tokens == 0
    assert_same_as_fresh(session, user(QUESTION), None, ANSWER, text)


def test_the_picture_changes_the_answer(session):
    """Guards the tests above against a model that ignores its image tokens."""
    answers = [session.reply(user(QUESTION), p, ANSWER).ids for p in (RED, BLUE, None)]
    assert answers[0] != answers[1]
    assert answers[1] != answers[2]


def test_a_long_conversation_slides_and_still_equals_a_fresh_one(tokenizer):
    session = ReferenceSession(make_backend(), tokenizer, window=48)
    messages = user(QUESTION)
    for _ in range(4):
        reply = session.reply(messages, RED, ANSWER)
        assert_same_as_fresh(session, messages, RED, ANSWER, reply)
        messages = [
            *messages,
            {"role": "assistant", "content": reply.text},
            {"role": "user", "content": QUESTION},
        ]
    assert reply.statistics.prompt_tokens > session.window


def test_prefill_in_chunks_of_the_window(tokenizer):
    session = ReferenceSession(make_backend(), tokenizer, window=40)
    messages = user("a b c d e f g h", "i j k l m n o p", "q r s t u v w x")
    session.reply(messages, RED, ANSWER)
    total = session.reply(messages, RED, ANSWER).statistics.prompt_tokens
    assert session.backend.prefilled[0] == 40
    assert total > 40


@pytest.mark.parametrize("picture", [RED, None])
@pytest.mark.parametrize("spare", [0, -1])
def test_the_last_turn_must_fit_the_window(tokenizer, picture, spare):
    backend = make_backend()
    needed = (
        ReferenceSession(backend, tokenizer, window=512)
        .reply(user(QUESTION), picture, ANSWER)
        .statistics.prompt_tokens
    )
    session = ReferenceSession(backend, tokenizer, window=needed + spare)
    if spare == 0:
        assert session.reply(user(QUESTION), picture, ANSWER).ids
        return
    with pytest.raises(
        PromptError, match=rf"has {needed} tokens.*window of {needed - 1}.*--window"
    ):
        session.reply(user(QUESTION), picture, ANSWER)


def test_earlier_turns_may_slide_out_but_the_last_may_not(tokenizer):
    session = ReferenceSession(make_backend(), tokenizer, window=40)
    long = "q r s t u v w x y z 1 2 3 4 5 6 7 8 9 q r s t"
    assert session.reply(user("a b c", long, "d e f"), RED, ANSWER).ids
    with pytest.raises(PromptError, match="its last turn takes"):
        session.reply(user("a b c", "d e f", long), RED, ANSWER)


@pytest.mark.parametrize("window", [3, 12])
def test_a_window_without_room_beside_the_pinned(tokenizer, window):
    session = ReferenceSession(make_backend(), tokenizer, window=window)
    with pytest.raises(PromptError, match=f"window of {window} has room for 0 beside"):
        session.reply(user(QUESTION), RED, ANSWER)


def test_a_window_must_be_positive(tokenizer):
    with pytest.raises(PromptError, match="context window is 0"):
        ReferenceSession(make_backend(), tokenizer, window=0)


def test_as_the_original_prompts_are_cut(tokenizer):
    session = ReferenceSession(make_backend(), tokenizer, window=2100, as_original=True)
    reply = session.reply(user("a b c d e f g h " * 200), RED, ANSWER)
    assert reply.statistics.prompt_tokens == 2048


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([], "empty"),
        (user(""), "prompt is empty"),
        (user("a", "b", " \n"), "prompt is empty"),
        (user("a", "b"), "last message is the assistant's"),
        ([{"role": "assistant", "content": "x"}], "expected a turn of role user"),
        (user("half a pair: \ud83d"), "no valid Unicode"),
    ],
)
def test_a_malformed_conversation_is_refused(session, messages, problem):
    with pytest.raises(PromptError, match=problem):
        session.reply(messages, None, ANSWER)


def test_a_decoder_takes_no_picture_but_text(tokenizer):
    session = ReferenceSession(make_backend(decoder_only=True), tokenizer, window=512)
    assert session.reply(user("Hello"), None, ANSWER).ids
    with pytest.raises(PictureError, match="no vision encoder"):
        session.reply(user("Hello"), RED, ANSWER)


def test_the_pieces_are_the_answer(session):
    for options in (ANSWER, BEAMS, GenerationOptions(max_new_tokens=30, do_sample=True, seed=1)):
        pieces: list[str] = []
        reply = session.reply(user(QUESTION), RED, options, on_text=pieces.append)
        assert "".join(pieces) == reply.text == session.tokenizer.decode(reply.ids).strip()
        assert reply.statistics.generated_tokens == len(reply.ids)


def test_a_stop_text_ends_the_answer_before_it(session):
    free = session.reply(user(QUESTION), RED, GenerationOptions(max_new_tokens=30))
    stop = free.text[8:11]  # it comes in the middle of the answer
    pieces: list[str] = []
    options = GenerationOptions(max_new_tokens=30, stop=("never said", stop))
    reply = session.reply(user(QUESTION), RED, options, on_text=pieces.append)
    assert reply.statistics.stop == "stop_string"
    assert reply.text == free.text[: free.text.index(stop)].strip() == "".join(pieces)
    assert len(reply.ids) < len(free.ids)
    again = session.reply(user(QUESTION), RED, ANSWER)
    assert again.statistics.reused_tokens == again.statistics.prompt_tokens - 1


def test_cancelling_keeps_what_was_said_and_the_cache(session):
    pieces: list[str] = []
    options = GenerationOptions(max_new_tokens=200)
    asked = iter(range(100))
    reply = session.reply(
        user(QUESTION), RED, options, on_text=pieces.append, cancelled=lambda: next(asked) == 5
    )
    assert reply.statistics.stop == "cancelled"
    assert len(reply.ids) == 4  # asked once before the prefill
    assert "".join(pieces) == reply.text
    again = session.reply(user(QUESTION), RED, ANSWER)
    assert again.statistics.reused_tokens == again.statistics.prompt_tokens - 1


def test_cancelling_during_the_prefill(tokenizer):
    session = ReferenceSession(make_backend(), tokenizer, window=40)
    messages = user("a b c d e f g h", "i j k l m n o p", "q r s t u v w x")
    asked = iter(range(100))
    reply = session.reply(messages, RED, ANSWER, cancelled=lambda: next(asked) == 1)
    assert (reply.text, reply.statistics.stop) == ("", "cancelled")
    assert_same_as_fresh(session, messages, RED, ANSWER, session.reply(messages, RED, ANSWER))


def test_an_exception_in_between_leaves_no_half_written_cache(session):
    def interrupt(text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session.reply(user(QUESTION), RED, ANSWER, on_text=interrupt)
    reply = session.reply(user(QUESTION), RED, ANSWER)
    assert reply.statistics.reused_tokens == 0
    assert_same_as_fresh(session, user(QUESTION), RED, ANSWER, reply)


def test_statistics_add_up(session):
    s = session.reply(user(QUESTION), RED, ANSWER).statistics
    assert (s.stop, s.generated_tokens, s.decode_steps) == ("length", 6, 5)
    assert s.prefill_tok_s == pytest.approx(s.prompt_tokens / s.prefill_ms * 1000)
    assert s.decode_tok_s == pytest.approx(5 / s.decode_ms * 1000)


def stream(tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[list[str], str]:
    pieces: list[str] = []
    text = TextStream(tokenizer, pieces.append)
    for token in ids:
        text.add(token)
    return pieces, text.finish(ids)


def test_characters_of_several_byte_tokens_come_whole(tokenizer):
    text = "ok 龘𠮷🙂 é"
    ids = tokenizer.encode(text)
    assert len(ids) > len(text) + 6  # it is spelled in bytes
    pieces, whole = stream(tokenizer, ids)
    assert "".join(pieces) == whole == text
    assert pieces == ["o", "k", " 龘", "𠮷", "🙂", " é"]


def test_broken_bytes_are_shown_once_they_cannot_be_completed(tokenizer):
    ids = [*tokenizer.encode("龘")[:2], *tokenizer.encode("red")]
    pieces, whole = stream(tokenizer, ids)
    assert "".join(pieces) == whole
    assert whole.startswith("�") and whole.endswith("red")
    pieces, whole = stream(tokenizer, ids[:2])
    assert "".join(pieces) == whole == tokenizer.decode(ids[:2])


def test_white_space_around_the_answer_is_not_streamed(tokenizer):
    ids = tokenizer.encode("\n red \n blue \n")
    pieces, whole = stream(tokenizer, [0, *ids])
    assert "".join(pieces) == whole == "red \n blue"


def test_what_may_begin_a_stop_text_is_held_until_it_is_none(tokenizer):
    pieces: list[str] = []
    text = TextStream(tokenizer, pieces.append, ["STOP", "s!"])
    ids = tokenizer.encode("go ST")
    for token in ids:
        text.add(token)
    assert "".join(pieces) == "go"
    for token in tokenizer.encode(" on S"):
        ids.append(token)
        text.add(token)
    assert "".join(pieces) == "go ST on"
    assert text.finish(ids) == "go ST on S" == "".join(pieces)
    assert not text.stopped


def test_image_tokens_are_put_where_a_chunk_begins_or_ends_among_them():
    image = torch.arange(12.0).view(4, 3)
    whole = _put(torch.zeros(8, 3), image, 2)
    assert torch.equal(whole[2:6], image)
    assert not whole[:2].any()
    assert not whole[6:].any()
    assert torch.equal(_put(torch.zeros(5, 3), image, -1), whole[3:])
    assert torch.equal(_put(torch.zeros(3, 3), image, 2), whole[:3])
    assert torch.equal(_put(torch.ones(3, 3), image, 3), torch.ones(3, 3))
