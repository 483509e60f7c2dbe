"""The one model a runner serves, as request handlers see it: its limits, its tokenizer, its template and its engine."""

import asyncio
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from data_plane.runner.chat_template import ChatTemplate
from data_plane.runner.engine_loop import EngineLoop
from data_plane.runner.metrics import Metrics
from data_plane.runner.tokenizer import Tokenizer
from data_plane.wire.errors import invalid
from data_plane.wire.openai import Message, TemplateArguments

T = TypeVar("T")

INLINE_TEXT = 2048
"""Texts up to so many characters are encoded at once (under 1 ms); longer ones in a thread, off the event loop."""


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
    created: int = field(default_factory=lambda: int(time.time()))
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(4, thread_name_prefix="text"))

    async def encode_chat(self, messages: list[Message], arguments: TemplateArguments | None) -> list[int]:
        """The prompt of a chat. ApiError 400 where the model has no template or it refuses these messages."""
        return await self.off_loop(lambda: self._encode_chat(messages, arguments))

    async def encode_text(
        self, text: str, *, add_special_tokens: bool = True, parse_special: bool = False
    ) -> list[int]:
        """The prompt of a completion."""

        def encode() -> list[int]:
            return self.tokenizer.encode(text, add_special_tokens=add_special_tokens, parse_special=parse_special)

        return encode() if len(text) <= INLINE_TEXT else await self.off_loop(encode)

    async def off_loop(self, work: Callable[[], T]) -> T:
        """Runs something that takes long, or that a stranger wrote, in a thread of our own."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, work)

    def _encode_chat(self, messages: list[Message], arguments: TemplateArguments | None) -> list[int]:
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
        return self.tokenizer.encode_rendered(text, hidden)
