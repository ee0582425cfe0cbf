import datetime
import json
from pathlib import Path

import pytest

from tests.unit.chat_bases import CHATML, CHATML_MARKED
from worker.data.template import MARK_PAIRS, ChatTemplate, TemplateError, load_template, special_tokens, take_marks

DAY = datetime.date(2026, 2, 3)
HI = [{"role": "user", "content": "Hi"}]
TALK = [*HI, {"role": "assistant", "content": " Hello "}, *HI, {"role": "assistant", "content": "Bye"}]


def template(source: str, **special: str) -> ChatTemplate:
    return ChatTemplate(source, special_tokens=special, rendering_date=DAY)


def load(directory: Path) -> ChatTemplate:
    found = load_template(directory, DAY)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ bos_token }}{{ messages[0].content }}", "<s>Hi"),
        ("{{ {'a': 'é<&>', 'b': [1]} | tojson }}", '{"a": "é<&>", "b": [1]}'),
        ("{{ {'b': 1, 'a': 2} | tojson(indent=2, sort_keys=true) }}", '{\n  "a": 2,\n  "b": 1\n}'),
        ("{{ strftime_now('%d %b %Y') }}", "03 Feb 2026"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{% set ns = namespace(n=1) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}", "2"),
        ("{{ dict(a=1) | tojson }}{{ dict.fromkeys(['x'], 0) | tojson }}", '{"a": 1}{"x": 0}'),
        ("a\n    {% if true %}b{% endif %}\nc", "a\nbc"),
        ("{% if tools is none %}\n    none\n{% endif %}", "    none\n"),
        ("{{ eos_token }}|{{ documents }}|{{ add_generation_prompt }}", "|None|False"),
        ("{% generation %}x{% endgeneration %}", "x"),
    ],
)
def test_what_templates_can_use(source: str, text: str) -> None:
    assert template(source, bos_token="<s>").render(HI) == text


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("{{ raise_exception('Roles must alternate!') }}", "Roles must alternate!"),
        ("{{ messages[0].mood + 'x' }}", "'dict object' has no attribute 'mood'"),
        ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
        ("{{ raise_exception('x' * 1000) }}", "x" * 300 + "..."),
        ("{{ messages.append(1) }}", "access to attribute 'append' of 'list' object is unsafe"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ cycler.__init__.__globals__ }}", "unsafe"),
        ("{% set ns = namespace() %}{% set ns.__class__ = 1 %}", "may not hold"),
        ("{% include 'x' %}", "no loader"),
        ("{{ range(10000000) }}", "Range too big"),
    ],
)
def test_a_refusal_is_the_templates_own_sentence(source: str, sentence: str) -> None:
    with pytest.raises(TemplateError) as caught:
        template(source).render(HI)
    assert sentence in str(caught.value)


def test_a_template_that_does_not_compile() -> None:
    with pytest.raises(TemplateError, match="does not compile"):
        template("{% for %}")


def test_generation_blocks_are_marked_wherever_they_stand() -> None:
    rendering = template(CHATML_MARKED).render_marked(TALK)
    assert [rendering.text[a:b] for a, b in rendering.generated] == [" Hello <|im_end|>", "Bye<|im_end|>"]
    assert rendering.text == template(CHATML).render(TALK)
    inside = "{% set t %}{% generation %}{{ messages[1].content }}{% endgeneration %}{% endset %}- {{ t }}"
    rendering = template(inside).render_marked(TALK)
    assert [rendering.text[a:b] for a, b in rendering.generated] == [" Hello "]


def test_marks_in_the_users_text_mark_nothing() -> None:
    content = "".join(MARK_PAIRS[0])
    rendering = template(CHATML_MARKED).render_marked([{"role": "user", "content": content}, TALK[1]])
    assert [rendering.text[a:b] for a, b in rendering.generated] == [" Hello <|im_end|>"]
    assert content in rendering.text


def test_a_template_that_changes_its_generation_blocks_is_refused() -> None:
    with pytest.raises(TemplateError, match="changes the text"):
        template("{% set t %}{% generation %} a {% endgeneration %}{% endset %}{{ t | trim }}").render_marked(HI)


def test_marks_that_do_not_pair() -> None:
    assert take_marks("a[b[c]]d[]", ("[", "]")) == ("abcd", [(1, 3), (4, 4)])
    for marked in ("]a[", "[a", "a]"):
        with pytest.raises(TemplateError):
            take_marks(marked, ("[", "]"))


def write(directory: Path, name: str, content: object) -> None:
    path = directory / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def test_where_templates_are_looked_for(tmp_path: Path) -> None:
    assert load_template(tmp_path, DAY) is None
    write(tmp_path, "chat_template.json", {"chat_template": "json"})
    assert load(tmp_path).render(HI) == "json"
    write(tmp_path, "tokenizer_config.json", {"chat_template": "config"})
    assert load(tmp_path).render(HI) == "config"
    write(tmp_path, "chat_template.jinja", "jinja")
    assert load(tmp_path).render(HI, [{}]) == "jinja"
    write(tmp_path, "additional_chat_templates/tool_use.jinja", "tools")
    assert (load(tmp_path).render(HI), load(tmp_path).render(HI, [{}])) == ("jinja", "tools")


def test_named_templates(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    write(tmp_path, "tokenizer_config.json", {"chat_template": named})
    assert (load(tmp_path).render(HI), load(tmp_path).render(HI, [{}])) == ("plain", "tools")


@pytest.mark.parametrize("found", [5, [{"name": "default"}], ["a"]])
def test_broken_configurations_are_said(tmp_path: Path, found: object) -> None:
    write(tmp_path, "tokenizer_config.json", {"chat_template": found})
    with pytest.raises(TemplateError):
        load_template(tmp_path, DAY)
    write(tmp_path, "tokenizer_config.json", "{")
    with pytest.raises(TemplateError, match="tokenizer_config"):
        load_template(tmp_path, DAY)


def test_special_tokens_of_a_directory(tmp_path: Path) -> None:
    write(
        tmp_path, "special_tokens_map.json", {"bos_token": "<a>", "eos_token": "<b>", "unk_token": {"content": "<c>"}}
    )
    write(tmp_path, "tokenizer_config.json", {"bos_token": None, "eos_token": {"content": "<e>"}, "pad_token": "<p>"})
    assert special_tokens(tmp_path) == {"eos_token": "<e>", "unk_token": "<c>", "pad_token": "<p>"}
