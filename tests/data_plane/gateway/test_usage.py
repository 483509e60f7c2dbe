"""What the gateway keeps of ended requests: one by one, then in sums; bounded, and sent until it has arrived."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from data_plane.gateway.exchange import Exchange
from data_plane.gateway.meter import Meter
from data_plane.gateway.usage import EVERY_S, MOST_SINGLE, UsageBook
from data_plane.wire.usage import ENDINGS, UsageBatch, UsageRow

from .world import World, chat, eventually

AT = 1_700_000_000.0


def ended(key: str = "k", *, first_byte_s: float | None = 0.12, outcome: str = "ok", is_cold: bool = False) -> Exchange:
    meter = Meter(9, 100)
    meter.relay(b": usage 80 30 48\n\ndata: [DONE]\n\n")
    facts = {"key": SimpleNamespace(id=key), "meter": meter, "first_byte_s": first_byte_s, "response": object()}
    return cast(Exchange, SimpleNamespace(**facts, outcome=outcome, is_cold=is_cold))


def rows_of(batch: UsageBatch | None) -> list[UsageRow]:
    assert batch is not None
    return [row for told in batch.endpoints for row in told.rows]


def test_a_request_is_a_row_and_waits_for_others() -> None:
    book = UsageBook(lambda: None)
    assert book.due(AT) is None
    book.note(ended(is_cold=True), "e", AT, 0.5)
    whole = ended(outcome="cancelled")
    whole.response = None
    book.note(whole, "e", AT + 1, 0.5)
    assert book.due(AT + EVERY_S) is None, "the first of it is not old enough"
    batch = book.due(AT + 0.5 + EVERY_S)
    assert rows_of(batch) == [
        UsageRow(int(AT * 1000), 0, True, 1, 120, 500, 80, 48, 30),
        UsageRow(int(AT * 1000) + 1000, ENDINGS.index("cancelled"), False, 1, -1, 500, 80, 48, 30),
    ]


def test_a_batch_is_the_same_until_it_has_arrived() -> None:
    book = UsageBook(lambda: None)
    book.note(ended(), "e", AT, 0.5)
    first = book.due(AT, all=True)
    book.note(ended(), "e", AT, 0.5)
    assert first is not None and book.due(AT + 60, all=True) is first and first.number == 1
    book.arrived(first)
    second = book.due(AT + 60)
    assert second is not None and (second.number, second.boot, len(rows_of(second))) == (2, first.boot, 1)
    book.arrived(first)
    assert book.due(AT + 60) is second, "it was another that arrived"


def test_many_are_told_by_the_second_and_by_how_they_went() -> None:
    book = UsageBook(lambda: None)
    for number in range(10_000):
        exchange = ended(first_byte_s=0.1 if number % 4 else 0.4, outcome="ok" if number % 100 else "error")
        book.note(exchange, "e", AT + number / 2500, 0.5)
    rows = rows_of(book.due(AT, all=True))
    assert MOST_SINGLE < len(rows) <= MOST_SINGLE + 4 * 3
    assert sum(row.count for row in rows) == 10_000 and sum(row.prompt for row in rows) == 800_000
    assert sum(row.count for row in rows if row.ending == 2) == 100
    assert {round(row.first_ms / row.count) for row in rows} == {100, 400}, "sums are of alike times"


def test_it_is_bounded_while_nobody_takes_it() -> None:
    lost: list[None] = []
    book = UsageBook(lambda: lost.append(None), most_rows=100)
    for number in range(1000):
        book.note(ended(), f"e{number % 7}", AT + number, 0.5)
    rows = rows_of(book.due(AT, all=True))
    assert len(rows) == 100 and sum(row.count for row in rows) + len(lost) == 1000


def test_what_was_refused_at_the_door_is_nobodys() -> None:
    book = UsageBook(lambda: None)
    exchange = ended()
    exchange.key = None
    book.note(exchange, "e", AT, 0.5)
    assert book.due(AT, all=True) is None
    unread = ended()
    unread.meter = None
    book.note(unread, "e", AT, 0.0)
    assert [row.prompt for row in rows_of(book.due(AT, all=True))] == [0]


async def test_the_control_plane_has_each_request_once_also_the_last(world: World) -> None:
    """It is away when the first batch is due, and the gateway ends right after the last request."""
    await world.live(await world.runner())
    async with world.post(body=chat(stream=True)) as answer:
        assert b"[DONE]" in await answer.read()
    await world.control.stop()
    batch = world.gateway.usage.due(0.0)
    assert batch is not None, "by this clock it is old"
    await asyncio.sleep(0.05)
    await world.control.start()
    async with world.post(body={**chat(), "max_tokens": -1}) as answer:
        assert answer.status == 400
    told: list[UsageBatch] = []

    def has_come() -> bool:
        told[:] = [report.usage for report in world.control.demand if report.usage is not None]
        return bool(told)

    await eventually(has_come, 15)
    await world.gateway.stop()
    assert has_come()
    numbers = {each.number: each for each in told}
    rows = [row for each in numbers.values() for row in rows_of(each)]
    assert [(ENDINGS[row.ending], row.count, row.prompt) for row in rows] == [("ok", 1, 3), ("client_error", 1, 0)]
    assert {each.endpoint_id for one in told for each in one.endpoints} == {"id-chat"}
    text = world.gateway.metrics.render().decode()
    assert "ebb_gateway_usage_dropped_total 0.0" in text


def test_a_meter_tells_what_was_cached() -> None:
    meter: Any = Meter(9, 100)
    assert meter.counts() == (0, 0, 0)
    meter.relay(b"data: x\n\n")
    assert meter.counts() == (9, 0, 1), "as far as is known"
    meter.relay(b": usage 80 30\n\ndata: [DONE]\n\n")
    assert meter.counts() == (80, 0, 30), "a runner of before says less"
    meter.whole(
        b'{"usage": {"total_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 2}}}'
    )
    assert meter.counts() == (5, 2, 4)
