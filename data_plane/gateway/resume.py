"""What a stream has told its client, kept as the runner's marks, and the request by which another replica goes on.

Knows nothing of why a stream was lost, nor who goes on with it.
"""

import msgspec

from data_plane.wire.resume import DIED, MOVED, USAGE, Kind, ResumeRequest, said_by, unmark

MOST_BYTES = 1 << 20
"""Of marks for one stream, about 100,000 tokens: one that says more cannot be taken up."""


class Journal:
    """Takes the marks out of a stream's events and keeps them. They are not read before they are needed."""

    def __init__(self) -> None:
        self._marks = bytearray()
        self.num_events = 0
        """Marks taken: how far the answer has come."""
        self.can_resume = False
        """Whether all is known that another replica needs."""
        self.has_begun = False

    def take(self, events: bytes) -> bytes:
        """`events` (whole ones) as the client may see them."""
        events, marks = unmark(events)
        if marks and (self.can_resume or not self.has_begun):
            self.has_begun = True
            self.num_events += len(marks)
            self._marks += b"\n".join(marks) + b"\n"
            self.can_resume = len(self._marks) <= MOST_BYTES
            if not self.can_resume:
                self._marks.clear()
        return events

    def parting(self) -> bytes | None:
        """MOVED or DIED where the replica's last mark was that; it is forgotten then."""
        for parting in (MOVED, DIED):
            if self._marks.endswith(b"\n" + parting + b"\n"):
                del self._marks[-len(parting) - 1 :]
                return parting
        return None

    @property
    def is_complete(self) -> bool:
        """Whether nothing is missing but `[DONE]`."""
        return self._marks.endswith(b"\n" + USAGE + b"\n")

    def request(self, kind: Kind, body: bytes) -> bytes:
        """The body of a request to go on from here with what was first asked in `body`."""
        marks = bytes(self._marks).split(b"\n")[:-1]
        return msgspec.json.encode(ResumeRequest(kind, msgspec.Raw(body), said_by(marks)))
