"""`python -m app.settings_page` writes docs/settings.md from the settings' own descriptions."""

from pathlib import Path

from app.settings import Settings

PAGE = Path(__file__).resolve().parents[1] / "docs" / "settings.md"
_HEAD = """# Settings

All settings are environment variables; none is needed to start. This page is generated (`make openapi`).

| variable | default | what |
|---|---|---|
"""


def render() -> str:
    prefix = Settings.model_config.get("env_prefix")
    rows = [
        f"| `{prefix}{name.upper()}` | {_default(field.default)} | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]
    return _HEAD + "\n".join(rows) + "\n"


def _default(value: object) -> str:
    return "" if value in (None, ()) else f"`{value}`"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
