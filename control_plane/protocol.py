"""uvicorn's HTTP/1.1 protocol, with the wire's error shape for what is no HTTP at all. Knows nothing of routes."""

from uuid import uuid4

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from data_plane.wire.errors import invalid


class Protocol(H11Protocol):
    """Give it to `uvicorn.Config(http=...)`."""

    def send_400_response(self, msg: str) -> None:
        """There is no request to hand on: this is the whole answer, and the end of the connection."""
        if self.conn.our_state is not h11.SEND_RESPONSE and self.conn.our_state is not h11.IDLE:
            # an answer has begun: only the connection can still say that the rest of the request was no good
            self.transport.close()
            return
        error = invalid("This is not a valid HTTP/1.1 request. The connection is closed.", code="bad_request")
        body = error.encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"x-request-id", uuid4().hex.encode()),
            (b"connection", b"close"),
        ]
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
