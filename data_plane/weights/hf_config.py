"""A Hugging Face config.json read as a model config. Knows nothing of files or tensors."""

from collections.abc import Mapping
from typing import Any, cast

from data_plane.weights.errors import ArtifactError, ModelError
from data_plane.weights.layout import ModelConfig, parse_config

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
_MUST_BE = {"hidden_act": ("silu", "swish"), "mlp_bias": (False, None), "quantization_config": (None,)}


def model_config(
    raw: Mapping[str, Any], *, eos_token_ids: list[int], bos_token_id: int | None, tied: bool, dtype: str
) -> ModelConfig:
    """Raises ModelError naming what cannot be served. `tied`: the files hold no output matrix of their own."""
    architecture = _architecture(raw)
    for key, allowed in _MUST_BE.items():
        if raw.get(key, allowed[0]) not in allowed:
            raise ModelError(f"config.json gives {key} as {str(raw[key])[:80]}, which is not served; use another model")
    heads, hidden = raw.get("num_attention_heads"), raw.get("hidden_size")
    if type(heads) is not int or type(hidden) is not int or heads < 1:
        raise ModelError(f"config.json gives {heads!r} heads and a hidden size of {hidden!r}; both must be numbers")
    theta, scaling = _rope(raw)
    try:
        return parse_config(
            {
                "architecture": "llama",
                "hidden_size": hidden,
                "num_layers": raw.get("num_hidden_layers"),
                "num_heads": heads,
                "num_kv_heads": raw.get("num_key_value_heads") or heads,
                "head_dim": raw.get("head_dim") or hidden // heads,
                "intermediate_size": raw.get("intermediate_size"),
                "vocab_size": raw.get("vocab_size"),
                "max_position_embeddings": _context(raw),
                "rope_theta": theta,
                "rope_scaling": scaling,
                "rms_norm_eps": raw.get("rms_norm_eps", 1e-6),
                "tie_word_embeddings": tied,
                "attention_bias": architecture == "Qwen2ForCausalLM" or raw.get("attention_bias", False),
                "qk_norm": architecture == "Qwen3ForCausalLM",
                "eos_token_ids": eos_token_ids,
                "bos_token_id": bos_token_id,
                "dtype": dtype,
            }
        )
    except ArtifactError as error:
        raise ModelError(f"config.json does not describe a model that is served: {error}") from None


def _architecture(raw: Mapping[str, Any]) -> str:
    value = raw.get("architectures")
    names = cast("list[object]", value) if isinstance(value, list) else []
    for name in names:
        if isinstance(name, str) and name in ARCHITECTURES:
            return name
    raise ModelError(f"the architectures are {str(names)[:100]}; these are served: {', '.join(ARCHITECTURES)}")


def _context(raw: Mapping[str, Any]) -> object:
    """Within its window a sliding attention is a full one, so the context ends where the window does."""
    context, window = raw.get("max_position_embeddings"), raw.get("sliding_window")
    # Qwen's configs carry a window that `use_sliding_window` turns off; Mistral's have no such switch
    if type(context) is int and type(window) is int and window > 0 and raw.get("use_sliding_window", True):
        return min(context, window)
    return context


def _rope(raw: Mapping[str, Any]) -> tuple[object, dict[str, Any] | None]:
    """Theta and scaling, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""
    value = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    parameters = cast("dict[str, Any]", value) if isinstance(value, dict) else {"rope_type": value}
    theta = parameters.get("rope_theta", raw.get("rope_theta", 10000.0))
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if raw.get("partial_rotary_factor", parameters.get("partial_rotary_factor", 1.0)) != 1:
        raise ModelError("config.json rotates a part of each head only, which is not served; use another model")
    if kind == "default":
        return theta, None
    if kind not in ("linear", "llama3"):
        raise ModelError(f"the rope scaling {str(kind)[:50]!r} is not served; default, linear and llama3 are")
    keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    return theta, {"rope_type": kind} | {key: parameters[key] for key in keys if key in parameters}
