"""What is replayed: sessions of requests, each with the names of its prompt's blocks. Knows no file format.

An open trace (arrivals are given) is sessions of one request each; a closed one (the next request comes after the
answer to the one before) has sessions of many. Both are made denser or sparser by their sessions' starts alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from random import Random


@dataclass(frozen=True, slots=True)
class Request:
    """One request: block names in order, lengths in tokens, and the pause since the session's last answer ended."""

    chain: tuple[int, ...]
    prompt_tokens: int
    output_tokens: int
    think_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Session:
    """Requests one after the other. `key` is the client's word for the session, None where the trace has none."""

    requests: tuple[Request, ...]
    start_s: float
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Workload:
    """Sessions by start, and how many tokens a block has. `prefix_blocks` is how much of a prompt a hash should look
    at: past what all requests share."""

    sessions: tuple[Session, ...]
    block_tokens: int
    prefix_blocks: int

    @property
    def span_s(self) -> float:
        """The time in which sessions start: from 0 to the last start, and one mean gap more."""
        last = max((session.start_s for session in self.sessions), default=0.0)
        return last * len(self.sessions) / max(1, len(self.sessions) - 1)

    def requests(self) -> Iterator[Request]:
        """All requests, session by session."""
        return (request for session in self.sessions for request in session.requests)

    def over(self, span_s: float) -> "Workload":
        """The same sessions, with their starts stretched or pressed into `span_s`."""
        factor = span_s / self.span_s if self.span_s else 0.0
        return replace(self, sessions=tuple(replace(one, start_s=one.start_s * factor) for one in self.sessions))

    def repeated(self, times: int, seed: int) -> "Workload":
        """Every session `times` times, their starts drawn anew. Copies share with each other what sessions shared."""
        owners: dict[int, int] = {}
        for number, session in enumerate(self.sessions):
            for name in {name for request in session.requests for name in request.chain}:
                owners[name] = number if owners.get(name, number) == number else _SHARED
        names = count(max(owners, default=0) + 1)
        random = Random(seed)  # noqa: S311 # nothing here is a secret
        sessions: list[Session] = []
        for copy in range(times):
            own = {name: next(names) for name, owner in owners.items() if owner != _SHARED} if copy else {}
            for one in self.sessions:
                requests = tuple(_renamed(request, own) for request in one.requests)
                sessions.append(Session(requests, random.random(), one.key and f"{one.key}-{copy}"))
        sessions.sort(key=lambda session: session.start_s)
        return replace(self, sessions=tuple(sessions))

    def unique(self) -> "Workload":
        """The same without reuse: no two blocks have the same name."""
        names = count()
        return replace(
            self,
            sessions=tuple(
                replace(
                    one,
                    requests=tuple(
                        replace(request, chain=tuple(next(names) for _ in request.chain)) for request in one.requests
                    ),
                )
                for one in self.sessions
            ),
        )


_SHARED = -1


def _renamed(request: Request, names: dict[int, int]) -> Request:
    return replace(request, chain=tuple(names.get(name, name) for name in request.chain)) if names else request
