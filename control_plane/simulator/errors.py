"""What a simulation may fail with: a file that cannot be replayed, or settings that make no sense."""


class SimulationError(Exception):
    """The message is for people: what is wrong, and where."""
