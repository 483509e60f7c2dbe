"""Renders a model's chat template, which is a program from the model's author: sandboxed, bounded and without files.

Jinja's immutable sandbox without a loader; a render may take so many steps and make so much text, and no more.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from types import FrameType
from typing import Any, NoReturn, cast

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from data_plane.wire.errors import ApiError, invalid

TIME_LIMIT_S = 1.0
RANGE_LIMIT = 100_000
SIZE_LIMIT = 32_000_000
"""Characters of any value that a template makes: three times the largest body."""
OUTPUT_SLACK = 65_536
"""What a template itself may add to twice the messages' text, in characters."""


class TemplateRefused(Exception):
    """The template called `raise_exception`: these messages are not for this model."""


class TemplateTooCostly(Exception):
    """A render went over one of its bounds."""


class _Generator(CodeGenerator):
    """Compiles `~` to a call of ours: Jinja's own would join texts of any size."""

    def visit_Concat(self, node: nodes.Concat, frame: Any) -> None:
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _Sandbox(ImmutableSandboxedEnvironment):
    """Also bounds the operations by which one step can make a text or list of any size."""

    code_generator_class = _Generator
    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def joined(self, parts: Sequence[object]) -> str:
        """What `~` gives."""
        texts = [str(part) for part in parts]
        _bound(sum(map(len, texts)))
        return "".join(texts)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "+" and _is_sized(left) and _is_sized(right):
            _bound(len(left) + len(right))
        if operator == "*" and (_is_sized(left) or _is_sized(right)):
            _bound((len(left) if _is_sized(left) else left) * (len(right) if _is_sized(right) else right))
        if operator == "**" or (operator == "%" and isinstance(left, str)):
            raise TemplateTooCostly(f"the operation '{operator}' is not allowed in a chat template")
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, function: Any, *args: Any, **named: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        owner = getattr(function, "__self__", None)
        if isinstance(owner, str) and getattr(function, "__name__", "") == "replace":
            return _replace(owner, *args)
        return super().call(context, function, *args, **named)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str) and attr in _PADDING:
            return False
        return super().is_safe_attribute(obj, attr, value)


_PADDING = frozenset({"format", "format_map", "ljust", "rjust", "center", "zfill", "expandtabs", "translate"})
"""Methods of a text that make one of any length out of a number or a table."""

_UNBOUNDED_FILTERS = ("center", "format", "indent", "pprint", "xmlattr", "urlize", "wordwrap", "batch", "slice")


class _Generation(Extension):
    """`{% generation %}`, which marks the assistant's turns for training, means nothing here."""

    tags = {"generation"}  # noqa: RUF012  the base class declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """One model's template. TemplateError of jinja2 where the source does not parse."""

    def __init__(self, source: str, tokens: dict[str, str | None]) -> None:
        environment = _Sandbox(
            trim_blocks=True, lstrip_blocks=True, autoescape=False, loader=None, extensions=[loopcontrols, _Generation]
        )
        functions, filters = cast(dict[str, Any], environment.globals), cast(dict[str, Any], environment.filters)
        for name in ("lipsum", "cycler", "joiner"):
            del functions[name]
        for name in _UNBOUNDED_FILTERS:
            del filters[name]
        functions |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now, "range": _range}
        filters |= {"replace": _replace, "tojson": _tojson}
        try:
            self._template = environment.from_string(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            # Jinja compiles to Python, whose own compiler has limits: on nesting, above all
            raise jinja2.TemplateError(f"the template cannot be compiled: {str(error)[:200]}") from error
        self._tokens = {name: value or "" for name, value in tokens.items()}

    def render(self, messages: Sequence[dict[str, Any]], arguments: dict[str, Any]) -> str:
        """The text of these messages and of the answer's beginning. ApiError 400 where the template refuses them."""
        limit = OUTPUT_SLACK + 2 * sum(len(str(value)) for message in messages for value in message.values())
        variables = {**self._tokens, **arguments, "messages": list(messages), "add_generation_prompt": True}
        try:
            with _Deadline(TIME_LIMIT_S):
                return _join(self._template.generate(variables), limit)
        except TemplateRefused as error:
            raise invalid(f"The model's chat template refuses these messages: {error}", "messages") from error
        except TemplateTooCostly as error:
            raise invalid(
                f"The model's chat template costs too much with these messages: {error}. Send fewer or shorter ones.",
                "messages",
            ) from error
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, LookupError, ArithmeticError) as error:
            # a program that we did not write, on values that a client chose: whatever fails in it is about the two
            raise _not_rendered(error) from error
        except (RecursionError, MemoryError, AttributeError) as error:
            raise _not_rendered(error) from error


def _not_rendered(error: BaseException) -> ApiError:
    return invalid(f"The model's chat template cannot render these messages: {str(error)[:300]}", "messages")


def _join(pieces: Iterable[str], limit: int) -> str:
    parts: list[str] = []
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > limit:
            raise TemplateTooCostly(f"it made more than {limit} characters")
        parts.append(piece)
    return "".join(parts)


class _Deadline:
    """Ends whatever Python code the current thread runs inside it after `limit_s`, by a trace of its lines."""

    def __init__(self, limit_s: float) -> None:
        self._end = time.monotonic() + limit_s
        self._limit_s = limit_s
        self._before: Any = None

    def __enter__(self) -> None:
        self._before = sys.gettrace()
        sys.settrace(self._enter_frame)

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _enter_frame(self, frame: FrameType, _event: str, _arg: Any) -> Callable[..., Any] | None:
        # only the template's own code is watched line by line: loops in it are what could go on for ever
        return self._each_line if frame.f_code.co_filename == "<template>" else None

    def _each_line(self, _frame: FrameType, _event: str, _arg: Any) -> Callable[..., Any]:
        if time.monotonic() > self._end:
            raise TemplateTooCostly(f"it took more than {self._limit_s:g} s")
        return self._each_line


def _is_sized(value: Any) -> bool:
    return isinstance(value, str | bytes | list | tuple)


def _bound(size: int) -> None:
    if size > SIZE_LIMIT:
        raise TemplateTooCostly(f"a value of {size} characters is over {SIZE_LIMIT}")


def _replace(text: object, old: str, new: str, count: int = -1) -> str:
    text = str(text)
    hits = text.count(old) if count < 0 else min(count, text.count(old))
    _bound(len(text) + hits * len(new))
    return text.replace(old, new, hits)


def _raise_exception(message: object = "") -> NoReturn:
    raise TemplateRefused(str(message)[:500])


def _strftime_now(form: str) -> str:
    return time.strftime(form[:100])


def _range(*bounds: int) -> range:
    numbers = range(*bounds)
    if len(numbers) > RANGE_LIMIT:
        raise TemplateTooCostly(f"a range of {len(numbers)} is over {RANGE_LIMIT}")
    return numbers


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=None if indent is None else min(indent, 8))
