"""Whatever arrives, the answer is a 4xx that names the field; nothing dies, hangs or wakes."""

import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.promises.running import Platform

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"n": 100000}, "n"),
        ({"n": 0}, "n"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"temperature": 9}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"logprobs": True, "top_logprobs": 500}, "top_logprobs"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "nobody", "content": "x"}]}, "messages"),
        ({"stream": "yes"}, "stream"),
        ({"seed": 1.5}, "seed"),
        ({"presence_penalty": 3}, "presence_penalty"),
    ],
)
def test_values_over_their_limits_name_the_field(chat: Platform, change: dict[str, Any], param: str) -> None:
    answer = chat.post("chat", json={**CHAT, **change})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"].startswith(param)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b'{"messages": "\xff"}', b'{"n": NaN}', b"[" * 100000])
def test_malformed_bodies(chat: Platform, raw: bytes) -> None:
    for path in ("chat/completions", "completions"):
        answer = chat.post("chat", path, content=raw, headers={"content-type": "application/json"})
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["message"]


def test_a_body_of_eleven_megabytes(chat: Platform) -> None:
    huge = json.dumps({**CHAT, "messages": [{"role": "user", "content": "x" * 11_000_000}]})
    assert chat.post("chat", content=huge).status_code == 413


def test_unknown_things_are_404(bare: Platform) -> None:
    assert bare.post("nobody", json=CHAT).status_code == 404
    for path in ("models/nobody", "endpoints/nobody", "jobs/nobody", "jobs/00000000-0000-0000-0000-000000000000"):
        answer = bare.rest("GET", f"/api/v1/{path}")
        assert answer.status_code == 404, path
        assert answer.json()["error"]["message"]
    assert bare.rest("GET", "/api/v1/nothing").status_code == 404


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
FIELDS = [
    "name",
    "model",
    "source",
    "min",
    "max",
    "idle_s",
    "context",
    "scopes",
    "expires_in_s",
    "dtype",
    "concurrency",
]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.sampled_from(["models", "endpoints", "keys", "endpoints/nobody"]),
    body=st.dictionaries(st.sampled_from(FIELDS), ANY_JSON, max_size=6) | ANY_JSON,
)
def test_any_json_to_the_management_api(bare: Platform, path: str, body: Any) -> None:
    method = "PATCH" if "/" in path else "POST"
    raw = json.dumps(body).encode()
    answer = httpx.request(
        method,
        f"{bare.control}/api/v1/{path}",
        content=raw,
        headers={"Authorization": f"Bearer {bare.key}", "content-type": "application/json"},
        timeout=30,
    )
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        assert answer.json()["error"]["message"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.binary(max_size=80) | ANY_JSON.map(lambda v: json.dumps(v).encode()))
def test_any_bytes_to_an_endpoint(chat: Platform, raw: bytes) -> None:
    answer = chat.post("chat", content=raw)
    assert 400 <= answer.status_code < 500, answer.text
