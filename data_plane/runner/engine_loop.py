"""The one thread that uses the engine. Asyncio hands it requests and aborts, and gets each step's outputs in one call.

Knows nothing of text or HTTP. Without work the thread sleeps until something is handed in.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from data_plane.engine.engine import Engine, EngineStats
from data_plane.engine.outputs import Output
from data_plane.engine.prefix_cache import Labels
from data_plane.engine.sampling import SamplingParams
from data_plane.runner.journal import Journal

logger = logging.getLogger(__name__)

ENGINE_DEAD = "The engine failed; this replica is being replaced."


@dataclass(frozen=True, slots=True)
class Refusal:
    """The engine can never serve this request; `message` says why, with the numbers."""

    request_id: str
    message: str


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose request it is, how urgent (lower goes first), and what parts its cached prompt from the tenant's others."""

    tenant: str = ""
    priority: int = 0
    cache_salt: str = ""


@dataclass(frozen=True, slots=True)
class _Add:
    request_id: str
    prompt: Sequence[int]
    params: SamplingParams
    origin: Origin
    labels: Labels | None
    made: Sequence[int]


@dataclass(frozen=True, slots=True)
class _Abort:
    request_id: str


@dataclass(frozen=True, slots=True)
class _Do:
    """Something else that is to be done to the engine between two steps; `done` gets what it gives."""

    work: Callable[[Engine], Any]
    done: "asyncio.Future[Any]"


_ANYBODY = Origin()
_Message = _Add | _Abort | _Do
T = TypeVar("T")
Sink = Callable[[Output | Refusal], None]


class EngineLoop:
    """All methods but the thread's own are for the event loop's thread. `on_dead`: the engine itself is broken."""

    def __init__(
        self,
        engine: Engine,
        *,
        on_step: Callable[[EngineStats], None] | None = None,
        on_dead: Callable[[], None] | None = None,
    ) -> None:
        self._engine = engine
        self._on_step = on_step
        self._on_dead = on_dead
        self._wake = threading.Condition()
        self._inbox: list[_Message] = []
        self._closed = False
        self._sinks: dict[str, Sink] = {}
        self._stats = engine.stats()
        self.journal = Journal(self._stats)
        self._alive_at = time.monotonic()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Starts the thread; call it inside the running event loop that shall get the outputs."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def submit(
        self,
        request_id: str,
        prompt: Sequence[int],
        params: SamplingParams,
        sink: Sink,
        origin: Origin = _ANYBODY,
        labels: Labels | None = None,
        made: Sequence[int] = (),
    ) -> None:
        """Queues a request. `sink` gets its outputs, on the event loop, until one has a finish reason, or a Refusal.

        `labels` are what the journal calls the blocks of its prompt. `made`: what another engine has generated of it,
        which this one goes on from.
        """
        if not self._sinks:
            self._alive_at = time.monotonic()
        self._sinks[request_id] = sink
        self._send(_Add(request_id, prompt, params, origin, labels, made))

    def abort(self, request_id: str) -> None:
        """Drops a request; its sink hears nothing more. One that has ended is left alone."""
        if self._sinks.pop(request_id, None) is not None:
            self._send(_Abort(request_id))

    async def give_back(self) -> None:
        """Without requests only: the KV cache's memory is free when this returns."""
        await self.do(lambda engine: engine.give_back())

    async def take_back(self) -> None:
        """It has the memory again. MemoryError."""
        await self.do(lambda engine: engine.take_back())

    async def do(self, work: Callable[[Engine], T]) -> T:
        """What `work` gives, in the engine's thread. It may raise ValueError or MemoryError, and nothing else.

        A batch may be running meanwhile.
        """
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._send(_Do(work, done))
        return await done

    def tell_of_shelf(self) -> None:
        """Before `start`: the journal hears of what the engine's shelf holds."""
        self._stats = self._engine.stats()
        self.journal.take(self._stats, self._engine.take_changed_labels())

    @property
    def stats(self) -> EngineStats:
        """The engine's numbers after its last step."""
        return self._stats

    @property
    def stuck_s(self) -> float:
        """Seconds since the last step ended, while there is work; 0.0 without any."""
        return time.monotonic() - self._alive_at if self._sinks else 0.0

    @property
    def in_flight(self) -> int:
        """Requests that were submitted and have not ended."""
        return len(self._sinks)

    def close(self) -> None:
        """Ends the thread after the step it is in. What is still in flight hears nothing more."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(timeout=30)

    def _send(self, message: _Message) -> None:
        with self._wake:
            self._inbox.append(message)
            self._wake.notify()

    def _run(self) -> None:
        try:
            while (messages := self._wait()) is not None:
                outputs = self._step(messages)
                self._stats = self._engine.stats()
                self._alive_at = time.monotonic()
                self._post(self._deliver, outputs, self._stats, self._engine.take_changed_labels())
        except Exception:  # whatever it is, the engine's books are in doubt: this runner ends and another is started
            logger.exception("the engine's thread ended")
            self._post(self._die)

    def _step(self, messages: Sequence[_Message]) -> list[Output | Refusal]:
        refusals = self._apply_all(messages)
        outputs = self._engine.step(lambda: refusals.extend(self._apply_all(self._take_inbox())))
        return [*refusals, *outputs]

    def _wait(self) -> list[_Message] | None:
        with self._wake:
            while not (self._closed or self._inbox or self._engine.has_work):
                self._wake.wait()
            messages, self._inbox = self._inbox, []
            return None if self._closed else messages

    def _take_inbox(self) -> list[_Message]:
        with self._wake:
            messages, self._inbox = self._inbox, []
        return messages

    def _apply_all(self, messages: Sequence[_Message]) -> list[Output | Refusal]:
        return [refusal for message in messages if (refusal := self._apply(message)) is not None]

    def _apply(self, message: _Message) -> Output | Refusal | None:
        if isinstance(message, _Abort):
            self._engine.abort(message.request_id)
            return None
        if isinstance(message, _Do):
            self._do(message)
            return None
        try:
            origin = message.origin
            self._engine.add(
                message.request_id,
                message.prompt,
                message.params,
                tenant=origin.tenant,
                priority=origin.priority,
                cache_salt=origin.cache_salt,
                labels=message.labels,
                made=message.made,
            )
        except ValueError as error:
            return Refusal(message.request_id, str(error))
        return None

    def _do(self, message: _Do) -> None:
        try:
            result = message.work(self._engine)
        except (ValueError, MemoryError) as error:
            self._post(_settle, message.done, None, error)
        else:
            self._post(_settle, message.done, result, None)

    def _post(self, call: Callable[..., None], *arguments: object) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:
            # the event loop has closed: the process is ending and nobody is left to tell
            self._closed = True

    def _deliver(self, outputs: Sequence[Output | Refusal], stats: EngineStats, changed: dict[int, bool]) -> None:
        self.journal.take(stats, changed)
        if self._on_step is not None:
            self._on_step(stats)
        for output in outputs:
            ended = isinstance(output, Refusal) or output.finish_reason is not None
            sink = self._sinks.pop(output.request_id, None) if ended else self._sinks.get(output.request_id)
            if sink is not None:
                sink(output)

    def _die(self) -> None:
        for request_id, sink in list(self._sinks.items()):
            sink(Output(request_id, None, "error", error=ENGINE_DEAD))
        self._sinks.clear()
        if self._on_dead is not None:
            self._on_dead()


def _settle(done: "asyncio.Future[Any]", result: Any, error: Exception | None) -> None:
    if done.done():
        return  # whoever asked has left
    if error is None:
        done.set_result(result)
    else:
        done.set_exception(error)
