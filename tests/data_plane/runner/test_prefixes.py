"""GET /prefixes over a real socket: everything first, then only what changed, at once where something has."""

import asyncio
import time

import aiohttp

from data_plane.runner.journal import Journal
from data_plane.wire.openai import parse_chat
from data_plane.wire.prefix_chain import chain_of
from data_plane.wire.prefixes import PrefixReport, decode_report, unpack_names
from tests.fakes.served import Fake

LONG = "the quick brown fox jumps over the lazy dog " * 30


async def _report(fake: Fake, epoch: str = "", since: int = 0, wait_ms: int = 0) -> PrefixReport:
    url = f"{fake.url}/prefixes?epoch={epoch}&since={since}&wait_ms={wait_ms}"
    async with aiohttp.ClientSession() as session, session.get(url, headers=fake.headers) as response:
        assert response.status == 200
        return decode_report(await response.read())


async def _chat(fake: Fake, content: str, tenant: str = "") -> None:
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 4}
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            f"{fake.url}/v1/chat/completions", json=body, headers={**fake.headers, "x-ebb-tenant": tenant}
        ) as answer,
    ):
        assert answer.status == 200, await answer.text()


def _names(content: str, tenant: str = "") -> set[int]:
    body = b'{"messages": [{"role": "user", "content": "%s"}]}' % content.encode()
    return set(chain_of(parse_chat(body), tenant).names)


async def test_only_the_launch_may_ask_and_only_with_numbers(fake: Fake) -> None:
    async with aiohttp.ClientSession() as session:
        async with session.get(fake.url + "/prefixes") as response:
            assert response.status == 401
        for query in ("since=x", "since=-1", "wait_ms=999999", "since=" + "9" * 30):
            async with session.get(f"{fake.url}/prefixes?{query}", headers=fake.headers) as response:
                assert response.status == 400, query


async def test_what_came_is_told_and_then_only_what_is_new(fake: Fake) -> None:
    empty = await _report(fake)
    assert empty.full and empty.stored == b"" and empty.chars_per_token is None
    await _chat(fake, LONG)
    first = await _report(fake, empty.epoch, empty.seq)
    assert not first.full and set(unpack_names(first.stored)) == _names(LONG) and first.evicted == b""
    assert first.chars_per_token and first.slots >= 1 and first.prefill_tokens_per_s
    await _chat(fake, "A" + LONG, "other")
    second = await _report(fake, first.epoch, first.seq)
    assert set(unpack_names(second.stored)) == _names("A" + LONG, "other")
    for epoch, since in (("another", first.seq), (first.epoch, 10**9)):
        whole = await _report(fake, epoch, since, wait_ms=5000)
        assert whole.full and set(unpack_names(whole.stored)) == _names(LONG) | _names("A" + LONG, "other")


async def test_who_waits_hears_of_work_at_once(fake: Fake) -> None:
    before = await _report(fake)
    waiting = asyncio.create_task(_report(fake, before.epoch, before.seq, wait_ms=20_000))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    fake.executor.step_delay_s = 0.02
    asking = asyncio.create_task(_chat(fake, LONG))
    report = await asyncio.wait_for(waiting, 10)
    assert report.seq > before.seq and (report.running or report.pending_tokens)
    await asking


async def test_without_news_it_answers_when_the_wait_is_over(fake: Fake) -> None:
    before = await _report(fake)
    began = time.monotonic()
    assert (await _report(fake, before.epoch, before.seq, wait_ms=200)).seq == before.seq
    assert time.monotonic() - began >= 0.19


async def test_what_is_too_old_gives_everything(fake: Fake) -> None:
    journal = Journal(fake.engine.stats(), most_changes=10)
    for at in range(12):
        journal.take(fake.engine.stats(), {at: True, at - 1: False})
    old, recent = journal.since(journal.epoch, 1), journal.since(journal.epoch, 9)
    assert old.full and set(old.stored) == {11} and old.evicted == []
    assert not recent.full and recent.stored == [11] and sorted(recent.evicted) == [8, 9, 10]


async def test_the_end_of_the_process_keeps_nobody_waiting(fake: Fake) -> None:
    before = await _report(fake)
    waiting = asyncio.create_task(_report(fake, before.epoch, before.seq, wait_ms=30_000))
    await asyncio.sleep(0.15)
    fake.model.engine.journal.close()
    assert (await asyncio.wait_for(waiting, 10)).seq == before.seq
