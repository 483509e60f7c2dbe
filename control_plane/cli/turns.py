"""Replays recorded conversations turn by turn against an endpoint: what routing to cached prefixes is worth.

Every turn sends the messages before one recorded answer and waits for the answer's end, never for what was recorded of
it. Of Ebb it knows the header that tells the route, and does without it.
"""

import asyncio
import gzip
import json
import random
import secrets
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from control_plane.cli.errors import CliError

_SEED = 20_260_101

Turn = list[dict[str, str]]
OnTurn = Callable[[int, int], None]


@dataclass(frozen=True)
class TurnPlan:
    """`url` is the API's base, …/v1. `at_once` conversations are in progress, each with one request at a time."""

    url: str
    key: str
    model: str
    at_once: int
    new_tokens: int
    think_s: float
    """Between an answer's end and the next turn, on average."""


@dataclass
class Turns:
    """What came of it. Times are the client's, in seconds; `cut` conversations ended early for the context's size."""

    ttfts_s: list[float] = field(default_factory=list[float])
    prompt_tokens: int = 0
    cached_tokens: int = 0
    cut: int = 0
    errors: list[str] = field(default_factory=list[str])
    reasons: Counter[str] = field(default_factory=Counter[str])
    replicas: Counter[str] = field(default_factory=Counter[str])
    wall_s: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """The figures."""
        ordered = sorted(self.ttfts_s)
        return {
            "turns": len(ordered),
            "ttft_mean_s": round(statistics.fmean(ordered), 4) if ordered else None,
            "ttft_p50_s": round(ordered[len(ordered) // 2], 4) if ordered else None,
            "ttft_p99_s": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))], 4) if ordered else None,
            "prompt_tokens": self.prompt_tokens,
            "cached_share": round(self.cached_tokens / self.prompt_tokens, 4) if self.prompt_tokens else None,
            "wall_s": round(self.wall_s, 2),
            "conversations_cut": self.cut,
            "reasons": dict(self.reasons),
            "replicas": dict(self.replicas),
            "errors": len(self.errors),
            "first_error": self.errors[0] if self.errors else None,
        }


def read_conversations(path: Path, tools: Path | None, most: int | None) -> list[list[Turn]]:
    """The turns of each conversation in a file of JSON lines with `messages`, perhaps gzipped. Raises CliError.

    `tools`: a JSON file whose `tools` are put behind each system message. Calls and their results become text.
    """
    try:
        suffix = "\n\nTools:\n" + json.dumps(json.loads(_text(tools))["tools"]) if tools else ""
        found = [json.loads(line)["messages"] for line in _text(path).splitlines() if line.strip()]
        return [_turns(messages, suffix) for messages in found[:most]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CliError(f"{path} has no conversations that can be read ({error}).") from error


def _text(path: Path) -> str:
    raw = path.read_bytes()
    return (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode()


def _turns(messages: list[dict[str, Any]], suffix: str) -> list[Turn]:
    turns: list[Turn] = []
    so_far: Turn = []
    for message in messages:
        role = str(message["role"])
        if role == "assistant":
            turns.append(list(so_far))
        text = str(message.get("content") or "") + (suffix if role == "system" else "")
        if message.get("tool_calls"):
            text += json.dumps(message["tool_calls"])
        # a tool's answer is told as the user's: not every template knows the role
        so_far.append({"role": "user" if role == "tool" else role, "content": text})
    return turns


async def replay(plan: TurnPlan, conversations: list[list[Turn]], on_turn: OnTurn) -> Turns:
    """All conversations, each begun when one before it has ended. A salt of this run's own makes it begin cold."""
    result = Turns()
    left = iter(conversations)
    pauses = random.Random(_SEED)  # noqa: S311  # nothing here is a secret
    total = sum(map(len, conversations))
    # not OpenAI's: servers that do not know it pass over it, and are to be restarted between runs
    salt = secrets.token_hex(8)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=600)
    headers = {"Authorization": f"Bearer {plan.key}"} if plan.key else {}
    began = time.monotonic()
    async with aiohttp.ClientSession(timeout=timeout, headers=headers) as session:

        async def one_after_another() -> None:
            for turns in left:
                for turn in turns:
                    await asyncio.sleep(plan.think_s * pauses.uniform(0.5, 1.5))
                    if not await _send(plan, session, turn, salt, result):
                        break
                    on_turn(len(result.ttfts_s), total)

        await asyncio.gather(*(one_after_another() for _ in range(plan.at_once)))
    result.wall_s = time.monotonic() - began
    return result


async def _send(plan: TurnPlan, session: aiohttp.ClientSession, turn: Turn, salt: str, result: Turns) -> bool:
    """One turn; False where the conversation cannot go on."""
    body = {
        **{"model": plan.model, "messages": turn, "max_tokens": plan.new_tokens, "temperature": 0, "cache_salt": salt},
        **{"stream": True, "stream_options": {"include_usage": True}},
    }
    sent = time.monotonic()
    try:
        async with session.post(f"{plan.url.rstrip('/')}/chat/completions", json=body) as response:
            if response.status != 200:
                text = await response.text()
                if "context_length_exceeded" in text:
                    result.cut += 1
                else:
                    result.errors.append(f"HTTP {response.status}: {text[:300]}")
                return False
            _note_route(response.headers.get("x-ebb-route", ""), result)
            return await _read(response, sent, result)
    except (aiohttp.ClientError, TimeoutError) as error:
        result.errors.append(str(error) or type(error).__name__)
        return False


async def _read(response: aiohttp.ClientResponse, sent: float, result: Turns) -> bool:
    first: float | None = None
    async for line in response.content:
        if not line.startswith(b"data:"):
            continue
        if line.strip() == b"data: [DONE]":
            break
        event = json.loads(line[5:])
        if "error" in event:
            result.errors.append(str(event["error"])[:300])
            return False
        choices = event.get("choices") or []
        if first is None and choices and choices[0].get("delta", {}).get("content"):
            first = time.monotonic()
        usage = event.get("usage")
        if usage:
            result.prompt_tokens += usage["prompt_tokens"]
            result.cached_tokens += (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    result.ttfts_s.append((first or time.monotonic()) - sent)
    return True


def _note_route(header: str, result: Turns) -> None:
    told = dict(part.split("=", 1) for part in header.split("; ") if "=" in part)
    if told:
        result.reasons[told.get("reason", "")] += 1
        result.replicas[told.get("replica", "")[:8]] += 1
