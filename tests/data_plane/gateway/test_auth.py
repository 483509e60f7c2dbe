"""Who may ask for what: every route with every kind of key, and tenants that do not see each other."""

import time

import pytest

from data_plane.gateway.server import Route

from .world import World, chat

OPEN = {"/healthz", "/readyz"}


def every_route(world: World) -> list[tuple[str, Route]]:
    """All concrete URLs of all routes."""
    urls: list[tuple[str, Route]] = []
    for path, route in world.gateway.server.routes.items():
        concrete = path.replace("{id}", "chat")
        if route.shared:
            urls.append((concrete, route))
        if route.per_endpoint:
            urls.append(("/e/chat" + concrete, route))
    return urls


def bodies(path: str) -> object:
    return {"prompt": "hi", "model": "chat"} if "chat/completions" not in path else chat()


async def test_every_route_needs_a_key(world: World) -> None:
    await world.live(await world.runner())
    expired = world.control.add_key("admin", expires_at=time.time() - 1)
    revoked = world.control.add_key("admin")
    world.control.keys.pop()
    await world.known()
    prefix = world.key.partition(".")[0]
    bad = ["", "Bearer ", "Bearer nonsense", f"Bearer {prefix}.wrong", f"Bearer {prefix}.", f"Basic {world.key}"]
    bad += [f"Bearer {expired}", f"Bearer {revoked}", "Bearer ebb_node.secret"]
    urls = [(path, route.method) for path, route in every_route(world) if path not in OPEN]
    assert len(urls) >= 15
    for path, method in [*urls, ("/nothing/here", "GET"), ("/e/chat/nothing", "GET"), ("/", "GET")]:
        for header in bad:
            headers = {"Authorization": header} if header else {}
            async with world.client.request(method, world.url + path, headers=headers) as response:
                assert response.status == 401, (path, header)
                assert response.headers["www-authenticate"] == "Bearer"
                assert response.headers["x-request-id"]
                assert (await response.json())["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("scope", ["infer", "read", "admin", "node"])
async def test_scopes(world: World, scope: str) -> None:
    await world.live(await world.runner())
    key = world.control.add_key(scope)  # type: ignore[arg-type]
    await world.known()
    allowed = {"infer": {"infer"}, "read": {"read"}, "admin": {"infer", "read"}, "node": set[str]()}[scope]
    for path, route in every_route(world):
        if path in OPEN:
            continue
        body = bodies(path) if route.method == "POST" else None
        headers = {"Authorization": f"Bearer {key}"}
        url = world.url + path + ("?model=chat" if path == "/tokenizer_info" else "")
        async with world.client.request(route.method, url, json=body, headers=headers) as response:
            assert response.status == (200 if allowed & set(route.scopes) else 403), (path, scope)
            await response.read()


async def test_another_tenants_endpoint_does_not_exist(world: World) -> None:
    await world.live(await world.runner())
    stranger = world.control.add_key("admin", tenant="other")
    await world.known()
    headers = {"Authorization": f"Bearer {stranger}"}
    for path, route in every_route(world):
        if path in OPEN or path in ("/metrics", "/health", "/v1/models", "/routes/recent"):
            continue
        body = bodies(path) if route.method == "POST" else None
        url = world.url + path + ("?model=chat" if path == "/tokenizer_info" else "")
        async with world.client.request(route.method, url, json=body, headers=headers) as response:
            assert response.status == 404, path
            seen = await response.text()
        async with world.client.request(route.method, url.replace("chat", "nope", 1), json=body, headers=headers) as no:
            assert no.status == 404
        assert "replica" not in seen
    async with world.get("/v1/models", stranger) as response:
        assert (await response.json())["data"] == []
    assert world.control.wakes == []


async def test_same_name_in_two_tenants(world: World) -> None:
    ours, theirs = await world.runner("ours"), await world.runner("theirs")
    await world.live(ours)
    world.endpoint(tenant="other", state="live", replicas=(theirs.route,))
    stranger = world.control.add_key("infer", tenant="other")
    await world.known()
    headers = {"Authorization": f"Bearer {stranger}"}
    async with world.client.post(world.url + "/v1/chat/completions", json=chat(), headers=headers) as response:
        assert response.status == 200
    assert (len(ours.seen), len(theirs.seen)) == (0, 1)


async def test_revoked_key_is_refused_from_the_next_state_on(world: World) -> None:
    await world.live(await world.runner())
    async with world.post() as response:
        assert response.status == 200
    world.control.keys.clear()
    world.control.put(world.control.endpoints["id-chat"])
    await world.known()
    async with world.post() as response:
        assert response.status == 401


async def test_open_routes_say_little(world: World) -> None:
    for path in OPEN:
        async with world.client.get(world.url + path) as response:
            assert response.status == 200
            assert set(await response.json()) == {"status"}
