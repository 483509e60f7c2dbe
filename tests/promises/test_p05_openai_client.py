"""Promise 5: the official client works unchanged, against both URL surfaces."""

import math

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.promises.running import Platform

ASK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Name the capital of France."}]


def test_chat_not_streaming(chat: Platform) -> None:
    answer = chat.client().chat.completions.create(model="chat", messages=ASK, max_tokens=24, temperature=0)
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"


def test_chat_streaming_says_the_same(chat: Platform) -> None:
    client = chat.client()
    whole = client.chat.completions.create(model="chat", messages=ASK, max_completion_tokens=24, temperature=0)
    text, finish, usage = "", [], None
    for chunk in client.chat.completions.create(
        model="chat",
        messages=ASK,
        max_completion_tokens=24,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    ):
        if not chunk.choices:
            usage = chunk.usage
            continue
        assert chunk.usage is None
        text += chunk.choices[0].delta.content or ""
        if chunk.choices[0].finish_reason:
            finish.append(chunk.choices[0].finish_reason)
    assert text == whole.choices[0].message.content
    assert finish == [whole.choices[0].finish_reason]
    assert usage is not None and whole.usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens


def test_by_model_under_the_shared_url(chat: Platform) -> None:
    client = openai.OpenAI(base_url=f"{chat.gateway}/v1", api_key=chat.key, max_retries=0)
    assert "chat" in [m.id for m in client.models.list()]
    assert client.models.retrieve("chat").id == "chat"
    assert client.chat.completions.create(model="chat", messages=ASK, max_tokens=4).choices[0].message.content
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="nobody", messages=ASK, max_tokens=4)


def test_seeds_repeat_and_differ(chat: Platform) -> None:
    client = chat.client()

    def say(seed: int) -> str | None:
        tale: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Invent a name for a ship."}]
        return (
            client.chat.completions.create(
                model="chat", messages=tale, max_tokens=24, temperature=1.2, top_p=0.95, seed=seed
            )
            .choices[0]
            .message.content
        )

    first = [say(seed) for seed in (1, 2, 3)]
    assert first == [say(seed) for seed in (1, 2, 3)]
    assert len(set(first)) > 1


def test_stop_n_and_penalties(chat: Platform) -> None:
    client = chat.client()
    counted = client.completions.create(model="chat", prompt="1, 2, 3, 4,", max_tokens=30, temperature=0, stop=[" 7"])
    assert " 7" not in counted.choices[0].text
    assert counted.choices[0].finish_reason == "stop"
    several = client.chat.completions.create(model="chat", messages=ASK, max_tokens=12, n=3, temperature=1.5, seed=5)
    assert sorted(c.index for c in several.choices) == [0, 1, 2]
    assert len({c.message.content for c in several.choices}) > 1
    plain = client.completions.create(model="chat", prompt="ha ha ha", max_tokens=32, temperature=0).choices[0].text
    varied = client.completions.create(
        model="chat", prompt="ha ha ha", max_tokens=32, temperature=0, frequency_penalty=2, presence_penalty=2
    )
    assert varied.choices[0].text != plain


def test_logprobs_and_bias(chat: Platform) -> None:
    client = chat.client()
    answer = client.chat.completions.create(
        model="chat", messages=ASK, max_tokens=6, temperature=0, logprobs=True, top_logprobs=4
    )
    block = answer.choices[0].logprobs
    assert block is not None and block.content is not None
    for token in block.content:
        assert len(token.top_logprobs) == 4
        assert token.logprob == pytest.approx(max(t.logprob for t in token.top_logprobs))
        assert sum(math.exp(t.logprob) for t in token.top_logprobs) <= 1.0001
    assert "".join(t.token for t in block.content).startswith(answer.choices[0].message.content or "?")
    tokens = httpx.post(
        f"{chat.gateway}/e/chat/tokenize",
        json={"prompt": " banana", "add_special_tokens": False},
        headers={"Authorization": f"Bearer {chat.key}"},
    ).json()["tokens"]
    forced = client.completions.create(
        model="chat", prompt="I eat a", max_tokens=1, temperature=0, logit_bias={str(tokens[0]): 100}
    )
    assert " banana".startswith(forced.choices[0].text)
    assert forced.choices[0].text


def test_completions_echo_and_token_ids(chat: Platform) -> None:
    client = chat.client()
    tokenized = httpx.post(
        f"{chat.gateway}/e/chat/tokenize",
        json={"prompt": "The sky is blue"},
        headers={"Authorization": f"Bearer {chat.key}"},
    ).json()
    by_ids = client.completions.create(
        model="chat", prompt=tokenized["tokens"], max_tokens=1, logprobs=1, echo=True, temperature=0
    )
    by_text = client.completions.create(
        model="chat", prompt="The sky is blue", max_tokens=1, logprobs=1, echo=True, temperature=0
    )
    assert by_ids.choices[0].text == by_text.choices[0].text
    assert by_ids.choices[0].text.startswith("The sky is blue")
    block = by_ids.choices[0].logprobs
    assert block is not None and block.token_logprobs is not None and block.top_logprobs is not None
    assert len(block.token_logprobs) == tokenized["count"] + 1
    assert block.token_logprobs[0] is None
    assert all(p is not None and p <= 0 for p in block.token_logprobs[1:])
    batch = client.completions.create(model="chat", prompt=["One", "Two"], max_tokens=2, temperature=0)
    assert sorted(c.index for c in batch.choices) == [0, 1]


def test_streamed_completions(chat: Platform) -> None:
    client = chat.client()
    whole = client.completions.create(model="chat", prompt="Once upon a time", max_tokens=16, temperature=0)
    parts = client.completions.create(
        model="chat", prompt="Once upon a time", max_tokens=16, temperature=0, stream=True
    )
    assert "".join(p.choices[0].text for p in parts) == whole.choices[0].text


def test_the_context_is_a_limit_with_numbers(chat: Platform) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat.client().completions.create(model="chat", prompt=[5] * 9000, max_tokens=1)
    assert caught.value.code == "context_length_exceeded"
    assert "8192" in caught.value.message and "9000" in caught.value.message
    assert caught.value.param == "prompt"
