"""The agent's few calls to the control plane, and the one it makes to a runner. Knows nothing of replicas' lives."""

import random

import aiohttp
import msgspec

from data_plane.wire.errors import ErrorEnvelope
from data_plane.wire.fleet import DesiredState, NodeCredential, NodeRegistration, NodeReport, NodeWelcome

UNPARK_S = 30.0
CALL = aiohttp.ClientTimeout(total=15, sock_connect=2)


class Refused(Exception):
    """The control plane answered, but not with what was asked for. `text` is its sentence, where it gave one."""

    def __init__(self, status: int, body: bytes) -> None:
        self.status = status
        try:
            error = msgspec.json.decode(body, type=ErrorEnvelope).error
            self.text, self.code = error.message, error.code
        except msgspec.DecodeError:
            self.text, self.code = body.decode(errors="replace")[:300], None
        super().__init__(f"The control plane answered {status}: {self.text}")


def backoff_s(attempt: int, cap_s: float = 2.0) -> float:
    """0.1 s doubling to `cap_s`, half of it by chance, so that many agents do not knock at the same time."""
    return min(cap_s, 0.1 * 2 ** min(attempt, 16)) * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, no secret


class ControlClient:
    """Speaks with the control plane. Raises aiohttp.ClientError, TimeoutError or Refused. `key`: what it shows."""

    def __init__(self, session: aiohttp.ClientSession, control: str, key: str) -> None:
        self._session = session
        self._base = control.rstrip("/") + "/internal/v1/nodes"
        self.key = key

    @property
    def _headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}", "content-type": "application/json"}

    async def register(self, registration: NodeRegistration) -> NodeWelcome:
        """Presents this machine."""
        answer = await self._post("/register", msgspec.json.encode(registration))
        return msgspec.json.decode(answer, type=NodeWelcome)

    async def renew(self, node_id: str) -> NodeCredential:
        """Another credential for the one that is shown."""
        return msgspec.json.decode(await self._post(f"/{node_id}/credential", b""), type=NodeCredential)

    async def desired(self, node_id: str, version: str, wait_s: float, epoch: int = 0) -> DesiredState:
        """Waits up to `wait_s` for a desired state of another version than `version`."""
        timeout = aiohttp.ClientTimeout(total=wait_s + 15, sock_connect=2)
        url = f"{self._base}/{node_id}/desired"
        params = {"version": version, "wait": f"{wait_s:g}", "epoch": str(epoch)}
        async with self._session.get(url, params=params, headers=self._headers, timeout=timeout) as response:
            return msgspec.json.decode(await _body(response), type=DesiredState)

    async def report(self, node_id: str, report: NodeReport, within_s: float | None = None) -> None:
        """Tells what is really there; TimeoutError where that is not answered within `within_s`."""
        timeout = CALL if within_s is None else aiohttp.ClientTimeout(total=within_s, sock_connect=min(2.0, within_s))
        await self._post(f"/{node_id}/report", msgspec.json.encode(report), timeout)

    async def _post(self, path: str, body: bytes, timeout: aiohttp.ClientTimeout = CALL) -> bytes:
        url = self._base + path
        async with self._session.post(url, data=body, headers=self._headers, timeout=timeout) as response:
            return await _body(response)


async def _body(response: aiohttp.ClientResponse) -> bytes:
    body = await response.read()
    if response.status >= 300:
        raise Refused(response.status, body)
    return body


class HttpDrainer:
    """Drains, parks and unparks runners over HTTP."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def drain(self, url: str, token: str) -> None:
        """Raises OSError (not reachable, or refused) or TimeoutError."""
        await self._tell(url + "/drain", token, 5.0)

    async def park(self, url: str, token: str) -> None:
        """It begins to. Raises as `drain`."""
        await self._tell(url + "/park", token, 5.0)

    async def unpark(self, url: str, token: str) -> None:
        """It serves again when this returns. Raises as `drain`."""
        await self._tell(url + "/unpark", token, UNPARK_S)

    async def _tell(self, url: str, token: str, timeout_s: float) -> None:
        headers = {"authorization": f"Bearer {token}"}
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._session.post(url, headers=headers, timeout=timeout) as response:
                if response.status >= 300:
                    raise OSError(f"it answered {response.status}")
        except aiohttp.ClientError as error:
            raise OSError(str(error)) from error
