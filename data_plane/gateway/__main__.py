"""Makes `python -m data_plane.gateway` the gateway's process."""

from data_plane.gateway.main import main

raise SystemExit(main())
