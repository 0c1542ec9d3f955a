"""The original's Python API on a tiny checkpoint."""

from __future__ import annotations

import base64
import json
from dataclasses import replace

import pytest
from PIL import Image

from convert.bundle.errors import BundleError
from convert.checkpoint.config import CONFIGS, ModelConfig
from quantize.errors import CheckpointError, ConfigError
from runtime.inputs.defaults import DEFAULTS, GenerationDefaults
from runtime.inputs.generation_options import GenerationOptions
from runtime.inputs.picture_format import PictureError
from runtime.inputs.prompt import PromptError
from runtime.sessions.chat import ChatModel, OmniLMMChat, img2base64
from runtime.sessions.reference_session import ReferenceSession
from tests.support.slices import write_slices_checkpoint
from tests.support.tiny import write_checkpoint

QUESTION = {"role": "user", "content": "What colour is the shape?"}
RED = Image.new("RGB", (60, 40), "red")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def model(checkpoint) -> ChatModel:
    return ChatModel(checkpoint, device="cpu")


@pytest.fixture(scope="module")
def omni(checkpoint) -> OmniLMMChat:
    return OmniLMMChat(checkpoint, device="cpu")


@pytest.fixture
def options(monkeypatch) -> list[GenerationOptions]:
    """The options of every answer; answers are kept to 4 tokens."""
    seen: list[GenerationOptions] = []
    reply = ReferenceSession.reply

    def short(self, messages, picture, options, **rest):
        seen.append(options)
        return reply(self, messages, picture, replace(options, max_new_tokens=4), **rest)

    monkeypatch.setattr(ReferenceSession, "reply", short)
    return seen


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "red.png"
    RED.save(path)
    return path


def test_a_picture_and_a_question_as_the_original_takes_them(omni, options, picture):
    inputs = {"image": img2base64(picture), "question": json.dumps([QUESTION])}
    answer = omni.chat(inputs)
    assert isinstance(answer, str)
    assert options == [
        GenerationOptions(
            max_new_tokens=2048, do_sample=True, temperature=0.7, top_p=0.8, top_k=100
        )
    ]


def test_base64_may_be_text_and_have_line_breaks(omni, options, picture):
    encoded = base64.encodebytes(picture.read_bytes()).decode()
    assert "\n" in encoded
    omni.chat({"image": encoded, "question": json.dumps([QUESTION])})
    assert len(options) == 1


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        ("?!", "no base64"),
        ("ü", "no base64"),
        (7, "image is a int"),
        (base64.b64encode(b"not a picture"), "not a picture"),
        ("", "not a picture"),
    ],
)
def test_what_is_no_picture_is_refused(omni, image, problem):
    with pytest.raises(PictureError, match=problem):
        omni.chat({"image": image, "question": json.dumps([QUESTION])})


@pytest.mark.parametrize(
    ("question", "problem"),
    [
        (None, 'no "question"'),
        ("What?", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"role": "user"}', "messages are a dict"),
        ("[]", "empty"),
        ('["What?"]', "message 0"),
        ('[{"role": "user"}]', "no text"),
        ('[{"role": "user", "content": ""}]', "prompt is empty"),
    ],
)
def test_what_is_no_question_is_refused(omni, question, problem):
    with pytest.raises(PromptError, match=problem):
        omni.chat({"image": None, "question": question})


def test_an_input_of_another_kind_is_refused(omni):
    with pytest.raises(PromptError, match='no "question"'):
        omni.chat("What colour is the shape?")


def test_a_missing_picture_file_is_named(tmp_path):
    with pytest.raises(PictureError, match=r"none\.png: cannot be read"):
        img2base64(tmp_path / "none.png")


def test_beam_search_is_what_version_1_does_by_default(model, options):
    answer, context, config = model.chat(
        image=RED, msgs=[QUESTION], context=None, tokenizer=model.tokenizer
    )
    assert config == {"num_beams": 3, "repetition_penalty": 1.2}
    assert options == [GenerationOptions(max_new_tokens=2048, num_beams=3, repetition_penalty=1.2)]
    assert context == [QUESTION, {"role": "assistant", "content": answer}]


def test_arguments_stand_as_the_original_has_them(model, options):
    """image, msgs, context, tokenizer, vision_hidden_states, max_new_tokens, sampling."""
    _, _, config = model.chat(RED, [QUESTION], None, model.tokenizer, None, 9, True)
    assert config == {"do_sample": True, "temperature": 0.6, "top_p": 0.8, "top_k": 100}
    assert [o.max_new_tokens for o in options] == [9]
    with pytest.raises(PromptError, match=r"vision_hidden_states is a list; expected None"):
        model.chat(RED, [QUESTION], None, model.tokenizer, [])


