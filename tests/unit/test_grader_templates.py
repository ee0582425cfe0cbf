"""Variables in graders."""

from collections.abc import Callable
from typing import Any

import pytest

from worker.graders import templates
from worker.graders.faults import GraderFault
from worker.graders.templates import Context

ITEM = {"answer": "4", "n": 2, "tags": ["x", {"y": True}], "big": 10**30, "a-b": "dash", "0": "zero", "ü": "é"}
CONTEXT = Context('{"steps": [1, 2], "result": {"value": 4.5}}', ITEM)


@pytest.mark.parametrize(
    ("template", "filled"),
    [
        ("no variable { } }} {", "no variable { } }} {"),
        ("{{item.answer}}", "4"),
        ("is {{ item.answer }}, or {{  item.n  }}?", "is 4, or 2?"),
        ("{{ item.tags[0] }} {{ item.tags.1.y }} {{ item['tags'][1] }}", 'x true {"y": true}'),
        ('{{ item["a-b"] }} {{ item.a-b }} {{ item.0 }} {{ item.ü }}', "dash dash zero é"),
        ("{{ item.big }}", "1" + "0" * 30),
        ("{{ sample.output_text }}", CONTEXT.output_text),
        ("{{ sample.output_json.result.value }} {{ sample.output_json.steps }}", "4.5 [1, 2]"),
    ],
)
def test_filling(template: str, filled: str) -> None:
    templates.check(template)
    assert templates.fill(template, CONTEXT) == filled


def test_what_is_filled_in_is_not_filled_again() -> None:
    assert templates.fill("{{ item.x }}", Context("", {"x": "{{ item.x }}"})) == "{{ item.x }}"


@pytest.mark.parametrize(
    "template",
    [
        *("{{ }}", "{{ foo }}", "{{ items.x }}", "{{ sample }}", "{{ sample.output_texts }}", "{{ item..x }}"),
        *("{{ item.x() }}", "{{ 1 + 1 }}", "{{ item | upper }}", "{{ sample.output_text.x }}", "{{ item[x] }}"),
    ],
)
def test_what_can_never_be_filled_in_is_found_before_any_sample(template: str) -> None:
    for attempt in (templates.check, lambda text: templates.fill(text, CONTEXT)):
        with pytest.raises(GraderFault) as caught:
            attempt(template)
        assert caught.value.flags == ("invalid_variable_error",)


@pytest.mark.parametrize("path", ["item.nothing", "item.answer.x", "item.tags[2]", "item.__class__", "item.tags.x"])
def test_what_is_not_there(path: str) -> None:
    with pytest.raises(GraderFault, match="nothing that is there") as caught:
        templates.fill(f"{{{{ {path} }}}}", CONTEXT)
    assert caught.value.flags == ("invalid_variable_error",)


@pytest.mark.parametrize("sample", ["", "4,", "NaN", "[" * 5000, '{"a": }'])
def test_a_sample_that_is_not_json(sample: str) -> None:
    with pytest.raises(GraderFault) as caught:
        templates.fill("{{ sample.output_json.a }}", Context(sample, {}))
    assert caught.value.flags == ("sample_parse_error",)


def test_a_template_does_not_grow_without_end() -> None:
    item: dict[str, Any] = {"x": "y" * 100_000}
    with pytest.raises(GraderFault, match="too long"):
        templates.fill("{{ item.x }}" * 500, Context("", item))


@pytest.mark.parametrize("attempt", [templates.check, lambda text: templates.fill(text, Context("", {"x": ""}))])
def test_a_template_has_only_so_many_variables(attempt: Callable[[str], object]) -> None:
    attempt("{{ item.x }}" * templates.MAX_PLACEHOLDERS)
    with pytest.raises(GraderFault, match="more than 1000 variables") as caught:
        attempt("{{ item.x }}" * (templates.MAX_PLACEHOLDERS + 1))
    assert caught.value.flags == ("other_error",)
