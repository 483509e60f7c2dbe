"""What decisions cost is measured on endpoints that really work, idle and plan."""

from control_plane.simulator.deciding import measure


def test_every_part_is_measured() -> None:
    cost = measure(20, rounds=1)
    assert cost.endpoints == 20 and min(cost.working_ms, cost.planning_ms) > 0.0 <= cost.idle_ms
