"""Every field of a request that OpenAI's client names: taken, of no effect, or refused by name."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from openai.types.chat import completion_create_params

from runtime.commands.chat_options import SETTINGS as CHAT_SETTINGS
from runtime.inputs.defaults import GenerationDefaults
from runtime.serve.fields import IGNORED, NEUTRAL
from runtime.serve.request import OURS, read_request
from tests.runtime.serve.client import HELLO, ask, data_url, picture, post, said
from tests.support.serve_stand_in import NAME
from tests.support.web import WebServer

SETTINGS = GenerationDefaults.load().named(CHAT_SETTINGS)
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}

# What is taken: fields, and what of the options the answer then shows; None: nothing changes.
TAKEN: list[tuple[dict[str, Any], str | None]] = [
    ({"max_tokens": 7}, "max_new_tokens=7"),
    ({"max_completion_tokens": 5}, "max_new_tokens=5"),
    ({"max_tokens": 5, "max_completion_tokens": 5}, "max_new_tokens=5"),
    ({"max_tokens": 5, "max_completion_tokens": -1}, "max_new_tokens=5"),
    ({"max_tokens": 7.0}, "max_new_tokens=7"),
    ({"max_tokens": -1}, None),
    ({"max_completion_tokens": None}, None),
    ({"temperature": 0.5}, "temperature=0.5"),
    ({"temperature": 0}, "do_sample=False"),
    ({"temperature": 2}, "temperature=2"),
    ({"top_p": 0.25}, "top_p=0.25"),
    ({"top_p": 0}, "do_sample=False"),
    ({"top_p": 1}, "top_p=1"),
    ({"top_k": 9}, "top_k=9"),
    ({"top_k": 0}, "top_k=None"),
    ({"top_k": -1}, "top_k=None"),
    ({"repetition_penalty": 1.5}, "repetition_penalty=1.5"),
    ({"seed": 3}, "seed=3"),
    ({"seed": 0}, "seed=0"),
    ({"seed": -1}, None),
    ({"stop": "x"}, "stop=('x',)"),
    ({"stop": ["x", "yz"]}, "stop=('x', 'yz')"),
    ({"stop": ["x", ""]}, "stop=('x',)"),
    ({"stop": ""}, None),
    ({"stop": []}, None),
    ({"logprobs": True}, "top_logprobs=0"),
    ({"logprobs": True, "top_logprobs": 20}, "top_logprobs=20"),
    ({"logprobs": False}, None),
    ({"logprobs": False, "top_logprobs": 0}, None),
    ({"top_logprobs": 0}, None),
    ({"n": 1}, None),
    ({"n": 1.0}, None),
    ({"best_of": 1}, None),
    ({"frequency_penalty": 0}, None),
    ({"presence_penalty": 0.0}, None),
    ({"logit_bias": {}}, None),
    ({"logit_bias": {"50256": 0}}, None),
    ({"response_format": {"type": "text"}}, None),
    ({"modalities": ["text"]}, None),
    ({"tools": []}, None),
    ({"tools": [], "tool_choice": "none", "parallel_tool_calls": True}, None),
    ({"tool_choice": "auto"}, None),
    ({"functions": []}, None),
    ({"functions": [], "function_call": "none"}, None),
    ({"store": False}, None),
    ({"metadata": {"a": "b"}}, None),
    ({"user": "me"}, None),
    ({"service_tier": "auto"}, None),
    ({"service_tier": "flex"}, None),
    ({"safety_identifier": "x"}, None),
    ({"prompt_cache_key": "x"}, None),
    ({"prompt_cache_retention": "24h"}, None),
    ({"prompt_cache_options": {"mode": "implicit"}}, None),
    ({"prediction": {"type": "content", "content": "options"}}, None),
    ({"reasoning_effort": "none"}, None),
    ({"verbosity": "medium"}, None),
    ({"moderation": None, "audio": None, "web_search_options": None}, None),
    ({"stream_options": {}}, None),
    ({"stream_options": None}, None),
    ({"suffix": "", "echo": False, "min_p": 0, "stop_token_ids": []}, None),
]  # fmt: skip

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"n": 2}, "n"),
    ({"n": True}, "n"),
    ({"best_of": 2}, "best_of"),
    ({"tools": [TOOL]}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": TOOL}, "tool_choice"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"function_call": {"name": "f"}}, "function_call"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"audio": {"voice": "alloy", "format": "wav"}}, "audio"),
    ({"presence_penalty": 1}, "presence_penalty"),
    ({"frequency_penalty": -0.5}, "frequency_penalty"),
    ({"logit_bias": {"1": 5}}, "logit_bias"),
    ({"store": True}, "store"),
    ({"reasoning_effort": "high"}, "reasoning_effort"),
    ({"verbosity": "low"}, "verbosity"),
    ({"web_search_options": {"search_context_size": "low"}}, "web_search_options"),
    ({"moderation": {"model": "m"}}, "moderation"),
    ({"min_p": 0.1}, "min_p"),
    ({"nonsense": 1}, "nonsense"),
    ({"nonsense": ""}, "nonsense"),
    ({"temperature": 3}, "temperature"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": -0.1}, "top_p"),
    ({"top_p": 2}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"top_k": 1.5}, "top_k"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -2}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"max_tokens": 10**30}, "max_tokens"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
    ({"seed": -2}, "seed"),
    ({"seed": "x"}, "seed"),
    ({"seed": 2**63}, "seed"),
    ({"stop": ["a"] * 5}, "stop"),
    ({"stop": ["a", 1]}, "stop"),
    ({"stop": 3}, "stop"),
    ({"logprobs": 5}, "logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": "yes"}, "stream_options"),
    ({"stream_options": {"more": 1}}, "stream_options.more"),
    ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "hello"}, "messages"),
    ({"messages": [{"role": "system", "content": "be kind"}]}, "messages"),
    ({"messages": [{"role": "assistant", "content": "I begin"}]}, "messages"),
    ({"messages": [*HELLO, *HELLO]}, "messages"),
    ({"messages": [{"role": "user", "content": " "}]}, "messages"),
    ({"messages": [{"role": "user", "content": "\ud83d"}]}, "messages"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
    ({"messages": [{"role": "tool", "content": "5", "tool_call_id": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": "a", "tool_calls": [1]}]}, "messages[0].tool_calls"),
    ({"messages": [{"role": "assistant", "content": None, "tool_calls": [1]}]},
     "messages[0].tool_calls"),
    ({"messages": [7]}, "messages[0]"),
]  # fmt: skip


def options_with(server: WebServer, **fields: Any) -> str:
    return said(server, [{"role": "user", "content": "options"}], **fields)


def test_no_field_of_the_client_is_forgotten() -> None:
    """A release that names more is noticed here."""
    theirs = set(completion_create_params.CompletionCreateParamsBase.__annotations__) | {"stream"}
    assert theirs <= {*OURS, *IGNORED, *NEUTRAL}
    named = {name for fields, _ in (*TAKEN, *REFUSED) for name in fields} | {"model"}
    assert theirs <= named, "each has a line in a table"
    assert {*OURS, *IGNORED, *NEUTRAL} >= {name.split(".")[0] for name in theirs}


@pytest.mark.parametrize(("fields", "shown"), TAKEN, ids=str)
def test_what_is_taken(server: WebServer, fields: dict[str, Any], shown: str | None) -> None:
    given = options_with(server, **fields)
    if shown is None:
        assert given == options_with(server)
    else:
        assert shown in given


@pytest.mark.parametrize(("fields", "shown"), TAKEN, ids=str)
def test_what_is_taken_of_the_client(
    server: WebServer, client: openai.OpenAI, fields: dict[str, Any], shown: str | None
) -> None:
    """The same through the client, streamed, with what it streams by default."""
    stream_options = {"include_usage": True, "include_obfuscation": False}
    more = {"stream_options": stream_options} | fields
    chunks = list(ask(client, "options", stream=True, extra_body=more))
    assert (shown or "do_sample=True") in "".join(
        chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices
    )
    has_usage = bool(more["stream_options"] and "include_usage" in more["stream_options"])
    assert any(chunk.usage is not None for chunk in chunks) == has_usage


@pytest.mark.parametrize(("fields", "param"), REFUSED, ids=ascii)
def test_what_is_wrong_or_not_supported_is_named(
    server: WebServer, fields: dict[str, Any], param: str
) -> None:
    status, answer = post(server, {"model": NAME, "messages": HELLO} | fields)
    error = answer["error"]
    assert (status, error["param"]) == (400, param)
    assert error["type"] == "invalid_request_error"
    assert param in error["message"] or param == "messages"


def test_errors_reach_the_client(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"presence_penalty is 1; .* only 0") as caught:
        ask(client, "hello", presence_penalty=1)
    assert (caught.value.param, caught.value.code) == ("presence_penalty", "unsupported_parameter")


@pytest.mark.parametrize("name", ["\ud83d", "a\udc00b", "\u2028", "\0"])
def test_names_that_no_encoding_has(server: WebServer, name: str) -> None:
    """A lone surrogate in JSON is none of UTF-8: the answer spells it."""
    for body in (
        {"messages": HELLO, name: 1},
        {"messages": HELLO, "stream_options": {name: 1}},
        {"messages": [{**HELLO[0], name: 1}]},
        {"messages": HELLO, "model": name},
        {"messages": HELLO, "n": name},
    ):
        status, answer = post(server, body)
        assert status == (404 if "model" in body else 400)
        assert answer["error"]["message"].encode()


SYSTEM = {"role": "system", "content": "be kind"}
TURNS: list[tuple[list[Any], str]] = [
    ([SYSTEM, *HELLO], "1: be kind\nhello"),
    ([{"role": "developer", "content": "be kind"}, *HELLO], "1: be kind\nhello"),
    ([SYSTEM, {"role": "system", "content": [{"type": "text", "text": "be brief"}]}, *HELLO],
     "1: be kind\nbe brief\nhello"),
    ([*HELLO, SYSTEM], "1: be kind\nhello"),
    ([{"role": "system", "content": ""}, *HELLO], "1: hello"),
    ([{"role": "system", "content": " \n"}, *HELLO], "1: hello"),
    ([{"role": "system", "content": None}, *HELLO], "1: hello"),
    ([{"role": "system", "content": []}, *HELLO], "1: hello"),
    ([*HELLO, {"role": "assistant", "content": None}, *HELLO], "3: hello"),
    ([*HELLO, {"role": "assistant"}, *HELLO], "3: hello"),
    ([*HELLO, {"role": "assistant", "content": "", "refusal": None, "tool_calls": [],
               "annotations": [], "audio": None, "function_call": None}, *HELLO], "3: hello"),
    ([{"role": "user", "name": "me", "content": [{"type": "text", "text": "a"},
                                                 {"type": "text", "text": "b"}]}], "1: a\nb"),
]  # fmt: skip


@pytest.mark.parametrize(("messages", "expected"), TURNS, ids=str)
def test_turns(server: WebServer, messages: list[Any], expected: str) -> None:
    assert said(server, messages) == expected


def test_a_system_turn_stands_before_the_first_question_that_is_heard() -> None:
    """Not before one that is not heard any more, since a picture came behind it."""
    text = {"type": "text", "text": "what"}
    messages = [
        SYSTEM,
        {"role": "user", "content": [picture(data_url()), text]},
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": [picture(data_url((44, 55))), text]},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "and now"},
    ]
    heard = read_request({"messages": messages}, NAME, SETTINGS).messages
    assert [message["content"] for message in heard] == ["be kind\nwhat", "two", "and now"]
