"""Machines that are network namespaces of this one, on one switch, whose links can be cut as a dead cable cuts them.

Needs `ip` (iproute2) and the right to make namespaces; `why_not` says what is missing. Knows nothing of Ebb.
"""

import os
import shutil
import subprocess
from types import TracebackType

NET = "10.231.77"
HERE = f"{NET}.254"
"""This process's own address on the switch."""
NOWHERE = "02:00:00:00:00:fe"


def _ip(*arguments: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["ip", *arguments], check=check, capture_output=True, text=True, timeout=20)


def why_not() -> str | None:
    """Why namespaces cannot be made here; None where they can."""
    if shutil.which("ip") is None:
        return "there is no `ip`: install iproute2"
    name = f"ebb-try-{os.getpid()}"
    made = _ip("netns", "add", name, check=False)
    if made.returncode:
        return f"`ip netns add` is refused: {made.stderr.strip()}"
    try:
        linked = _ip(
            "link", "add", "name", "ebbtry", "netns", name, "type", "veth", "peer", "name", "ebbtry2", check=False
        )
        return f"a veth pair is refused: {linked.stderr.strip()}" if linked.returncode else None
    finally:
        _ip("netns", "del", name)
        _ip("link", "del", "ebbtry2", check=False)


class Switch:
    """A bridge in a namespace of its own, with machines `a`, `b`, … and this process plugged in."""

    def __init__(self, *names: str) -> None:
        self.addresses = {name: f"{NET}.{number}" for number, name in enumerate(names, 1)}
        self._tag = f"ebb{os.getpid() % 100_000}"

    def __enter__(self) -> "Switch":
        _ip("netns", "add", self._switch)
        _ip("-n", self._switch, "link", "add", "name", "sw0", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "sw0", "up")
        self._plug(None, "", HERE)
        for name, address in self.addresses.items():
            _ip("netns", "add", self._ns(name))
            _ip("-n", self._ns(name), "link", "set", "lo", "up")
            self._plug(self._ns(name), name, address)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in self.addresses:
            _ip("netns", "del", self._ns(name), check=False)
        _ip("netns", "del", self._switch, check=False)  # and with it the other end of every cable

    def on(self, name: str) -> list[str]:
        """What a command starts with, so that it runs on that machine."""
        return ["ip", "netns", "exec", self._ns(name)]

    def cut(self, one: str, other: str) -> None:
        """Nothing goes from one machine ("" is this one) to the other or back, and nobody is told."""
        for here, there in ((one, other), (other, one)):
            address = self._address(there)
            _ip(*self._in(here), "neigh", "replace", address, "lladdr", NOWHERE, "dev", self._device(here), "nud",
                "permanent")  # fmt: skip

    def mend(self, one: str, other: str) -> None:
        """All goes through again."""
        for here, there in ((one, other), (other, one)):
            _ip(*self._in(here), "neigh", "del", self._address(there), "dev", self._device(here), check=False)

    @property
    def _switch(self) -> str:
        return f"{self._tag}-sw"

    def _ns(self, name: str) -> str:
        return f"{self._tag}-{name}"

    def _in(self, name: str) -> tuple[str, ...]:
        return ("-n", self._ns(name)) if name else ()

    def _address(self, name: str) -> str:
        return self.addresses[name] if name else HERE

    def _device(self, name: str) -> str:
        return "eth0" if name else self._tag

    def _plug(self, namespace: str | None, name: str, address: str) -> None:
        where, device, port = self._in(name), self._device(name), f"p{name or 'here'}"
        there = ("netns", namespace) if namespace else ()
        _ip("link", "add", "name", device, *there, "type", "veth", "peer", "name", port, "netns", self._switch)
        _ip("-n", self._switch, "link", "set", port, "master", "sw0", "up")
        _ip(*where, "address", "add", f"{address}/24", "dev", device)
        _ip(*where, "link", "set", device, "up")
