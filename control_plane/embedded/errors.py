"""What can go wrong while a platform is started on one machine. Each message is a sentence and says what to do next."""


class StartError(Exception):
    """`ebb up` or `ebb down` cannot go on; the message is for people."""


class HomeError(StartError):
    """The home directory cannot be used."""


class AlreadyRunningError(StartError):
    """Another `ebb up` holds this home."""


class PortInUseError(StartError):
    """Something else listens where Ebb was told to listen."""


class PostgresError(StartError):
    """The embedded PostgreSQL cannot be prepared or does not start."""


class DatabaseError(StartError):
    """The database that EBB_DATABASE_URL names cannot be used."""
