"""One replica's engine in a replay: steps over prompts in chunks and over answers in rows. Knows no policy or fleet.

A step takes step_s and token_s for each of its tokens: a row of each answer that is being written, and as much of the
waiting prompts, by turns as the engine's own rule has it, as fits in step_tokens. Steps that only write are taken many
at once.
"""

import math
from dataclasses import dataclass, field

from control_plane.simulator.scale.settings import FleetSettings
from control_plane.simulator.scale.workload import Arrival
from control_plane.simulator.turns import Turns

EXACT_S = 1e-9


@dataclass(slots=True, eq=False)
class Job:
    """A request on a replica; times in seconds of the trace."""

    arrival: Arrival
    prompt_left: int
    tokens_left: int
    first_at: float = math.inf
    ended_at: float = math.inf

    @property
    def ttft_s(self) -> float:
        """From the arrival to the first token, with all waiting."""
        return self.first_at - self.arrival.at_s

    @property
    def itl_s(self) -> float:
        """The mean time between its tokens; 0 where there is but one."""
        rest = self.arrival.output_tokens - 1
        return (self.ended_at - self.first_at) / rest if rest > 0 else 0.0


@dataclass(slots=True)
class _Steps:
    """Alike steps under way: `count` of `step_s` from `began_at`; a step with prompts is alone."""

    began_at: float
    step_s: float
    count: int
    prompts: list[tuple[Job, int]] = field(default_factory=list[tuple[Job, int]])

    @property
    def ends_at(self) -> float:
        return self.began_at + self.step_s * self.count


class Engine:
    """Of one replica. `decoded` counts the tokens it has written."""

    def __init__(self, settings: FleetSettings) -> None:
        self._settings = settings
        self._waiting: list[Job] = []
        """The oldest first."""
        self._begun: list[Job] = []
        """Of their prompts a part is in the steps under way, or was in those before."""
        self._turns = Turns()
        self._writing: list[Job] = []
        self._steps: _Steps | None = None
        self.decoded = 0

    @property
    def next_at(self) -> float:
        """When to call `advance` next; infinite without work."""
        return self._steps.ends_at if self._steps is not None else math.inf

    @property
    def owed(self) -> int:
        """Tokens of prompts that are still to be computed."""
        return sum([job.prompt_left for job in self._begun]) + sum([job.prompt_left for job in self._waiting])

    def add(self, arrival: Arrival, now: float) -> None:
        """A request's turn. `advance` must have been called for `now`."""
        self._waiting.append(Job(arrival, max(1, arrival.prompt_tokens), max(1, arrival.output_tokens)))
        steps = self._steps
        if steps is None:
            self._next(now)
        elif not steps.prompts:  # the new prompt is in the next step, not in the last of many
            steps.count = min(steps.count, max(1, math.ceil((now - steps.began_at) / steps.step_s - EXACT_S)))

    def advance(self, now: float) -> list[Job]:
        """Take all steps that end until `now`; the requests that ended with them."""
        ended: list[Job] = []
        while self._steps is not None and self._steps.ends_at <= now + EXACT_S:
            steps, self._steps = self._steps, None
            ended += self._take(steps, steps.count)
            self._next(steps.ends_at)
        self.count(now)
        return ended

    def count(self, now: float) -> None:
        """Count what is written by now of many steps that are under way."""
        steps = self._steps
        if steps is not None and steps.count > 1:
            done = min(steps.count - 1, math.floor((now - steps.began_at) / steps.step_s + EXACT_S))
            if done > 0:
                self._take(steps, done)
                steps.began_at, steps.count = steps.began_at + done * steps.step_s, steps.count - done

    def _take(self, steps: _Steps, count: int) -> list[Job]:
        at = steps.began_at + steps.step_s * count
        self.decoded += len(self._writing) * count
        for job in self._writing:
            job.tokens_left -= count
        for job, tokens in steps.prompts:
            job.prompt_left -= tokens
            if job.prompt_left == 0:
                job.first_at, job.tokens_left = at, job.tokens_left - 1
                self.decoded += 1
                self._begun.remove(job)
                self._writing.append(job)
        ended = [job for job in self._writing if job.tokens_left <= 0]
        if ended:
            self._writing = [job for job in self._writing if job.tokens_left > 0]
            for job in ended:
                job.ended_at = at
        return ended

    def _next(self, at: float) -> None:
        room = self._settings.step_tokens - len(self._writing)
        prompts: list[tuple[Job, int]] = []
        begun = iter(list(self._begun))
        while room > 0 and (job := next(begun, None) or self._begin()) is not None:
            prompts.append((job, min(job.prompt_left, room)))
            room -= prompts[-1][1]
        tokens = len(self._writing) + sum(count for _, count in prompts)
        if not tokens:
            return
        count = 1 if prompts else min(job.tokens_left for job in self._writing)
        self._steps = _Steps(at, self._settings.step_s + self._settings.token_s * tokens, count, prompts)

    def _begin(self) -> Job | None:
        """The one whose turn it is."""
        if not self._waiting:
            return None
        self._begun.append(self._turns.take(self._waiting, lambda job: job.prompt_left))
        return self._begun[-1]
