"""The extension's documentation names every field there is, with its default."""

import re
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from worker.contract.extension import AdapterOptions, DpoOptions, EarlyStopping, Extension

_PAGE = Path(__file__).resolve().parents[2] / "docs" / "extension.md"
_GROUPS: dict[str, type[BaseModel]] = {
    "adapter": AdapterOptions,
    "early_stopping": EarlyStopping,
    "dpo": DpoOptions,
}


def fields() -> dict[str, object]:
    """Defaults by dotted name."""
    found: dict[str, object] = {}
    for name, field in Extension.model_fields.items():
        if name in _GROUPS:
            found |= {f"{name}.{inner}": value.default for inner, value in _GROUPS[name].model_fields.items()}
        else:
            found[name] = field.default
    return found


def test_the_page_names_every_field_and_no_other() -> None:
    rows = re.findall(r"^\| `([a-z_.]+)` \| (.*?) \|", _PAGE.read_text(), re.MULTILINE)
    assert [name for name, _ in rows] == list(fields())


def test_the_page_tells_plain_defaults_as_they_are() -> None:
    rows = dict(re.findall(r"^\| `([a-z_.]+)` \| (.*?) \|", _PAGE.read_text(), re.MULTILINE))
    for name, default in fields().items():
        if isinstance(default, bool):
            assert rows[name] == str(default).lower()
        elif isinstance(default, str):
            assert rows[name] == f'`"{default}"`'
        elif isinstance(default, int | float):
            assert rows[name] == f"{default:g}"


def test_what_was_sent_is_read_back_from_what_is_stored() -> None:
    sent = {"adapter": {"target_modules": ["q_proj"], "alpha": 8}, "learning_rate": 1e-4}
    stored = Extension.model_validate(sent).model_dump(mode="json", exclude_unset=True)
    assert stored == sent
    assert Extension.model_validate(stored) == Extension.model_validate(sent)


def test_nothing_is_converted() -> None:
    with pytest.raises(ValidationError):
        Extension.model_validate({"keep_best": 1})
