"""What a platform's REST API says of its usage and of all that is replayed with it."""

from dataclasses import replace
from typing import Any

from control_plane.simulator.scale.usage import Told
from control_plane.usage.schemas import COLUMNS
from data_plane.wire.usage import ENDINGS

SINCE = 1_750_000_000_000
GIB = 1 << 30


def row(at_s: float, **fields: int) -> list[int]:
    facts = {"ending": 0, "is_cold": 0, "count": 1, "first_ms": 90, "ms": 900, "prompt": 60, "cached": 0}
    told: dict[str, int] = {"at_ms": SINCE + int(at_s * 1000), **facts, "completion": 30, **fields}
    return [told[name] for name in COLUMNS]


def endpoint(name: str = "chat", **changes: Any) -> dict[str, Any]:
    spec = {
        **{"model": "tiny", "artifact": "sha256:a", "artifact_bytes": GIB, "artifact_dtype": "bfloat16"},
        **{"kv_bytes_per_token": 20_000, "context": 4096, "concurrency": 4, "dtype": "auto", "device": "auto"},
        **{"target": 2},
    }
    return {"name": name, "min": 0, "max": 3, "idle_s": "auto", "slo": None, "spec": spec, **changes}


def start(total_s: float | None, name: str = "chat", outcome: str = "ready") -> dict[str, Any]:
    return {"endpoint": name, "outcome": outcome, "total_s": total_s}


NODE: dict[str, Any] = {
    **{"id": "n1", "name": "box", "status": "ready"},
    "devices": [{"kind": "cpu", "index": 0, "name": "cpu", "memory_bytes": 8 * GIB}],
}
MODEL = {"artifacts": [{"digest": "sha256:a", "speed": {"prefill_tps": 2000.0, "decode_1_tps": 50.0}}]}


def told(rows: list[list[int]], **changes: Any) -> Told:
    base = Told(
        [{"endpoint": "chat", "key": "k", "requests": rows}],
        COLUMNS,
        ENDINGS,
        SINCE,
        [endpoint()],
        [start(None, outcome="failed"), start(0.3), start(0.2), start(0.7), start(9.0, "other")],
        [NODE],
        [MODEL],
    )
    return replace(base, **changes)


HOURLY = [row(3600.0 * at) for at in range(30)]
