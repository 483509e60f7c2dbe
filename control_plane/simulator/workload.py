"""What is replayed: sessions of requests, each with the names of its prompt's blocks. Knows no file format.

An open trace (arrivals are given) is sessions of one request each; a closed one (the next request comes after the
answer to the one before) has sessions of many. Both are made denser or sparser by their sessions' starts alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count


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

    def unique(self) -> "Workload":
        """The same without reuse: no two blocks have the same name."""
        names = count()

        def renamed(request: Request) -> Request:
            return replace(request, chain=tuple(next(names) for _ in request.chain))

        return replace(
            self,
            sessions=tuple(replace(one, requests=tuple(map(renamed, one.requests))) for one in self.sessions),
        )
