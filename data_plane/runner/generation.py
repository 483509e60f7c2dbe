"""All the sequences of one request in the engine, from submitting to the last token, or to their abort.

Outputs gather while the reader is busy and are taken all at once, so a slow client costs nobody else anything.
Knows nothing of JSON shapes or the network.
"""

import asyncio
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass

from data_plane.engine.outputs import Output, TokenLogprobs
from data_plane.engine.prefix_cache import Labels
from data_plane.engine.sampling import SamplingParams
from data_plane.runner.engine_loop import ENGINE_DEAD, EngineLoop, Origin, Refusal
from data_plane.runner.metrics import Metrics
from data_plane.runner.transcript import Transcript
from data_plane.wire.errors import ApiError, invalid
from data_plane.wire.resume import ENGINE_DEAD_CODE


@dataclass
class Branch:
    """One choice in the making. Times are of the monotonic clock."""

    prompt: Sequence[int]
    params: SamplingParams
    transcript: Transcript
    labels: Labels | None = None
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    first_at: float | None = None
    last_at: float | None = None
    made: Sequence[int] = ()
    """Tokens that another replica made of it before."""
    is_open: bool = False
    """Whether what comes before its first token was sent."""


class Generation:
    """Use it as a context: what has not ended when it is left is aborted."""

    def __init__(
        self,
        engine: EngineLoop,
        metrics: Metrics,
        request_id: str,
        branches: list[Branch],
        arrived_at: float,
        origin: Origin,
    ) -> None:
        self.branches = branches
        self._engine = engine
        self._metrics = metrics
        self._origin = origin
        # a client may send one id for several requests at once
        unique = f"{request_id}-{secrets.token_hex(4)}"
        self._ids = [f"{unique}/{index}" for index in range(len(branches))]
        self._arrived_at = arrived_at
        self._mail: list[tuple[int, Output | Refusal]] = []
        self._has_mail = asyncio.Event()
        self._end: ApiError | None = None

    async def __aenter__(self) -> "Generation":
        for index, (request_id, branch) in enumerate(zip(self._ids, self.branches, strict=True)):

            def receive(output: Output | Refusal, index: int = index) -> None:
                self._receive(index, output)

            if branch.transcript.finish_reason is None:
                self._engine.submit(
                    request_id, branch.prompt, branch.params, receive, self._origin, branch.labels, branch.made
                )
        return self

    async def __aexit__(self, *_: object) -> None:
        for request_id, branch in zip(self._ids, self.branches, strict=True):
            self._engine.abort(request_id)
            if branch.transcript.finish_reason is None:
                self._metrics.ended("abort")

    @property
    def done(self) -> bool:
        """Whether every sequence has ended."""
        return all(branch.transcript.finish_reason is not None for branch in self.branches)

    @property
    def completion_tokens(self) -> int:
        """Tokens made so far."""
        return sum(branch.transcript.completion_tokens for branch in self.branches)

    async def advance(self) -> list[int]:
        """Waits for outputs and feeds them to the transcripts; the indices of sequences that have something new.

        ApiError 400 where the engine can never serve the request, 500 where it failed, or what `end` was given.
        """
        await self._has_mail.wait()
        self._has_mail.clear()
        if self._end is not None:
            raise self._end
        mail, self._mail = self._mail, []
        changed: dict[int, None] = {}
        for index, output in mail:
            self._take(index, output)
            changed[index] = None
        return list(changed)

    def end(self, error: ApiError) -> None:
        """It does not go on: who waits in `advance`, or comes there, gets this error."""
        self._end = error
        self._has_mail.set()

    def _take(self, index: int, output: Output | Refusal) -> None:
        if isinstance(output, Refusal):
            raise invalid(output.message, code="request_refused")
        if output.finish_reason == "error":
            raise _failed(output.error or "The engine failed on this request.")
        if output.finish_reason == "abort":
            raise ApiError(500, "The engine dropped this request.", type="server_error", code="aborted")
        branch = self.branches[index]
        if output.prompt_logprobs is not None:
            branch.prompt_logprobs = output.prompt_logprobs
        if branch.transcript.finish_reason is not None:
            return
        branch.transcript.feed(output)
        if branch.transcript.finish_reason is not None:
            # a stop string ends it before the engine does
            self._engine.abort(self._ids[index])
            self._count_end(branch)

    def _receive(self, index: int, output: Output | Refusal) -> None:
        now = time.monotonic()
        if isinstance(output, Output) and output.token_id is not None:
            branch = self.branches[index]
            if branch.last_at is None:
                branch.first_at = now
                self._metrics.ttft_s.observe(now - self._arrived_at)
            else:
                self._metrics.itl_s.observe(now - branch.last_at)
            branch.last_at = now
            if output.start is not None:
                self._metrics.queue_s.observe(output.start.queue_s)
                self._metrics.prefill_s.observe(output.start.prefill_s)
        self._mail.append((index, output))
        self._has_mail.set()

    def _count_end(self, branch: Branch) -> None:
        metrics, transcript = self._metrics, branch.transcript
        metrics.ended(transcript.finish_reason or "stop")
        metrics.e2e_s.observe(time.monotonic() - self._arrived_at)
        metrics.request_prompt.observe(len(branch.prompt))
        metrics.request_generation.observe(transcript.completion_tokens)
        metrics.prompt_tokens.inc(len(branch.prompt))
        if branch.first_at is not None and branch.last_at is not None:
            metrics.decode_s.observe(branch.last_at - branch.first_at)


def _failed(message: str) -> ApiError:
    """500. Numbers that break on a prompt break again: clients shall not repeat it."""
    if message.startswith("numerical_error"):
        headers = {"x-should-retry": "false"}
        return ApiError(500, message, type="server_error", code="numerical_error", headers=headers)
    if message == ENGINE_DEAD:
        return ApiError(503, message, type="server_error", code=ENGINE_DEAD_CODE)
    return ApiError(500, message, type="server_error", code="engine_error")
