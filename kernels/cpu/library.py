"""The native library: where it lies, whether it serves on this processor, and its structures. Mirrors csrc/abi.h.

It is built at install time (kernels/cpu/build.py). Without a compiler, or on a processor without AVX2, there is none,
and callers take the torch path. Knows nothing of models or artifacts.
"""

import ctypes
import hashlib
import os
from ctypes import POINTER, Structure, c_char_p, c_double, c_float, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path

ABI = 2
MAX_TOP = 20
"""Likeliest tokens told of a row at most."""
BACKEND_VARIABLE = "EBB_CPU_BACKEND"


class Matrix(Structure):
    """A matrix [n, k] in tiles; `kind` is one of KINDS."""

    _fields_ = (
        ("kind", c_int32),
        ("n", c_int32),
        ("k", c_int32),
        ("group", c_int32),
        ("weight", c_void_p),
        ("scale", c_void_p),
        ("min", c_void_p),
        ("bias", c_void_p),
    )


KINDS = {"bfloat16": 0, "float32": 1, "int8": 2, "int4": 3}


class Layer(Structure):
    """The matrices and float32 norms of a layer."""

    _fields_ = (
        ("qkv", Matrix),
        ("o", Matrix),
        ("gate_up", Matrix),
        ("down", Matrix),
        ("attn_norm", c_void_p),
        ("mlp_norm", c_void_p),
        ("q_norm", c_void_p),
        ("k_norm", c_void_p),
    )


class Model(Structure):
    """A decoder of the Llama family, its KV cache included."""

    _fields_ = (
        *((name, c_int32) for name in ("layers", "hidden", "heads", "kv_heads", "head_dim", "intermediate", "vocab")),
        ("kv_is_f32", c_int32),
        ("num_blocks", c_int32),
        ("max_tokens", c_int32),
        ("eps", c_float),
        ("inv_freq", c_void_p),
        ("norm", c_void_p),
        ("embed", Matrix),
        ("lm_head", Matrix),
        ("layer", POINTER(Layer)),
        ("kv", c_void_p),
    )


class Row(Structure):
    """One sequence's share of a step."""

    _fields_ = (("first", c_int32), ("count", c_int32), ("start", c_int32), ("table", c_int32))


class Choice(Structure):
    """How the token of one row of logits is chosen, and what is told of it."""

    _fields_ = (
        ("temperature", c_float),
        ("top_p", c_float),
        ("min_p", c_float),
        ("repetition", c_float),
        ("top_k", c_int32),
        ("num_logprobs", c_int32),
        ("point", c_double),
        ("target", c_int32),
        ("first_change", c_int32),
        ("num_changes", c_int32),
        ("first_seen", c_int32),
        ("num_seen", c_int32),
    )


class Step(Structure):
    """One step: what is computed, and where the results go."""

    _fields_ = (
        ("num_tokens", c_int32),
        ("num_rows", c_int32),
        ("num_logits", c_int32),
        ("token_ids", c_void_p),
        ("rows", POINTER(Row)),
        ("blocks", c_void_p),
        ("logit_tokens", c_void_p),
        ("choices", POINTER(Choice)),
        ("change_ids", c_void_p),
        ("changes", c_void_p),
        ("seen_ids", c_void_p),
        ("chosen", c_void_p),
        ("logprob", c_void_p),
        ("top_ids", c_void_p),
        ("top_logprobs", c_void_p),
        ("logits", c_void_p),
        ("seconds", c_void_p),
    )


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    signatures: dict[str, tuple[object, list[object]]] = {
        "ebb_abi": (c_int32, []),
        "ebb_backend": (c_char_p, [c_char_p]),
        "ebb_open": (c_void_p, [POINTER(Model), c_char_p, c_void_p, c_int32]),
        "ebb_close": (None, [c_void_p]),
        "ebb_step": (c_int32, [c_void_p, POINTER(Step)]),
        "ebb_multiply": (c_int32, [POINTER(Matrix), c_char_p, c_void_p, c_int32, c_void_p]),
        "ebb_pack": (None, [c_void_p, c_int64, c_int64, c_int32, c_int32, c_void_p]),
        "ebb_read_bandwidth": (c_double, [c_int64, c_int32, c_double]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


@cache
def open_library() -> ctypes.CDLL | None:
    """The library, if one was built, is of this version and has a backend for this processor."""
    path = _path()
    return None if path is None else load(path)


def _path() -> Path | None:
    return next(iter(sorted(Path(__file__).parent.glob("lib/*.so"))), None)


@cache
def library_digest() -> str:
    """SHA-256 of the library's file, in hexadecimal; "" where there is none. Equal: it computes the same bits."""
    path = _path()
    return "" if path is None else hashlib.sha256(path.read_bytes()).hexdigest()


def load(path: Path) -> ctypes.CDLL | None:
    """The library at `path`, or None if it is of another version or has no backend for this processor."""
    try:
        library = ctypes.CDLL(str(path))
        if library.ebb_abi() != ABI:
            return None
        _declare(library)
    except (OSError, AttributeError):
        # built for another machine, or by another version: as good as none
        return None
    return library if library.ebb_backend(None) is not None else None


def backend_name() -> str:
    """The instruction set that is used; "" where there is no library. `EBB_CPU_BACKEND` names another one."""
    library = open_library()
    wanted = os.environ.get(BACKEND_VARIABLE, "")
    name: bytes | None = library.ebb_backend(wanted.encode()) if library is not None else None
    return name.decode() if name is not None else ""
