"""The chain of names: the same on both sides of the gateway, different wherever prompts are."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_plane.wire.openai import ChatRequest, CompletionRequest, ContentPart, Message, encode
from data_plane.wire.prefix_chain import CHUNK_CHARS, CHUNK_IDS, MOST_CHUNKS, Chain, chain_of
from data_plane.wire.prefixes import PrefixReport, decode_report, encode_report, pack_names, unpack_names

LONG = "".join(f"{at} bottles, wörld 😀; " for at in range(120))
TOOLS: list[dict[str, Any]] = [{"type": "function", "function": {"name": "book", "parameters": {"x": [1, 2.5]}}}]
CALLS: list[dict[str, Any]] = [{"id": "c1", "type": "function", "function": {"name": "book", "arguments": "{}"}}]

texts = st.text("ab é😀\n<|", max_size=700)
messages = st.builds(
    Message,
    role=st.sampled_from(["system", "user", "assistant", "tool"]),
    content=texts | st.lists(st.builds(ContentPart, type=st.just("text"), text=texts), max_size=3) | st.none(),
    name=st.none() | st.just("Ann"),
    tool_call_id=st.none() | st.just("c1"),
    tool_calls=st.none() | st.just(CALLS),
)
chats = st.builds(
    ChatRequest,
    messages=st.lists(messages, min_size=1, max_size=6),
    tools=st.none() | st.just(TOOLS),
    temperature=st.none() | st.floats(0, 2),
    cache_salt=st.none() | st.just("salt"),
)


def chat(*contents: str, **fields: Any) -> ChatRequest:
    roles = ["user", "assistant"]
    return ChatRequest(
        messages=[Message(role=roles[at % 2], content=text) for at, text in enumerate(contents)],  # pyright: ignore[reportArgumentType]
        **fields,
    )


def names(request: ChatRequest | CompletionRequest, tenant: str = "t") -> tuple[int, ...]:
    return chain_of(request, tenant).names


@given(chats)
@settings(max_examples=100, deadline=None)
def test_gateway_and_runner_name_a_request_alike(request: ChatRequest) -> None:
    forwarded = encode(msgspec.structs.replace(request, model="as the gateway calls it"))
    assert chain_of(msgspec.json.decode(forwarded, type=ChatRequest), "t") == chain_of(request, "t")


@given(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=300) | st.text("ab é😀", min_size=1, max_size=900))
@settings(max_examples=50, deadline=None)
def test_so_it_is_with_completions(prompt: list[int] | str) -> None:
    request = CompletionRequest(prompt=prompt)  # pyright: ignore[reportArgumentType]
    chain = chain_of(msgspec.json.decode(encode(request), type=CompletionRequest), "t")
    assert chain == chain_of(request, "t")
    assert len(chain.names) == len(prompt) // (CHUNK_CHARS if isinstance(prompt, str) else CHUNK_IDS)


@given(chats, messages)
@settings(max_examples=100, deadline=None)
def test_what_comes_after_changes_no_name_before_it(request: ChatRequest, more: Message) -> None:
    longer = msgspec.structs.replace(request, messages=[*request.messages, more])
    assert names(longer)[: len(names(request))] == names(request)


def test_what_steers_only_the_answer_changes_nothing() -> None:
    assert len(names(chat(LONG))) == len(LONG) // CHUNK_CHARS
    for fields in ({"model": "m"}, {"temperature": 0.5, "seed": 3}, {"stream_flag": True, "n": 2}, {"user": "u"}):
        assert names(chat(LONG, **fields)) == names(chat(LONG))
    assert names(chat(LONG, "a")) == names(chat(LONG, "b")), "too short to fill another chunk"


def test_parts_are_the_text_they_show() -> None:
    cut = Message(role="user", content=[ContentPart("text", LONG[:100]), ContentPart("text", LONG[100:])])
    assert names(ChatRequest(messages=[cut])) == names(chat(LONG))


@pytest.mark.parametrize(
    "other",
    [
        chat("x" + LONG),
        chat(LONG, cache_salt="s"),
        chat(LONG, tools=TOOLS),
        chat(LONG[:10], LONG[10:]),
        chat(LONG[:11], LONG[11:]),
        ChatRequest(messages=[Message(role="system", content=LONG)]),
        ChatRequest(messages=[Message(role="user", content=LONG, name="Ann")]),
        ChatRequest(messages=[Message(role="user", content=""), Message(role="user", content=LONG)]),
        ChatRequest(messages=[Message(role="assistant", tool_calls=CALLS), Message(role="user", content=LONG)]),
        ChatRequest(messages=[Message(role="user", content=[ContentPart("image"), ContentPart("text", LONG)])]),
        CompletionRequest(prompt=LONG),
    ],
)
def test_another_prompt_has_other_names(other: ChatRequest | CompletionRequest) -> None:
    every = [names(request) for request in (chat(LONG), chat(LONG[:12], LONG[12:]), other)]
    assert len({name for some in every for name in some}) == sum(map(len, every))


def test_tenants_share_no_name_whatever_they_are_called() -> None:
    assert not set(names(chat(LONG), "a")) & set(names(chat(LONG), "b"))
    assert names(chat(LONG), "\udcff"), "a header may hold what is no text"
    # a tenant's name cannot be finished by a salt
    assert not set(names(chat(LONG, cache_salt="bc"), "a")) & set(names(chat(LONG, cache_salt="c"), "ab"))


def test_a_message_that_begins_with_a_chunk_is_not_in_the_one_before() -> None:
    full = "y" * CHUNK_CHARS
    assert names(chat(full, LONG))[0] == names(chat(full, "z"))[0] == names(chat(full))[0]
    assert names(chat(full, LONG))[1] != names(chat(full + LONG))[1]


def test_the_chain_is_bounded_and_estimates_tokens() -> None:
    chain = chain_of(CompletionRequest(prompt="a" * CHUNK_CHARS * (MOST_CHUNKS + 3)), "t")
    assert len(chain.names) == MOST_CHUNKS and chain.tokens(4.0) == CHUNK_CHARS * (MOST_CHUNKS + 3) // 4
    assert chain.chunk_tokens(4.0) == 64
    ids = chain_of(CompletionRequest(prompt=list(range(130))), "t")
    assert (len(ids.names), ids.tokens(4.0), ids.chunk_tokens(4.0)) == (2, 130, 64)
    assert Chain().tokens(4.0) == 0
    several = CompletionRequest(prompt=["first" * 100, "second"])
    assert names(several) == names(CompletionRequest(prompt="first" * 100))


def test_a_report_carries_names_and_refuses_halves() -> None:
    chain = names(chat(LONG))
    report = PrefixReport("e", 3, True, pack_names(chain), running=2)
    assert decode_report(encode_report(report)) == report
    assert tuple(unpack_names(report.stored)) == chain
    with pytest.raises(msgspec.DecodeError, match="whole number"):
        decode_report(encode_report(msgspec.structs.replace(report, stored=b"1234567")))
