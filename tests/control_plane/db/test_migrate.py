"""Migrations make the schema that the code's tables describe, also with two starters at once."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import sqlalchemy
from alembic import command
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


def test_the_artifact_of_a_model_becomes_its_plain_one_and_back(empty_database_url: str) -> None:
    engine = sqlalchemy.create_engine(migrate.driver_url(empty_database_url), poolclass=sqlalchemy.NullPool)

    def move(to: str) -> None:
        config = Config()
        config.set_main_option("script_location", str(migrate.FOLDER))
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            (command.upgrade if to > "0002" else command.downgrade)(config, to)

    def ask(query: str) -> list[tuple[Any, ...]]:
        with engine.begin() as connection:
            result = connection.execute(sqlalchemy.text(query))
            return [tuple(row) for row in result] if result.returns_rows else []

    migrate.upgrade(empty_database_url)
    move("0002")
    ask("insert into tenants (id, name) values (gen_random_uuid(), 'default')")
    for name, status, digest in (("ready", "ready", "'sha256:aa'"), ("coming", "importing", "null")):
        ask(
            "insert into models (id, tenant_id, name, source, status, artifact, artifact_bytes, dtype, "
            f"kv_bytes_per_token) select gen_random_uuid(), id, '{name}', 'pypi:x', '{status}', {digest}, 5, "
            "'bfloat16', 7 from tenants"
        )
    move("0003")
    made = "select m.name, quantization, digest, bytes, a.dtype, a.kv_bytes_per_token, quality, speed, a.created_at = "
    made += "m.created_at from model_artifacts a join models m on m.id = model_id order by 2"
    assert ask(made) == [("ready", "none", "sha256:aa", 5, "bfloat16", 7, None, None, True)]
    ask(
        "insert into model_artifacts (id, model_id, quantization, digest, bytes, dtype, kv_bytes_per_token) "
        "select gen_random_uuid(), id, 'int8', 'sha256:88', 3, 'bfloat16', 7 from models"
    )
    move("0002")
    back = "select name, status, artifact, artifact_bytes, dtype, kv_bytes_per_token from models order by name"
    assert ask(back)[1] == ("ready", "ready", "sha256:aa", 5, "bfloat16", 7)
    assert ask(back)[0][:3] == ("coming", "importing", None)
    engine.dispose()
