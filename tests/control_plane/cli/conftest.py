"""A stand-in for control plane and gateway: answers by a table of routes, and remembers what it was asked."""

import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from control_plane.cli import main as command_line
from control_plane.embedded.home import Credentials, Home


@dataclass
class Reply:
    """One answer. `body` is sent as JSON unless it is text."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict[str, str])


@dataclass
class StubPlatform:
    """Routes are `METHOD /path` without the query; several replies to one route come in turn, the last for ever."""

    url: str
    home: Path
    routes: dict[str, list[Reply]] = field(default_factory=dict[str, list[Reply]])
    asked: list[tuple[str, str, Any]] = field(default_factory=list[tuple[str, str, Any]])

    def on(self, route: str, *replies: Reply) -> None:
        self.routes[route] = list(replies)

    def reply(self, route: str) -> Reply:
        replies = self.routes.get(route)
        if not replies:
            return Reply(404, {"error": {"message": f"There is nothing at {route}.", "type": "x"}})
        return replies.pop(0) if len(replies) > 1 else replies[0]


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[StubPlatform]:
    """A stand-in that runs, and a home whose credentials lead to it."""
    stub: StubPlatform

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            sent = json.loads(self.rfile.read(length)) if length else None
            route = f"{self.command} {self.path.partition('?')[0]}"
            stub.asked.append((f"{self.command} {self.path}", self.headers.get("authorization", ""), sent))
            reply = stub.reply(route)
            text = reply.body if isinstance(reply.body, str) else "" if reply.body is None else json.dumps(reply.body)
            self.send_response(reply.status)
            for name, value in {"content-length": str(len(text.encode())), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text.encode())

        do_POST = do_PATCH = do_DELETE = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            """Tests need no access log."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    url = f"http://127.0.0.1:{server.server_address[1]}"
    home = Home(tmp_path / "home")
    home.create()
    home.write_credentials(Credentials(control=url, gateway=url, key="ebb_test.secret"))
    stub = StubPlatform(url, home.root)
    thread.start()
    yield stub
    server.shutdown()
    server.server_close()


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err


@pytest.fixture
def ebb(platform: StubPlatform, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs `ebb …` in this process with the stand-in's home."""

    def run(*arguments: str) -> Result:
        monkeypatch.setenv("EBB_HOME", str(platform.home))
        monkeypatch.setattr(sys, "argv", ["ebb", *arguments])
        with pytest.raises(SystemExit) as stopped:
            command_line.main()
        captured = capsys.readouterr()
        code = stopped.value.code
        return Result(code if isinstance(code, int) else 0 if code is None else 1, captured.out, captured.err)

    return run
