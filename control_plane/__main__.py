"""`python -m control_plane`: the control plane's process: REST API and loops on uvicorn."""

import signal
import sys
from types import FrameType

import structlog
import uvicorn

from control_plane import settings as settings_module
from control_plane.app import create_app
from control_plane.db.bells import Bells
from control_plane.db.migrate import upgrade
from control_plane.protocol import Protocol
from control_plane.settings import SettingsError
from data_plane.logs import configure_logging

GRACE_S = 2


class Server(uvicorn.Server):
    """Wakes long polls and streams as soon as a signal asks the process to end, so that they end by themselves."""

    def __init__(self, config: uvicorn.Config, bells: Bells) -> None:
        super().__init__(config)
        self._bells = bells

    async def shutdown(self, sockets: list[object] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self._bells.hush()
        await super().shutdown(sockets)  # pyright: ignore[reportArgumentType]

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A second signal of any kind ends the process without waiting for anyone."""
        if self.should_exit:
            self.force_exit = True
        super().handle_exit(sig, frame)


def main() -> int:
    """Runs until SIGTERM or SIGINT."""
    try:
        settings = settings_module.read("control_plane")
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    configure_logging("control")
    upgrade(settings.database_url)
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=Protocol,
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=GRACE_S,
        timeout_keep_alive=30,
    )
    structlog.get_logger("control_plane").info("starting", host=settings.host, port=settings.port)
    server = Server(config, app.state.bells)

    def ended(_: int, __: FrameType | None) -> None:
        """uvicorn raises the signal again when it has shut down; that is then a good end."""
        if not server.should_exit:
            raise SystemExit(0)

    signal.signal(signal.SIGTERM, ended)
    signal.signal(signal.SIGINT, ended)
    server.run()
    return 0 if server.started else 1


if __name__ == "__main__":
    sys.exit(main())
