"""The embedded PostgreSQL on real data directories: started, killed, started again."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from control_plane.embedded.errors import PostgresError
from control_plane.embedded.postgres import EmbeddedPostgres, embedded_postgres


@contextmanager
def running(postgres: EmbeddedPostgres) -> Generator[subprocess.Popen[bytes]]:
    postgres.prepare()
    user = postgres.user
    process = subprocess.Popen(
        postgres.command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
        user=user.uid if user else None,
        group=user.gid if user else None,
        extra_groups=[] if user else None,
    )
    try:
        wait_for(postgres.is_ready)
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.wait(20)


def wait_for(check: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def one(url: str, query: str) -> object:
    with psycopg.connect(url) as connection:
        row = connection.execute(query).fetchone()  # pyright: ignore[reportCallIssue, reportArgumentType]
    assert row is not None
    return row[0]


@pytest.fixture
def postgres(short_tmp: Path) -> EmbeddedPostgres:
    return embedded_postgres(short_tmp / "pgdata")


def test_keeps_its_state_over_kill_9(postgres: EmbeddedPostgres) -> None:
    with running(postgres) as process:
        with psycopg.connect(postgres.url) as connection:
            connection.execute("create table kept (n int)")
            connection.execute("insert into kept values (7)")
        os.kill(process.pid, signal.SIGKILL)
        process.wait(10)
    assert (postgres.data / "postmaster.pid").exists()
    assert postgres.running() is None
    with running(postgres):
        assert one(postgres.url, "select n from kept") == 7


def test_a_pid_file_that_names_another_process_does_not_stop_it(postgres: EmbeddedPostgres) -> None:
    postgres.prepare()
    (postgres.data / "postmaster.pid").write_text(f"{os.getpid()}\n{postgres.data}\n")
    assert postgres.running() is None
    with running(postgres):
        assert one(postgres.url, "select 1") == 1


def test_listens_on_no_network_address(postgres: EmbeddedPostgres) -> None:
    with running(postgres):
        assert one(postgres.url, "show listen_addresses") == ""
        assert postgres.data.stat().st_mode & 0o077 == 0


def test_a_long_path_gets_a_private_socket_directory(short_tmp: Path) -> None:
    folder = short_tmp / ("long" * 20) / "home"
    folder.mkdir(parents=True)
    postgres = embedded_postgres(folder / "pgdata")
    assert postgres.socket_dir != postgres.data
    with running(postgres):
        assert one(postgres.url, "select 2") == 2
        assert postgres.socket_dir.stat().st_mode & 0o077 == 0
    postgres.socket_dir.rmdir()


def test_stop_ends_a_server_that_is_not_our_child(postgres: EmbeddedPostgres) -> None:
    with running(postgres) as process:
        assert postgres.running() is not None
        postgres.stop()
        assert process.wait(10) == 0
    assert postgres.running() is None
    postgres.stop()


def test_a_data_directory_that_is_not_empty_is_refused(postgres: EmbeddedPostgres) -> None:
    postgres.data.mkdir()
    (postgres.data / "mine.txt").write_text("keep me")
    with pytest.raises(PostgresError, match="not empty"):
        postgres.prepare()
    assert (postgres.data / "mine.txt").read_text() == "keep me"
