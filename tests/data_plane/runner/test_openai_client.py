"""The official client against a runner, streaming and not."""

import asyncio

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.fakes.served import SCRIPT, Fake, fake_runner, until

ASK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]


async def test_chat_whole(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="fake", messages=ASK, max_tokens=40, temperature=0)
    assert answer.object == "chat.completion" and answer.model == "fake"
    assert SCRIPT.startswith(answer.choices[0].message.content or "?")
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None and answer.usage.completion_tokens == 40
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 40
    assert answer.usage.prompt_tokens_details is not None


@pytest.mark.parametrize("wants_usage", [True, False])
async def test_chat_stream_says_the_same(client: openai.AsyncOpenAI, wants_usage: bool) -> None:
    whole = await client.chat.completions.create(model="fake", messages=ASK, max_completion_tokens=60, temperature=0)
    text, finishes, usages, roles, ids = "", [], [], [], set()
    stream = await client.chat.completions.create(
        model="fake",
        messages=ASK,
        max_completion_tokens=60,
        temperature=0,
        stream=True,
        stream_options={"include_usage": wants_usage},
    )
    async for chunk in stream:
        ids.add((chunk.id, chunk.created, chunk.model))
        if not chunk.choices:
            usages.append(chunk.usage)
            continue
        assert chunk.usage is None
        delta = chunk.choices[0].delta
        assert "\ufffd" not in (delta.content or "")
        text += delta.content or ""
        roles += [delta.role] if delta.role else []
        finishes += [chunk.choices[0].finish_reason] if chunk.choices[0].finish_reason else []
    assert text == whole.choices[0].message.content
    assert finishes == ["length"] and roles == ["assistant"] and len(ids) == 1
    assert whole.usage is not None and len(usages) == wants_usage
    for usage in usages:
        assert usage is not None and usage.prompt_tokens_details is not None
        # the first request left its prompt's first block in the cache
        assert usage.prompt_tokens_details.cached_tokens == 16
        assert usage.total_tokens == whole.usage.total_tokens == usage.prompt_tokens + 60


