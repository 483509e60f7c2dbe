"""REST of endpoints and replicas: what is accepted, what is refused and how it is said."""

from typing import Any
from uuid import UUID

import pytest
from litestar import Litestar
from litestar.testing import AsyncTestClient

from control_plane.catalog.service import ready_model
from control_plane.db.session import Database
from control_plane.endpoints.logs import LogSource, stream
from tests.control_plane.conftest import TestKeys
from tests.fakes.fleet import FakeAgent, FakeGateway, add_artifact, add_model

Client = AsyncTestClient[Litestar]


@pytest.fixture
async def stocked(client: Client, database: Database, tenant_id: UUID) -> Client:
    async with database.transaction() as session:
        await add_model(session, tenant_id)
        await add_model(session, tenant_id, "coming", status="importing")
    return client


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"name": "../x"}, 400, "name"),
        ({"name": "Chat"}, 400, "name"),
        ({"min": 3, "max": 2}, 400, "min"),
        ({"min": -1}, 400, "min"),
        ({"max": 65}, 400, "max"),
        ({"idle_s": 0.5}, 400, "idle_s"),
        ({"idle_s": 86_401}, 400, "idle_s"),
        ({"idle_s": -1}, 400, "idle_s"),
        ({"idle_s": "soon"}, 400, "idle_s"),
        ({"idle_s": None}, 400, "idle_s"),
        ({"slo": {"ttft_p95_ms": 0}}, 400, "slo.ttft_p95_ms"),
        ({"slo": {"p99": 5}}, 400, "slo.p99"),
        ({"context": 8193}, 400, "context"),
        ({"concurrency": 0}, 400, "concurrency"),
        ({"concurrency": 257}, 400, "concurrency"),
        ({"dtype": "int3"}, 400, "dtype"),
        ({"device": "tpu"}, 400, "device"),
        ({"quant": "int3"}, 400, "quant"),
        ({"quant": None}, 400, "quant"),
        ({"quant": "int8"}, 409, "quant"),
        ({"quant": "fp8"}, 400, "quant"),
        ({"quant": "int4", "device": "cuda"}, 400, "quant"),
        ({"model": "coming"}, 409, "model"),
        ({"model": "nobody"}, 404, None),
    ],
)
async def test_bad_specs_are_refused_with_the_field(
    stocked: Client, fields: dict[str, Any], status: int, param: str | None
) -> None:
    answer = await stocked.post("/api/v1/endpoints", json={"name": "chat", "model": "tiny", **fields})
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["param"] == param and len(error["message"]) > 10
    assert (await stocked.get("/api/v1/endpoints")).json() == {"items": []}


async def test_deploy_again_scale_and_remove(stocked: Client) -> None:
    made = await stocked.post("/api/v1/endpoints", json={"name": "chat", "model": "tiny"})
    assert made.status_code == 201
    assert made.json()["state"] == "zero" and made.json()["spec"]["context"] == 8192
    again = await stocked.post("/api/v1/endpoints", json={"name": "chat", "model": "tiny", "context": 1024})
    assert (again.status_code, again.json()["revision"]) == (200, 2)
    scaled = await stocked.patch("/api/v1/endpoints/chat", json={"min": 2, "max": 3})
    assert (scaled.json()["desired"], scaled.json()["state"]) == (2, "waking")
    wrong = await stocked.patch("/api/v1/endpoints/chat", json={"max": 1})
    assert wrong.status_code == 400 and wrong.json()["error"]["param"] == "max"
    in_use = await stocked.delete("/api/v1/models/tiny")
    assert in_use.status_code == 409
    assert (await stocked.delete("/api/v1/endpoints/chat")).status_code == 204
    assert (await stocked.delete("/api/v1/endpoints/chat")).status_code == 404
    assert (await stocked.delete("/api/v1/models/tiny")).status_code == 204


