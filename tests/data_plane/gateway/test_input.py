"""Bad input: never a 5xx, never a hang, never a wake, always an error in the wire's shape."""

import asyncio
import gzip
import json
import uuid
from collections.abc import AsyncIterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_plane.router.runner_client import Upstream

from .world import World, chat

CHAT = "/e/chat/v1/chat/completions"
TEXT = "/e/chat/v1/completions"

CORPUS: list[bytes] = [
    b"",
    b"{",
    b"null",
    b"[]",
    b'"text"',
    b"\xff\xfe\x00",
    b'{"messages": "\xc3\x28"}',
    b'{"messages": []}',
    b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    b'{"messages": [{"role": "user", "content": "hi"}], "temperature": NaN}',
    b'{"messages": [{"role": "user", "content": "hi"}], "temperature": 1e999}',
    b'{"messages": [{"role": "user", "content": "hi"}], "n": 100000}',
    b'{"messages": [{"role": "user", "content": "hi"}], "max_tokens": -1}',
    b'{"messages": [{"role": "user", "content": "hi"}], "top_logprobs": 99999, "logprobs": true}',
    b'{"messages": [{"role": "user", "content": "hi"}], "seed": 1e30}',
    b'{"messages": [{"role": "user", "content": "hi"}], "stream": "yes"}',
    b'{"messages": [{"role": "wizard", "content": "hi"}]}',
    b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}',
    b'{"prompt": [[[1]]]}',
    b'{"prompt": [-1]}',
    b'{"prompt": {"a": 1}}',
    b"[" * 100_000,
    b'{"messages":' + b'{"a":' * 50_000,
]


async def send(world: World, path: str, body: bytes) -> tuple[int, bytes]:
    headers = {"Authorization": f"Bearer {world.key}", "Content-Type": "application/json"}
    async with world.client.post(world.url + path, data=body, headers=headers) as response:
        assert response.headers["x-request-id"]
        assert response.content_type == "application/json"
        return response.status, await response.read()


@pytest.mark.parametrize("path", [CHAT, TEXT, "/v1/chat/completions", "/v1/completions"])
async def test_corpus(world: World, path: str) -> None:
    world.endpoint()
    await world.known()
    for body in CORPUS:
        status, answer = await send(world, path, body)
        error = json.loads(answer)["error"]
        assert status == 400, (body[:80], answer)
        assert set(error) == {"message", "type", "param", "code"}
    assert world.control.wakes == []


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.one_of(st.binary(max_size=200), st.text(max_size=100).map(str.encode)))
async def test_raw_bodies(world: World, body: bytes) -> None:
    world.endpoint()
    await world.known()
    for path in (CHAT, TEXT, "/e/chat/tokenize"):
        status, answer = await send(world, path, body)
        assert status in (400, 404, 503), (body, answer)
        assert status != 503 or path.endswith("tokenize")
    assert world.control.wakes == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ("n", "stop", "seed", "logprobs", "logit_bias", "stream", "stream_options", "max_tokens", "top_p", "messages")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(field=st.sampled_from(FIELDS), value=JSON)
async def test_wrong_values(world: World, field: str, value: object) -> None:
    world.endpoint()
    await world.known()
    headers = {"Authorization": f"Bearer {world.key}", "x-ebb-hold-timeout": "0", "Content-Type": "application/json"}
    headers["x-request-id"] = uuid.uuid4().hex
    body = json.dumps({**chat(), field: value})
    async with world.client.post(world.url + CHAT, data=body, headers=headers) as response:
        error = (await response.json())["error"]
        # A value that is good after all gets as far as the endpoint, which is asleep.
        assert (response.status, error["code"] == "model_loading") in ((400, False), (503, True)), (body, error)
        if response.status == 400:
            assert headers["x-request-id"] not in {request.request_id for _, request in world.control.wakes}


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/e/chat/tokenize"])
async def test_oversized_body(world: World, chunked: bool, path: str) -> None:
    world.endpoint()
    await world.known()
    piece = b" " * (1 << 20)

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(11):
            yield piece

    headers = {"Authorization": f"Bearer {world.key}"}
    data = pieces() if chunked else piece * 11
    async with asyncio.timeout(20), world.client.post(world.url + path, data=data, headers=headers) as response:
        assert response.status == 413
        assert (await response.json())["error"]["code"] == "request_too_large"
    assert world.control.wakes == []


