"""`ebb nodes`: the machines that run replicas."""

from control_plane.cli.client import Api
from control_plane.cli.options import DEFAULT_HOME, HomeOption, Output, OutputOption
from control_plane.cli.output import ago, print_json, print_table, size


def nodes(home: HomeOption = DEFAULT_HOME, output: OutputOption = Output.table) -> None:
    """List the machines and what they have free."""
    with Api.open(home) as api:
        items = api.items("/nodes")
    if output is Output.json:
        return print_json(items)
    rows = [
        (
            *(node["name"], node["status"], node["host"], node["cpus"]),
            f"{size(node['memory_free_bytes'])} of {size(node['memory_bytes'])}",
            ", ".join(f"{device['kind']}:{device['index']}" for device in node["devices"]),
            node["replicas"] if isinstance(node["replicas"], int) else len(node["replicas"]),
            ago(node["last_seen_at"]),
        )
        for node in items
    ]
    columns = ("name", "status", "host", "cpus", "memory free", "devices", "replicas", "seen")
    print_table(columns, rows, "No nodes. The node agent's log may tell why: 'ebb doctor' names it.")
