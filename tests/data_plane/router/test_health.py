"""Probes of real sockets, and the book of replicas that are left alone."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from data_plane.router.health import FIRST_S, LONGEST_S, MOST_S, Health
from data_plane.router.probe import probe
from data_plane.wire.routes import ReplicaRoute

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def says(answer: bytes) -> Handler:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await reader.readuntil(b"\r\n\r\n")
        assert asked.startswith(b"GET /readyz HTTP/1.1\r\n") and b"Bearer secret\r\n" in asked
        if answer == b"nothing":
            await reader.read()
        writer.write(answer)
        writer.close()

    return handle


@pytest.mark.parametrize(
    ("answer", "vital"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "ready"),
        (b'HTTP/1.1 503 No\r\n\r\n{"error":{"code":"draining"}}', "busy"),
        (b'HTTP/1.1 503 No\r\n\r\n{"error":{"code":"engine_stuck"}}', "stuck"),
        (b"HTTP/1.1 401 No\r\n\r\n", "gone"),
        (b"", "gone"),
        (b"nothing", "silent"),
    ],
)
async def test_what_a_probe_makes_of_an_answer(answer: bytes, vital: str) -> None:
    server = await asyncio.start_server(says(answer), "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        assert await probe(ReplicaRoute("r", url, "secret", 1), 1.0, 0.1) == vital
    assert await probe(ReplicaRoute("r", url, "secret", 1), 1.0, 0.1) == "gone"


def test_asked_soon_then_less_often() -> None:
    health = Health()
    assert not health and health.eject("r", 100.0) and not health.eject("r", 100.1)
    assert health.is_out("r") and health.ask_at("r") == 100.0 + FIRST_S
    now, pauses = 100.25, list[float]()
    for _ in range(6):
        health.still_away("r", now)
        pauses.append(health.ask_at("r") - now)
        now = health.ask_at("r")
    assert pauses == sorted(pauses) and pauses[0] == FIRST_S and pauses[-1] == MOST_S
    health.admit("r")
    assert not health.is_out("r")
    health.answered("r")
    assert not health


def test_one_that_only_says_that_it_is_ready_stays_away_longer_each_time() -> None:
    health, pauses = Health(), list[float]()
    for _ in range(6):
        assert health.eject("r", 0.0)
        health.answered("r")
        pauses.append(health.ask_at("r"))
        health.admit("r")
    assert pauses[:3] == [FIRST_S, 4 * FIRST_S, 16 * FIRST_S] and pauses[-1] == LONGEST_S
    health.forget("r")
    assert health.eject("r", 0.0) and health.ask_at("r") == FIRST_S