def test_the_answer_joins_the_callers_own_list(model, options):
    msgs = [dict(QUESTION)]
    answer, context, _ = model.chat(RED, msgs)
    assert context is msgs
    assert msgs == [QUESTION, {"role": "assistant", "content": answer}]
    with pytest.raises(PromptError):  # the last turn is an answer
        model.chat(RED, msgs)
    assert len(msgs) == 2, "a call that fails changes nothing"
    fixed = (QUESTION,)
    assert model.chat(RED, fixed)[1][:1] == [QUESTION]
    assert fixed == (QUESTION,)


def test_top_k_and_top_p_of_0_are_the_originals(model, options):
    """No limit, and the likeliest token alone; the settings that come back are those given."""
    _, _, config = model.chat(RED, [QUESTION], sampling=True, top_k=0, top_p=0)
    assert (config["top_k"], config["top_p"]) == (0, 0)
    assert (options[0].top_k, options[0].top_p) == (None, 0)
    assert (
        model.chat(RED, [QUESTION], sampling=True, top_k=0, top_p=0)[0]
        == (model.chat(RED, [QUESTION], sampling=False, num_beams=1, repetition_penalty=1.0)[0])
    )


TURNS_OF_THE_ORIGINAL = [
    ([QUESTION, QUESTION], "message 1 is .* expected a turn of role assistant"),
    ([QUESTION, {"role": "assistant", "content": "It is"}], "last message is the assistant's"),
    ([{"role": "user", "content": ""}], "prompt is empty"),
]


@pytest.mark.parametrize(("msgs", "problem"), TURNS_OF_THE_ORIGINAL)
def test_turns_that_only_the_original_takes(omni, checkpoint, options, msgs, problem):
    inputs = {"image": None, "question": json.dumps(msgs)}
    with pytest.raises(PromptError, match=problem):
        omni.chat(inputs)
    with OmniLMMChat(checkpoint, device="cpu", as_original=True) as original:
        assert isinstance(original.chat(inputs), str)
        context = original.model.chat(RED, list(msgs))[1]
        assert context[:-1] == msgs
        for wrong in ([], [{"role": "assistant", "content": "a"}], [{"role": "system"}]):
            with pytest.raises(PromptError):
                original.model.chat(RED, wrong)


def test_the_window_follows_the_rules_of_the_command(checkpoint, options):
    def window(**arguments):
        with OmniLMMChat(checkpoint, device="cpu", **arguments) as omni:
            return omni.model.session.window

    assert window() == 1024
    assert window(as_original=True) == 4096
    assert window(window=300) == window(window=300, as_original=True) == 300


def test_as_original_a_longer_answer_gets_a_longer_window(checkpoint, options):
    with ChatModel(checkpoint, device="cpu", as_original=True) as model:
        model.chat(RED, [QUESTION], max_new_tokens=3000)
        assert model.session.window == 5048
        model.chat(RED, [QUESTION], max_new_tokens=7)
        assert model.session.window == 5048
    with ChatModel(checkpoint, device="cpu", window=200, as_original=True) as model:
        model.chat(RED, [QUESTION], max_new_tokens=3000)
        assert model.session.window == 200


def test_arguments_override_only_what_the_chosen_set_has(model, options):
    extra = {"temperature": 0.2, "num_beams": 5, "repetition_penalty": 2.0, "unknown": 1}
    _, _, config = model.chat(RED, [QUESTION], sampling=True, **extra)
    assert config == {"do_sample": True, "temperature": 0.2, "top_p": 0.8, "top_k": 100}
    _, _, config = model.chat(RED, [QUESTION], sampling=False, max_new_tokens=9, **extra)
    assert config == {"num_beams": 5, "repetition_penalty": 2.0}
    assert [o.max_new_tokens for o in options] == [2048, 9]


def test_a_second_turn_continues_the_first(model, options):
    answer, context, _ = model.chat(RED, [QUESTION])
    content = answer or "nothing"  # a random model may say nothing
    msgs = [QUESTION, {"role": "assistant", "content": content}, QUESTION]
    _, context, _ = model.chat(RED, json.dumps(msgs), context)
    assert context[:3] == msgs
    assert [turn["role"] for turn in context] == ["user", "assistant", "user", "assistant"]


def test_a_seed_repeats_and_streams(model, options):
    pieces: list[str] = []
    first = model.chat(RED, [QUESTION], sampling=True, seed=5, on_text=pieces.append)
    assert "".join(pieces) == first[0]
    assert model.chat(RED, [QUESTION], sampling=True, seed=5)[0] == first[0]


