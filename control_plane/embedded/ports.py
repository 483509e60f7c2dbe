"""Whether a TCP port can be listened on, and who has it if not. Knows nothing of what will listen."""

import socket

import psutil

from control_plane.embedded.errors import PortInUseError


def require_free(host: str, port: int, flag: str) -> None:
    """Raises PortInUseError, naming the port, its owner where that can be told, and the flag that changes it."""
    if port == 0:
        return
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As the servers do: connections of the last run that linger in TIME_WAIT do not matter.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            owner = owner_of(port)
            by = f" by {owner}" if owner else ""
            raise PortInUseError(
                f"Port {port} is in use{by} ({error.strerror}). Stop that, or choose another port with {flag} PORT."
            ) from error


def owner_of(port: int) -> str | None:
    """`name (pid N)` of the process that listens on `port`, or None where this user may not know."""
    try:
        for connection in psutil.net_connections(kind="tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,)
            if listens and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except psutil.Error:
        # The owner is a help in a message; other users' processes may not be ours to see.
        return None
    return None
