"""Promise 9: the management API, its schema, and keys on every port."""

from typing import Any

import httpx
import pytest

from tests.promises.running import Platform, wait_for


def test_the_schema_names_every_resource(bare: Platform) -> None:
    listed = [bare.rest("GET", f"/schema{path}") for path in ("/openapi.json", "")]
    assert listed[0].status_code == 200
    paths = " ".join(listed[0].json()["paths"])
    for resource in ("models", "endpoints", "replicas", "nodes", "jobs", "keys", "events"):
        assert f"/api/v1/{resource}" in paths
        assert bare.rest("GET", f"/api/v1/{resource}").status_code == 200


def test_nothing_answers_without_a_key(chat: Platform) -> None:
    chat.post("chat", json={"messages": [{"role": "user", "content": "x"}], "max_tokens": 1})
    [node] = chat.rest("GET", "/api/v1/nodes").json()["items"]
    [replica] = chat.replicas()
    inside = ["/", "/metrics", "/v1/models", "/state", "/schema", "/api/v1/models", "/e/chat/v1/models", "/no/such"]
    for base in (chat.control, chat.gateway, node["agent_url"], replica["url"]):
        assert httpx.get(base + "/healthz").status_code == 200
        assert httpx.get(base + "/readyz").status_code == 200
        for path in inside:
            assert httpx.get(base + path).status_code in (401, 404), base + path
        for path in ("/v1/chat/completions", "/v1/completions", "/drain", "/tokenize", "/internal/v1/gateway/demand"):
            assert httpx.post(base + path, json={}).status_code in (401, 404, 405), base + path
    for path in ("/", "/metrics", "/api/v1/models", "/schema/openapi.json", "/internal/v1/gateway/state"):
        assert httpx.get(chat.control + path).status_code == 401, path


@pytest.mark.parametrize(
    ("scope", "allowed", "refused"),
    [
        ("read", [("GET", "/api/v1/models")], [("POST", "/api/v1/keys"), ("GET", "/internal/v1/gateway/state")]),
        ("infer", [], [("GET", "/api/v1/models"), ("POST", "/api/v1/endpoints")]),
        ("node", [("GET", "/internal/v1/gateway/state")], [("GET", "/api/v1/keys"), ("DELETE", "/api/v1/models/x")]),
    ],
)
def test_scopes(bare: Platform, scope: str, allowed: list[Any], refused: list[Any]) -> None:
    made = bare.rest("POST", "/api/v1/keys", {"name": f"only-{scope}", "scopes": [scope]})
    assert made.status_code == 201
    key = made.json()["key"]
    for method, path in allowed:
        assert bare.rest(method, path, key=key).status_code == 200, path
    for method, path in refused:
        answer = bare.rest(method, path, json={} if method == "POST" else None, key=key)
        assert answer.status_code == 403, (path, answer.text)
        assert answer.json()["error"]["type"] == "permission_error"
    bare.rest("DELETE", f"/api/v1/keys/{made.json()['id']}")


def test_a_key_is_shown_once_and_dies_within_seconds(chat: Platform) -> None:
    made = chat.rest("POST", "/api/v1/keys", {"name": "guest", "scopes": ["infer"]}).json()
    assert made["key"].count(".") == 1
    listed = chat.rest("GET", "/api/v1/keys").text
    assert made["key"].split(".")[1] not in listed
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    url = f"{chat.gateway}/e/chat/v1/chat/completions"

    def status() -> int:
        return httpx.post(url, json=body, headers={"Authorization": f"Bearer {made['key']}"}, timeout=60).status_code

    wait_for("the key to work", lambda: status() == 200, 5)
    chat.rest("DELETE", f"/api/v1/keys/{made['id']}")
    wait_for("the key to die", lambda: status() == 401, 6)


def test_wrong_keys_all_read_alike(bare: Platform) -> None:
    prefix = bare.key.split(".")[0]
    said = {
        httpx.get(bare.control + "/api/v1/models", headers={"Authorization": f"Bearer {key}"}).text
        for key in ("x", f"{prefix}.wrong", "unknown.secret")
    }
    assert len(said) == 1
