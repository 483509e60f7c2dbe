"""Migrations make the schema that the code's tables describe, also with two starters at once."""

import time
from concurrent.futures import ThreadPoolExecutor

import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

import control_plane.app  # every table stands in the metadata once the application is imported
from control_plane.db import migrate
from control_plane.db.base import Base


def test_the_schema_is_what_the_tables_say(database_url: str) -> None:
    assert control_plane.app.VERSION
    engine = sqlalchemy.create_engine(migrate.driver_url(database_url), poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_the_head_that_is_read_from_file_names_is_alembics() -> None:
    config = Config()
    config.set_main_option("script_location", str(migrate.FOLDER))
    assert ScriptDirectory.from_config(config).get_heads() == [migrate.head()]


def test_two_starters_at_once(empty_database_url: str) -> None:
    assert migrate.current(empty_database_url) is None
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as two:
        started = [pool.submit(migrate.upgrade, empty_database_url) for pool in (one, two)]
        for future in started:
            future.result(60)
    assert migrate.current(empty_database_url) == migrate.head()


def test_nothing_to_do_is_quick(database_url: str) -> None:
    started = time.monotonic()
    migrate.upgrade(database_url)
    assert time.monotonic() - started < 1
