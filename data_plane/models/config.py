"""The shape of a model, read from an artifact's config.json and checked. Knows nothing of files or of tensors."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


class ModelConfigError(ValueError):
    """The configuration of a model is incomplete, contradicts itself or asks for what Ebb does not know."""


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the trained length. `linear` uses `factor` only."""

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A decoder of the Llama family. `attention_bias`: on q, k and v. `qk_norm`: RMS norm of each head's q and k."""

    architecture: str
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    rope_theta: float
    rms_norm_eps: float
    tie_word_embeddings: bool
    rope_scaling: RopeScaling | None = None
    attention_bias: bool = False
    qk_norm: bool = False
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None

    @property
    def kv_elements_per_token(self) -> int:
        """Numbers that the KV cache holds for one token, over all layers."""
        return self.num_layers * 2 * self.num_kv_heads * self.head_dim


def parse_config(raw: Mapping[str, Any]) -> ModelConfig:
    """Reads config.json of an artifact. ModelConfigError names the field, its value and what was expected."""
    config = ModelConfig(
        architecture=_text(raw, "architecture"),
        hidden_size=_count(raw, "hidden_size"),
        num_layers=_count(raw, "num_layers"),
        num_heads=_count(raw, "num_heads"),
        num_kv_heads=_count(raw, "num_kv_heads"),
        head_dim=_count(raw, "head_dim"),
        intermediate_size=_count(raw, "intermediate_size"),
        vocab_size=_count(raw, "vocab_size"),
        max_position_embeddings=_count(raw, "max_position_embeddings"),
        rope_theta=_positive(raw, "rope_theta"),
        rms_norm_eps=_positive(raw, "rms_norm_eps"),
        tie_word_embeddings=_flag(raw, "tie_word_embeddings"),
        rope_scaling=_rope_scaling(raw.get("rope_scaling")),
        attention_bias=_flag(raw, "attention_bias", default=False),
        qk_norm=_flag(raw, "qk_norm", default=False),
        eos_token_ids=tuple(_token_ids(raw)),
        bos_token_id=raw.get("bos_token_id"),
    )
    if config.num_heads % config.num_kv_heads:
        raise ModelConfigError(
            f"num_heads ({config.num_heads}) is not a multiple of num_kv_heads ({config.num_kv_heads})."
        )
    if config.head_dim % 2:
        raise ModelConfigError(f"head_dim is {config.head_dim}; rotary embedding needs an even number.")
    return config


def _missing_or_wrong(raw: Mapping[str, Any], name: str, expected: str) -> ModelConfigError:
    found = repr(raw[name]) if name in raw else "missing"
    return ModelConfigError(f"'{name}' in the model's config.json is {found}; expected {expected}.")


def _text(raw: Mapping[str, Any], name: str) -> str:
    value = raw.get(name)
    if not isinstance(value, str) or not value:
        raise _missing_or_wrong(raw, name, "a name")
    return value


def _count(raw: Mapping[str, Any], name: str) -> int:
    value = raw.get(name)
    # a bool is an int to Python
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
        raise _missing_or_wrong(raw, name, "a positive integer below 2^31")
    return value


def _positive(raw: Mapping[str, Any], name: str) -> float:
    value = raw.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise _missing_or_wrong(raw, name, "a positive number")
    return float(value)


def _flag(raw: Mapping[str, Any], name: str, *, default: bool | None = None) -> bool:
    value = raw.get(name, default)
    if not isinstance(value, bool):
        raise _missing_or_wrong(raw, name, "true or false")
    return value


def _token_ids(raw: Mapping[str, Any]) -> list[int]:
    value = raw.get("eos_token_ids", [])
    if not isinstance(value, list) or not all(isinstance(token, int) for token in value):
        raise _missing_or_wrong(raw, "eos_token_ids", "a list of token ids")
    return value


def _rope_scaling(raw: Any) -> RopeScaling | None:
    if raw is None:
        return None
    if not isinstance(raw, Mapping):
        raise ModelConfigError(f"'rope_scaling' in the model's config.json is {raw!r}; expected an object or null.")
    kind = raw.get("rope_type", raw.get("type"))
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling("linear", _positive(raw, "factor"))
    if kind == "llama3":
        scaling = RopeScaling(
            "llama3",
            _positive(raw, "factor"),
            _positive(raw, "low_freq_factor"),
            _positive(raw, "high_freq_factor"),
            _count(raw, "original_max_position_embeddings"),
        )
        if scaling.high_freq_factor <= scaling.low_freq_factor:
            raise ModelConfigError("rope_scaling's high_freq_factor must be above its low_freq_factor.")
        return scaling
    raise ModelConfigError(f"rope_scaling of type {kind!r} is not supported; Ebb knows 'linear' and 'llama3'.")
