"""From chunks of text to token positions, and the whole promise: what a runner says it holds is a hit."""

from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_plane.engine.config import EngineConfig
from data_plane.engine.engine import Engine
from data_plane.engine.sampling import SamplingParams
from data_plane.runner.chat_template import ChatTemplate
from data_plane.runner.journal import Journal
from data_plane.runner.labels import label_chat, label_ids, label_text, places_of, tokens_at
from data_plane.runner.served import Prompt
from data_plane.wire.openai import ChatRequest, Message
from data_plane.wire.prefix_chain import Piece, chain_of_pieces, chain_of_prompt, pieces_of
from tests.fakes.executor import FakeExecutor
from tests.fakes.served import CHATML, make_tokenizer

TOKENIZER = make_tokenizer()
TRIMMED = CHATML.replace("message['content'] }}", "message['content'] | trim }}")
HIDES = CHATML.replace("{{ message['content'] }}", "{{ message['content'].split('</think>')[-1] }}")
SIZE = 16


def render(messages: list[Message], template: str = CHATML) -> str:
    shown = [{"role": one.role, "content": one.text} for one in messages]
    return ChatTemplate(template, {}).render(shown, {})


def prompt_of(request: ChatRequest, template: str = CHATML) -> Prompt:
    """As a runner makes it, without a runner."""
    encoded = TOKENIZER.encode_rendered_placed(render(request.messages, template), {})
    pieces = pieces_of(request)
    chain = chain_of_pieces(pieces, "t", None)
    return Prompt(encoded.ids, label_chat(chain, pieces, encoded.text, encoded.ends(), SIZE))


def messages_of(*contents: str, first: str = "user") -> list[Message]:
    roles = ["system"] if first == "system" else []
    roles += ["user", "assistant"] * len(contents)
    return [Message(role=role, content=text) for role, text in zip(roles, contents, strict=False)]  # pyright: ignore[reportArgumentType]


def pieces_for(*contents: str, **fields: Any) -> list[Piece]:
    return pieces_of(ChatRequest(messages=messages_of(*contents, first="system"), **fields))


def test_tokens_cover_a_place_to_its_last_character() -> None:
    ends = [3, 3, 5, 9, 9, 9, 12]
    assert [tokens_at(place, ends) for place in (0, 1, 3, 4, 5, 6, 9, 10, 12, 20)] == [2, 2, 2, 3, 3, 6, 6, 7, 7, 7]
    assert tokens_at(4, []) == 0


def test_the_ends_of_tokens_are_where_their_text_is() -> None:
    for text in ("Hello there, wörld 😀! The answer", "a <|im_end|> b 😀", ""):
        encoded = TOKENIZER.encode_placed(text)
        assert encoded.ids == TOKENIZER.encode(text)
        ends = list(encoded.ends())
        assert len(ends) == len(encoded.ids) and ends == sorted(ends) and (ends or [0])[-1] == len(text)
        for place in range(1, len(text) + 1):
            shown = b"".join(TOKENIZER.token_bytes(token) for token in encoded.ids[: tokens_at(place, ends)])
            assert shown.startswith(text[:place].encode())


def test_contents_are_found_in_the_rendered_text() -> None:
    contents = ("s" * 300, "q" * 300, "a" * 300)
    text = render(messages_of(*contents, first="system"))
    places = places_of(pieces_for(*contents), text, 256, 3)
    first, second, third = (text.index(content) for content in contents)
    assert places == [first + 256, second + 512 - 300, third + 768 - 600]


def test_what_cannot_be_told_apart_or_is_not_shown_counts_where_the_next_begins() -> None:
    # "user" also stands in the template, before the message itself
    contents = ("x" * 250, "user", "y" * 300)
    text = render(messages_of(*contents, first="system"))
    assert places_of(pieces_for(*contents), text, 252, 1) == [text.index("y" * 300)]
    hidden = ("x" * 100, "<think>" + "t" * 300 + "</think>b", "q" * 300)
    text = render(messages_of(*hidden), HIDES)
    places = places_of(pieces_of(ChatRequest(messages=messages_of(*hidden))), text, 256, 2)
    assert places[0] == text.index("q" * 300)
    assert places[1] == text.index("q" * 300) + 512 - len("".join(hidden[:2]))


