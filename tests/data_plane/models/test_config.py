"""What a model's configuration must say, and what is said when it does not."""

from typing import Any

import pytest
import torch

from data_plane.models import registry
from data_plane.weights.errors import ArtifactError
from data_plane.weights.layout import parse_config, tensor_layout

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
    assert (config.eos_token_ids, config.rope_theta, config.rope_scaling) == ([2, 3], 10000, None)
    assert config.kv_elements_per_token == 8
    assert config.kv_bytes_per_token == 16


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"hidden_size": None}, "hidden_size is None"),
        ({"num_layers": True}, "num_layers is True"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"vocab_size": 2**40}, "vocab_size"),
        ({"rope_theta": "x"}, "rope_theta is x"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1"),
        ({"eos_token_ids": 2}, "eos_token_ids is 2"),
        ({"eos_token_ids": [16]}, "of the vocabulary"),
        ({"architecture": "gpt2"}, "'gpt2'; known: llama"),
        ({"dtype": "int3"}, "dtype is int3"),
        ({"num_heads": 3, "num_kv_heads": 2}, r"num_kv_heads is 2, but must be a divisor of num_heads \(3\)"),
        ({"head_dim": 5}, "head_dim is 5"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_type linear or llama3"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling.factor is None"),
        ({"rope_scaling": [1]}, "an object"),
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
            "above low_freq_factor",
        ),
    ],
)
def test_a_bad_one_is_refused_by_name(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ArtifactError, match=sentence):
        parse_config({**GOOD, **changes})


def test_a_missing_field_is_refused() -> None:
    with pytest.raises(ArtifactError, match="lacks head_dim"):
        parse_config({name: value for name, value in GOOD.items() if name != "head_dim"})


def test_tensors_must_fit_the_configuration() -> None:
    config = parse_config(GOOD)
    tensors = {name: torch.zeros(shape) for name, shape in tensor_layout(config).items()}
    assert registry.build(config, tensors, 32).logits(torch.zeros(1, 8)).shape == (1, 16)
    with pytest.raises(ArtifactError, match=r"layers.0.mlp.down.weight' has shape \(3, 3\); expected \(8, 8\)"):
        registry.build(config, {**tensors, "layers.0.mlp.down.weight": torch.zeros(3, 3)}, 32)
    del tensors["norm.weight"]
    with pytest.raises(ArtifactError, match=r"'norm.weight' is missing"):
        registry.build(config, tensors, 32)