async def test_largest_allowed_body_is_read(world: World) -> None:
    status, answer = await send(world, "/v1/completions", b" " * (10 << 20))
    assert (status, json.loads(answer)["error"]["code"]) == (400, "invalid_json")


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "GZIP", "x"])
async def test_compressed_bodies_are_refused_and_never_unpacked(world: World, coding: str) -> None:
    headers = {"Authorization": f"Bearer {world.key}", "Content-Encoding": coding}
    for body in (gzip.compress(b" " * (100 << 20)), b"not compressed"):
        async with world.client.post(world.url + "/v1/completions", data=body, headers=headers) as response:
            assert response.status == 415
            error = (await response.json())["error"]
            assert error["param"] == "content-encoding" and coding.lower() in error["message"]


async def raw(world: World, data: bytes, patience_s: float = 1.0) -> bytes:
    """What a real socket gets for these bytes; the gateway must close or answer, not hang."""
    reader, writer = await asyncio.open_connection("127.0.0.1", world.gateway.port)
    writer.write(data)
    answer = b""
    try:
        async with asyncio.timeout(patience_s):
            while chunk := await reader.read(65536):
                answer += chunk
    except TimeoutError:
        pass  # kept alive after its answer, which the caller looks at
    writer.close()
    return answer


def smuggling(key: str) -> dict[str, bytes]:
    start = f"POST {CHAT} HTTP/1.1\r\nAuthorization: Bearer {key}\r\n".encode()
    host = b"Host: x\r\n"
    return {
        "length and chunked": start + host + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "two lengths": start + host + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        "two hosts": start + host + b"Host: y\r\nContent-Length: 2\r\n\r\n{}",
        "folded header": start + host + b"X-A: b\r\n c\r\nContent-Length: 2\r\n\r\n{}",
        "space before colon": start + host + b"Content-Length : 2\r\n\r\n{}",
        "bad chunk": start + host + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n{}\r\n0\r\n\r\n",
        "odd coding": start + host + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "negative length": start + host + b"Content-Length: -1\r\n\r\n{}",
        "not http": b"\x16\x03\x01\x02\x00\x01\x00",
        "nul in header": start + host + b"X-A: a\x00b\r\nContent-Length: 2\r\n\r\n{}",
        "no target": b"GET\r\n\r\n",
        "no host": start + b"Content-Length: 2\r\n\r\n{}",
        "signed length": start + host + b"Content-Length: +2\r\n\r\n{}",
        "hexadecimal length": start + host + b"Content-Length: 0x2\r\n\r\n{}",
        "list of lengths": start + host + b"Content-Length: 2, 2\r\n\r\n{}",
        "unknown coding": start + host + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "two codings": start + host + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        "hidden coding": start + host + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
        "negative chunk": start + host + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n{}\r\n0\r\n\r\n",
        "prefixed chunk": start + host + b"Transfer-Encoding: chunked\r\n\r\n0x2\r\n{}\r\n0\r\n\r\n",
        "chunk longer than said": start + host + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}}\r\n0\r\n\r\n",
        "bare line feeds": start.replace(b"\r\n", b"\n") + b"Host: x\nContent-Length: 2\n\n{}",
        "odd header name": start + host + b"X A: b\r\nContent-Length: 2\r\n\r\n{}",
        "two keys": start + host + b"Authorization: Bearer x\r\nContent-Length: 2\r\n\r\n{}",
        "huge header": start + host + b"X-A: " + b"a" * 100_000 + b"\r\n\r\n",
    }


