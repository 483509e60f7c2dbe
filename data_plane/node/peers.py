"""The other nodes as this one was told of them: who may read here, what they say of the control plane, and where an
artifact can be had. Knows nothing of replicas."""

import asyncio
import os
import shutil
import time
from pathlib import Path

import aiohttp
import msgspec
import structlog

from data_plane.node import integrity
from data_plane.node.tenure import FINDING, HEARING
from data_plane.node.weights_cache import ArtifactMissing
from data_plane.wire.fleet import Peer
from data_plane.wire.names import is_digest
from data_plane.wire.peers import PREFIX, reader_of

log = structlog.get_logger()
MANIFEST = "manifest.json"
SERVED = (*integrity.FILES, MANIFEST)
"""What an agent gives away of an artifact; the manifest comes last, and says that the rest is there."""
CONNECT_S = 2.0
STALL_S = 30.0
MOST_PEERS = 8
"""A fetch asks so many, the nearest in the list first, before it gives up."""


class Word(msgspec.Struct, frozen=True):
    """What a node says of the control plane: seconds since it last heard it, None where it has not since it began; and
    since it heard it again after a silence longer than the lease, None where there was none."""

    heard_s: float | None
    back_s: float | None = None

    def means_decisions(self, lease_s: float) -> bool:
        """Whether there is a control plane that may give one node's replicas to another. One that was away does not do
        so before its nodes have had time to find it."""
        just_back = self.back_s is not None and self.back_s < lease_s * FINDING
        return self.heard_s is not None and self.heard_s < lease_s * HEARING and not just_back


class Peers:
    """The list, and what is asked of those in it. One owner, one event loop."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        self.all: tuple[Peer, ...] = ()

    @property
    def is_known(self) -> bool:
        """Whether there is anybody to ask."""
        return bool(self.all)

    def admits(self, presented: str, own_token: str) -> bool:
        """Whether the bearer token is that of a node in the list, made for this agent."""
        if not presented.startswith(PREFIX):
            return False
        reader = reader_of(presented, own_token)
        return reader is not None and any(peer.node_id == reader for peer in self.all)

    async def may_be_replaced(self, lease_s: float, within_s: float) -> bool:
        """Whether others may be given what runs here: a peer hears the control plane, or does not say. False where none
        has heard it for half a lease, or it has only just come back: then nobody decides. Takes at most `within_s`."""
        if not self.all:
            return False
        words = await asyncio.gather(*(self._word(peer, within_s) for peer in self.all))
        return any(word is None or word.means_decisions(lease_s) for word in words)

    async def _word(self, peer: Peer, within_s: float) -> Word | None:
        try:
            async with asyncio.timeout(within_s), self._get(peer, "/lease") as answer:
                return msgspec.json.decode(await answer.read(), type=Word) if answer.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, OSError, msgspec.DecodeError):
            return None  # whatever keeps it from saying, it may be at work

    async def fetch(self, digest: str, model: str, artifacts: Path) -> Path:
        """The artifact's folder, copied from a peer that has it, read back and found to be what its digest says.

        Raises ArtifactMissing with a sentence where no peer has it, and OSError where it cannot be written here.
        """
        if not is_digest(digest):
            raise ArtifactMissing(f"The model '{model}' names an artifact that is no digest: {digest[:80]!r}.")
        faults: list[str] = []
        for peer in self.all[:MOST_PEERS]:
            scratch = artifacts / f".fetching-{digest.replace(':', '-')}"
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
            began = time.monotonic()
            try:
                size = await self._copy(peer, digest, scratch)
                await asyncio.to_thread(_seal, scratch, digest, model)
            except (aiohttp.ClientError, TimeoutError, ArtifactMissing) as error:
                faults.append(f"{peer.name}: {error or type(error).__name__}")
                shutil.rmtree(scratch, ignore_errors=True)
                continue
            folder = artifacts / digest.replace(":", "-")
            _publish(scratch, folder)
            took_s = time.monotonic() - began
            log.info("artifact.fetched", artifact=digest, peer=peer.name, bytes=size, seconds=round(took_s, 3))
            return folder
        asked = "; ".join(faults) or "there is no other node to ask"
        raise ArtifactMissing(
            f"The weights of the model '{model}' ({digest[:19]}…) are not on this machine, and no other node gave them"
            f" ({asked}). Start the node that has them. {integrity.remedy(model)}"
        )

    async def _copy(self, peer: Peer, digest: str, scratch: Path) -> int:
        size = 0
        for name in SERVED:
            async with self._get(peer, f"/artifacts/{digest}/{name}") as answer:
                if answer.status != 200:
                    raise ArtifactMissing(f"it answered {answer.status} for {name}")
                with (scratch / name).open("wb") as file:
                    async for piece in answer.content.iter_chunked(1 << 20):
                        size += len(piece)
                        await asyncio.to_thread(file.write, piece)
        return size

    def _get(self, peer: Peer, path: str):
        headers = {"authorization": f"Bearer {peer.token}"}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=STALL_S)
        return self._session.get(peer.url.rstrip("/") + path, headers=headers, timeout=timeout, allow_redirects=False)


def _seal(scratch: Path, digest: str, model: str) -> None:
    """Reads all of it back, then makes sure that it is on the disk. Raises ArtifactMissing, OSError."""
    fault = integrity.fault(scratch, digest, model)
    if fault is not None:
        raise ArtifactMissing("what it sent does not have that digest")
    for name in SERVED:
        with (scratch / name).open("rb") as file:
            os.fsync(file.fileno())
    _sync_folder(scratch)


def _publish(scratch: Path, folder: Path) -> None:
    """In one step it is there; one that is there already (another start was quicker) is as good."""
    if (folder / MANIFEST).is_file():
        shutil.rmtree(scratch, ignore_errors=True)
        return
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
