"""How long a node may run its replicas without word from the control plane, and when others may take their place.
Pure arithmetic; knows nothing of rows or agents.

Two clocks take part and neither is compared with the other: the node's (monotonic, counting suspensions) and the
database's. A node's lease L runs from the moment at which it *sent* the last report that was answered. When it is over
it asks its peers whether they have heard the control plane in the last half lease (at most 0.2 L); if one has, or does
not answer, it tries once more itself (at most 0.1 L), and then ends its replicas: asked to, and after 0.1 L killed. So
at 1.4 L none of them runs. The control plane counts from the moment at which it *stored* the last report, which is
later than it was sent, and calls the node lost after

    silence_s = 1.5 L   >   L + 0.2 L + 0.1 L + 0.1 L

by the database's clock. What is left, 0.1 L (1 s of the default), is for clocks that run at different speeds and for
a machine too busy to act at once. Nothing is placed in a node's stead before it is lost; and a control plane that was
away calls nobody lost before it has been back for 1.5 L, which is how long its nodes have to find it.

So a peer that hears it again after a silence as long as its own lease counts only once that has gone on for 0.5 L.

What this does not cover: two nodes cut off from a control plane that lives, of which one is heard again long after both
were lost, and is given the other's replicas while that one still gives the control plane time to come back.
"""

from dataclasses import dataclass

LEASE_S = 10.0
"""Three reports missed, at one every 3 s."""


@dataclass(frozen=True)
class LeaseTerms:
    """The terms that hold for every node."""

    lease_s: float = LEASE_S

    @property
    def silence_s(self) -> float:
        """Seconds without a report after which a node is lost: its replicas have ended by then."""
        return self.lease_s * 1.5

    @property
    def steady_s(self) -> float:
        """So long a node that came back from silence is the second choice for replicas: one whose link flaps would be
        given some each time, and lose them again."""
        return self.lease_s * 6
