"""The OpenAI requests Ebb understands (chat and legacy completions), parsed strictly and written again for forwarding.

Gateway and runner both parse with this, so a request that the gateway let through means the same to the runner.
Knows nothing of tokens, templates or HTTP servers: a limit that needs the model (context, vocabulary) is the runner's.
"""

import re
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, field

from data_plane.wire.errors import ApiError, invalid

MAX_CHOICES = 16
MAX_PROMPTS = 64
MAX_SEQUENCES = 128
"""Prompts times choices of one request: each is a sequence of its own in the engine."""

_INT32_MAX = 2**31 - 1

Unit = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
TokenId = Annotated[int, Meta(ge=0, le=_INT32_MAX)]
Tokens = Annotated[int, Meta(ge=1, le=_INT32_MAX)]
TokensOrNone = Annotated[int, Meta(ge=0, le=_INT32_MAX)]
StopText = Annotated[str, Meta(min_length=1, max_length=1024)]
Choices = Annotated[int, Meta(ge=1, le=MAX_CHOICES)]
TopLogprobs = Annotated[int, Meta(ge=0, le=20)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
ShortText = Annotated[str, Meta(max_length=256)]
LongText = Annotated[str, Meta(max_length=1024)]
Role = Literal["system", "developer", "user", "assistant", "tool", "function"]


class StreamOptions(msgspec.Struct, frozen=True, omit_defaults=True):
    """`include_usage`: one last chunk with the usage. `continuous_usage_stats`: the usage so far on every chunk."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class TemplateArguments(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """The only variables a request may hand to a chat template, by type; any other could change what the text means."""

    enable_thinking: bool | None = None
    thinking: bool | None = None


class ContentPart(msgspec.Struct, frozen=True, omit_defaults=True):
    """A part of a message's content. Only `text` is understood; the rest is refused by name."""

    type: ShortText
    text: str | None = None


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message of a chat; `content` may be null only where the role is assistant."""

    role: Role
    content: str | Annotated[list[ContentPart], Meta(max_length=2048)] | None = None
    name: ShortText | None = None
    tool_call_id: ShortText | None = None
    tool_calls: Any = None
    function_call: Any = None

    @property
    def text(self) -> str:
        """The content as one text: parts are joined without anything between them."""
        if isinstance(self.content, list):
            return "".join(part.text or "" for part in self.content)
        return self.content or ""


class GenerationRequest(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What chat and completions have in common. None means that the client left it to us."""

    model: ShortText | None = None
    stream_flag: bool | None = field(name="stream", default=None)
    stream_options: StreamOptions | None = None
    n: Choices | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=_INT32_MAX)] | None = None
    min_p: Unit | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: StopText | Annotated[list[StopText], Meta(max_length=4)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=100)] | None = None
    logit_bias: Annotated[dict[str, Bias], Meta(max_length=300)] | None = None
    ignore_eos: bool | None = None
    min_tokens: TokensOrNone | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=64)] | None = None
    skip_special_tokens: bool | None = None
    priority: Annotated[int, Meta(ge=-(2**31), le=_INT32_MAX)] | None = None
    """Lower goes first; 0 where the client does not say."""
    return_token_ids: bool | None = None
    cache_salt: Annotated[str, Meta(pattern="^[A-Za-z0-9_-]{1,64}$")] | None = None
    prompt_cache_key: LongText | None = None
    user: LongText | None = None
    """Whose request it is, in the client's words: like `prompt_cache_key` it keeps requests on one replica."""

    @property
    def stream(self) -> bool:
        """Whether the answer is a stream of events."""
        return bool(self.stream_flag)

    @property
    def choices(self) -> int:
        """How many answers per prompt."""
        return self.n or 1

    @property
    def stop_texts(self) -> list[str]:
        """The texts that end an answer: none, one or up to four."""
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else self.stop

    @property
    def bias(self) -> dict[int, float]:
        """`logit_bias` by token id."""
        return {int(key): value for key, value in (self.logit_bias or {}).items()}


