"""`python -m data_plane.runner --spec FILE`, or `--standby`: then the spec comes later."""

import sys


def _main() -> int:
    # a standby imports the rest at the lowest priority, so nothing of it may be imported here
    if "--standby" in sys.argv[1:]:
        from data_plane.runner import standby

        return standby.main()
    from data_plane.runner.main import main

    return main()


if __name__ == "__main__":
    sys.exit(_main())
