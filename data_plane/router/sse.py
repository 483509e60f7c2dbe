"""Server-sent events as bytes: cut a byte stream at whole events, and know how it ended.

Knows nothing of what is inside an event but for `[DONE]` and `{"error"`; no I/O.
"""

EVENT_END = b"\n\n"
DONE_EVENT = b"data: [DONE]\n\n"
ERROR_START = b'data: {"error"'


def event(data: bytes) -> bytes:
    """One event that carries `data` (a single line)."""
    return b"data: " + data + EVENT_END


def comment(text: str) -> bytes:
    """A line that clients ignore; it keeps a connection alive and people informed."""
    return f": {text}\n\n".encode()


class EventCutter:
    """Passes bytes on up to the last whole event, so that a stream that breaks never ends within one."""

    def __init__(self, most_pending_bytes: int = 4 << 20) -> None:
        self._pending = b""
        self._most_pending_bytes = most_pending_bytes
        self._last = b""

    def feed(self, chunk: bytes) -> bytes:
        """The whole events that `chunk` completes; empty where it completes none. ValueError: an event without end."""
        if self._pending:
            chunk = self._pending + chunk
            self._pending = b""
        if not chunk.endswith(EVENT_END):
            end = chunk.rfind(EVENT_END) + len(EVENT_END)
            if end < len(EVENT_END):
                end = 0
            self._pending = chunk[end:]
            chunk = chunk[:end]
            if len(self._pending) > self._most_pending_bytes:
                raise ValueError(f"An event of more than {self._most_pending_bytes} bytes did not end.")
        if chunk:
            self._last = chunk
        return chunk

    @property
    def done(self) -> bool:
        """Whether the last event was `[DONE]`: the stream is complete."""
        return self._last.endswith(DONE_EVENT)

    @property
    def failed(self) -> bool:
        """Whether the last event was an error: the stream ended badly, and the client has been told."""
        start = self._last.rfind(EVENT_END, 0, -len(EVENT_END))
        return self._last.startswith(ERROR_START, start + len(EVENT_END) if start >= 0 else 0)