class ChatRequest(GenerationRequest, kw_only=True, omit_defaults=True):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=2048)]
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    chat_template_kwargs: TemplateArguments | None = None
    tools: Any = None
    tool_choice: Any = None
    functions: Any = None
    function_call: Any = None
    response_format: Any = None
    modalities: Any = None
    audio: Any = None
    web_search_options: Any = None
    chat_template: Any = None
    structured_outputs: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None

    @property
    def limit(self) -> int | None:
        """The most tokens to make; the newer of the two names wins. None: as many as the context has room for."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class CompletionRequest(GenerationRequest, kw_only=True, omit_defaults=True):
    """POST /v1/completions. `prompts` gives the prompt's four forms as one list."""

    prompt: str | Annotated[list[str | TokenId | list[TokenId]], Meta(min_length=1)]
    max_tokens: TokensOrNone | None = None
    logprobs: TopLogprobs | None = None
    echo: bool | None = None
    best_of: Choices | None = None
    suffix: Any = None
    prompt_embeds: Any = None
    response_format: Any = None
    structured_outputs: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """One entry per prompt: a text, or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        ids = [item for item in self.prompt if isinstance(item, int)]
        return [ids] if ids else [item for item in self.prompt if not isinstance(item, int)]

    @property
    def limit(self) -> int:
        """The most tokens to make; 16 where the client does not say, as the API always had it."""
        return 16 if self.max_tokens is None else self.max_tokens


_CHAT = msgspec.json.Decoder(ChatRequest)
_COMPLETION = msgspec.json.Decoder(CompletionRequest)
_ENCODER = msgspec.json.Encoder()
T = TypeVar("T")

# Values of otherwise unsupported fields that ask for nothing; None always does.
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"], []),
    "audio": (),
    "web_search_options": (),
    "chat_template": (),
    "suffix": ("",),
    "prompt_embeds": (),
    "structured_outputs": ({},),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
}


def parse_chat(raw: bytes) -> ChatRequest:
    """The request in `raw`; ApiError 400 naming the field where there is a fault in it."""
    request = decode(raw, _CHAT)
    for index, message in enumerate(request.messages):
        check_message(message, f"messages[{index}]")
    if request.top_logprobs and not request.logprobs:
        raise invalid("'top_logprobs' needs 'logprobs': true.", "top_logprobs", "invalid_value")
    _check_common(request)
    return request


def parse_completion(raw: bytes) -> CompletionRequest:
    """The request in `raw`; ApiError 400 naming the field where there is a fault in it."""
    request = decode(raw, _COMPLETION)
    _check_prompt(request)
    _check_common(request)
    if request.best_of is not None and request.best_of != request.choices:
        raise invalid(
            f"'best_of' ({request.best_of}) must equal 'n' ({request.choices}): choosing the best of more is not "
            "supported yet.",
            "best_of",
            "unsupported_parameter" if request.best_of > request.choices else "invalid_value",
        )
    return request


def encode(request: ChatRequest | CompletionRequest) -> bytes:
    """The request as JSON again, for forwarding: only what was understood, and nothing that was left out."""
    return _ENCODER.encode(request)


def decode(raw: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """JSON to a struct, with every fault as an ApiError 400."""
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        raise invalid(
            f"The body is not UTF-8: byte {error.start} is wrong. Send JSON in UTF-8.",
            _field_before(raw, error.start),
            "invalid_encoding",
        ) from error
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError as error:
        raise _from_validation(str(error)) from error
    except msgspec.DecodeError as error:
        place = _BYTE.search(str(error))
        field = _field_before(raw, int(place.group(1)) if place else len(raw))
        raise invalid(f"The body is not JSON: {error}.", field, "invalid_json") from error
    except RecursionError as error:
        raise invalid("The body is nested too deeply.", _deep_field(raw), "invalid_json") from error


_BYTE = re.compile(r"\(byte ([0-9]+)\)")
_KEY = re.compile(rb'"([A-Za-z_]{1,40})"\s*:')
_MARK = re.compile(rb'"((?:[^"\\]|\\.)*)"(\s*:)?|[\[\]{}]')
_LOOK_AT = 65_536
_LOOK_BACK = 4096


def _field_before(raw: bytes, position: int) -> str | None:
    """The key that stands last before a fault in the JSON, for people to find it by; None where none is near."""
    keys = _KEY.findall(raw, max(0, position - _LOOK_BACK), position)
    return keys[-1].decode() if keys else None


def _deep_field(raw: bytes) -> str | None:
    """The field of the body that is nested more than 64 deep; None where it does not begin to be near the front."""
    field, depth = None, 0
    for mark in _MARK.finditer(raw, 0, _LOOK_AT):
        if mark[0] in b"[{":
            depth += 1
        elif mark[0] in b"]}":
            depth -= 1
        elif mark[2] and depth == 1:
            field = mark[1][:40].decode(errors="replace")
        if depth > 64:
            return field
    return None


_AT = re.compile(r" - at `(?:key in )?\$\.?([^`]*)`$")
_MISSING = re.compile(r"Object missing required field `([^`]+)`")
_UNKNOWN = re.compile(r"Object contains unknown field `([^`]+)`")


def _from_validation(text: str) -> ApiError:
    place = _AT.search(text)
    path = place.group(1).replace("[...]", "") if place else ""
    what = text[: place.start()] if place else text
    missing = _MISSING.match(what)
    if missing:
        name = f"{path}.{missing.group(1)}" if path else missing.group(1)
        return invalid(f"Missing required parameter: '{name}'.", name, "missing_required_parameter")
    unknown = _UNKNOWN.match(what)
    if unknown:
        name = f"{path}.{unknown.group(1)}" if path else unknown.group(1)
        return invalid(f"'{name}' is not supported.", name, "unknown_parameter")
    code = "invalid_type" if ", got `" in what else "invalid_value"
    detail = what.replace("`", "'")
    detail = detail[:1].lower() + detail[1:]
    if not path:
        return invalid(f"The body must be a JSON object of the request's fields: {detail}.", code=code)
    return invalid(f"Invalid value for '{path}': {detail}.", path, code)


def check_message(message: Message, path: str) -> None:
    """ApiError 400 for what a message may not hold; `path` is how the answer names it."""
    for name in ("tool_calls", "function_call"):
        if getattr(message, name):
            raise _unsupported(f"{path}.{name}")
    if message.content is None and message.role != "assistant":
        raise invalid(
            f"'{path}.content' must be a text or a list of parts: only an assistant's may be null.",
            f"{path}.content",
            "invalid_type",
        )
    if not isinstance(message.content, list):
        return
    for index, part in enumerate(message.content):
        where = f"{path}.content[{index}]"
        if part.type != "text":
            raise invalid(
                f"Content parts of type '{part.type}' are not supported yet: send 'text'.",
                f"{where}.type",
                "unsupported_parameter",
            )
        if part.text is None:
            raise invalid(f"Missing required parameter: '{where}.text'.", f"{where}.text", "missing_required_parameter")


def _check_prompt(request: CompletionRequest) -> None:
    prompt = request.prompt
    if isinstance(prompt, str):
        return
    kinds = {type(item) for item in prompt}
    if len(kinds) > 1:
        raise invalid(
            "'prompt' must be one of: a text, texts, token ids, lists of token ids. This list mixes them.",
            "prompt",
            "invalid_type",
        )
    count = len(request.prompts)
    if count > MAX_PROMPTS:
        raise invalid(f"'prompt' has {count} prompts; at most {MAX_PROMPTS} are allowed.", "prompt", "invalid_value")
    if count * request.choices > MAX_SEQUENCES:
        raise invalid(
            f"{count} prompts times n={request.choices} are more than {MAX_SEQUENCES} sequences: send fewer at once.",
            "n",
            "invalid_value",
        )


def _check_common(request: GenerationRequest) -> None:
    for name, harmless in _HARMLESS.items():
        value = getattr(request, name, None)
        if value is not None and value not in harmless:
            raise _unsupported(name)
    if request.stream_options is not None and not request.stream:
        raise invalid("'stream_options' is only allowed with 'stream': true.", "stream_options", "invalid_value")
    for key in request.logit_bias or {}:
        if not (key.isascii() and key.isdigit() and len(key) <= 10):
            raise invalid(f"'logit_bias' is keyed by token ids, not {key[:32]!r}.", "logit_bias", "invalid_value")


def _unsupported(name: str) -> ApiError:
    return invalid(f"'{name}' is not supported yet. Leave it out.", name, "unsupported_parameter")