async def test_idle_is_auto_or_a_number_and_says_what_it_comes_to(stocked: Client) -> None:
    made = (await stocked.post("/api/v1/endpoints", json={"name": "chat", "model": "tiny"})).json()
    assert made["idle_s"] == "auto" and "constant 300 s" in made["idle_plan"] and made["slo"] is None
    scaled = (await stocked.patch("/api/v1/endpoints/chat", json={"idle_s": 30})).json()
    assert (scaled["idle_s"], scaled["idle_plan"]) == (30.0, None)
    slo = {"ttft_p95_ms": 500, "itl_p95_ms": 50}
    again = await stocked.post("/api/v1/endpoints", json={"name": "chat", "model": "tiny", "slo": slo})
    assert (again.json()["idle_s"], again.json()["slo"], again.json()["revision"]) == ("auto", slo, 1)
    wrong = (await stocked.patch("/api/v1/endpoints/chat", json={"idle_s": "never"})).json()["error"]
    assert "'never'" in wrong["message"] and "seconds from 1 to 86400" in wrong["message"]


@pytest.mark.parametrize(("slo", "wait_s"), [(None, None), ({"itl_p95_ms": 50}, None), ({"ttft_p95_ms": 500}, 0.4)])
async def test_gateways_are_told_how_long_a_prompt_may_wait(
    stocked: Client, keys: TestKeys, slo: dict[str, int] | None, wait_s: float | None
) -> None:
    await _deploy(stocked, slo=slo)
    assert (await FakeGateway(stocked, keys.node).route()).wait_s == wait_s


async def _deploy(client: Client, name: str = "chat", **fields: Any) -> dict[str, Any]:
    answer = await client.post("/api/v1/endpoints", json={"name": name, "model": "tiny", **fields})
    assert answer.status_code in (200, 201), answer.text
    return answer.json()


async def _refused(client: Client, **fields: Any) -> dict[str, Any]:
    answer = await client.post("/api/v1/endpoints", json={"name": "chat", "model": "tiny", **fields})
    assert answer.status_code in (400, 409), answer.text
    return answer.json()["error"]


async def test_a_revision_pins_the_artifact_that_was_asked_for(
    stocked: Client, database: Database, tenant_id: UUID
) -> None:
    assert (await _deploy(stocked))["quant"] == "bf16"
    error = await _refused(stocked, quant="int8")
    assert error["code"] == "artifact_missing" and "(it has: bf16)" in error["message"]
    assert 'POST /api/v1/models/tiny/artifacts {"quant": "int8"}' in error["message"]
    async with database.transaction() as session:
        model = await ready_model(session, tenant_id, "tiny")
        await add_artifact(session, model, "int8")
    assert (await _deploy(stocked))["revision"] == 1, "one that was not measured is nobody's choice"
    int8 = await _deploy(stocked, quant="int8")
    assert (int8["quant"], int8["revision"]) == ("int8", 2)
    assert int8["spec"]["artifact"] == "sha256:" + "8" * 64 and int8["spec"]["device"] == "cpu"
    assert [row["quant"] for row in (await stocked.get("/api/v1/endpoints")).json()["items"]] == ["int8"]
    plain = await _deploy(stocked, quant="bf16")
    assert (plain["quant"], plain["spec"]["device"], plain["revision"]) == ("bf16", "auto", 3)


async def test_auto_is_the_fastest_artifact(stocked: Client, database: Database, tenant_id: UUID) -> None:
    async with database.transaction() as session:
        model = await ready_model(session, tenant_id, "tiny")
        await add_artifact(session, model, "int8", speed={"score": 500.0}, quality={"perplexity_ratio": 1.01})
        await add_artifact(session, model, "int4", speed={"score": 900.0}, quality={"perplexity_ratio": 1.2})
    assert (await _deploy(stocked))["quant"] == "int8", "int4 was forced past the gate: only who names it gets it"
    assert (await _deploy(stocked, quant="int4"))["quant"] == "int4"
    on_gpu = await _deploy(stocked, "gpu", device="cuda")
    assert (on_gpu["quant"], on_gpu["spec"]["device"]) == ("bf16", "cuda")