def test_a_foreign_tokenizer_is_refused(model):
    with pytest.raises(PromptError, match="tokenizer is a list; expected None"):
        model.chat(RED, [QUESTION], None, ["a tokenizer"])


def test_bad_settings_are_refused(model):
    with pytest.raises(ConfigError, match="temperature is -1"):
        model.chat(RED, [QUESTION], sampling=True, temperature=-1)
    with pytest.raises(ConfigError, match="max_new_tokens is 0"):
        model.chat(RED, [QUESTION], max_new_tokens=0)


def test_the_tables_of_the_original():
    """The numbers of the original's code, apart from the file that states them."""
    defaults = GenerationDefaults.load()
    beam = {"num_beams": 3, "repetition_penalty": 1.2}
    sample = {"do_sample": True, "top_p": 0.8, "top_k": 100}
    one, two, omni = (defaults.named(n) for n in ("minicpm-v-1.0", "minicpm-v-2.0", "OmniLMMChat"))
    assert (one.sampling, two.sampling, omni.sampling) == (False, True, True)
    assert (one.max_new_tokens, two.max_new_tokens) == (2048, 1024)
    assert one.choose(None, {}) == one.choose(False, {}) == two.choose(False, {}) == beam
    assert one.choose(True, {}) == sample | {"temperature": 0.6}
    assert two.choose(None, {}) == sample | {"temperature": 0.7, "repetition_penalty": 1.05}
    assert omni.choose(None, {}) == sample | {"temperature": 0.7}
    assert defaults.window == 1024


def test_a_model_with_slices_has_defaults_of_its_own():
    config = ModelConfig.load(CONFIGS / "model" / "minicpm-v-2.0.json")
    plain = GenerationDefaults.load()
    assert plain.for_model(ModelConfig.load(CONFIGS / "demo" / "config.json")) == plain
    defaults = plain.for_model(config)
    assert (plain.window, plain.settings) == (1024, "minicpm-v-1.0")
    assert (defaults.window, defaults.settings) == (2048, "minicpm-v-2.0")
    # The original's class calls the model's `chat`: its penalty and its limit count.
    assert defaults.named("OmniLMMChat") == plain.named("minicpm-v-2.0")


def test_a_checkpoint_with_slices(tmp_path, options):
    checkpoint = write_slices_checkpoint(tmp_path)
    sampled = {"temperature": 0.7, "top_p": 0.8, "top_k": 100, "repetition_penalty": 1.05}
    picture = Image.linear_gradient("L").resize((640, 480)).convert("RGB")
    with ChatModel(checkpoint, device="cpu") as model:
        answer, messages, settings = model.chat(picture, [dict(QUESTION)], seed=1)
        assert settings == {"do_sample": True, **sampled}
        assert messages[-1] == {"role": "assistant", "content": answer}
        assert model.session.window == 2048
        model.chat(picture, [dict(QUESTION)], sampling=False)
    with OmniLMMChat(checkpoint, device="cpu") as omni:
        picture.save(tmp_path / "picture.png")
        image = img2base64(tmp_path / "picture.png")
        omni.chat({"image": image, "question": json.dumps([QUESTION])})
    sampling = GenerationOptions(max_new_tokens=1024, do_sample=True, **sampled)
    beams = GenerationOptions(max_new_tokens=1024, num_beams=3, repetition_penalty=1.2)
    assert options == [replace(sampling, seed=1), beams, sampling]


def test_a_limit_of_slices(tmp_path, checkpoint, monkeypatch):
    sliced = write_slices_checkpoint(tmp_path)
    picture = Image.linear_gradient("L").resize((640, 480)).convert("RGB")
    limits, reply = [], ReferenceSession.reply

    def short(self, messages, picture, options, *, max_slices, **rest):
        limits.append(max_slices)
        options = replace(options, max_new_tokens=2)
        return reply(self, messages, picture, options, max_slices=max_slices, **rest)

    monkeypatch.setattr(ReferenceSession, "reply", short)
    with ChatModel(sliced, device="cpu") as model:
        model.chat(picture, [dict(QUESTION)], max_slices=1)
        with pytest.raises(ConfigError, match="max_slices is 10"):
            model.chat(picture, [dict(QUESTION)], max_slices=10)
    picture.save(tmp_path / "picture.png")
    inputs = {"image": img2base64(tmp_path / "picture.png"), "question": json.dumps([QUESTION])}
    with OmniLMMChat(sliced, device="cpu", max_slices=1) as omni:
        omni.chat(inputs)
    assert limits == [1, 10, 1]
    with pytest.raises(ConfigError, match="max_slices is 0"):
        OmniLMMChat(sliced, device="cpu", max_slices=0)
    with pytest.raises(ConfigError, match="one square: leave it out"):
        OmniLMMChat(checkpoint, device="cpu", max_slices=2)


