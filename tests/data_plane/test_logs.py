"""Log lines of a process: one JSON object each, and none for a client that merely hung up."""

import json
import subprocess
import sys

SCRIPT = """
import logging
from data_plane.logs import configure_logging
configure_logging("gateway")
for error in (ConnectionResetError("gone"), RuntimeError("a fault")):
    try:
        raise error
    except Exception:
        logging.getLogger("aiohttp.server").exception("Error handling request")
logging.getLogger("elsewhere").error("no answer", exc_info=ConnectionResetError("gone"))
"""


def test_a_client_that_hangs_up_is_no_error_of_ours() -> None:
    ended = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in ended.stderr.splitlines()]
    assert [line["event"] for line in lines] == ["Error handling request", "no answer"]
    assert "a fault" in lines[0]["exception"] and lines[0]["process"] == "gateway"
