"""A runner's HTTP port over a fake executor: real sockets, real engine, a small byte-level tokenizer, no model.

The model says `SCRIPT` for greedy requests, and seeded noise of the same alphabet for others.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import msgspec
from aiohttp import web
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from data_plane.engine.batch import Row
from data_plane.engine.config import EngineConfig
from data_plane.engine.engine import Engine
from data_plane.runner.access import Access
from data_plane.runner.chat_template import ChatTemplate
from data_plane.runner.engine_loop import EngineLoop
from data_plane.runner.metrics import Metrics
from data_plane.runner.served import ServedModel
from data_plane.runner.server import Service, make_app
from data_plane.runner.tokenizer import Tokenizer, TokenizerConfig
from tests.fakes.executor import FakeExecutor, fake_token

SCRIPT = "Hello there, wörld 😀! The answer is 42. " * 20
TOKEN = "launch-secret"
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer(template: str | None = CHATML) -> Tokenizer:
    """Byte-level BPE with a few merges; ids 0 to 2 are <|endoftext|>, <|im_start|>, <|im_end|>."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=[AddedToken(text, special=True, normalized=False) for text in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([SCRIPT, "the quick brown fox jumps over the lazy dog " * 5], trainer)
    config = TokenizerConfig(
        bos_token="<|im_start|>", eos_token="<|im_end|>", add_bos_token=False, chat_template=template, eos_token_ids=[2]
    )
    return Tokenizer(backend.to_str().encode(), config)


@dataclass
class Fake:
    """A listening runner. `executor` may be changed while it runs."""

    service: Service
    model: ServedModel
    executor: FakeExecutor
    engine: Engine
    url: str = ""
    drains: list[int] = field(default_factory=list[int])

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {TOKEN}"}


def script(tokenizer: Tokenizer, engines: list[Engine]) -> FakeExecutor:
    """Says SCRIPT, or noise; `engines` has the one that runs it, by the time that it runs."""
    said = tokenizer.encode(SCRIPT)

    def choose(row: Row, position: int) -> int:
        made = position - engines[0].scheduler.requests[row.request_id].num_prompt
        if row.params.logit_bias:
            return max(row.params.logit_bias, key=lambda token: row.params.logit_bias[token])
        if row.params.temperature == 0:
            return said[made] if made < len(said) else 2
        return 3 + fake_token(row.seed, position, 300)

    return FakeExecutor(vocab_size=tokenizer.vocab_size, choose=choose)


@asynccontextmanager
async def fake_runner(
    *, max_model_len: int = 512, template: str | None = CHATML, access: Access | None = None, step_delay_s: float = 0.0
) -> AsyncGenerator[Fake]:
    """A runner on a free port of 127.0.0.1; at the end the engine's books are checked."""
    tokenizer = make_tokenizer(template)
    engines: list[Engine] = []
    executor = script(tokenizer, engines)
    executor.step_delay_s = step_delay_s
    config = EngineConfig(
        max_model_len=max_model_len, eos_token_ids=frozenset([2]), vocab_size=tokenizer.vocab_size, num_blocks=512
    )
    engine = Engine(config, executor)
    engines.append(engine)
    metrics = Metrics("fake")
    loop = EngineLoop(engine, on_step=metrics.step)
    metrics.watch(lambda: loop.stats)
    made = ChatTemplate(template, {"bos_token": "<|im_start|>"}) if template else None
    model = ServedModel("fake", max_model_len, tokenizer.vocab_size, tokenizer, made, loop, metrics)
    drains: list[int] = []
    service = Service(access or Access(TOKEN, None), lambda: drains.append(1), model=model)
    runner = web.AppRunner(make_app(service), access_log=None, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    loop.start()
    try:
        yield Fake(service, model, executor, engine, f"http://127.0.0.1:{runner.addresses[0][1]}", drains)
    finally:
        await runner.cleanup()
        loop.close()
        model.pool.shutdown()
        engine.check()


def events_of(text: str) -> list[dict[str, object] | str]:
    """The data of each event; `[DONE]` as text."""
    found: list[dict[str, object] | str] = []
    for block in text.split("\n\n"):
        if block.startswith("data: "):
            data = block.removeprefix("data: ")
            found.append(data if data == "[DONE]" else msgspec.json.decode(data, type=dict[str, object]))
    return found


async def until(true: Callable[[], bool], within_s: float = 10.0) -> None:
    """Waits until `true()`; TimeoutError where it does not come to be."""
    async with asyncio.timeout(within_s):
        while not true():  # noqa: ASYNC110  what is waited for has no event to offer
            await asyncio.sleep(0.01)