def test_the_window_as_original_never_slides():
    defaults = GenerationDefaults.load()
    assert defaults.window_for(None, as_original=False, max_new_tokens=10) == 1024
    assert defaults.window_for(None, as_original=True, max_new_tokens=10) == 2058
    assert defaults.window_for(77, as_original=True, max_new_tokens=10) == 77


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda raw: raw.pop("window"), "window"),
        (lambda raw: raw.pop("sets"), "sets"),
        (lambda raw: raw["sets"]["OmniLMMChat"].update(colour=1), "colour"),
        (lambda raw: raw.update(settings="minicpm-v-9"), "minicpm-v-9"),
        (lambda raw: raw.update(settings=[1]), "unhashable"),
        (lambda raw: raw.update(slices=7), "mapping"),
        (lambda raw: raw["slices"].update(colour=1), "colour"),
        (lambda raw: raw["slices"].pop("window"), "window"),
        (lambda raw: raw["slices"].update(window=0), "window is 0"),
        (lambda raw: raw["slices"].update(settings="minicpm-v-9"), "minicpm-v-9"),
        (lambda raw: raw["sets"]["OmniLMMChat"]["sample"].update(top_p=3), "top_p is 3"),
        (lambda raw: raw["sets"]["OmniLMMChat"]["beam"].update(colour=3), "colour"),
    ],
)
def test_damaged_defaults_are_refused(tmp_path, change, problem):
    raw = json.loads(DEFAULTS.read_text("utf-8"))
    change(raw)
    path = tmp_path / "generation.json"
    path.write_text(json.dumps(raw))
    with pytest.raises(ConfigError, match=f"generation.json: .*{problem}"):
        GenerationDefaults.load(path)
    path.write_text("{")
    with pytest.raises(ConfigError, match="cannot be read as JSON"):
        GenerationDefaults.load(path)


def test_settings_are_chosen_by_name(checkpoint):
    with pytest.raises(ConfigError, match=r"known: minicpm-v-1\.0"):
        ChatModel(checkpoint, device="cpu", settings="minicpm-v-9")


@pytest.mark.parametrize(
    ("arguments", "error", "problem"),
    [
        ({"engine": "warp"}, ConfigError, "engine is 'warp'"),
        ({"engine": "local"}, BundleError, "not a bundle"),
        ({"engine": "adb"}, BundleError, "not a bundle"),
        ({"engine": "reference", "threads": 2}, ConfigError, "threads 2 is for a bundle's engine"),
        ({"threads": True}, ConfigError, "threads is True; expected an integer"),
        ({"serial": "X"}, ConfigError, "serial 'X' names a phone"),
        ({"cpu": "max"}, ConfigError, "cpu 'max' names a processor"),
        ({"device": "abacus"}, ConfigError, "device is 'abacus'"),
        ({"device": "meta"}, ConfigError, "device is 'meta'"),
        ({"device": "cuda:99"}, ConfigError, "'cuda:99' is not on this machine"),
        ({"device": "cpu", "dtype": "int8"}, ConfigError, "dtype is 'int8'"),
        ({"device": "cpu", "window": -1}, PromptError, "window is -1"),
    ],
)
def test_arguments_that_do_not_fit_are_named(checkpoint, arguments, error, problem):
    with pytest.raises(error, match=problem):
        ChatModel(checkpoint, **arguments)


def test_bfloat16_answers(checkpoint, options):
    model = ChatModel(checkpoint, device="cpu", dtype="bfloat16")
    assert "bfloat16, cpu" in model.description
    assert model.chat(RED, [QUESTION])[1][0] == QUESTION


def test_a_decoder_without_a_tokenizer_cannot_chat(tmp_path):
    source = write_checkpoint(tmp_path / "decoder", decoder_only=True, tokenizer=False)
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.model"):
        ChatModel(source, device="cpu")


def test_a_decoder_chats_in_text_only(tmp_path, options):
    source = write_checkpoint(tmp_path / "decoder", decoder_only=True)
    model = ChatModel(source, device="cpu")
    assert model.chat(None, [QUESTION], sampling=True)[1][0] == QUESTION
    with pytest.raises(PictureError, match="no vision encoder"):
        model.chat(RED, [QUESTION])
