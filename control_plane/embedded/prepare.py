"""Makes a database fit for the platform: waits for it, migrates it, makes sure of the two first keys.

A program of its own, run by the supervisor: what it imports (SQLAlchemy, Alembic) stays out of the process that lives
on. Reads EBB_DATABASE_URL, EBB_ADMIN_KEY and EBB_NODE_KEY; prints the keys that work as JSON. Exit code 3: the last
line of stderr is a sentence for people.
"""

import asyncio
import json
import os
import sys
import time
from urllib.parse import urlsplit

import psycopg

from control_plane.db.migrate import upgrade
from control_plane.db.session import Database
from control_plane.embedded.errors import DatabaseError
from control_plane.embedded.plan import KNOWN_FAULT
from control_plane.tenants.service import ensure_key

_EMBEDDED_WAIT_S = 30.0
_EXTERNAL_WAIT_S = 5.0
_OLDEST_SERVER = 150000


def shown(url: str) -> str:
    """The URL without its password."""
    password = urlsplit(url).password
    return url.replace(f":{password}@", ":***@") if password else url


def wait_for_server(url: str, timeout_s: float) -> None:
    """Until the server takes a connection. Raises DatabaseError after `timeout_s`, or for a server that is too old."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            with psycopg.connect(url, connect_timeout=5) as connection:
                version = connection.info.server_version
            break
        except psycopg.Error as error:
            if time.monotonic() >= deadline:
                reason = str(error).strip().splitlines()[0]
                raise DatabaseError(
                    f"The database {shown(url)} cannot be reached ({reason}). Start it or correct EBB_DATABASE_URL; "
                    "unset it to use the embedded PostgreSQL."
                ) from error
            time.sleep(0.02)
    if version < _OLDEST_SERVER:
        raise DatabaseError(
            f"The server of {shown(url)} is PostgreSQL {version // 10000}; Ebb needs 15 or newer. "
            "Unset EBB_DATABASE_URL to use the embedded PostgreSQL."
        )


async def ensure_keys(url: str, key: str, node_key: str) -> dict[str, str]:
    """Keys that work, these where they do: an administrator's, and the one that gateway and node agent use."""
    database = Database(url, pool_size=1)
    try:
        async with database.transaction() as session:
            return {
                "key": await ensure_key(session, name="ebb up", scopes=["admin"], key=key),
                "node_key": await ensure_key(session, name="node and gateway", scopes=["node"], key=node_key),
            }
    finally:
        await database.close()


def main() -> int:
    """Run it; the exit code."""
    url = os.environ["EBB_DATABASE_URL"]
    try:
        wait_for_server(url, _EXTERNAL_WAIT_S if urlsplit(url).hostname else _EMBEDDED_WAIT_S)
        upgrade(url)
        keys = asyncio.run(ensure_keys(url, os.environ["EBB_ADMIN_KEY"], os.environ["EBB_NODE_KEY"]))
    except DatabaseError as error:
        print(error, file=sys.stderr)
        return KNOWN_FAULT
    print(json.dumps(keys))
    return 0


if __name__ == "__main__":
    sys.exit(main())