async def test_fp8_is_for_gpus(stocked: Client, database: Database, tenant_id: UUID, keys: TestKeys) -> None:
    agent = FakeAgent(stocked, keys.node)
    await agent.register()
    error = await _refused(stocked, quant="fp8")
    assert error["param"] == "quant" and "no node has one: there is cpu of node box" in error["message"]
    error = await _refused(stocked, quant="fp8", device="cpu")
    assert "runs on cuda only, and device is 'cpu'" in error["message"]
    agent.gpus = 1
    await agent.register()
    assert (await _refused(stocked, quant="fp8"))["code"] == "artifact_missing"
    async with database.transaction() as session:
        await add_artifact(session, await ready_model(session, tenant_id, "tiny"), "fp8")
    assert (await _deploy(stocked, quant="fp8"))["spec"]["device"] == "cuda"


async def test_one_request_must_fit_and_is_told_how_much_does(stocked: Client, keys: TestKeys) -> None:
    agent = FakeAgent(stocked, keys.node, memory_bytes=600 << 20)
    await agent.register()
    error = await _refused(stocked)
    assert (error["param"], error["code"]) == ("context", "does_not_fit")
    for part in (
        "8192 tokens",
        "180 MiB (22 KiB a token)",
        "270 MiB of bf16",
        "105 MiB of runtime",
        "480 MiB for",
        "--quant int8",
    ):
        assert part in error["message"], error["message"]
    most = int(error["message"].partition("--context ")[2].split()[0])
    assert (await _refused(stocked, context=most + 1))["code"] == "does_not_fit"
    assert (await _deploy(stocked, context=most))["spec"]["context"] == most
    assert (await _refused(stocked, context=most, dtype="float32"))["code"] == "does_not_fit"
    agent.memory_bytes = 100 << 20
    await agent.register()
    assert "Deploy a smaller model" in (await _refused(stocked, context=1))["message"]


async def test_max_zero_is_not_woken_and_says_why(stocked: Client) -> None:
    await stocked.post("/api/v1/endpoints", json={"name": "chat", "model": "tiny", "max": 0})
    answer = await stocked.post("/api/v1/endpoints/chat/wake")
    assert answer.status_code == 409 and "--max 1" in answer.json()["error"]["message"]


async def test_wake_by_hand_and_empty_lists(stocked: Client, keys: TestKeys) -> None:
    await stocked.post("/api/v1/endpoints", json={"name": "chat", "model": "tiny"})
    reader = keys.headers(keys.read)
    assert (await stocked.post("/api/v1/endpoints/chat/wake", headers=reader)).status_code == 403
    woken = await stocked.post("/api/v1/endpoints/chat/wake")
    assert (woken.status_code, woken.json()["state"], woken.json()["phase"]) == (202, "waking", "placing")
    assert (await stocked.get("/api/v1/replicas?endpoint=chat", headers=reader)).json() == {"items": []}
    assert (await stocked.get("/api/v1/replicas?endpoint=nobody")).status_code == 404
    logs = await stocked.get("/api/v1/endpoints/chat/logs")
    assert logs.status_code == 200 and "no replica" in logs.text
    assert (await stocked.get("/api/v1/endpoints/nobody/logs")).status_code == 404


async def test_a_node_that_cannot_be_reached_is_said_in_the_log_itself() -> None:
    sources = [
        LogSource("r1", "replica r1", "http://127.0.0.1:9", "t"),
        LogSource("r2", "replica r2", "http://127.0.0.1:9", "t"),
    ]
    text = b"".join([piece async for piece in stream(sources, 10, False)]).decode()
    assert text.count("cannot be reached") == 2 and "==> replica r1 <==" in text


async def test_sleep_is_refused_where_replicas_must_run(stocked: Client) -> None:
    answer = await stocked.post("/api/v1/endpoints", json={"name": "chat", "model": "tiny", "min": 1})
    assert answer.status_code == 201, answer.text
    refused = await stocked.post("/api/v1/endpoints/chat/sleep")
    assert refused.status_code == 409 and "ebb scale chat --min 0" in refused.json()["error"]["message"]
    await stocked.patch("/api/v1/endpoints/chat", json={"min": 0})
    asleep = await stocked.post("/api/v1/endpoints/chat/sleep")
    assert asleep.status_code == 202 and asleep.json()["desired"] == 0
    assert (await stocked.post("/api/v1/endpoints/nobody/sleep")).status_code == 404
