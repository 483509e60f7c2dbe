"""A platform's own usage replayed: its requests, its endpoints as they are deployed, its devices; and what is too
little for that."""

import pytest

from control_plane.simulator.errors import SimulationError
from control_plane.simulator.scale.compare import UsageComparison, compare_usage
from control_plane.simulator.scale.policies import scaler_of
from control_plane.simulator.scale.replay import Outcome, Replay
from control_plane.simulator.scale.settings import read_settings
from control_plane.simulator.scale.usage import Recorded, own_worth, recorded
from data_plane.wire.usage import ENDINGS
from tests.fakes.usage import HOURLY, NODE, SINCE, endpoint, row, told

SETTINGS = own_worth(read_settings(None))


def played(of: Recorded, policy: str) -> Outcome:
    return Replay(of.trace, 0, SETTINGS, scaler_of(policy, SETTINGS, of.trace), of.devices).run()


def test_what_is_known_of_an_endpoint_is_taken() -> None:
    found = recorded(told(HOURLY, endpoints=[endpoint(idle_s=30, slo={"ttft_p95_ms": 500.0})]), SETTINGS)
    (one,) = found.trace.deployed
    assert (one.settings.start_s, one.settings.concurrency, one.settings.max_replicas, one.target) == (0.3, 4, 3, 2)
    assert (one.min_replicas, one.idle_s, one.has_slo, one.settings.slo_ttft_s) == (0, 30.0, True, 0.5)
    assert one.settings.decode_per_s(1) == pytest.approx(50.0) and one.settings.token_s > 0
    assert one.settings.memory_gb == pytest.approx(one.need.estimates["cpu"].total_bytes / 1e9), "there is no GPU"
    assert [device.spot for device in found.devices] == [("n1", "cpu")]
    assert found.trace.epoch == SINCE / 1000 and found.trace.span_s == 29 * 3600
    assert [note for note in found.notes if "say little" not in note] == []


def test_requests_are_what_replicas_had_to_do() -> None:
    rows = [
        *(row(float(at), prompt=100, cached=64) for at in range(10)),
        row(20.0, ending=ENDINGS.index("client_error")),
        row(21.0, ending=ENDINGS.index("cancelled"), prompt=0, completion=0),
        row(-5.0),
        row(30.0, count=4, prompt=80, completion=40, ms=4000, first_ms=400),
    ]
    found = recorded(told(rows), SETTINGS)
    arrivals = found.trace.arrivals
    assert len(arrivals) == 15 and arrivals[0].at_s == 0.0
    assert {(one.prompt_tokens, one.output_tokens) for one in arrivals[:10]} == {(36, 30)}
    given_up = arrivals[10]
    assert (given_up.at_s, given_up.prompt_tokens, given_up.output_tokens) == (21.0, 35, 28), (
        "as the others in the mean"
    )
    assert [(one.at_s, one.prompt_tokens, one.output_tokens) for one in arrivals[11:]] == [
        (30.0 + part / 4, 20, 10) for part in range(4)
    ]
    assert any("say little" in note for note in found.notes)


def test_each_policy_replays_it_and_as_deployed_is_what_each_endpoint_has() -> None:
    steady = [row(100.0 * at) for at in range(100)]
    found = recorded(told(steady, endpoints=[endpoint(idle_s=30)]), SETTINGS)
    assert played(found, "as-deployed").cold == played(found, "constant:30").cold == 100
    assert played(found, "constant:300").cold == 1
    outcome = played(found, "constant:300")
    assert outcome.waits[0] == pytest.approx(0.3) and outcome.met == 100
    size = found.trace.deployed[0].settings.memory_gb
    assert outcome.memory_gb_s == pytest.approx(outcome.replica_s * size)
    auto = recorded(told(steady), SETTINGS)
    assert played(auto, "as-deployed").cold == played(auto, "ebb").cold < 10


@pytest.mark.parametrize("policy", ["as-deployed", "constant:10", "knative"])
def test_a_min_is_held_from_the_beginning(policy: str) -> None:
    others = [endpoint(min=1, max=2), endpoint("kept", min=2, max=2, idle_s=60)]
    found = recorded(told([row(600.0 * at) for at in range(20)], endpoints=others), SETTINGS)
    assert found.trace.endpoints == ("chat", "kept")
    outcome = played(found, policy)
    assert outcome.cold == 1, "only the first came while it started"
    assert outcome.replica_s >= 3 * found.trace.span_s


def test_what_is_not_known_is_assumed_and_told() -> None:
    blocks = [
        {"endpoint": "gone", "requests": [row(60.0 * at) for at in range(10)]},
        {"endpoint": "chat", "requests": HOURLY},
        {"endpoint": "few", "requests": HOURLY[:5]},
    ]
    both = [endpoint(), endpoint("few")]
    found = recorded(told([], blocks=blocks, endpoints=both, starts=[], models=[]), SETTINGS)
    chat, few, gone = found.trace.deployed
    assert chat.settings.start_s == gone.settings.start_s == SETTINGS.start_s
    assert chat.settings.decode_per_s(1) == pytest.approx(29 / 0.81), "what its requests saw"
    assert few.settings.prefill_tokens_per_s == SETTINGS.prefill_tokens_per_s
    assert gone.need == chat.need and gone.idle_s is None
    text = " ".join(found.notes)
    for part in (
        "'gone' is gone: it is taken for one like 'chat'",
        "No start of 'chat'",
        "The speed of 'few' is not known",
    ):
        assert part in text
    assert len(played(found, "as-deployed").waits) == 45
    alone = recorded(told([], blocks=blocks[:1], endpoints=[]), SETTINGS)
    assert len(played(alone, "as-deployed").waits) == 10, "it fits, whatever the settings say"


def test_too_little_too_much_and_no_room_are_sentences() -> None:
    def refused(asked: UsageComparison) -> str:
        with pytest.raises(SimulationError) as error:
            compare_usage(asked, lambda text, done, total: None)
        return str(error.value)

    names = ("ebb",)
    assert "has 9 requests in that time" in refused(UsageComparison(told(HOURLY[:9]), None, names))
    many = told([row(1.0, count=3_000_000)])
    assert "3,000,000 requests" in refused(UsageComparison(many, None, names))
    assert "No node is ready" in refused(UsageComparison(told(HOURLY, nodes=[{**NODE, "status": "lost"}]), None, names))
    spec = {**endpoint()["spec"], "artifact_bytes": 900 << 30}
    large = told(HOURLY, endpoints=[endpoint(spec=spec)])
    assert "Endpoint 'chat': A replica needs" in refused(UsageComparison(large, None, names))


def test_another_fleet_can_be_assumed() -> None:
    asked = UsageComparison(told(HOURLY), 2, ("as-deployed", "constant:60"))
    compared = compare_usage(asked, lambda text, done, total: None)
    assert [one.policy for one in compared.figures] == ["as-deployed", "constant:60"]
    assert compared.figures[1].cold_share == 1.0 and "2 nodes as the settings say" in compared.title
