"""What control plane, node agent and runner tell each other of machines and replicas. No I/O."""

from typing import Literal

import msgspec

from data_plane.wire.keys import KeyRecord

ReplicaPhase = Literal["placing", "starting", "loading", "warming", "ready", "parked", "draining", "stopped", "failed"]
"""`parked`: its process and its weights are kept, its KV cache is given back, and it serves nobody until it runs."""
Intent = Literal["run", "park", "drain", "stop"]


class Device(msgspec.Struct, frozen=True):
    """Something that runs a model: `kind` is cpu or cuda; memory in bytes (for cpu: the machine's)."""

    kind: Literal["cpu", "cuda"]
    index: int
    name: str
    memory_bytes: int
    memory_free_bytes: int


class NodeRegistration(msgspec.Struct, frozen=True):
    """An agent presents its machine. `agent_url` and `agent_token` are how the control plane calls it back (logs).

    `machine` tells an agent that was started again from one on another machine, or another home, of the same name.
    """

    name: str
    host: str
    agent_url: str
    agent_token: str
    devices: tuple[Device, ...]
    cpus: int
    memory_bytes: int
    version: str
    read_bytes_per_s: float = 0.0
    """How fast it reads files that are in its memory; 0: not measured."""
    machine: str = ""
    epoch: int = 0
    """The last epoch that it was given, 0: none yet. The next one is greater, whatever the database has forgotten."""


class NodeCredential(msgspec.Struct, frozen=True):
    """What a node that joined shows instead of a key: signed, for this node and epoch alone, and good for a while."""

    token: str
    expires_in_s: float


class NodeWelcome(msgspec.Struct, frozen=True):
    """The agent's id, and the epoch it must send with each report: a later registration of the name fences it off.

    `credential`: the one of this epoch, for agents that came with one.
    """

    node_id: str
    epoch: int
    credential: NodeCredential | None = None


class JoinRequest(msgspec.Struct, frozen=True):
    """A machine that shows a join token, and the name that it wants."""

    name: str
    machine: str = ""


class Joined(msgspec.Struct, frozen=True):
    """The machine is a node now, and this is how its agent proves it."""

    node_id: str
    name: str
    credential: NodeCredential


class Peer(msgspec.Struct, frozen=True):
    """Another node, and the token with which this one may read artifacts from its agent and ask it for signs of life of
    the control plane (see wire.peers)."""

    node_id: str
    name: str
    url: str
    token: str


class ReplicaSpec(msgspec.Struct, frozen=True):
    """All that decides how a replica runs. Part of an immutable revision, with the placement's choice of device."""

    model: str
    artifact: str
    """Digest of the artifact, `sha256:…`."""
    device: str = "cpu"
    """`cpu` or `cuda:0`."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    max_model_len: int = 0
    """0: the model's own context length."""
    max_num_seqs: int = 32
    max_num_batched_tokens: int = 512
    kv_cache_bytes: int = 0
    """0: the runner chooses from what the device has free."""
    threads: int = 0
    """CPU threads; 0: all cores."""


class DesiredReplica(msgspec.Struct, frozen=True):
    """One replica that the node must run, park, drain or stop. One that has no process is not started to be parked."""

    id: str
    endpoint: str
    generation: int
    intent: Intent
    spec: ReplicaSpec
    endpoint_id: str = ""


class DesiredState(msgspec.Struct, frozen=True):
    """All replicas of a node, by the control plane's will. What the node runs and this does not name is stopped."""

    version: str
    replicas: tuple[DesiredReplica, ...]
    keys: tuple[KeyRecord, ...]
    peers: tuple[Peer, ...] = ()
    """All other nodes: where they are, this node's replicas may be placed should it fall silent."""
    lease_s: float = 0.0
    """From when the last answered report was sent, so long may the node run its replicas; 0: for ever."""
    gone: tuple[str, ...] = ()
    """Ids of endpoints that were removed lately: what the node still keeps of them must go."""


class StartFailure(msgspec.Struct, frozen=True):
    """Why a runner could not start or ended. `fatal`: trying again will not help (a bad artifact, no memory)."""

    message: str
    fatal: bool


class ObservedReplica(msgspec.Struct, frozen=True):
    """One replica as the node finds it. `spans` are seconds by name, of its last start: spawn or claim, fetch, import,
    tokenizer, map, load, warm_up, and once it has answered route and first_token; or of its unparking."""

    id: str
    generation: int
    phase: ReplicaPhase
    url: str | None = None
    token: str | None = None
    pid: int | None = None
    slots: int = 0
    memory_bytes: int = 0
    """Resident now; `peak_bytes` is the most it ever was."""
    peak_bytes: int = 0
    fixed_bytes: int = 0
    """The most that was resident beside the KV cache; 0 where that is not known."""
    max_model_len: int = 0
    spans: dict[str, float] = {}
    failure: StartFailure | None = None
    for_s: float | None = None
    """Seconds since the node began with it, or with its unparking: what lies before is the way of the command."""
    wanted: DesiredReplica | None = None
    """What the node was told to run, so that a database that has forgotten it can take it back."""


class NodeReport(msgspec.Struct, frozen=True):
    """All replicas of a node that exist or have ended and were not yet taken out of its desired state.

    Sent at once on a change and every 3 s; it is the node's heartbeat too.
    """

    epoch: int
    memory_free_bytes: int
    replicas: tuple[ObservedReplica, ...]
    sequence: int = 0
    """Grows with each report of an epoch: one that was overtaken on its way says nothing any more. 0: not counted."""


class SnapshotSpec(msgspec.Struct, frozen=True):
    """Where a runner keeps its KV cache's hottest blocks for the next one of its endpoint, `most_bytes` at most."""

    path: str
    most_bytes: int


class RunnerSpec(msgspec.Struct, frozen=True):
    """The file a runner is started with (mode 0600: it holds the launch's token)."""

    replica_id: str
    endpoint: str
    artifact_dir: str
    token: str
    status_path: str
    keys_path: str
    """A JSON list of KeyRecord that the agent keeps current; the runner accepts these keys too, by their scopes."""
    spec: ReplicaSpec
    host: str = "127.0.0.1"
    port: int = 0
    snapshot: SnapshotSpec | None = None


class Assignment(msgspec.Struct, frozen=True):
    """What an agent tells a runner in waiting: the spec to serve, and the log to write from then on."""

    spec_path: str
    log_path: str


class TemplateOrder(msgspec.Struct, frozen=True):
    """What an agent tells a template. With a descriptor: to fork a runner in waiting, whose standard input that is.
    Without one: to open the tokenizers of these artifacts, and no others, for those it forks from then on."""

    texts: tuple[str, ...] = ()


class RunnerStatus(msgspec.Struct, frozen=True):
    """What a runner writes, atomically, to `status_path` whenever it changes. `started_at` in Unix seconds."""

    replica_id: str
    pid: int
    phase: ReplicaPhase
    started_at: float
    url: str | None = None
    slots: int = 0
    max_model_len: int = 0
    torch: bool = False
    """Whether torch runs the model: a runner in waiting had better import it too."""
    spans: dict[str, float] = {}
    failure: StartFailure | None = None
