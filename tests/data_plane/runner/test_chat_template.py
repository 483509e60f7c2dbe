"""Templates are programs of strangers: what they may not do, and that nothing of it takes long."""

import time

import jinja2
import pytest

from data_plane.runner.chat_template import ChatTemplate
from data_plane.wire.errors import ApiError

HELLO = [{"role": "user", "content": "hello"}]
LONG_LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
DOUBLING = "{% set n = namespace(x='aaaaaaaaaa') %}{% for i in range(99) %}{% set n.x = n.x OP n.x %}{% endfor %}"


@pytest.mark.parametrize(
    "source",
    [
        LONG_LOOP,
        "{% for i in range(10000000) %}{% endfor %}",
        "{% for i in range(99999) %}aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa{% endfor %}",
        "{{ 'a' * 1000000000 }}",
        "{{ 1000000000 * 'a' }}",
        "{{ [1] * 1000000000 }}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ 'a'.ljust(1000000000) }}",
        "{{ 'a'.__class__.__mro__ }}",
        "{{ ('a' * 99999).replace('a', 'b' * 99999) }}",
        "{{ ('a' * 99999) | replace('a', 'b' * 99999) }}",
        "{{ messages.append(1) }}",
        "{{ nothing.x.y }}",
        "{% include 'x' %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ raise_exception.__globals__['sys'] }}",
        "{{ 1 / 0 }}",
        DOUBLING.replace("OP", "~"),
        DOUBLING.replace("OP", "+"),
    ],
)
def test_bounds(source: str) -> None:
    began = time.monotonic()
    with pytest.raises(ApiError) as caught:
        ChatTemplate(source, {}).render(HELLO, {})
    assert caught.value.status == 400 and caught.value.body.param == "messages"
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    "source",
    [
        "{% for %}",
        "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
        "{{ " + "[" * 150 + "]" * 150 + " }}",
        "{% for x in messages %}" * 30 + "{% endfor %}" * 30,
        "{% if x %}" * 500 + "{% endif %}" * 500,
    ],
)
def test_what_does_not_compile_is_the_templates_error(source: str) -> None:
    # the runner serves on without it: completions need no template
    with pytest.raises(jinja2.TemplateError):
        ChatTemplate(source, {})


def test_a_template_may_refuse() -> None:
    with pytest.raises(ApiError, match="roles must alternate"):
        ChatTemplate("{{ raise_exception('roles must alternate') }}", {}).render(HELLO, {})


def test_what_templates_use() -> None:
    source = (
        "{{ bos_token }}{% generation %}{{ messages[0].content | trim | upper }}{% endgeneration %}"
        "{{ messages | tojson }}{{ 'a' ~ 1 ~ 'b' }}{{ strftime_now('%Y') | length }}"
        "{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}"
        "{{ 'xay'.replace('a', 'b') }}{{ enable_thinking }}{{ 'a b'.split(' ')[-1] }}"
    )
    text = ChatTemplate(source, {"bos_token": "<s>"}).render(HELLO, {"enable_thinking": False})
    assert text == '<s>HELLO[{"role": "user", "content": "hello"}]a1b401xbyFalseb'
