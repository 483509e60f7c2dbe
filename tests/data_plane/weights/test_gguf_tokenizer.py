"""Tokenizers rebuilt from GGUF metadata: SentencePiece from scores, byte-level from merges, each kind of word."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_gguf import byte_alphabet
from tokenizers import Tokenizer

from data_plane.weights.errors import GgufError
from data_plane.weights.gguf import Value
from data_plane.weights.gguf_tokenizer import PRE_TOKENIZERS, GgufTokenizer, read_tokenizer

TEXTS = st.text(max_size=60) | st.sampled_from(
    [
        "Hello world 12345",
        "日本語 😀 été e\u0301",
        "  a\n\n b\t\r\n",
        "x**2 != {'a': [1, 2]}",
        "I'm don't WE'LL",
        "עברית العربية",
    ]
)


def spm(**changes: Any) -> dict[str, Value]:
    words = ["▁", "▁t", "he", "▁the", "ab", "abc", "bc", "a", "b", "c", "t", "h", "e", "l", "o", "d"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *words, "<tool>"]
    kinds = [2, 3, 3, *[6] * 256, *[1] * len(words), 4]
    order = {"▁t": -1.0, "he": -2.0, "▁the": -3.0, "bc": -4.0, "ab": -5.0, "abc": -6.0}
    values: dict[str, Value] = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(kinds, dtype=np.int32),
        "tokenizer.ggml.scores": np.array([order.get(t, -1000.0 - i) for i, t in enumerate(tokens)], dtype=np.float32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    return values | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}


def byte_level(pre_type: str, **changes: Any) -> dict[str, Value]:
    tokens = ["<|end|>", "<|begin|>", *byte_alphabet(), "Ġt", "he", "Ġthe", "12", "123"]
    values: dict[str, Value] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre_type,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array([3, 3] + [1] * (len(tokens) - 2), dtype=np.int32),
        "tokenizer.ggml.merges": ["Ġ t", "h e", "Ġt he", "1 2", "12 3"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 0,
    }
    return values | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}


def load(made: GgufTokenizer) -> Tokenizer:
    return Tokenizer.from_str(made.files.tokenizer.decode())


def test_spm_merges_by_score_and_falls_back_to_bytes() -> None:
    made = read_tokenizer(spm())
    tokenizer = load(made)
    assert tokenizer.encode("the").tokens == ["<s>", "▁the"]
    # "bc" scores better than "ab", so "abc" is reached by a + bc
    assert tokenizer.encode("abc", add_special_tokens=False).tokens == ["▁", "abc"]
    assert tokenizer.encode("é", add_special_tokens=False).tokens == ["▁", "<0xC3>", "<0xA9>"]
    assert tokenizer.encode("<tool>", add_special_tokens=False).tokens[-1] == "<tool>"
    assert made.files.config["add_bos_token"] is True
    assert (made.bos_token_id, made.eos_token_ids) == (1, [2])


def test_spm_without_space_or_bos() -> None:
    made = read_tokenizer(spm(add_space_prefix=False, add_bos_token=False))
    assert load(made).encode("the").tokens == ["t", "he"]
    assert made.files.config["add_bos_token"] is False


@settings(max_examples=60, deadline=None)
@given(TEXTS)
def test_spm_gives_any_text_back(text: str) -> None:
    tokenizer = load(read_tokenizer(spm(add_space_prefix=False)))
    if "▁" in text or "<" in text:
        return  # SentencePiece's own stand-in for a space, and what could spell a token
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text


@pytest.mark.parametrize("pre", sorted(PRE_TOKENIZERS))
def test_byte_level_gives_text_back(pre: str) -> None:
    import unicodedata

    made = read_tokenizer(byte_level(pre))
    tokenizer = load(made)

    @settings(max_examples=25, deadline=None)
    @given(TEXTS)
    def check(text: str) -> None:
        expected = unicodedata.normalize("NFC", text) if PRE_TOKENIZERS[pre].nfc else text
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == expected

    check()
    assert made.files.config["add_bos_token"] is PRE_TOKENIZERS[pre].adds_bos
    assert tokenizer.decode(tokenizer.encode("<|end|>").ids, skip_special_tokens=True) == ""


@pytest.mark.parametrize(
    ("pre", "tokens"),
    [
        ("gpt-2", ["123", "4", "Ġthe"]),
        ("smollm", ["1", "2", "3", "4", "Ġthe"]),
        ("llama-bpe", ["123", "4", "Ġthe"]),
        ("qwen2", ["1", "2", "3", "4", "Ġthe"]),
    ],
)
def test_digits_are_cut_as_each_model_was_trained(pre: str, tokens: list[str]) -> None:
    assert load(read_tokenizer(byte_level(pre))).encode("1234 the", add_special_tokens=False).tokens == tokens


def test_three_digits_at_a_time_for_llama3() -> None:
    tokens = load(read_tokenizer(byte_level("llama-bpe"))).encode("123123", add_special_tokens=False).tokens
    assert tokens == ["123", "123"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"pre": "mystery"}, "mystery"),
        ({"model": "bert"}, "bert"),
        ({"tokens": 5}, "list of 1"),
        ({"tokens": ["a", "a"]}, "twice"),
        ({"token_type": np.zeros(3, dtype=np.int32)}, "one for each token"),
        ({"merges": ["Ġ nothere"]}, "byte-level tokenizer"),
        ({"merges": "x"}, "merges"),
        ({"eos_token_id": 10**6}, "eos"),
        ({"bos_token_id": -5}, "bos"),
    ],
)
def test_damaged_metadata(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(GgufError, match=sentence):
        read_tokenizer(byte_level("gpt-2", **changes))


def test_damaged_scores_and_long_pieces() -> None:
    with pytest.raises(GgufError, match="scores"):
        read_tokenizer(spm(scores=np.zeros(2, dtype=np.float32)))
    values = spm()
    tokens = values["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    tokens[-2] = "x" * 600
    with pytest.raises(GgufError, match="600 characters"):
        read_tokenizer(values)
