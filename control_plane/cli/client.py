"""Speaks to the control plane's REST API with the key in the home's credentials. Knows no command and no database.

httpx takes a fifth of a second to import, so only what makes a call imports it: `ebb --help` does not.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

from control_plane.cli.errors import ApiFault, CliError, NotRunningError
from control_plane.cli.options import open_home
from control_plane.embedded.home import Credentials

if TYPE_CHECKING:
    import httpx

Json = dict[str, Any]
KEY_HINT = " Start the platform again with 'ebb up' for a key that works."
_TIMEOUT_S = 30.0
_CONNECT_TIMEOUT_S = 5.0


def credentials_of(home: Path) -> Credentials:
    """Where the platform of `home` is, and a key. Raises NotRunningError where it never ran."""
    found = open_home(home)
    credentials = found.read_credentials()
    if credentials is None:
        raise NotRunningError(f"No platform was ever started in {found.root}. Start one with 'ebb up{_flag(home)}'.")
    return credentials


def _flag(home: Path) -> str:
    return "" if home == Path("~/.ebb") else f" --home {home}"


class Api:
    """The REST API of one platform. Every method raises ApiFault, or NotRunningError where nobody answers."""

    def __init__(self, credentials: Credentials, transport: httpx.BaseTransport | None = None) -> None:
        import httpx

        self.control = credentials["control"]
        self.gateway = credentials["gateway"]
        self.key = credentials["key"]
        # No proxies from the environment: the platform is on this machine or in this network.
        self._http = httpx.Client(
            headers={"Authorization": f"Bearer {self.key}"},
            timeout=httpx.Timeout(_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S),
            transport=transport,
            trust_env=False,
        )
        self._unhurried = httpx.Timeout(None, connect=_CONNECT_TIMEOUT_S)

    @classmethod
    def open(cls, home: Path) -> Self:
        """The platform of a home directory."""
        return cls(credentials_of(home))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def get(self, path: str, params: dict[str, Any] | None = None) -> Json:
        """GET /api/v1`path`."""
        return self._call("GET", path, params=params)

    def items(self, path: str, params: dict[str, Any] | None = None) -> list[Json]:
        """The items of a listing."""
        return self._call("GET", path, params=params)["items"]

    def post(self, path: str, body: Json | None = None) -> Json:
        """POST /api/v1`path`."""
        return self._call("POST", path, body=body)

    def patch(self, path: str, body: Json) -> Json:
        """PATCH /api/v1`path`."""
        return self._call("PATCH", path, body=body)

    def delete(self, path: str) -> None:
        """DELETE /api/v1`path`."""
        self._call("DELETE", path)

    def stream(self, path: str, params: dict[str, Any], accept: str) -> Iterator[str]:
        """The answer's text as it comes, without an end of waiting."""
        url = f"{self.control}/api/v1{path}"
        with (
            self._reach(),
            self._http.stream(
                "GET", url, params=params, headers={"Accept": accept}, timeout=self._unhurried
            ) as response,
        ):
            if response.is_error:
                response.read()
                raise fault(response)
            yield from response.iter_text()

    @contextmanager
    def infer(self, path: str, body: Json) -> Generator[httpx.Response]:
        """A streamed POST to the gateway. It may be held while the endpoint wakes, so reading never times out."""
        with (
            self._reach(self.gateway),
            self._http.stream("POST", f"{self.gateway}{path}", json=body, timeout=self._unhurried) as response,
        ):
            if response.is_error:
                response.read()
                raise fault(response)
            yield response

    def routed(self, params: dict[str, Any]) -> list[Json]:
        """The last requests and where the gateway sent them, the newest last."""
        with self._reach(self.gateway):
            response = self._http.get(f"{self.gateway}/routes/recent", params=params)
        if response.is_error:
            raise fault(response)
        return response.json()["items"]

    def infer_status(self, path: str) -> int:
        """The status of a GET to the gateway."""
        with self._reach(self.gateway):
            return self._http.get(f"{self.gateway}{path}").status_code

    def _call(self, method: str, path: str, params: dict[str, Any] | None = None, body: Json | None = None) -> Json:
        with self._reach():
            response = self._http.request(method, f"{self.control}/api/v1{path}", params=params, json=body)
        if response.is_error:
            raise fault(response)
        if not response.content:
            return {}
        try:
            return response.json()
        except ValueError as error:
            raise CliError(f"{response.url} did not answer with JSON. Is {self.control} really Ebb?") from error

    @contextmanager
    def _reach(self, base: str | None = None) -> Generator[None]:
        import httpx

        what = "gateway" if base else "control plane"
        try:
            yield
        except httpx.ConnectError as error:
            raise NotRunningError(
                f"The {what} at {base or self.control} does not answer. Start the platform with 'ebb up'; "
                "'ebb status' shows what runs."
            ) from error
        except httpx.TimeoutException as error:
            raise NotRunningError(
                f"The {what} at {base or self.control} took too long to answer. 'ebb doctor' may tell why."
            ) from error
        except httpx.TransportError as error:
            raise NotRunningError(
                f"The connection to the {what} at {base or self.control} broke ({error or type(error).__name__}). "
                "Try again; 'ebb status' shows what runs."
            ) from error


def fault(response: httpx.Response) -> ApiFault:
    """The error that a response carries, in the platform's shape or any other."""
    try:
        error = response.json()["error"]
        message, code, param = str(error["message"]), error.get("code"), error.get("param")
    except (ValueError, KeyError, TypeError):
        # Not our shape: a proxy in between, perhaps.
        message, code, param = f"{response.url} answered {response.status_code}.", None, None
    hint = KEY_HINT if response.status_code == 401 else ""
    return ApiFault(message + hint, response.status_code, code, param)


def segment(name: str) -> str:
    """A name as one segment of a path, whatever it contains."""
    return quote(name, safe="")


def sse_data(text: Iterator[str]) -> Iterator[tuple[str, str]]:
    """(event, data) of each server-sent event; comments and keep-alives are left out."""
    event, data, rest = "message", list[str](), ""
    for chunk in text:
        *lines, rest = (rest + chunk).split("\n")
        for line in (line.removesuffix("\r") for line in lines):
            if not line:
                if data:
                    yield event, "\n".join(data)
                event, data = "message", []
            elif line.startswith("data:"):
                data.append(line[5:].removeprefix(" "))
            elif line.startswith("event:"):
                event = line[6:].strip()
    if data:
        yield event, "\n".join(data)


def parse_json(text: str) -> Json:
    """The JSON object of an event. Raises CliError."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise CliError(f"The platform sent an event that is not JSON: {text[:200]}") from error
