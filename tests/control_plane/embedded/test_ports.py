"""A port in use is said with its number, its owner and the flag that changes it."""

import os
import socket

import pytest

from control_plane.embedded.errors import PortInUseError
from control_plane.embedded.ports import owner_of, require_free


def test_a_port_in_use_is_named_with_its_owner() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(PortInUseError) as caught:
            require_free("127.0.0.1", port, "--gateway-port")
        assert f"Port {port} is in use" in str(caught.value)
        assert f"pid {os.getpid()}" in str(caught.value)
        assert "--gateway-port PORT" in str(caught.value)
    require_free("127.0.0.1", port, "--gateway-port")
    assert owner_of(port) is None


def test_port_0_is_always_free() -> None:
    require_free("127.0.0.1", 0, "--port")
