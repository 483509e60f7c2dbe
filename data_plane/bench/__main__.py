"""`python -m data_plane.bench engine|gateway|stub …`: picks the measurement, and loads only what that one needs."""

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """The exit status of the measurement that the first argument names; 2 where it names none."""
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", arguments)
    if command == "engine":
        # it may load torch; the gateway's measurement must not share a machine with that
        from data_plane.bench.engine import main as measure_engine

        return measure_engine(rest)
    if command == "gateway":
        from data_plane.bench.gateway.command import main as measure_gateway

        return measure_gateway(rest)
    if command == "stub":
        from data_plane.bench.gateway.stub import main as serve_stub

        return serve_stub(rest)
    sys.stderr.write("Say what to measure: python -m data_plane.bench engine|gateway|stub …\n")
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
