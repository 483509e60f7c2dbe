"""Several artifacts of a model: ordered once, kept by quantization, refused with a sentence."""

from typing import Any
from uuid import UUID

import msgspec
import pytest
from litestar import Litestar
from litestar.testing import AsyncTestClient

from control_plane.catalog import artifacts
from control_plane.catalog.service import ready_model
from control_plane.db.outbox import JobTable
from control_plane.db.session import Database
from tests.control_plane.catalog.test_models import RESULT
from tests.fakes.fleet import add_artifact, add_model

Client = AsyncTestClient[Litestar]
INT8 = msgspec.structs.replace(
    RESULT,
    artifact="sha256:" + "8" * 64,
    source_sha256="c" * 64,
    quantization="int8",
    quality={"perplexity_ratio": 1.004, "mean_kl": 0.002, "greedy_agreement": 0.96},
    speed={"decode_1_tps": 180.0},
)


@pytest.fixture
async def stocked(client: Client, database: Database, tenant_id: UUID) -> Client:
    async with database.transaction() as session:
        await add_model(session, tenant_id)
        await add_model(session, tenant_id, "coming", status="importing")
    return client


async def _make(client: Client, **body: Any) -> Any:
    return await client.post("/api/v1/models/tiny/artifacts", json=body)


async def test_ordered_made_and_shown(stocked: Client, database: Database, tenant_id: UUID) -> None:
    asked = await _make(stocked, quant="int8")
    assert asked.status_code == 202, asked.text
    job = asked.json()["job"]
    assert (job["kind"], job["subject"], job["status"]) == ("quantize_model", "tiny", "queued")
    assert asked.json()["model"]["status"] == "ready", "it can be deployed meanwhile"
    async with database.transaction() as session:
        row = await session.get(JobTable, UUID(job["id"]))
        assert row is not None
        assert row.payload == {"source": "pypi:tiny", "model": "tiny", "quantization": "int8", "force": False}
        await artifacts.made(session, row.subject, INT8)
    shown = (await stocked.get("/api/v1/models/tiny")).json()
    assert [each["quant"] for each in shown["artifacts"]] == ["bf16", "int8"]
    int8 = shown["artifacts"][1]
    assert int8["quality"] == INT8.quality and int8["speed"] == INT8.speed and int8["digest"] == INT8.artifact
    assert shown["artifact"] == shown["artifacts"][0]["digest"], "the plain one stands for the model"
    told = (await stocked.get("/api/v1/events?subject=tiny")).json()["items"]
    assert [event["type"] for event in told if event["kind"] == "model"] == ["quantizing", "quantized"]
    assert (await stocked.delete("/api/v1/models/tiny")).status_code == 204, "its artifacts go with it"


async def test_ordered_twice_is_one_job_and_made_is_made_again_only_by_force(
    stocked: Client, database: Database, tenant_id: UUID
) -> None:
    first, second = await _make(stocked, quant="int4"), await _make(stocked, quant="int4")
    assert first.json()["job"]["id"] == second.json()["job"]["id"]
    forced = await _make(stocked, quant="int4", force=True)
    assert (forced.status_code, forced.json()["error"]["code"]) == (409, "being_made")
    again = await _make(stocked, quant="bf16")
    error = again.json()["error"]
    assert (again.status_code, error["code"], error["param"]) == (409, "already_exists", "quant")
    assert "--force" in error["message"]
    assert (await _make(stocked, quant="bf16", force=True)).status_code == 202
    async with database.transaction() as session:
        model = await ready_model(session, tenant_id, "tiny")
        for digest in ("1", "2"):
            await artifacts.keep(session, model.id, msgspec.structs.replace(INT8, artifact="sha256:" + digest * 64))
        rows = (await artifacts.artifacts_of(session, [model.id]))[model.id]
    assert [(row.quantization, row.digest[-1]) for row in rows] == [("none", "a"), ("int8", "2")]


@pytest.mark.parametrize(
    ("name", "body", "status", "param"),
    [
        ("tiny", {"quant": "int3"}, 400, "quant"),
        ("tiny", {"quant": "none"}, 400, "quant"),
        ("tiny", {"quant": ""}, 400, "quant"),
        ("tiny", {"quant": 8}, 400, "quant"),
        ("tiny", {}, 400, "quant"),
        ("tiny", {"quant": "int8", "bits": 3}, 400, "bits"),
        ("coming", {"quant": "int8"}, 409, "model"),
        ("nobody", {"quant": "int8"}, 404, None),
        ("..", {"quant": "int8"}, 404, None),
    ],
)
async def test_what_cannot_be_ordered(
    stocked: Client, name: str, body: dict[str, Any], status: int, param: str | None
) -> None:
    answer = await stocked.post(f"/api/v1/models/{name.replace('.', '%2e')}/artifacts", json=body)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["param"] == param and len(error["message"]) > 10
    assert (await stocked.get("/api/v1/jobs")).json()["items"] == []


async def test_an_unknown_word_is_told_with_those_there_are(client: Client) -> None:
    answer = await client.post("/api/v1/models", json={"name": "m", "source": "pypi:x", "quant": "q4_k_m"})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "quant")
    assert "'q4_k_m'" in error["message"] and "bf16, int8, int4, fp8, or auto" in error["message"]


async def test_a_source_that_changed_makes_no_artifact_of_this_model(database: Database, tenant_id: UUID) -> None:
    async with database.transaction() as session:
        model = await add_model(session, tenant_id)
        await add_artifact(session, model, "int8")
        other = msgspec.structs.replace(INT8, source_sha256="d" * 64)
        with pytest.raises(artifacts.Unusable, match="d" * 64):
            await artifacts.made(session, model.id, other)
        [_, kept] = (await artifacts.artifacts_of(session, [model.id]))[model.id]
        assert kept.digest == "sha256:" + "8" * 64 and kept.quality is None
        await artifacts.made(session, UUID(int=0), INT8)  # removed meanwhile: nobody is left to be told
