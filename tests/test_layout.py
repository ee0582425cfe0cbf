"""The shape of the repository: small files, pages that are generated, no path of anyone's machine."""

import re
import subprocess
from pathlib import Path

import pytest

from app import openapi, settings_page

ROOT = Path(__file__).resolve().parents[1]
MOST_LINES = 600


def tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def test_no_file_is_too_long() -> None:
    long = {str(path): count for path in tracked("*.py") if (count := len(path.read_text().splitlines())) > MOST_LINES}
    assert long == {}


def test_package_files_are_empty() -> None:
    assert [path for path in tracked("*__init__.py") if path.stat().st_size] == []


@pytest.mark.parametrize(
    ("page", "text"), [(openapi.PATH, openapi.render()), (settings_page.PAGE, settings_page.render())]
)
def test_generated_pages_are_current(page: Path, text: str) -> None:
    assert page.read_text() == text, f"{page.name} is stale: run `make openapi`"


def test_nothing_names_a_home_directory() -> None:
    home = re.compile(r"/(?:home|Users|root)/\w")
    named = [path for path in tracked("*.py", "*.md", "*.toml", "*.yaml", "Makefile") if home.search(path.read_text())]
    assert named == []
