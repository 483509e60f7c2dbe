"""The gateway's side of the control plane's internal API: routes in, demand and wakes out.

Knows nothing of when to call, or what to do when the control plane is away: that is its callers'.
"""

import random
from typing import TypeVar

import aiohttp
import msgspec

from data_plane.gateway.settings import GatewaySettings
from data_plane.wire.routes import DemandReport, GatewayState, WakeAnswer, WakeRequest

_T = TypeVar("_T", GatewayState, WakeAnswer)


class ControlUnavailable(Exception):
    """The control plane did not answer, or not as agreed. Trying again later may help."""


class NoSuchEndpoint(Exception):
    """The control plane knows no such endpoint: it was deleted."""


class ControlClient:
    """One connection pool to the control plane. Open it inside a running loop; close it at the end."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._url = settings.control_url.rstrip("/") + "/internal/v1"
        self._poll_wait_s = settings.poll_wait_s
        self._session = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {settings.node_key}"},
            timeout=aiohttp.ClientTimeout(total=5, sock_connect=2),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )

    async def close(self) -> None:
        """Close the pool."""
        await self._session.close()

    async def state(self, version: str) -> GatewayState:
        """The state as soon as its version is not `version`; the same again after the poll's wait."""
        raw = await self._call(
            "GET",
            f"/gateway/state?version={version}&wait={self._poll_wait_s}",
            timeout=aiohttp.ClientTimeout(total=self._poll_wait_s + 10, sock_connect=2),
        )
        return _decode(raw, GatewayState)

    async def report(self, report: DemandReport) -> None:
        """Say what work there is."""
        await self._call("POST", "/gateway/demand", msgspec.json.encode(report))

    async def wake(self, endpoint_id: str, request: WakeRequest) -> WakeAnswer:
        """Ask for the endpoint to be started. Raises NoSuchEndpoint where it was deleted."""
        raw = await self._call("POST", f"/endpoints/{endpoint_id}/wake", msgspec.json.encode(request))
        return _decode(raw, WakeAnswer)

    async def _call(
        self, method: str, path: str, body: bytes | None = None, timeout: aiohttp.ClientTimeout | None = None
    ) -> bytes:
        try:
            async with self._session.request(
                method,
                self._url + path,
                data=body,
                headers={"Content-Type": "application/json"} if body else None,
                timeout=timeout or self._session.timeout,
                allow_redirects=False,
            ) as response:
                raw = await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise ControlUnavailable(f"{method} {path}: {error or type(error).__name__}") from error
        if response.status == 404 and method == "POST":
            raise NoSuchEndpoint(path)
        if response.status >= 300:
            raise ControlUnavailable(f"{method} {path}: answered {response.status}")
        return raw


def _decode(raw: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.DecodeError as error:
        raise ControlUnavailable(f"its answer is no {kind.__name__}: {error}") from error


class Backoff:
    """Seconds to wait after failures in a row: doubling from `first_s` to `most_s`, each shortened by up to a half.

    The jitter keeps many gateways from coming back to a restarted control plane in step.
    """

    def __init__(self, first_s: float = 0.2, most_s: float = 5.0) -> None:
        self._first_s = first_s
        self._most_s = most_s
        self._failures = 0

    def next_s(self) -> float:
        """Note a failure; how long to wait now."""
        full = min(self._most_s, self._first_s * 2**self._failures)
        self._failures = min(self._failures + 1, 30)
        return full * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, guards nothing

    def reset(self) -> None:
        """Note a success."""
        self._failures = 0
