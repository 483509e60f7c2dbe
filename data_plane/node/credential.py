"""Keeps the credential of a node that joined: on disk, in the hands of who calls the control plane, and fresh."""

import asyncio
from pathlib import Path

import aiohttp
import msgspec
import structlog

from data_plane.node.control import ControlClient, Refused, backoff_s
from data_plane.node.identity import Membership, write_membership
from data_plane.wire.fleet import NodeCredential

log = structlog.get_logger()
RENEWED_AFTER = 1 / 3
"""Of its time: then two more tries of the same length fit in before it ends."""
REMOVED = ("node_removed", "credential_expired", "invalid_api_key")
_TROUBLE = (aiohttp.ClientError, TimeoutError, OSError, msgspec.DecodeError)


class Removed(Exception):
    """The control plane knows this node no more; the message is for people."""


class Credential:
    """One node's. Raises Removed where there is none to be had any more."""

    def __init__(self, client: ControlClient, membership: Membership, path: Path) -> None:
        self._client = client
        self._membership = membership
        self._path = path
        self._renew_in_s = 0.0
        client.key = membership.credential

    def take(self, fresh: NodeCredential | None) -> None:
        """A new one came. Raises OSError where it cannot be kept."""
        if fresh is None:
            return
        self._client.key = fresh.token
        self._renew_in_s = fresh.expires_in_s * RENEWED_AFTER
        self._membership = msgspec.structs.replace(self._membership, credential=fresh.token)
        write_membership(self._path, self._membership)

    async def renew(self) -> None:
        """Asks until there is one."""
        attempt = 0
        while True:
            shown = self._client.key
            try:
                fresh = await self._client.renew(self._membership.node_id)
                if self._client.key == shown:  # a registration meanwhile brought one of its epoch, and this is older
                    self.take(fresh)
                return
            except Refused as error:
                if error.status == 401 and error.code in REMOVED:
                    raise Removed(error.text) from error
                log.warning("credential.not_renewed", error=str(error), attempt=attempt)
            except _TROUBLE as error:
                log.warning("credential.not_renewed", error=str(error) or type(error).__name__, attempt=attempt)
            await asyncio.sleep(backoff_s(attempt))
            attempt += 1

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await asyncio.sleep(self._renew_in_s)
            await self.renew()
