"""POST /tokenize and /detokenize, GET /tokenizer_info: the tokenizer for those who count or cut outside."""

from typing import Annotated

import msgspec
from aiohttp import web
from msgspec import Meta

from data_plane.runner.requests import check_tokens
from data_plane.runner.served import ServedModel
from data_plane.wire.errors import invalid
from data_plane.wire.openai import ChatRequest, Message, TemplateArguments, TokenId, check_message, decode


class TokenizeRequest(msgspec.Struct, frozen=True):
    """Either a prompt or messages. `parse_special`: control tokens spelled out in the prompt are meant."""

    prompt: str | None = None
    messages: Annotated[list[Message], Meta(min_length=1, max_length=2048)] | None = None
    add_special_tokens: bool | None = None
    parse_special: bool | None = None
    return_token_strs: bool | None = None
    chat_template_kwargs: TemplateArguments | None = None


class DetokenizeRequest(msgspec.Struct, frozen=True):
    """Token ids of a text."""

    tokens: list[TokenId]


_TOKENIZE = msgspec.json.Decoder(TokenizeRequest)
_DETOKENIZE = msgspec.json.Decoder(DetokenizeRequest)


async def tokenize(http: web.Request, served: ServedModel) -> web.Response:
    """The tokens of a prompt, or of messages as the chat template renders them."""
    request = decode(await http.read(), _TOKENIZE)
    if (request.prompt is None) == (request.messages is None):
        raise invalid("Send either 'prompt' or 'messages'.", "prompt", "missing_required_parameter")
    if request.messages is not None:
        for index, message in enumerate(request.messages):
            check_message(message, f"messages[{index}]")
        chat = ChatRequest(messages=request.messages, chat_template_kwargs=request.chat_template_kwargs)
        tokens = (await served.encode_chat(chat, "")).tokens
    else:
        tokens = await served.encode_text(
            request.prompt or "",
            add_special_tokens=request.add_special_tokens is not False,
            parse_special=bool(request.parse_special),
        )
    answer: dict[str, object] = {"tokens": tokens, "count": len(tokens), "max_model_len": served.max_model_len}
    if request.return_token_strs:
        answer["token_strs"] = [served.tokenizer.token_bytes(token).decode(errors="replace") for token in tokens]
    return web.Response(body=msgspec.json.encode(answer), content_type="application/json")


async def detokenize(http: web.Request, served: ServedModel) -> web.Response:
    """The text of tokens."""
    request = decode(await http.read(), _DETOKENIZE)
    check_tokens(served, request.tokens, "tokens")
    text = await served.off_loop(lambda: served.tokenizer.decode(request.tokens))
    return web.Response(body=msgspec.json.encode({"prompt": text}), content_type="application/json")


async def tokenizer_info(_http: web.Request, served: ServedModel) -> web.Response:
    """The names of its special tokens, and the chat template."""
    config = served.tokenizer.config
    answer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": config.bos_token,
        "eos_token": config.eos_token,
        "pad_token": config.pad_token,
        "unk_token": config.unk_token,
        "add_bos_token": served.tokenizer.adds_bos,
        "eos_token_ids": config.eos_token_ids,
        "chat_template": config.chat_template,
        "model_max_length": served.max_model_len,
        "vocab_size": served.vocab_size,
    }
    return web.Response(body=msgspec.json.encode(answer), content_type="application/json")
