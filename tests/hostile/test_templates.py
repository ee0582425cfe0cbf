"""Chat templates that look for a way out of their sandbox. Those that only eat are in `test_served`."""

import datetime

import pytest

from worker.data.template import ChatTemplate, TemplateError

MESSAGES = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "It is 4."}]

# Ways out of a sandbox: each is refused while it is rendered or already compiled, and none gets to what it names.
WALKS = [
    "{{ ''.__class__ }}",
    "{{ messages.__class__.__base__.__subclasses__() }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ joiner.__init__.__globals__['os'] }}",
    "{{ lipsum.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ dict.__init__.__globals__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__self__.__class__ }}",
    "{{ self.__init__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ ''['__class__']['__mro__'] }}",
    "{{ ''|attr('__class__') }}",
    "{{ messages|map(attribute='__class__')|list }}",
    "{{ '%s'|format(messages.__class__) }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(cycler) }}",
    "{{ '{m.__class__}'.format_map({'m': messages}) }}",
    "{% set f = '{0.__class__.__mro__}'.format %}{{ f('') }}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "{{ namespace(**{'__class__': 1}).__class__ }}",
    "{% for c in [].__class__.__mro__ %}{{ c }}{% endfor %}",
    "{{ messages.append({}) }}",
    "{{ messages[0].update({}) }}",
    "{{ messages[0].pop('role') }}",
    "{% include 'x' %}",
    "{% import 'x' as x %}",
    "{% extends 'x' %}",
    "{{ range(10 ** 9) }}",
    "{{ (messages|groupby('__class__'))[0] }}",
    "{{ messages|sort(attribute='__class__.__name__') }}",
    "{{ messages|selectattr('__class__')|list }}",
    "{{ caller.__globals__ }}",
    "{{ loop.__class__ }}",
    "{{ get_flashed_messages.__globals__ }}",
    "{{ [].__reduce_ex__(2) }}",
    "{{ (1).__class__.__bases__ }}",
    "{{ messages.__getattribute__('__class__') }}",
    "{% macro m() %}{% endmacro %}{{ m.__globals__ }}",
    "{% macro m() %}{% endmacro %}{{ m._func.__code__ }}",
    "{% generation %}{{ self.__class__ }}{% endgeneration %}",
]
_GAINED = ("<class", "<function", "<module", "object at 0x", "__builtins__", "subclasses", "<built-in")


@pytest.mark.parametrize("source", WALKS)
def test_no_way_out_of_the_sandbox(source: str) -> None:
    messages = [dict(message) for message in MESSAGES]
    try:
        template = ChatTemplate(source, special_tokens={}, rendering_date=datetime.date(2026, 1, 2))
        text = template.render(messages)
    except TemplateError as refused:
        text = str(refused)
    assert not any(word in text for word in _GAINED), text
    assert messages == MESSAGES
