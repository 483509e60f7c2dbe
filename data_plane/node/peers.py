"""Gets an artifact from another node that has it. What comes is checked against the digest before anybody sees it.

Knows nothing of replicas. A peer is asked with a token that opens its artifacts and nothing else.
"""

import asyncio
import hashlib
import secrets
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import aiohttp
import structlog

from data_plane.node.integrity import FILES
from data_plane.weights.mapped import combine_digests
from data_plane.wire.fleet import Peer

log = structlog.get_logger()
MANIFEST = "manifest.json"
SCRATCH = ".fetch-"
SERVED = (*FILES, MANIFEST)
CHUNK_BYTES = 1 << 20
TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=2, sock_read=30)
RESERVE_BYTES = 1 << 30
"""Left free on the disk, for logs and the database that may be beside."""


class NotFetched(Exception):
    """No peer gave it; the message says what each of them said."""


def clean(artifacts: Path) -> None:
    """Removes what a fetch that was killed has left."""
    for scratch in artifacts.glob(f"{SCRATCH}*"):
        shutil.rmtree(scratch, ignore_errors=True)


async def fetch(session: aiohttp.ClientSession, peers: Sequence[Peer], artifacts: Path, digest: str) -> Path:
    """The artifact's folder, complete and sound. Raises NotFetched. A part of one is never left behind."""
    said: list[str] = []
    for peer in peers:
        scratch = artifacts / f"{SCRATCH}{secrets.token_hex(8)}"
        try:
            scratch.mkdir(parents=True)
            found = await _from(session, peer, digest, scratch)
            if found != digest:
                said.append(f"what '{peer.name}' sent has the digest {found}")
                continue
            folder = artifacts / digest.replace(":", "-")
            if not folder.exists():
                scratch.rename(folder)
            log.info("artifact.fetched", artifact=digest, peer=peer.name)
            return folder
        except (aiohttp.ClientError, TimeoutError, OSError, NotFetched) as error:
            said.append(f"'{peer.name}': {str(error) or type(error).__name__}")
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    raise NotFetched("; ".join(said) or "there is no other node")


async def _from(session: aiohttp.ClientSession, peer: Peer, digest: str, scratch: Path) -> str:
    """The digest of what came."""
    found: dict[str, str] = {}
    for name in SERVED:
        url = f"{peer.url}/artifacts/{digest}/{name}"
        headers = {"authorization": f"Bearer {peer.token}"}
        async with session.get(url, headers=headers, timeout=TIMEOUT) as answer:
            if answer.status != 200:
                raise NotFetched("it does not have it" if answer.status == 404 else f"it answered {answer.status}")
            needed, free = answer.content_length or 0, shutil.disk_usage(scratch).free
            if free - needed < RESERVE_BYTES:
                raise NotFetched(f"{name} has {needed} bytes, and {free} are free on this disk")
            found[name] = await _save(answer, scratch / name)
    return combine_digests({name: found[name] for name in FILES})


async def _save(answer: aiohttp.ClientResponse, path: Path) -> str:
    hasher = hashlib.sha256()
    with path.open("wb") as file:
        async for piece in answer.content.iter_chunked(CHUNK_BYTES):
            # both let go of the interpreter for pieces of this size, and the loop has reports to send
            await asyncio.to_thread(_give, piece, hasher.update, file.write)
    path.chmod(0o444)
    return hasher.hexdigest()


def _give(piece: bytes, *takers: Callable[[bytes], object]) -> None:
    for take in takers:
        take(piece)
