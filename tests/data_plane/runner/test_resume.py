"""An answer that is cut anywhere and gone on with elsewhere is the answer that was not cut."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_plane.engine.outputs import Output, TokenLogprobs
from data_plane.engine.sampling import SamplingParams
from data_plane.gateway.resume import Journal
from data_plane.router.sse import EventCutter
from data_plane.runner.access import Access
from data_plane.runner.generation import Branch
from data_plane.runner.resume import take_up
from data_plane.runner.tokenizer import Tokenizer
from data_plane.runner.transcript import Delta, Transcript
from data_plane.wire.keys import KeyRecord, new_key
from data_plane.wire.resume import DIED, MOVED, RESUME_PATH, Kind, Said, marked, parse_resume, token_mark
from tests.fakes.served import SCRIPT, TOKEN, Fake, events_of, fake_runner

HEADERS = {"Authorization": f"Bearer {TOKEN}", "x-ebb-resumable": "1700000000", "x-request-id": "one"}
HELLO = [{"role": "user", "content": "Say it."}]
CHAT: dict[str, Any] = {"messages": HELLO, "stream": True, "max_tokens": 40, "temperature": 0, "seed": 5}
TEXT: dict[str, Any] = {"prompt": "Say it.", "stream": True, "max_tokens": 40, "temperature": 0, "seed": 5}
USAGE = {"stream_options": {"include_usage": True}}
NOISE = {"temperature": 1.0}
CASES: dict[str, tuple[Kind, dict[str, Any]]] = {
    "greedy": ("chat", CHAT | USAGE),
    "seeded, half characters": ("chat", CHAT | NOISE),
    "n": ("chat", CHAT | NOISE | {"n": 3}),
    "stop": ("chat", CHAT | {"stop": ["answer is", "wörld 😀! Tha"]}),
    "stop and logprobs": (
        "chat",
        CHAT | USAGE | {"stop": ["The answer is 42. Hello thereX", "is 42. He"], "logprobs": True},
    ),
    "logprobs, half characters": ("chat", CHAT | NOISE | {"logprobs": True, "top_logprobs": 2}),
    "token ids": ("chat", CHAT | NOISE | {"return_token_ids": True, "stop": ["zz"]}),
    "the end of sequence": ("chat", CHAT | {"logit_bias": {"2": 1}}),
    "text": ("completion", TEXT | USAGE),
    "several prompts": ("completion", TEXT | NOISE | {"prompt": ["one", "two and", "three"], "n": 2, "max_tokens": 12}),
    "echo": ("completion", TEXT | USAGE | {"echo": True, "logprobs": 2}),
    "echo of nothing more": ("completion", TEXT | USAGE | {"echo": True, "logprobs": 1, "max_tokens": 0}),
    "text, stop and logprobs": ("completion", TEXT | {"logprobs": 0, "stop": ["there, wörldX", "42. Hello thereY"]}),
}
PATHS: dict[Kind, str] = {"chat": "/v1/chat/completions", "completion": "/v1/completions"}


@pytest.fixture
async def runners() -> AsyncIterator[tuple[Fake, Fake]]:
    async with fake_runner() as one, fake_runner() as other:
        yield one, other


async def read(fake: Fake, path: str, body: bytes) -> bytes:
    async with aiohttp.ClientSession() as client, client.post(fake.url + path, data=body, headers=HEADERS) as answer:
        raw = await answer.read()
        assert answer.status == 200 and answer.headers["x-ebb-resumable"] == "1", raw
        return raw


def told(events: bytes) -> dict[str, Any]:
    """What a client makes of a stream: per choice its text, reasons, logprobs and ids, and all that is there once."""
    choices: dict[int, dict[str, Any]] = {}
    chunks: list[Any] = list(events_of(events.decode()))
    found: dict[str, Any] = {"choices": choices, "done": chunks.count("[DONE]"), "usage": []}
    for chunk in chunks:
        if isinstance(chunk, str):
            continue
        assert "error" not in chunk, chunk
        found.setdefault("names", set()).add((chunk["id"], chunk["created"], chunk["model"], chunk["object"]))
        if usage := chunk.get("usage"):
            found["usage"].append({**usage, "prompt_tokens_details": None})
        for piece in chunk["choices"]:
            mine = choices.setdefault(
                piece["index"], {"text": "", "roles": 0, "reasons": [], "logprobs": [], "ids": []}
            )
            delta = piece.get("delta", piece)
            mine["text"] += delta.get("content") or delta.get("text") or ""
            mine["roles"] += delta.get("role") is not None
            mine["reasons"] += [piece["finish_reason"]] if piece["finish_reason"] else []
            mine["ids"] += piece.get("token_ids") or []
            if logprobs := piece.get("logprobs"):
                lists = logprobs.get("content") or zip(*(value for value in logprobs.values() if value), strict=True)
                mine["logprobs"] += [json.dumps(one) for one in lists]
    return found


def relay(raw: bytes, at: int, journal: Journal, size: int) -> bytes:
    """What a gateway passes on of the first `at` bytes, which come in pieces of `size`."""
    cutter, passed = EventCutter(), b""
    for start in range(0, at, size):
        passed += journal.take(cutter.feed(raw[start : min(at, start + size)]))
    return passed


@pytest.mark.parametrize("name", CASES)
async def test_whole_wherever_it_is_cut(runners: tuple[Fake, Fake], name: str) -> None:
    """At every event's end, at the other runner; and then once more at the first."""
    kind, wanted = CASES[name]
    body = json.dumps({"model": "fake", **wanted}).encode()
    raw = await read(runners[0], PATHS[kind], body)
    whole = told(Journal().take(raw))
    assert whole["done"] == 1 and all(len(one["reasons"]) == 1 for one in whole["choices"].values())
    ends = [at + 2 for at in range(len(raw)) if raw.startswith(b"\n\n", at)][:-1]
    for at in ends[:: max(1, len(ends) // 12)] + ends[-3:]:
        journal = Journal()
        passed = relay(raw, at, journal, 100)
        assert journal.can_resume or not passed, at
        if journal.is_complete:
            continue
        rest = await read(runners[1], RESUME_PATH, journal.request(kind, body))
        assert told(passed + Journal().take(rest)) == whole, f"cut at {at}"
        second = rest.find(b"\n\n", len(rest) // 2) + 2
        passed += relay(rest, second, journal, 77)
        if not journal.is_complete and b"[DONE]" not in passed:
            last = await read(runners[0], RESUME_PATH, journal.request(kind, body))
            assert told(passed + Journal().take(last)) == whole, f"cut at {at} and {second}"


@given(
    st.lists(st.integers(3, 319), min_size=1, max_size=40),
    st.lists(st.text("abcdehlo tw", min_size=1, max_size=6), max_size=3),
    st.lists(st.integers(1, 6), min_size=1),
    st.integers(0, 40),
    st.booleans(),
)
def test_a_transcript_is_taken_up_after_any_token(
    tokenizer: Tokenizer, tokens: list[int], stops: list[str], sizes: list[int], cut: int, is_script: bool
) -> None:
    """However many tokens an event has, and whatever of their text was held back when it was cut."""
    said_tokens = tokenizer.encode(SCRIPT)[: len(tokens)] if is_script else tokens
    outputs = [Output("", one, None, TokenLogprobs(one, -0.1 * at)) for at, one in enumerate(said_tokens)]
    outputs[-1].finish_reason = "length"
    whole = Transcript(tokenizer, stops)
    for output in outputs:
        whole.feed(output)
    wanted = whole.take()
    first, said, shown, at = Transcript(tokenizer, stops), Said(0), Delta(), 0
    while at < cut and first.finish_reason is None:
        size = sizes[at % len(sizes)]
        for output in outputs[at : at + size]:
            first.feed(output)
        at += size
        if delta := first.take():
            add(shown, delta)
            said.tokens += first.take_news()
            said.reason, said.is_ended = first.engine_reason, delta.finish_reason is not None
    branch = Branch([1], SamplingParams(max_tokens=40), Transcript(tokenizer, stops))
    take_up([branch], [said], with_logprobs=True)
    for output in outputs[len(branch.made) :]:
        branch.transcript.feed(output)
    news = branch.transcript.take_news()
    add(shown, branch.transcript.take())
    assert shown == wanted
    assert said.tokens + news == [output.token_id for output in outputs[: len(said.tokens) + len(news)]]


def add(shown: Delta, more: Delta) -> None:
    shown.text += more.text
    shown.entries += more.entries
    shown.finish_reason = shown.finish_reason or more.finish_reason


async def test_only_a_launch_token_gets_marks_or_resumes(tmp_path: Path) -> None:
    shown, prefix, digest = new_key()
    path = tmp_path / "keys.json"
    path.write_bytes(msgspec.json.encode([KeyRecord("k1", "default", prefix, digest, ("admin",), None)]))
    async with fake_runner(access=Access(TOKEN, path)) as fake, aiohttp.ClientSession() as client:
        stranger = {**HEADERS, "Authorization": f"Bearer {shown}"}
        for headers, marks in ((HEADERS, True), (stranger, False), ({"Authorization": f"Bearer {TOKEN}"}, False)):
            async with client.post(fake.url + PATHS["chat"], json=CHAT, headers=headers) as answer:
                assert (b"\nid: " in await answer.read()) == marks
        wanted = {"kind": "chat", "request": CHAT, "said": []}
        async with client.post(fake.url + RESUME_PATH, json=wanted, headers=stranger) as answer:
            assert answer.status == 403
        for broken in ({}, {**wanted, "said": [{"index": 7}]}, {**wanted, "said": [{"index": 0, "is_ended": True}]}):
            async with client.post(fake.url + RESUME_PATH, json=broken, headers=HEADERS) as answer:
                assert answer.status == 400, broken


async def test_a_draining_runner_hands_its_streams_over() -> None:
    async with fake_runner(step_delay_s=0.02) as one, fake_runner() as other, aiohttp.ClientSession() as client:
        body = json.dumps({"model": "fake", **CHAT}).encode()
        whole = told(Journal().take(await read(other, PATHS["chat"], body)))
        journal, cutter, passed = Journal(), EventCutter(), b""
        whole_answer = asyncio.create_task(
            client.post(one.url + PATHS["chat"], json={**CHAT, "stream": False}, headers=HEADERS)
        )
        async with client.post(one.url + PATHS["chat"], data=body, headers=HEADERS) as answer:
            async for piece in answer.content.iter_any():
                passed += journal.take(cutter.feed(piece))
                if journal.num_events == 5:
                    one.service.hand_over()
        assert not cutter.done and not cutter.failed and journal.parting() == MOVED and journal.parting() is None
        rest = await read(other, RESUME_PATH, journal.request("chat", body))
        assert told(passed + Journal().take(rest)) == whole
        moved = await whole_answer
        assert moved.status == 503 and (await moved.json())["error"]["code"] == "draining"


async def test_a_failed_engine_leaves_its_streams_to_others() -> None:
    async with fake_runner(step_delay_s=0.02) as one, fake_runner() as other, aiohttp.ClientSession() as client:
        body = json.dumps({"model": "fake", **CHAT}).encode()
        whole = told(Journal().take(await read(other, PATHS["chat"], body)))
        journal, cutter, passed = Journal(), EventCutter(), b""
        whole_answer = asyncio.create_task(
            client.post(one.url + PATHS["chat"], json={**CHAT, "stream": False}, headers=HEADERS)
        )

        def broken(meanwhile: Callable[[], None] | None = None) -> list[Output]:
            raise RuntimeError("the books do not balance")

        async with client.post(one.url + PATHS["chat"], data=body, headers=HEADERS) as answer:
            async for piece in answer.content.iter_any():
                passed += journal.take(cutter.feed(piece))
                if journal.num_events == 5:
                    one.engine.step = broken
        assert not cutter.done and not cutter.failed and journal.parting() == DIED
        rest = await read(other, RESUME_PATH, journal.request("chat", body))
        assert told(passed + Journal().take(rest)) == whole
        lost = await whole_answer
        assert lost.status == 503 and (await lost.json())["error"]["code"] == "engine_dead"


@given(st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(0, 1 << 31), min_size=1, max_size=4))), st.data())
def test_a_journal_has_what_was_passed_on(steps: list[tuple[int, list[int]]], data: st.DataObject) -> None:
    events = [marked(b'data: {"x":"\\nid: 0 t 1"}\n\n', token_mark(index, ids, None)) for index, ids in steps]
    raw, journal, cutter, passed, at = b"".join(events), Journal(), EventCutter(), b"", 0
    cut = data.draw(st.integers(0, len(raw)))
    while at < cut:
        size = data.draw(st.integers(1, 200))
        passed += journal.take(cutter.feed(raw[at : min(cut, at + size)]))
        at += size
    kept = passed.count(b"data: ")
    assert passed == b'data: {"x":"\\nid: 0 t 1"}\n\n' * kept
    asked = parse_resume(journal.request("chat", b"{}"))
    wanted: dict[int, list[int]] = {}
    for index, ids in steps[:kept]:
        wanted.setdefault(index, []).extend(ids)
    assert {one.index: one.tokens for one in asked.said} == wanted


def test_a_journal_has_a_bound() -> None:
    journal = Journal()
    event = marked(b"data: 1\n\n", token_mark(0, list(range(100_000, 101_000)), None))
    for _ in range(200):
        assert journal.take(event) == b"data: 1\n\n"
    assert not journal.can_resume
