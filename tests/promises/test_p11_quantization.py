"""Promise 11: the platform quantizes by itself, measures what that costs, and an endpoint serves what was asked for."""

from typing import Any

import pytest

from tests.promises.running import Platform

# making an artifact measures it and the unquantized weights: a minute or two on two cores
pytestmark = pytest.mark.timeout(600)

FIGURES = {"perplexity", "perplexity_ratio", "mean_kl", "greedy_agreement"}


@pytest.fixture(scope="module")
def int4(stocked: Platform) -> Platform:
    """The small model with an int4 artifact that `ebb deploy` made because it was not there, behind `four`."""
    done = stocked.run(
        "deploy", "four", "--model", "smollm2", "--quant", "int4", "--idle", "300", "--wait", timeout_s=400
    )
    assert done.returncode == 0, done.stderr
    return stocked


def _artifacts(platform: Platform) -> dict[str, dict[str, Any]]:
    model = platform.rest("GET", "/api/v1/models/smollm2").json()
    return {each["quant"]: each for each in model["artifacts"]}


def test_what_was_deployed_is_made_measured_and_served(int4: Platform) -> None:
    made = _artifacts(int4)
    assert made["int4"]["bytes"] < 0.4 * made["bf16"]["bytes"]
    assert set(made["int4"]["quality"]) >= FIGURES
    assert 0.98 < made["int4"]["quality"]["perplexity_ratio"] < 1.06
    assert made["int4"]["speed"]["score"] > 0
    assert int4.row("four")["quant"] == "int4"
    answer = int4.post(
        "four", "completions", json={"prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}
    )
    assert answer.status_code == 200 and "Paris" in answer.json()["choices"][0]["text"]
    shown = int4.ebb("models", "show", "smollm2")
    assert "int4" in shown and f"{made['int4']['quality']['perplexity_ratio']:.4g}" in shown


def test_what_cannot_be_is_refused_when_it_is_deployed(int4: Platform) -> None:
    for body, status, says in (
        ({"quant": "q4"}, 400, "bf16, int8, int4, fp8"),
        ({"quant": "int8"}, 409, 'POST /api/v1/models/smollm2/artifacts {"quant": "int8"}'),
        ({"quant": "int4", "context": 8193}, 400, "8192"),
        ({"quant": "int4", "device": "cuda"}, 400, "runs on cpu only"),
    ):
        answer = int4.rest("POST", "/api/v1/endpoints", {"name": "never", "model": "smollm2", **body})
        assert answer.status_code == status and says in answer.json()["error"]["message"], answer.text
    assert int4.run("deploy", "never", "--model", "smollm2", "--quant", "q4").returncode == 2


def test_the_same_artifact_is_made_twice_only_by_force(int4: Platform) -> None:
    again = int4.run("models", "quantize", "smollm2", "--quant", "int4")
    assert again.returncode == 1 and "--force" in again.stderr
    int4.ebb("rm", "four")
