"""`python -m data_plane.runner --spec FILE`."""

import sys

from data_plane.runner.main import main

if __name__ == "__main__":
    sys.exit(main())
