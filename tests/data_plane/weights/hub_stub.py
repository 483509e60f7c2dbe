"""A hub on loopback that serves one folder as `org/tiny`: as much of the protocol as its client needs."""

import hashlib
import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SHA = "a" * 40


class _Hub(BaseHTTPRequestHandler):
    folder: Path
    status: int = 200

    def log_message(self, format: str, *args: object) -> None:
        """Silent: pytest shows what fails."""

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if self.status != 200:
            self._answer(self.status, b"{}")
        elif path in (
            "/api/models/org/tiny",
            "/api/models/org/tiny/revision/main",
            f"/api/models/org/tiny/revision/{SHA}",
        ):
            self._json({"id": "org/tiny", "sha": SHA, "siblings": [self._entry(f, "rfilename") for f in self._files()]})
        elif path in (f"/api/models/org/tiny/tree/{SHA}", "/api/models/org/tiny/tree/main"):
            self._json([self._entry(f, "path") | {"type": "file"} for f in self._files()])
        elif path.startswith(f"/org/tiny/resolve/{SHA}/") and (self.folder / Path(path).name).is_file():
            raw = (self.folder / Path(path).name).read_bytes()
            self._answer(200, raw, ETag=f'"{hashlib.sha256(raw).hexdigest()}"', X_Repo_Commit=SHA)
        elif "/revision/" in path:
            self._answer(404, b"{}", X_Error_Code="RevisionNotFound")
        else:
            self._answer(404, b"{}", X_Error_Code="RepoNotFound")

    do_HEAD = do_GET

    def _files(self) -> list[Path]:
        return sorted(file for file in self.folder.iterdir() if file.is_file())

    def _entry(self, file: Path, key: str) -> dict[str, object]:
        raw = file.read_bytes()
        return {key: file.name, "size": len(raw), "oid": hashlib.sha256(raw).hexdigest(), "blobId": "b" * 40}

    def _json(self, value: object) -> None:
        self._answer(200, json.dumps(value).encode(), content_type="application/json")


@contextmanager
def serve_hub(folder: Path, status: int = 200) -> Generator[str, None, None]:
    """The URL of a hub that lives as long as the block. `status`: what it answers to everything, if not 200."""
    handler = type("Hub", (_Hub,), {"folder": folder, "status": status})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