def test_tools_count_where_the_first_message_after_the_systems_begins() -> None:
    contents = ("s" * 300, "q" * 300)
    text = render(messages_of(*contents, first="system")) + "tools"
    pieces = pieces_for(*contents, tools=[{"name": "book" * 100}])
    size = sum(len(piece.text) for piece in pieces)
    places = places_of(pieces, text, 128, size // 128)
    start = text.index("q" * 300)
    assert places[:5] == [start] * 5 and places[-1] > start + 128
    alone = messages_of(*contents[:1], first="system")
    text = render(alone)
    assert places_of(pieces_of(ChatRequest(messages=alone, tools=[1])), text, 256, 1) == [len(text)]


def test_outer_spaces_may_be_trimmed() -> None:
    contents = ("  \n" + "s" * 300 + "  ", "q" * 300)
    messages = messages_of(*contents, first="system")
    for template in (CHATML, TRIMMED):
        text = render(messages, template)
        places = places_of(pieces_of(ChatRequest(messages=messages)), text, 101, 5)
        assert places[0] == text.index("s" * 300) + 98
        assert places[3] == text.index("q" * 300) + 404 - 305


def test_many_contents_that_are_not_found_are_not_sought_for_long() -> None:
    pieces = [Piece("z" * 20_000, ("user", "", ""), at, True) for at in range(300)]
    assert places_of(pieces, "a" * 50_000, 1000, 3) == [50_000] * 3


def test_token_ids_and_texts_map_directly() -> None:
    ids = chain_of_prompt(list(range(150)), "t", None)
    assert label_ids(ids, SIZE) == {3: (ids.names[0],), 7: (ids.names[1],)}
    text = "the quick brown fox " * 30
    chain = chain_of_prompt(text, "t", None)
    encoded = TOKENIZER.encode_placed(text)
    labels = label_text(chain, encoded.ends(), SIZE)
    assert sorted(name for names in labels.values() for name in names) == sorted(chain.names)


def said(parts: list[str], times: int) -> str:
    return " ".join(parts) * times


words = st.sampled_from(["the answer", "quick brown", " fox", "user", "ok", "<", "wörld 😀", "\n", "assistant", "42. "])
texts = st.builds(said, st.lists(words, min_size=1, max_size=6), st.integers(0, 9))
conversations = st.lists(texts, min_size=1, max_size=5)


@given(
    st.integers(20, 120),
    st.lists(st.tuples(conversations, st.integers(1, 3)), min_size=1, max_size=6),
    st.sampled_from([CHATML, TRIMMED, HIDES]),
    st.booleans(),
)
@example(60, [(["user", "a" * 600], 2), (["user", "a" * 300, "b" * 400], 2)], CHATML, True)
@settings(max_examples=60, deadline=None)
def test_what_is_reported_as_held_is_a_hit(
    num_blocks: int, asked: list[tuple[list[str], int]], template: str, with_tools: bool
) -> None:
    """Random conversations, turn by turn, through a cache of any size: never fewer cached tokens than the names say."""
    config = EngineConfig(max_model_len=100_000, block_size=SIZE, num_blocks=num_blocks, max_num_batched_tokens=512)
    engine = Engine(config, FakeExecutor(vocab_size=TOKENIZER.vocab_size))
    journal = Journal(engine.stats(), most_changes=20)
    copy, seq, epoch = set[int](), 0, ""
    for number, (contents, turns) in enumerate(asked):
        for turn in range(min(turns, len(contents)), len(contents) + 1):
            request = ChatRequest(
                messages=messages_of(*contents[:turn]), tools=[{"a": "b" * 40}] if with_tools else None
            )
            prompt = prompt_of(request, template)
            if len(prompt.tokens) + 3 > num_blocks * SIZE:
                continue
            text, claimed = render(request.messages, template), 0
            for block, names in sorted((prompt.labels or {}).items()):
                if not all(name in copy for name in names):
                    break
                # where a content was not found its name also stands for the next one's header, which may be another
                sure = all(text.count(one.text.strip()) == 1 for one in request.messages if one.text.strip())
                claimed = (block if sure else max(block - 1, 0)) * SIZE
            name = f"{number}/{turn}"
            engine.add(name, prompt.tokens, SamplingParams(max_tokens=3, seed=1), labels=prompt.labels)
            while engine.has_work:
                for output in engine.step():
                    assert output.cached_tokens >= min(claimed, (len(prompt.tokens) - 1) // SIZE * SIZE)
                journal.take(engine.stats(), engine.take_changed_labels())
                engine.check()
            changes = journal.since(epoch, seq)
            copy = set(changes.stored) if changes.full else (copy | set(changes.stored)) - set(changes.evicted)
            epoch, seq = journal.epoch, changes.seq
            assert copy == journal.held == engine.scheduler.cache.held
