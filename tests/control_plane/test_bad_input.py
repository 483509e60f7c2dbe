"""Whatever comes in, the REST API answers with a sentence in the one shape, and never with a 5xx."""

import json
from typing import Any, cast

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings, strategies
from litestar import Litestar, get
from litestar.testing import AsyncTestClient, TestClient

from control_plane.app import create_app
from control_plane.settings import Settings
from control_plane.tenants.auth import READ

Client = AsyncTestClient[Litestar]
SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much]
BAD = [
    b"{", b"", b"null", b"[]", b'"x"', b"\xff\xfe", b'{"name": "\xff"}', b'{"name": "\\ud800", "source": "pypi:x"}',
    b'{"name": 1, "source": 2}', b'{"name": "a"}', b"NaN", b"1e999", b'{"name":' * 2000, b"[" * 100_000,
    b'{"name": "a\\u0000", "source": "pypi:x"}', b'{"name": "a", "source": "pypi:x", "unknown": 1}',
]  # fmt: skip


async def test_bad_bodies(client: Client) -> None:
    for path in ("/api/v1/models", "/api/v1/models/tiny/artifacts", "/api/v1/keys", "/api/v1/endpoints"):
        for body in BAD:
            answer = await client.post(path, content=body, headers={"content-type": "application/json"})
            assert answer.status_code == 400, (path, body[:50], answer.text)
            error = answer.json()["error"]
            assert set(error) == {"message", "type", "param", "code"} and len(error["message"]) > 10
            assert answer.headers["x-request-id"]


ADDRESSES = [
    ("/schema/nothing", 404),
    ("/schema/swagger", 404),
    ("/api/v1/models/%00", 400),
    ("/api/v1/models/%ff", 400),
    ("/api/v1/models/a%0ab", 400),
    ("/api/v1/models/..%2f..%2fetc", 404),
    ("/api/v1/models/" + "a" * 9000, 400),
    ("/api/v1/events?subject=%00", 400),
    ("/api/v1/events?subject=%ff", 400),
    ("/api/v1/jobs/not-a-uuid", 404),
    ("/api/v1/jobs/00000000-0000-0000-0000-000000000000", 404),
    ("/api/v1/jobs?limit=99999999999999999999", 400),
    ("/nowhere", 404),
]


async def test_bad_addresses(client: Client) -> None:
    for path, status in ADDRESSES:
        answer = await client.get(path)
        assert answer.status_code == status, (path[:60], answer.text)
        assert answer.json()["error"]["message"]


async def test_a_wrong_method_and_a_large_body(client: Client) -> None:
    assert (await client.put("/api/v1/models")).status_code == 405
    large = b'{"name": "a", "source": "' + b"x" * (5 * 2**20) + b'"}'
    answer = await client.post("/api/v1/models", content=large, headers={"content-type": "application/json"})
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "body_too_large"


async def test_a_request_id_is_echoed_or_made(client: Client) -> None:
    assert (await client.get("/healthz", headers={"x-request-id": "abc-1"})).headers["x-request-id"] == "abc-1"
    made = (await client.get("/nowhere", headers={"x-request-id": "a b\t"})).headers["x-request-id"]
    assert len(made) == 32


async def test_an_unexpected_failure_tells_nothing_of_itself(app: Litestar, keys: Any) -> None:
    @get("/boom", opt=READ)
    async def boom() -> None:
        raise RuntimeError("secret /path select * from api_keys")

    app.register(boom)
    async with AsyncTestClient(app, raise_server_exceptions=False) as client:
        answer = await client.get("/boom", headers=keys.headers(keys.read))
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal_error"
    assert "secret" not in answer.text and "Traceback" not in answer.text


async def test_a_database_that_is_away_is_503_and_healthz_stays(tmp_path: Any, keys: Any) -> None:
    away = Settings(tmp_path, "postgresql://nobody@127.0.0.1:9/none", "filesystem://", "http://g", "test")
    application = create_app(away, leads=False)
    async with AsyncTestClient(application, raise_server_exceptions=False) as client:
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/readyz")).status_code == 503
        answer = await client.get("/api/v1/models", headers=keys.headers(keys.read))
    assert answer.status_code == 503 and answer.json()["error"]["code"] == "database_unavailable"


def _json(depth: int = 3) -> strategies.SearchStrategy[Any]:
    leaves = strategies.none() | strategies.booleans() | strategies.integers() | strategies.floats() | strategies.text()
    return strategies.recursive(leaves, lambda inner: strategies.lists(inner) | strategies.dictionaries(
        strategies.sampled_from(["name", "source", "scopes", "model", "min", "max", "idle_s", "expires_in_s", "quant"])
        | strategies.text(), inner), max_leaves=8)  # fmt: skip


@pytest.fixture
def blocking(app: Litestar, keys: Any) -> Any:
    """A client for tests that Hypothesis drives."""
    with TestClient(app, raise_server_exceptions=False) as client:
        client.headers.update(keys.headers(keys.admin))
        yield client


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=_json(),
    path=strategies.sampled_from(["models", "keys", "endpoints"]),
    name=strategies.text(max_size=20),
)
def test_no_json_makes_a_5xx(blocking: Any, body: Any, path: str, name: str) -> None:
    content = json.dumps(body).encode(errors="surrogatepass")
    made = blocking.post(f"/api/v1/{path}", content=content, headers={"content-type": "application/json"})
    assert made.status_code < 500, made.text
    shown = blocking.get(f"/api/v1/{path}/" + "".join(f"%{byte:02x}" for byte in name.encode(errors="surrogatepass")))
    assert shown.status_code < 500, shown.text


def test_schemathesis_finds_no_5xx(app: Litestar, blocking: Any) -> None:
    document = blocking.get("/schema").json()
    assert {"/api/v1/models", "/api/v1/keys", "/api/v1/jobs/{job_id}", "/api/v1/events"} <= set(document["paths"])
    schema = schemathesis.openapi.from_dict(document)
    tried = 0
    for result in schema.get_all_operations():
        operation: Any = cast(Any, result).ok()
        if operation.path.endswith("/logs") or operation.path.startswith("/internal/"):
            continue  # streams and long polls; their own tests

        @settings(
            max_examples=8,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
            database=None,
        )
        @given(case=operation.as_strategy())
        def probe(case: Any) -> None:
            query = {name: value for name, value in (case.query or {}).items() if name not in ("follow", "wait")}
            answer = blocking.request(
                case.method,
                case.formatted_path,
                params={name: str(value).encode(errors="replace").decode() for name, value in query.items()},
                content=json.dumps(case.body, default=str).encode() if "body" in _given(case) else None,
                headers={"content-type": "application/json"},
            )
            assert answer.status_code < 500, (case.method, case.formatted_path, answer.text)

        probe()
        tried += 1
    assert tried > 10


def _given(case: Any) -> set[str]:
    """Schemathesis marks a missing body by a sentinel that is no JSON value."""
    return {"body"} if isinstance(case.body, dict | list | str | int | float | bool | None) else set()
