"""Brings the schema of a database up to this version's, by Alembic. Safe with several starters; quick when there is
nothing to do, because Alembic is imported only when there is. Knows no tables."""

from pathlib import Path

import psycopg
import sqlalchemy

from control_plane.db.session import driver_url

FOLDER = Path(__file__).parents[2] / "migrations"
LOCK = 0x6562_626D  # any number that nothing else in the database locks by


def head() -> str:
    """The newest revision: files are named `<revision>_<what>.py`, numbered upwards without a fork."""
    return max(path.name.partition("_")[0] for path in (FOLDER / "versions").glob("[0-9]*_*.py"))


def current(database_url: str) -> str | None:
    """The revision a database is at; None where it is empty."""
    with psycopg.connect(database_url, connect_timeout=10) as connection:
        row = connection.execute("select to_regclass('alembic_version')::text").fetchone()
        if row is None or row[0] is None:
            return None
        found = connection.execute("select version_num from alembic_version").fetchone()
        return None if found is None else str(found[0])


def upgrade(database_url: str) -> None:
    """Migrates to `head()`. The second of two starters waits for the first, and then finds nothing to do."""
    if current(database_url) == head():
        return
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(FOLDER))
    engine = sqlalchemy.create_engine(driver_url(database_url), poolclass=sqlalchemy.NullPool)
    try:
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text("select pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    finally:
        engine.dispose()
