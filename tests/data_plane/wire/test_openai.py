"""Requests: whatever bytes come, a struct or a 400; and every limit names its field."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_plane.wire.errors import ApiError
from data_plane.wire.openai import encode, parse_chat, parse_completion

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = [
    "messages",
    "prompt",
    "n",
    "stop",
    "logprobs",
    "top_logprobs",
    "logit_bias",
    "stream",
    "stream_options",
    "tools",
    "response_format",
    "suffix",
    "seed",
    "temperature",
    "max_tokens",
    "chat_template_kwargs",
    "best_of",
]
MESSAGES = [{"role": "user", "content": "hi"}]


def _accepts_or_refuses(raw: bytes) -> None:
    for parse in (parse_chat, parse_completion):
        try:
            request = parse(raw)
        except ApiError as error:
            assert error.status == 400 and error.body.message.endswith(".")
            error.encode()
        else:
            assert encode(parse(encode(request))) == encode(request)


@given(st.binary(max_size=200))
def test_any_bytes(raw: bytes) -> None:
    _accepts_or_refuses(raw)


@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=6), st.booleans())
def test_any_json(fields: dict[str, Any], valid_base: bool) -> None:
    base: dict[str, Any] = {"messages": MESSAGES, "prompt": "x"} if valid_base else {}
    _accepts_or_refuses(json.dumps(base | fields).encode("utf-8", "surrogatepass"))


BAD_CHAT: list[tuple[dict[str, Any], str]] = [
    ({"n": 0}, "n"),
    ({"n": 17}, "n"),
    ({"n": True}, "n"),
    ({"n": "2"}, "n"),
    ({"n": 10**40}, "n"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": -0.1}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"seed": 2**63}, "seed"),
    ({"seed": 1.5}, "seed"),
    ({"stop": ["a"] * 5}, "stop"),
    ({"stop": ""}, "stop"),
    ({"stop": [""]}, "stop[0]"),
    ({"stop": "a" * 1025}, "stop"),
    ({"stop": 3}, "stop"),
    ({"presence_penalty": 2.5}, "presence_penalty"),
    ({"frequency_penalty": -3}, "frequency_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"logit_bias": {str(i): 1 for i in range(301)}}, "logit_bias"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"1": 101}}, "logit_bias"),
    ({"logit_bias": [1]}, "logit_bias"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_completion_tokens": -1}, "max_completion_tokens"),
    ({"logprobs": 3}, "logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"chat_template": "{{ 1 }}"}, "chat_template"),
    ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs.tokenize"),
    ({"cache_salt": "../x"}, "cache_salt"),
    ({"messages": []}, "messages"),
    ({"messages": None}, "messages"),
    ({"messages": MESSAGES * 2049}, "messages"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
    ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls"),
]


@pytest.mark.parametrize(("fields", "param"), BAD_CHAT, ids=lambda value: str(value)[:40])
def test_chat_limits_name_their_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse_chat(json.dumps({"messages": MESSAGES} | fields).encode())
    assert caught.value.status == 400 and caught.value.body.param == param


BAD_COMPLETION: list[tuple[dict[str, Any], str]] = [
    ({"prompt": []}, "prompt"),
    ({"prompt": None}, "prompt"),
    ({"prompt": [1, "a"]}, "prompt"),
    ({"prompt": ["a"] * 65}, "prompt"),
    ({"prompt": [[-1]]}, "prompt[0][0]"),
    ({"prompt": [[1]] * 64, "n": 3}, "n"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"logprobs": 21}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
    ({"best_of": 17}, "best_of"),
    ({"best_of": 2}, "best_of"),
    ({"suffix": "x"}, "suffix"),
    ({"echo": 1}, "echo"),
]


@pytest.mark.parametrize(("fields", "param"), BAD_COMPLETION, ids=lambda value: str(value)[:40])
def test_completion_limits_name_their_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse_completion(json.dumps({"prompt": "x"} | fields).encode())
    assert caught.value.status == 400 and caught.value.body.param == param


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b'{"prompt": "x"} trailing', "invalid_json"),
        (b'{"prompt": "\xff"}', "invalid_encoding"),
        (b'{"prompt": "\\ud800"}', "invalid_json"),
        (b'{"prompt": "x", "temperature": NaN}', "invalid_json"),
        (b'{"prompt": "x", "temperature": Infinity}', "invalid_json"),
        (b'{"prompt": "x", "temperature": 1e999}', "invalid_value"),
        (b'{"prompt": "x", "zz": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "invalid_json"),
        (b'{"prompt": "x", "suffix": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "invalid_json"),
        (b"[]", "invalid_type"),
        (b"{}", "missing_required_parameter"),
    ],
)
def test_malformed_bodies(raw: bytes, code: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse_completion(raw)
    assert caught.value.status == 400 and caught.value.body.code == code


def test_what_is_accepted_and_ignored_is_not_forwarded() -> None:
    ignored = {"metadata": {"a": "b"}, "store": True, "service_tier": "auto", "parallel_tool_calls": True}
    ignored |= {"safety_identifier": "s", "reasoning_effort": "low", "verbosity": "low"}
    request = parse_chat(json.dumps({"messages": MESSAGES, "stop": None, "n": None} | ignored).encode())
    assert json.loads(encode(request)) == {"messages": MESSAGES}
    named = parse_chat(json.dumps({"messages": MESSAGES, "user": "u", "prompt_cache_key": "k"}).encode())
    assert (named.user, named.prompt_cache_key) == ("u", "k")


def test_the_forms_of_a_prompt() -> None:
    forms: list[tuple[Any, list[Any]]] = [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2]], [[1], [2]]),
    ]
    for prompt, expected in forms:
        assert parse_completion(json.dumps({"prompt": prompt}).encode()).prompts == expected


def test_parts_and_limits() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    body = {"messages": [{"role": "user", "content": parts}], "max_tokens": 3, "max_completion_tokens": 5}
    request = parse_chat(json.dumps(body).encode())
    assert request.messages[0].text == "ab" and request.limit == 5 and request.choices == 1 and not request.stream
