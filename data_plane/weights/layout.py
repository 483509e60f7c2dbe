"""The model config of an artifact and the tensors it implies: names, shapes, order. Knows nothing of files."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import isfinite
from typing import Any, cast

from data_plane.weights.errors import ArtifactError

_MAX_SIZE = 1 << 24
_MAX_LAYERS = 1024
_SIZES = (
    "hidden_size",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
)
DTYPE_BYTES = {"bfloat16": 2, "float32": 4}
QUANTIZATIONS = ("none", "int8", "int4", "fp8")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A decoder of the Llama family. Sizes are counts; `rope_scaling` is null or Hugging Face's llama3 or linear.

    `quantization` says how most matrices are stored, `dtype` what the rest is; each tensor's own dtype decides.
    """

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    rope_theta: float
    rope_scaling: dict[str, Any] | None
    rms_norm_eps: float
    tie_word_embeddings: bool
    attention_bias: bool
    qk_norm: bool
    eos_token_ids: list[int]
    bos_token_id: int | None
    dtype: str
    architecture: str = "llama"
    quantization: str = "none"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def kv_elements_per_token(self) -> int:
        """Numbers that the KV cache holds for one token, over all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim

    @property
    def kv_bytes_per_token(self) -> int:
        return self.kv_elements_per_token * DTYPE_BYTES[self.dtype]


def parse_config(raw: Mapping[str, Any]) -> ModelConfig:
    """A checked ModelConfig; raises ArtifactError naming the first key that is wrong."""
    known = {field.name for field in fields(ModelConfig)}
    # artifacts made before there was a choice say nothing
    raw = {"quantization": "none", **raw}
    if missing := sorted(known - set(raw)):
        raise ArtifactError(f"config.json lacks {', '.join(missing)}; import the model again")
    if raw["architecture"] != "llama":
        raise ArtifactError(f"config.json names the architecture {str(raw['architecture'])[:50]!r}; known: llama")
    for key in _SIZES:
        _check(key, raw[key], type(raw[key]) is int and 0 < raw[key] <= _MAX_SIZE, f"a whole number 1 to {_MAX_SIZE}")
    _check("num_layers", raw["num_layers"], raw["num_layers"] <= _MAX_LAYERS, f"at most {_MAX_LAYERS}")
    for key in ("rope_theta", "rms_norm_eps"):
        _check(key, raw[key], _positive(raw[key]), "a positive number")
    for key in ("tie_word_embeddings", "attention_bias", "qk_norm"):
        _check(key, raw[key], type(raw[key]) is bool, "true or false")
    vocab_size, eos, bos = raw["vocab_size"], raw["eos_token_ids"], raw["bos_token_id"]
    ids = cast("list[object]", eos) if isinstance(eos, list) else [-1]
    _check("eos_token_ids", eos, all(_token(i, vocab_size) for i in ids), "a list of token ids of the vocabulary")
    _check("bos_token_id", bos, bos is None or _token(bos, vocab_size), "null or a token id of the vocabulary")
    _check("dtype", raw["dtype"], raw["dtype"] in DTYPE_BYTES, " or ".join(DTYPE_BYTES))
    quantization = raw["quantization"]
    _check("quantization", quantization, quantization in QUANTIZATIONS, ", ".join(QUANTIZATIONS))
    groups = raw["num_heads"] % raw["num_kv_heads"] == 0
    _check("num_kv_heads", raw["num_kv_heads"], groups, f"a divisor of num_heads ({raw['num_heads']})")
    _check("head_dim", raw["head_dim"], raw["head_dim"] % 2 == 0, "even: rotary positions pair dimensions")
    _check_scaling(raw["rope_scaling"])
    return ModelConfig(**{name: raw[name] for name in known})


def _check(key: str, value: object, holds: bool, needed: str) -> None:
    if not holds:
        raise ArtifactError(f"{key} is {str(value)[:80]}, but must be {needed}")


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value) and value > 0


def _token(value: object, vocab_size: int) -> bool:
    return type(value) is int and 0 <= value < vocab_size


def _check_scaling(scaling: object) -> None:
    """HF's `rope_scaling`: only the two kinds whose formula the model code knows."""
    if scaling is None:
        return
    values = cast("dict[str, object]", scaling) if isinstance(scaling, dict) else {}
    kind = values.get("rope_type")
    _check("rope_scaling", scaling, kind in ("linear", "llama3"), "null, or an object of rope_type linear or llama3")
    needed = ["factor"]
    if kind == "llama3":
        needed += ["low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]
    for key in needed:
        _check(f"rope_scaling.{key}", values.get(key), _positive(values.get(key)), "a positive number")
    if kind == "llama3":
        low, high = cast("float", values["low_freq_factor"]), cast("float", values["high_freq_factor"])
        _check("rope_scaling.high_freq_factor", high, high > low, f"above low_freq_factor ({low})")


def tensor_layout(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the artifact and its shape, in the order in which a forward pass needs them."""
    hidden, head = config.hidden_size, config.head_dim
    q_rows = config.num_heads * head
    qkv_rows = q_rows + 2 * config.num_kv_heads * head
    layout: dict[str, tuple[int, ...]] = {"embed.weight": (config.vocab_size, hidden)}
    for i in range(config.num_layers):
        layer = f"layers.{i}."
        layout[layer + "attn_norm.weight"] = (hidden,)
        layout[layer + "attention.qkv.weight"] = (qkv_rows, hidden)
        if config.attention_bias:
            layout[layer + "attention.qkv.bias"] = (qkv_rows,)
        if config.qk_norm:
            layout[layer + "attention.q_norm.weight"] = (head,)
            layout[layer + "attention.k_norm.weight"] = (head,)
        layout[layer + "attention.o.weight"] = (hidden, q_rows)
        layout[layer + "mlp_norm.weight"] = (hidden,)
        layout[layer + "mlp.gate_up.weight"] = (2 * config.intermediate_size, hidden)
        layout[layer + "mlp.down.weight"] = (hidden, config.intermediate_size)
    layout["norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        layout["lm_head.weight"] = (config.vocab_size, hidden)
    return layout
