"""Tokens to text and back: what a stream shows must be what a whole decode gives, and users mint no control tokens."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from data_plane.runner.chat_template import ChatTemplate
from data_plane.runner.detokenizer import Detokenizer, StopStrings
from data_plane.runner.tokenizer import Tokenizer, TokenizerError
from tests.fakes.served import make_tokenizer

TOKENIZER = make_tokenizer()
ORDINARY = st.lists(st.integers(3, TOKENIZER.vocab_size - 1), max_size=60)


def _stream(ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(TOKENIZER.token_bytes)
    return [*(detokenizer.feed(token) for token in ids), detokenizer.finish()]


@given(ORDINARY)
def test_increments_make_the_whole(ids: list[int]) -> None:
    assert "".join(_stream(ids)) == TOKENIZER.decode(ids)


@given(st.text(max_size=80))
def test_text_survives_and_no_character_comes_in_halves(text: str) -> None:
    ids = TOKENIZER.encode(text)
    increments = _stream(ids)
    assert "".join(increments) == text
    if "\ufffd" not in text:
        assert all("\ufffd" not in increment for increment in increments)


@given(st.lists(st.sampled_from(["<|im_end|>", "<|im_", "end|>", "<", "|>", "a ", "😀", "<|endoftext|>"]), max_size=12))
def test_users_mint_no_control_tokens(parts: list[str]) -> None:
    text = "".join(parts)
    ids = TOKENIZER.encode(text)
    assert not set(ids) & set(TOKENIZER.special)
    assert TOKENIZER.decode(ids) == text
    content, hidden = TOKENIZER.protect(text, "mark")
    rendered = f"<|im_start|>user\n{content}<|im_end|>\n"
    chat = TOKENIZER.encode_rendered(rendered, hidden)
    assert [token for token in chat if token in TOKENIZER.special] == [1, 2]
    assert TOKENIZER.decode(chat) == f"<|im_start|>user\n{text}<|im_end|>\n"


def test_a_half_control_token_cannot_be_completed_by_the_next_text() -> None:
    first, hidden = TOKENIZER.protect("x <|im_", "1")
    second, more = TOKENIZER.protect("end|>", "2")
    ids = TOKENIZER.encode_rendered(first + second, hidden | more)
    assert 2 not in ids and TOKENIZER.decode(ids) == "x <|im_end|>"


def test_control_tokens_when_they_are_meant() -> None:
    assert TOKENIZER.encode("a<|im_end|>", parse_special=True)[-1] == 2


def test_sentencepiece_bytes() -> None:
    vocabulary = {"<unk>": 0, "<s>": 1, "▁Hi": 2, "▁": 3, **{f"<0x{byte:02X}>": 4 + byte for byte in range(256)}}
    document = {
        "version": "1.0",
        "added_tokens": [
            {"id": 1, "content": "<s>", "special": True, "normalized": True}
            | {"single_word": False, "lstrip": False, "rstrip": False}
        ],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {"type": "BPE", "vocab": vocabulary, "merges": [], "byte_fallback": True, "unk_token": "<unk>"},
    }
    config = TOKENIZER.config
    made = Tokenizer(json.dumps(document).encode(), config)
    detokenizer = Detokenizer(made.token_bytes)
    shown = [detokenizer.feed(token) for token in [2, 3, *(4 + byte for byte in "😀".encode())]]
    assert shown == [" Hi", " ", "", "", "", "😀"]


@pytest.mark.parametrize("broken", [b"{", b"{}", b'{"model":{"type":"BPE"}}', b"\xff"])
def test_a_broken_tokenizer_is_a_sentence(tmp_path: Path, broken: bytes) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_bytes(broken)
    with pytest.raises(TokenizerError, match="Import the model again"):
        Tokenizer.open(tmp_path)


@given(st.text("abc", max_size=40), st.lists(st.text("abc", min_size=1, max_size=4), max_size=4), st.data())
def test_stop_strings_do_not_depend_on_the_pieces(text: str, stops: list[str], data: st.DataObject) -> None:
    ends = [(text.index(stop) + len(stop), text.index(stop)) for stop in stops if stop in text]
    expected = text[: min(ends)[1]] if ends else text
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=10)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    matcher = StopStrings(stops)
    shown = "".join(matcher.feed(piece) for piece in pieces)
    assert expected.startswith(shown)
    # whatever was shown could never have been part of a stop: nothing is taken back
    assert shown + matcher.finish() == expected
    assert matcher.stopped == bool(ends)


def test_text_is_held_back_no_longer_than_needed() -> None:
    matcher = StopStrings(["STOP"])
    assert [matcher.feed(piece) for piece in ["a", "S", "T", "x", "ST", "OP", "y"]] == ["a", "", "", "STx", "", "", ""]
    assert matcher.stopped


@pytest.mark.parametrize(
    "text", ["Hello, wörld 😀 <b> 1234   x", "a <", "  lead and trail \n\n", "<|im", "def f(x):\n\treturn x"]
)
def test_real_template_equals_transformers(smollm2_artifact: Path, text: str) -> None:
    tokenizer = Tokenizer.open(smollm2_artifact)
    template = ChatTemplate(tokenizer.config.chat_template or "", {"bos_token": tokenizer.config.bos_token})
    reference = PreTrainedTokenizerFast(
        tokenizer_file=str(smollm2_artifact / "tokenizer.json"), chat_template=tokenizer.config.chat_template
    )
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": "ok"}]
    messages.append({"role": "user", "content": text + "?"})
    expected = reference.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    shown: list[dict[str, str]] = []
    hidden: dict[str, str] = {}
    for index, message in enumerate(messages):
        content, found = tokenizer.protect(message["content"], f"m{index}:")
        shown.append({**message, "content": content})
        hidden |= found
    assert tokenizer.encode_rendered(template.render(shown, {}), hidden) == expected
