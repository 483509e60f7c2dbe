"""`python -m data_plane.node` starts the node agent."""

import sys

from data_plane.node.main import main

sys.exit(main())
