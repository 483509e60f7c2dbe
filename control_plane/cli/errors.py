"""What a command may fail with: one sentence on stderr and the command to try next."""


class CliError(Exception):
    """The command cannot do what it was asked to; the message is for people. Exit code 1."""


class ApiFault(CliError):
    """The platform answered with an error; `status` is HTTP's, `code` and `param` are the body's."""

    def __init__(self, message: str, status: int, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param


class NotRunningError(CliError):
    """Nobody answers where the platform should be."""
