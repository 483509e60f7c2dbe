"""`ebb chat` against a stand-in gateway: streams, remembers, and never takes a broken answer for a whole one."""

import json
from typing import Any

import pytest

from control_plane.cli.chat import Conversation, Figures, ask, describe
from control_plane.cli.client import Api, sse_data
from control_plane.cli.errors import ApiFault, CliError
from control_plane.embedded.home import Credentials
from tests.control_plane.cli.conftest import Reply, StubPlatform

ROUTE = "POST /e/chat/v1/chat/completions"


def chunk(text: str) -> str:
    return f"data: {json.dumps({'choices': [{'delta': {'content': text}}]})}\n\n"


def api_of(platform: StubPlatform) -> Api:
    return Api(Credentials(control=platform.url, gateway=platform.url, key="k"))


def test_an_answer_is_streamed_and_remembered(platform: StubPlatform, capsys: pytest.CaptureFixture[str]) -> None:
    usage = 'data: {"choices": [], "usage": {"completion_tokens": 2}}\n\n'
    platform.on(ROUTE, Reply(body=f": waking phase=loading\n\n{chunk('Hel')}{chunk('lo')}{usage}data: [DONE]\n\n"))
    conversation = Conversation("chat", {"max_tokens": 9})
    conversation.set_system("Be brief.")
    with api_of(platform) as api:
        assert ask(api, conversation, "Hi", show_figures=True) == "Hello"
        ask(api, conversation, "More", show_figures=False)
    captured = capsys.readouterr()
    assert captured.out == "Hello\nHello\n"
    assert "2 tokens" in captured.err
    body: Any = platform.asked[-1][2]
    assert [message["role"] for message in body["messages"]] == ["system", "user", "assistant", "user"]
    assert body["max_tokens"] == 9 and body["stream"] is True and body["model"] == "chat"
    conversation.reset()
    assert conversation.messages == [{"role": "system", "content": "Be brief."}]


@pytest.mark.parametrize(
    ("end", "words"),
    [("", "the connection ended"), ('data: {"error": {"message": "runner lost"}}\n\n', "runner lost")],
)
def test_a_broken_answer_is_an_error_and_not_remembered(platform: StubPlatform, end: str, words: str) -> None:
    platform.on(ROUTE, Reply(body=chunk("Hel") + end))
    conversation = Conversation("chat", {})
    with api_of(platform) as api, pytest.raises(CliError, match=words):
        ask(api, conversation, "Hi", show_figures=False)
    assert conversation.messages == []


def test_a_refusal_is_its_sentence(platform: StubPlatform) -> None:
    platform.on(ROUTE, Reply(503, {"error": {"message": "The model cannot start.", "code": "endpoint_failed"}}))
    with api_of(platform) as api, pytest.raises(ApiFault, match=r"The model cannot start\.") as caught:
        ask(api, Conversation("chat", {}), "Hi", show_figures=False)
    assert (caught.value.status, caught.value.code) == (503, "endpoint_failed")


def test_events_may_be_cut_anywhere() -> None:
    text = 'event: a\r\ndata: {"x":\r\ndata: 1}\r\n\r\n: comment\n\ndata: last\n\n'
    for size in (1, 2, 3, 7, len(text)):
        pieces = (text[start : start + size] for start in range(0, len(text), size))
        assert list(sse_data(pieces)) == [("a", '{"x":\n1}'), ("message", "last")]


@pytest.mark.parametrize(
    ("state", "phase", "said"),
    [("waking", "loading", "loading"), ("zero", None, "asking for a replica"), ("live", None, "thinking")],
)
def test_what_is_waited_for_is_said(state: str, phase: str | None, said: str) -> None:
    assert said in describe({"state": state, "phase": phase}, 1.0)


def test_figures_without_a_token_say_nothing() -> None:
    assert Figures(0.0).line() == ""
