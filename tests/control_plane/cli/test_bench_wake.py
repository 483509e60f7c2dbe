"""`ebb bench wake` and `ebb sleep` against a stand-in: what is asked in which order, and the figures."""

import json
import sys
from typing import Any

import pytest

from tests.control_plane.cli.conftest import Reply, StubPlatform
from tests.control_plane.cli.test_starts import ANSWERED

STREAM = (
    ': waiting phase=loading\n\ndata: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'
    'data: {"choices":[{"delta":{"content":"Hi"}}]}\n\ndata: [DONE]\n\n'
)
PEER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'data: {"choices":[{"delta":{"content":"Hi"}}]}')
    def log_message(self, *args): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def sleeper(platform: StubPlatform) -> StubPlatform:
    platform.on("POST /api/v1/endpoints/chat/sleep", Reply(202, {"state": "draining"}))
    states = [Reply(body={"state": state}) for state in ("draining", "zero")]
    platform.on("GET /api/v1/endpoints/chat", *states)
    platform.on("POST /e/chat/v1/chat/completions", Reply(body=STREAM))
    platform.on("GET /api/v1/starts", Reply(body={"items": [ANSWERED, ANSWERED]}))
    return platform


def test_it_sleeps_wakes_and_tells_the_phases(ebb: Any, sleeper: StubPlatform) -> None:
    url = sleeper.url + "/e/chat/v1"
    told = json.loads(ebb("bench", "wake", "--url", url, "--times", "2", "--pause", "0", "-o", "json").out)
    assert told["endpoint"] == "chat" and told["times"] == 2 and len(told["ttft"]["all_s"]) == 2
    assert 0 < told["ttft"]["min_s"] <= told["ttft"]["median_s"] <= told["ttft"]["p95_s"] <= told["ttft"]["max_s"]
    assert told["phases_s"]["load"] == 0.0125 and told["phases_s"]["first_token"] == 0.13 and told["bound_s"] == 0.01
    assert told["tiers"] == {"cached": 2} and told["peer"] is None
    calls = [call.partition("?")[0] for call, _, _ in sleeper.asked]
    assert calls[:4] == [
        *("POST /api/v1/endpoints/chat/sleep", "GET /api/v1/endpoints/chat", "GET /api/v1/endpoints/chat"),
        "POST /e/chat/v1/chat/completions",
    ]
    asked = next(body for call, _, body in sleeper.asked if "completions" in call)
    assert asked["model"] == "chat" and asked["stream"] is True


def test_a_peer_is_timed_from_its_start(ebb: Any, sleeper: StubPlatform) -> None:
    command = f"{sys.executable} -c '{PEER.replace(chr(39), chr(39) + chr(34) + chr(39) + chr(34) + chr(39))}' {{port}}"
    url = sleeper.url + "/e/chat/v1"
    shown = ebb("bench", "wake", "--url", url, "--times", "1", "--pause", "0", "--peer-command", command).out
    assert "zero to first token" in shown and "the peer, from its start" in shown and "first_token" in shown


def test_what_cannot_be_measured_is_a_sentence(ebb: Any, sleeper: StubPlatform) -> None:
    assert "write it like" in ebb("bench", "wake", "--url", "http://127.0.0.1/v1").err
    url = sleeper.url + "/e/chat/v1"
    command = ("bench", "wake", "--url", url, "--times", "1", "--pause", "0")
    assert "before it answered" in ebb(*command, "--peer-command", f"{sys.executable} -c pass").err
    sleeper.on("POST /e/chat/v1/chat/completions", Reply(503, {"error": {"message": "It cannot start."}}))
    assert "It cannot start." in ebb(*command).err


def test_sleep(ebb: Any, sleeper: StubPlatform) -> None:
    assert "'chat' is draining" in ebb("sleep", "chat").err
    assert json.loads(ebb("sleep", "chat", "-o", "json").out) == {"state": "draining"}