@pytest.mark.parametrize("case", list(smuggling("")))
async def test_smuggling_is_refused(world: World, case: str) -> None:
    runner = await world.runner()
    await world.live(runner)
    answer = await raw(world, smuggling(world.key)[case])
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith((b"HTTP/1.1 400", b"HTTP/1.0 400", b"HTTP/1.1 431")), answer[:300]
    assert answer.count(b"HTTP/1.") == 1, "one request, one answer"
    assert json.loads(body)["error"]["message"]
    assert b"missing_required" not in body, "it got as far as its body"
    assert b"x-request-id" in head.lower()
    assert runner.seen == []


async def test_upgrade_is_ignored(world: World) -> None:
    request = f"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {world.key}\r\n"
    upgrade = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n"
    assert (await raw(world, (request + upgrade).encode())).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("path", ["/e/chat/../chat/v1/models", "//v1/models", "/e/chat%2Fv1/models", "/v1/models/"])
async def test_paths_are_taken_as_sent(world: World, path: str) -> None:
    world.endpoint()
    await world.known()
    request = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {world.key}\r\nConnection: close\r\n\r\n"
    assert (await raw(world, request.encode())).startswith(b"HTTP/1.1 404")


async def test_other_methods(world: World) -> None:
    for method, path in (("GET", CHAT), ("DELETE", "/v1/models"), ("POST", "/healthz"), ("PUT", "/v1/completions")):
        headers = {"Authorization": f"Bearer {world.key}"}
        async with world.client.request(method, world.url + path, headers=headers) as response:
            assert response.status == 405
            assert response.headers["allow"]
            assert (await response.json())["error"]["code"] == "method_not_allowed"


async def test_expect_continue(world: World) -> None:
    head = f"POST {TEXT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {world.key}\r\nContent-Length: 1\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", world.gateway.port)
    world.endpoint()
    await world.known()
    writer.write((head + "Expect: 100-continue\r\n\r\n").encode())
    async with asyncio.timeout(2):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
        writer.write(b"{")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 400")
    writer.close()


@pytest.mark.parametrize("sent", [1, 0], ids=["after an event", "before any"])
async def test_a_fault_of_ours_in_a_stream_breaks_it_off_and_begins_no_second_answer(
    world: World, monkeypatch: pytest.MonkeyPatch, sent: int
) -> None:
    await world.live(await world.runner())
    events = [b"data: {}\n\n"] * sent

    async def fail(_: Upstream) -> bytes:
        if events:
            return events.pop()
        monkeypatch.undo()
        raise RuntimeError("a defect")

    body = json.dumps(chat(stream=True)).encode()
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {world.key}\r\nConnection: close\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    monkeypatch.setattr(Upstream, "read_events", fail)
    # the connection ends by itself; drawing the traceback for the log takes a second on a busy machine
    answer = await raw(world, head.encode() + body, patience_s=20)
    # while nothing was sent, the truth can still be told
    assert answer.startswith(b"HTTP/1.1 200 " if sent else b"HTTP/1.1 500 ") and answer.count(b"HTTP/1.1") == 1
    assert not answer.endswith(b"0\r\n\r\n")
    async with world.post(body=chat()) as response:
        assert response.status == 200


@pytest.mark.parametrize("first", [b"", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"], ids=["new", "kept alive"])
async def test_a_head_that_never_ends_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch, first: bytes) -> None:
    monkeypatch.setattr("data_plane.gateway.client_connection.HEAD_TIMEOUT_S", 0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", world.gateway.port)
    if first:
        writer.write(first)
        assert (await reader.readuntil(b'{"status":"ok"}')).startswith(b"HTTP/1.1 200")
        await asyncio.sleep(0.4)  # idle between two requests is no fault
    writer.write(b"GET /healthz HTTP/1.1\r\nX-A: ")
    async with asyncio.timeout(5):
        assert await reader.read() == b""
    writer.close()


async def test_a_slow_answer_is_not_taken_for_a_slow_head(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_plane.gateway.client_connection.HEAD_TIMEOUT_S", 0.2)
    runner = await world.runner()
    runner.behaviour.delay_s = 0.6
    await world.live(runner)
    for _ in range(2):
        async with world.post() as response:
            assert response.status == 200
