"""`ebb chat`: talks to an endpoint through the gateway, as any client would, and shows what a wake is waiting for."""

import importlib
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

import typer
from rich.console import Console
from rich.status import Status

from control_plane.cli.client import Api, Json, parse_json, segment, sse_data
from control_plane.cli.errors import CliError
from control_plane.cli.options import DEFAULT_HOME, HomeOption
from control_plane.cli.output import stderr

_POLL_S = 0.25

HELP = """/system TEXT  set the system prompt      /reset  forget the conversation
/help         this                       /exit   leave (so does Ctrl-D); Ctrl-C stops an answer"""


@dataclass
class Conversation:
    """Messages so far and the options each request is sent with."""

    endpoint: str
    options: Json
    messages: list[Json] = field(default_factory=list[Json])

    def set_system(self, text: str) -> None:
        """Replace the system prompt."""
        self.messages = [message for message in self.messages if message["role"] != "system"]
        if text:
            self.messages.insert(0, {"role": "system", "content": text})

    def reset(self) -> None:
        """Forget all but the system prompt."""
        self.messages = [message for message in self.messages if message["role"] == "system"]


@dataclass
class Figures:
    """What one answer took; seconds from one clock."""

    started: float
    first: float | None = None
    tokens: int = 0
    wake_ms: str | None = None

    def line(self) -> str:
        """Time to first token, rate, and the wake if there was one."""
        if self.first is None:
            return ""
        took = time.monotonic() - self.first
        rate = f" · {(self.tokens - 1) / took:.1f} tokens/s" if self.tokens > 1 and took > 0 else ""
        woke = f" · woke in {int(self.wake_ms) / 1000:.1f} s" if self.wake_ms and self.wake_ms.isdigit() else ""
        return f"{self.tokens} tokens · first after {self.first - self.started:.2f} s{rate}{woke}"


def chat(
    name: Annotated[str, typer.Argument(help="The endpoint's name.")],
    prompt: Annotated[str | None, typer.Argument(help="Ask this once and leave.")] = None,
    system: Annotated[str | None, typer.Option("--system", help="The system prompt.")] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", min=1, help="Tokens of an answer.")] = None,
    temperature: Annotated[
        float,
        typer.Option("--temperature", min=0.0, max=2.0, help="How freely it picks words; the API's default is 1."),
    ] = 0.3,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Talk to an endpoint. It wakes if it sleeps.

    A prompt may also come from a pipe: echo "Why is the sky blue?" | ebb chat chat
    """
    wanted = {"max_tokens": max_tokens, "temperature": temperature}
    options: Json = {key: value for key, value in wanted.items() if value is not None}
    conversation = Conversation(name, options)
    if system:
        conversation.set_system(system)
    with Api.open(home) as api:
        if prompt is None and not sys.stdin.isatty():
            prompt = sys.stdin.read().strip()
            if not prompt:
                raise CliError(f'Nothing came from standard input. Say something: ebb chat {name} "Hello".')
        if prompt is not None:
            ask(api, conversation, prompt, show_figures=False)
            return
        _talk(api, conversation)


def _talk(api: Api, conversation: Conversation) -> None:
    importlib.import_module("readline")  # gives input() line editing and a history
    console = stderr()
    api.get(f"/endpoints/{segment(conversation.endpoint)}")  # an unknown name is said now, not after typing
    console.print(f"Talking to '{conversation.endpoint}'. /help shows what else can be typed.", style="dim")
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            console.print()
            return
        except KeyboardInterrupt:
            console.print("  (Ctrl-D or /exit leaves)", style="dim")
            continue
        if text in ("/exit", "/quit"):
            return
        if text:
            _turn(api, conversation, text, console)


def _turn(api: Api, conversation: Conversation, text: str, console: Console) -> None:
    command, _, rest = text.partition(" ")
    if command == "/help":
        console.print(HELP, style="dim")
    elif command == "/reset":
        conversation.reset()
        console.print("Forgotten.", style="dim")
    elif command == "/system":
        conversation.set_system(rest.strip())
        console.print("Set.", style="dim")
    elif command.startswith("/"):
        console.print(f"There is no {command}; /help shows what there is.", style="dim")
    else:
        try:
            ask(api, conversation, text, show_figures=True)
        except KeyboardInterrupt:
            console.print("\n(stopped)", style="dim")
        except CliError as error:
            # A conversation outlives one failed answer.
            console.print(f"\n{error}", style="red", markup=False)


def ask(api: Api, conversation: Conversation, prompt: str, *, show_figures: bool) -> str:
    """Send the conversation and print the answer as it comes; the answer. What failed is not remembered."""
    messages = [*conversation.messages, {"role": "user", "content": prompt}]
    body: Json = {
        **{"model": conversation.endpoint, "messages": messages, "stream": True},
        **{"stream_options": {"include_usage": True}, **conversation.options},
    }
    figures = Figures(time.monotonic())
    parts: list[str] = []
    for text in _answer(api, conversation.endpoint, body, figures):
        sys.stdout.write(text)
        sys.stdout.flush()
        parts.append(text)
    sys.stdout.write("\n")
    sys.stdout.flush()
    answer = "".join(parts)
    conversation.messages = [*messages, {"role": "assistant", "content": answer}]
    if show_figures:
        stderr().print(figures.line(), style="dim")
    return answer


def _answer(api: Api, endpoint: str, body: Json, figures: Figures) -> Iterator[str]:
    """The answer's pieces. Until the first one a line tells what is being waited for."""
    with Waiting(api, endpoint) as waiting, api.infer(f"/e/{segment(endpoint)}/v1/chat/completions", body) as response:
        figures.wake_ms = response.headers.get("x-ebb-wake-ms")
        for _, data in sse_data(response.iter_text()):
            if data == "[DONE]":
                return
            event = parse_json(data)
            if "error" in event:
                raise CliError(f"The answer broke off: {event['error'].get('message', event['error'])}")
            figures.tokens = (event.get("usage") or {}).get("completion_tokens") or figures.tokens
            for choice in event.get("choices", []):
                text = choice.get("delta", {}).get("content")
                if text:
                    waiting.stop()
                    figures.first = figures.first or time.monotonic()
                    yield text
    raise CliError("The answer broke off: the connection ended before the answer did. Ask again.")


class Waiting:
    """A line on the terminal that tells the endpoint's state, from the control plane, until `stop`."""

    def __init__(self, api: Api, endpoint: str) -> None:
        self._api = api
        self._endpoint = endpoint
        self._done = threading.Event()
        self._status = Status("thinking…", console=stderr()) if sys.stderr.isatty() else None
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Waiting":
        if self._status is not None:
            self._status.start()
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Clear the line."""
        if self._done.is_set():
            return
        self._done.set()
        if self._status is not None:
            self._thread.join(timeout=1.0)
            self._status.stop()

    def _watch(self) -> None:
        started = time.monotonic()
        while not self._done.wait(_POLL_S):
            assert self._status is not None
            try:
                found = self._api.get(f"/endpoints/{segment(self._endpoint)}")
            except CliError:
                # The request itself will say what is wrong; this line is only company.
                return
            self._status.update(describe(found, time.monotonic() - started))


def describe(endpoint: Json, waited_s: float) -> str:
    """What a request that has waited so long is waiting for."""
    if endpoint["state"] == "live":
        return "thinking…"
    if endpoint["state"] == "draining":
        return f"waking… the last replica is draining ({waited_s:.1f} s)"
    return f"waking… {endpoint['phase'] or 'asking for a replica'} ({waited_s:.1f} s)"
