"""What every comparison has: progress, figures as JSON, a title, a picture. Knows nothing of what is compared."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Generic, TypeVar

from control_plane.simulator.errors import SimulationError

OnProgress = Callable[[str, int, int | None], None]
"""(what is being done, how much of it, of how much)."""
COLOUR = "#3b6ea5"


@dataclass(frozen=True, slots=True)
class PolicyFigures:
    """One policy's results; what they are is added by each comparison."""

    policy: str

    def as_json(self) -> dict[str, Any]:
        """The fields, rounded to what they are worth."""
        return {name: round(value, 6) if isinstance(value, float) else value for name, value in asdict(self).items()}


F = TypeVar("F", bound=PolicyFigures)


@dataclass(frozen=True, slots=True)
class Compared(Generic[F]):
    """The figures, and a line that says what they are of."""

    figures: list[F]
    title: str


def draw_in_three(title: str, path: Path, fill: Callable[[Any, Any, Any], None]) -> None:
    """A picture of three charts that `fill` fills, in the format of the path's ending. Needs matplotlib, which nothing
    else of Ebb does. Raises SimulationError where it cannot be written."""
    # by name, because nobody else needs it and few have it
    picture: Any = import_module("matplotlib.figure").Figure(figsize=(12, 4), layout="constrained")
    fill(*picture.subplots(1, 3))
    picture.suptitle(title, fontsize=9)
    try:
        picture.savefig(path)
    except (OSError, ValueError) as error:
        raise SimulationError(f"The plot cannot be written to {path}: {error}.") from error


def bars(axes: Any, figures: Sequence[F], value: Callable[[F], float], name: str) -> None:
    """One bar for each policy."""
    axes.bar([one.policy for one in figures], [value(one) for one in figures], color=COLOUR)
    axes.set_title(name, fontsize=9)
    axes.tick_params(axis="x", labelrotation=30, labelsize=8)