async def test_continuous_usage(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="fake",
        messages=ASK,
        max_tokens=10,
        temperature=0,
        stream=True,
        extra_body={"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    )
    counts = [chunk.usage.completion_tokens async for chunk in stream if chunk.usage is not None]
    assert counts == sorted(counts) and counts[-1] == 10 and len(counts) > 2


async def test_default_limit_is_the_rest_of_the_context(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="fake", messages=ASK, temperature=0, n=1, stop=None)
    assert answer.usage is not None
    ended = answer.choices[0].finish_reason
    assert (ended == "length" and answer.usage.total_tokens == 512) or ended == "stop"


async def test_stop_strings_across_tokens(client: openai.AsyncOpenAI) -> None:
    kwargs = {"model": "fake", "messages": ASK, "max_tokens": 100, "temperature": 0, "stop": ["answer is", "zzz"]}
    answer = await client.chat.completions.create(**kwargs)  # pyright: ignore
    assert answer.choices[0].message.content == SCRIPT[: SCRIPT.index("answer is")]
    assert answer.choices[0].finish_reason == "stop"
    streamed = ""
    async for chunk in await client.chat.completions.create(stream=True, **kwargs):  # pyright: ignore
        streamed += chunk.choices[0].delta.content or ""
    assert streamed == answer.choices[0].message.content


async def test_n_and_seed(client: openai.AsyncOpenAI) -> None:
    async def say(seed: int) -> list[str | None]:
        answer = await client.chat.completions.create(model="fake", messages=ASK, max_tokens=12, n=3, seed=seed)
        assert sorted(choice.index for choice in answer.choices) == [0, 1, 2]
        assert answer.usage is not None and answer.usage.completion_tokens == 36
        return [choice.message.content for choice in answer.choices]

    first = await say(5)
    assert first == await say(5) and first != await say(6) and len(set(first)) == 3
    assert await say(-7) == await say(-7)
    texts = {0: "", 1: "", 2: ""}
    async for chunk in await client.chat.completions.create(
        model="fake", messages=ASK, max_tokens=12, n=3, seed=5, stream=True
    ):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert list(texts.values()) == first


async def test_chat_logprobs(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="fake", messages=ASK, max_tokens=30, temperature=0, logprobs=True, top_logprobs=3
    )
    block = answer.choices[0].logprobs
    assert block is not None and block.content is not None and len(block.content) == 30
    raw = b"".join(bytes(token.bytes or []) for token in block.content)
    assert raw.decode(errors="replace") == answer.choices[0].message.content
    assert all(len(token.top_logprobs) == 3 and token.logprob == -0.1 for token in block.content)
    streamed = 0
    async for chunk in await client.chat.completions.create(
        model="fake", messages=ASK, max_tokens=30, temperature=0, logprobs=True, stream=True
    ):
        logprobs = chunk.choices[0].logprobs
        streamed += len(logprobs.content or []) if logprobs else 0
    assert streamed == 30


async def test_parameters_reach_the_engine(client: openai.AsyncOpenAI, fake: Fake) -> None:
    await client.chat.completions.create(
        model="fake",
        messages=[{"role": "developer", "content": "be kind"}, *ASK],
        max_tokens=8,
        temperature=0.5,
        top_p=0.9,
        presence_penalty=1,
        frequency_penalty=-1,
        logit_bias={"5": 7},
        seed=9,
        user="somebody",
        extra_body={"top_k": 4, "min_p": 0.1, "repetition_penalty": 1.1, "ignore_eos": True, "min_tokens": 3}
        | {"stop_token_ids": [11], "whatever": {"unknown": [1]}},
    )
    params = fake.executor.batches[0].rows[0].params
    assert (params.temperature, params.top_p, params.top_k, params.min_p, params.seed) == (0.5, 0.9, 4, 0.1, 9)
    assert (params.presence_penalty, params.frequency_penalty, params.repetition_penalty) == (1, -1, 1.1)
    assert params.logit_bias == {5: 7.0} and params.ignore_eos and params.min_tokens == 3
    assert params.stop_token_ids == frozenset([11])
    text = fake.model.tokenizer.decode(fake.executor.batches[0].rows[0].tokens)
    assert text.startswith("<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nhello<|im_end|>")


async def test_completions_echo_as_lm_eval_asks(client: openai.AsyncOpenAI, fake: Fake) -> None:
    ids = fake.model.tokenizer.encode("the quick brown fox 😀")
    both = [ids, ids[:4]]
    answer = await client.completions.create(
        model="fake", prompt=both, max_tokens=1, logprobs=1, echo=True, temperature=0, seed=1234
    )
    for choice, prompt in zip(answer.choices, both, strict=True):
        block = choice.logprobs
        assert block is not None and block.tokens and block.token_logprobs and block.top_logprobs and block.text_offset
        assert len(block.tokens) == len(prompt) + 1 == len(block.token_logprobs) == len(block.text_offset)
        assert block.token_logprobs[0] is None and block.top_logprobs[0] is None
        for logprob, top in zip(block.token_logprobs[1:], block.top_logprobs[1:], strict=True):
            assert logprob == max(top.values())
        assert block.text_offset == sorted(block.text_offset)
        assert choice.text.startswith(fake.model.tokenizer.decode(prompt))
    assert answer.usage is not None and answer.usage.prompt_tokens == len(ids) + 4
    streamed = ""
    async for chunk in await client.completions.create(
        model="fake", prompt="the quick", max_tokens=5, echo=True, temperature=0, stream=True
    ):
        streamed += chunk.choices[0].text
    assert streamed.startswith("the quickHell")


async def test_echo_without_new_tokens(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(model="fake", prompt="the fox", max_tokens=0, echo=True, logprobs=0)
    assert answer.choices[0].text == "the fox" and answer.choices[0].finish_reason == "length"
    block = answer.choices[0].logprobs
    assert block is not None and block.tokens and "".join(block.tokens) == "the fox"
    assert answer.usage is not None and answer.usage.completion_tokens == 0


async def test_several_text_prompts(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(model="fake", prompt=["One", "Two"], max_tokens=2, temperature=0, n=2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]


async def test_text_offsets_point_into_the_text(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(
        model="fake", prompt="x", max_tokens=40, temperature=0, logprobs=2, stop=["42"]
    )
    choice = answer.choices[0]
    assert choice.logprobs is not None and choice.logprobs.text_offset and choice.logprobs.tokens
    for offset, token in zip(choice.logprobs.text_offset, choice.logprobs.tokens, strict=True):
        if not token.startswith("bytes:"):
            assert choice.text[offset:].startswith(token) or len(choice.text) < offset + len(token)


@pytest.mark.parametrize("stream", [True, False])
async def test_prompt_over_the_context(client: openai.AsyncOpenAI, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.completions.create(model="fake", prompt=[5] * 900, max_tokens=1, stream=stream)  # pyright: ignore
    assert caught.value.code == "context_length_exceeded" and caught.value.param == "prompt"
    assert "900" in caught.value.message and "512" in caught.value.message
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model="fake", messages=ASK, max_tokens=512)
    assert caught.value.code == "context_length_exceeded" and caught.value.param == "max_tokens"


async def test_a_model_without_a_template_names_completions() -> None:
    async with fake_runner(template=None) as fake:
        client = openai.AsyncOpenAI(base_url=f"{fake.url}/v1", api_key="launch-secret", max_retries=0)
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(model="fake", messages=ASK)
        assert "/v1/completions" in caught.value.message and caught.value.param == "messages"
        await client.close()


async def test_engine_failure_is_a_status_or_an_event(client: openai.AsyncOpenAI, fake: Fake) -> None:
    fake.executor.fail_on = lambda _batch: RuntimeError("device lost")
    with pytest.raises(openai.InternalServerError) as caught:
        await client.chat.completions.create(model="fake", messages=ASK, max_tokens=5)
    assert caught.value.code == "engine_error"
    steps = len(fake.executor.batches)
    fake.executor.fail_on = lambda _batch: (
        RuntimeError("device lost") if len(fake.executor.batches) > steps + 5 else None
    )
    fake.executor.step_delay_s = 0.01
    seen = 0
    with pytest.raises(openai.APIError, match="device lost"):
        async for _ in await client.chat.completions.create(model="fake", messages=ASK, max_tokens=50, stream=True):
            seen += 1
    assert seen
    fake.executor.fail_on = None
    assert (await client.chat.completions.create(model="fake", messages=ASK, max_tokens=5)).choices


class _All(set[str]):
    def __contains__(self, _: object) -> bool:
        return True


async def test_a_model_whose_numbers_break_is_named_and_not_asked_again(client: openai.AsyncOpenAI, fake: Fake) -> None:
    fake.executor.broken_ids = _All()
    with pytest.raises(openai.InternalServerError) as caught:
        await client.completions.create(model="fake", prompt="az", max_tokens=5)
    assert caught.value.code == "numerical_error" and caught.value.response.headers["x-should-retry"] == "false"
    fake.executor.broken_ids = set()
    assert (await client.completions.create(model="fake", prompt="ab", max_tokens=5)).choices


async def test_a_client_that_leaves_is_aborted() -> None:
    async with fake_runner(max_model_len=4096, step_delay_s=0.005) as fake:
        client = openai.AsyncOpenAI(base_url=f"{fake.url}/v1", api_key="launch-secret", max_retries=0)
        stream = await client.chat.completions.create(
            model="fake", messages=ASK, max_tokens=4000, stream=True, extra_body={"ignore_eos": True}
        )
        await anext(aiter(stream))
        waiting = asyncio.create_task(
            client.chat.completions.create(model="fake", messages=ASK, max_tokens=4000, extra_body={"ignore_eos": True})
        )
        await until(lambda: fake.model.engine.stats.running == 2)
        await stream.close()
        waiting.cancel()
        await until(lambda: not fake.model.engine.in_flight and not fake.model.engine.stats.running)
        await client.close()
        assert fake.service.busy == 0


async def test_a_slow_reader_holds_nobody_up(client: openai.AsyncOpenAI, fake: Fake) -> None:
    slow = await client.chat.completions.create(model="fake", messages=ASK, max_tokens=300, temperature=0, stream=True)
    quick = await client.chat.completions.create(model="fake", messages=ASK, max_tokens=300, temperature=0)
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in slow])
    assert text == quick.choices[0].message.content
