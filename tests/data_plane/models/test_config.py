"""What a model's configuration must say, and what is said when it does not."""

from typing import Any

import pytest
import torch

from data_plane.models import registry
from data_plane.models.config import ModelConfigError, RopeScaling, parse_config
from data_plane.models.llama import expected_shapes

GOOD: dict[str, Any] = {
    "architecture": "llama",
    "hidden_size": 8,
    "num_layers": 1,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 4,
    "intermediate_size": 8,
    "vocab_size": 16,
    "max_position_embeddings": 32,
    "rope_theta": 10000,
    "rope_scaling": None,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "qk_norm": False,
    "eos_token_ids": [2, 3],
    "bos_token_id": None,
    "dtype": "bfloat16",
}


def test_a_good_one_is_read() -> None:
    config = parse_config(GOOD)
    assert (config.eos_token_ids, config.rope_theta, config.rope_scaling) == ((2, 3), 10000.0, None)
    assert config.kv_elements_per_token == 8


def test_rope_scaling() -> None:
    assert parse_config({**GOOD, "rope_scaling": {"type": "linear", "factor": 2}}).rope_scaling == RopeScaling(
        "linear", 2.0
    )
    assert parse_config({**GOOD, "rope_scaling": {"rope_type": "default"}}).rope_scaling is None


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"hidden_size": None}, "'hidden_size' in the model's config.json is None"),
        ({"num_layers": True}, "'num_layers'.*True"),
        ({"num_layers": 0}, "'num_layers'.*0"),
        ({"vocab_size": 2**40}, "'vocab_size'"),
        ({"rope_theta": "x"}, "'rope_theta'.*'x'"),
        ({"rms_norm_eps": float("nan")}, "'rms_norm_eps'"),
        ({"tie_word_embeddings": 1}, "'tie_word_embeddings'"),
        ({"eos_token_ids": 2}, "'eos_token_ids'"),
        ({"architecture": ""}, "'architecture'"),
        ({"num_heads": 3, "num_kv_heads": 2}, r"num_heads \(3\) is not a multiple of num_kv_heads \(2\)"),
        ({"head_dim": 5}, "head_dim is 5"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "'yarn' is not supported"),
        ({"rope_scaling": {"rope_type": "linear"}}, "'factor'.*missing"),
        ({"rope_scaling": [1]}, "expected an object"),
        (
            {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 2.0,
                    "low_freq_factor": 4.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8,
                }
            },
            "must be above",
        ),
    ],
)
def test_a_bad_one_is_refused_by_name(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ModelConfigError, match=sentence):
        parse_config({**GOOD, **changes})


def test_a_missing_field_is_refused() -> None:
    with pytest.raises(ModelConfigError, match=r"'head_dim'.*missing"):
        parse_config({name: value for name, value in GOOD.items() if name != "head_dim"})


def test_tensors_must_fit_the_configuration() -> None:
    config = parse_config(GOOD)
    tensors = {name: torch.zeros(shape) for name, shape in expected_shapes(config).items()}
    assert registry.build(config, tensors, 32).logits(torch.zeros(1, 8)).shape == (1, 16)
    with pytest.raises(ModelConfigError, match=r"layers.0.mlp.down.weight' has shape \(3, 3\); expected \(8, 8\)"):
        registry.build(config, {**tensors, "layers.0.mlp.down.weight": torch.zeros(3, 3)}, 32)
    del tensors["norm.weight"]
    with pytest.raises(ModelConfigError, match=r"'norm.weight' is missing"):
        registry.build(config, tensors, 32)
    with pytest.raises(ModelConfigError, match="'gpt2' is not supported"):
        registry.build(parse_config({**GOOD, "architecture": "gpt2"}), tensors, 32)
