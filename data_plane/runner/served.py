"""The one model a runner serves, as request handlers see it: its limits, its tokenizer, its template and its engine."""

import asyncio
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from data_plane.engine.prefix_cache import Labels
from data_plane.runner.chat_template import ChatTemplate
from data_plane.runner.engine_loop import EngineLoop
from data_plane.runner.labels import label_chat, label_ids, label_text
from data_plane.runner.metrics import Metrics
from data_plane.runner.tokenizer import Encoded, Tokenizer
from data_plane.wire.errors import invalid
from data_plane.wire.openai import ChatRequest, Message, TemplateArguments
from data_plane.wire.prefix_chain import chain_of_pieces, chain_of_prompt, pieces_of

T = TypeVar("T")

INLINE_TEXT = 2048
"""Texts up to so many characters are encoded at once (under 1 ms); longer ones in a thread, off the event loop."""


@dataclass(frozen=True)
class Prompt:
    """`labels`: the names of its beginnings (`prefix_chain`), by the number of the KV block that completes them."""

    tokens: list[int]
    labels: Labels | None = None


@dataclass(frozen=True)
class ServedModel:
    """`name` is what answers call the model. Lengths are in tokens; `created` in Unix seconds."""

    name: str
    max_model_len: int
    vocab_size: int
    tokenizer: Tokenizer
    template: ChatTemplate | None
    engine: EngineLoop
    metrics: Metrics
    slots: int = 1
    """Requests that run at once."""
    created: int = field(default_factory=lambda: int(time.time()))
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(4, thread_name_prefix="text"))

    async def encode_chat(self, request: ChatRequest, tenant: str) -> Prompt:
        """The prompt of a chat. ApiError 400 where the model has no template or it refuses these messages."""
        prompt, size = await self.off_loop(lambda: self._encode_chat(request, tenant))
        self.engine.journal.measured(size, len(prompt.tokens))
        return prompt

    async def encode_prompt(self, prompt: str | list[int], tenant: str, cache_salt: str | None) -> Prompt:
        """The prompt of a completion, a text or token ids."""
        block_size = self.engine.stats.block_size
        if not isinstance(prompt, str):
            return Prompt(prompt, label_ids(chain_of_prompt(prompt, tenant, cache_salt), block_size))

        def encode() -> Prompt:
            encoded = self.tokenizer.encode_placed(prompt)
            chain = chain_of_prompt(prompt, tenant, cache_salt)
            return Prompt(encoded.ids, label_text(chain, encoded.ends(), block_size) if chain.names else None)

        made = encode() if len(prompt) <= INLINE_TEXT else await self.off_loop(encode)
        self.engine.journal.measured(len(prompt), len(made.tokens))
        return made

    async def encode_text(
        self, text: str, *, add_special_tokens: bool = True, parse_special: bool = False
    ) -> list[int]:
        """The tokens of a text."""

        def encode() -> list[int]:
            return self.tokenizer.encode(text, add_special_tokens=add_special_tokens, parse_special=parse_special)

        return encode() if len(text) <= INLINE_TEXT else await self.off_loop(encode)

    async def off_loop(self, work: Callable[[], T]) -> T:
        """Runs something that takes long, or that a stranger wrote, in a thread of our own."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, work)

    def _encode_chat(self, request: ChatRequest, tenant: str) -> tuple[Prompt, int]:
        """The prompt, and how many characters the client's text has."""
        encoded = self._encode_messages(request.messages, request.chat_template_kwargs)
        pieces = pieces_of(request)
        chain = chain_of_pieces(pieces, tenant, request.cache_salt)
        if not chain.names:
            return Prompt(encoded.ids), chain.size
        labels = label_chat(chain, pieces, encoded.text, encoded.ends(), self.engine.stats.block_size)
        return Prompt(encoded.ids, labels), chain.size

    def _encode_messages(self, messages: list[Message], arguments: TemplateArguments | None) -> Encoded:
        if self.template is None:
            raise invalid(
                f"The model '{self.name}' has no chat template, so it cannot take messages. Use /v1/completions.",
                "messages",
                "no_chat_template",
            )
        mark = secrets.token_hex(8)
        hidden: dict[str, str] = {}
        shown: list[dict[str, Any]] = []
        for index, message in enumerate(messages):
            content, found = self.tokenizer.protect(message.text, f"{mark}:{index}:")
            hidden |= found
            # models know the older name of this role
            role = "system" if message.role == "developer" else message.role
            one: dict[str, Any] = {"role": role, "content": content}
            for key, value in (("name", message.name), ("tool_call_id", message.tool_call_id)):
                if value is not None:
                    one[key], found = self.tokenizer.protect(value, f"{mark}:{index}:{key}:")
                    hidden |= found
            shown.append(one)
        given = {"enable_thinking": arguments.enable_thinking, "thinking": arguments.thinking} if arguments else {}
        text = self.template.render(shown, {key: value for key, value in given.items() if value is not None})
        return self.tokenizer.encode_rendered_placed(text, hidden)
