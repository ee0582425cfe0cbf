"""What Hone installs may be installed anywhere: the licences of its dependencies, and of theirs."""

import re
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

_PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
_FOR_USERS = ("worker", "s3", "trackers", "demo")  # and not `dev`
# MPL-2.0 binds whoever changes the files that are under it, and nobody else.
_ALLOWED = {
    *("0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0"),
    *("CNRI-Python", "ISC", "MIT", "MIT-0", "MPL-2.0", "PSF-2.0", "Python-2.0", "Unicode-3.0", "Unlicense", "Zlib"),
}
# As those write it who do not use SPDX's names.
_SPDX = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache 2.0 License": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache License, Version 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD": "BSD-3-Clause",
    "BSD License": "BSD-3-Clause",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
}
_NVIDIA = re.compile(r"(nvidia|cuda)-")  # of PyTorch for CUDA: NVIDIA's own terms, which PyTorch's users accept


def test_every_dependency_may_be_used_freely() -> None:
    installed = dict(_installed())
    assert len(installed) > 60
    wrong = {name: licence for name, licence in installed.items() if not is_allowed(licence)}
    assert wrong == {}, "look at these licences, and allow them or do without"


@pytest.mark.parametrize(
    ("licence", "allowed"),
    [
        ("MIT", True),
        ("MPL-2.0 AND (Apache-2.0 OR MIT)", True),
        ("GPL-3.0-only OR MIT", True),
        ("MIT AND GPL-3.0-only", False),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("AGPL-3.0-or-later", False),
        ("", False),
    ],
)
def test_alternatives_and_sums_are_told_apart(licence: str, allowed: bool) -> None:
    assert is_allowed(licence) == allowed


def is_allowed(licence: str) -> bool:
    """All parts of a sum, and of alternatives one."""
    return all(any(one.strip("() ") in _ALLOWED for one in part.split(" OR ")) for part in licence.split(" AND "))


def _installed() -> Iterator[tuple[str, str]]:
    """The licence of each package that an install with all extras for users brings along, as far as it is here."""
    project: dict[str, Any] = tomllib.loads(_PYPROJECT.read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(one for extra in _FOR_USERS for one in project["optional-dependencies"][extra]),
    ]
    todo, seen = [Requirement(one) for one in wanted], set[tuple[str, frozenset[str]]]()
    while todo:
        requirement = todo.pop()
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        one = (name, frozenset(requirement.extras))
        if one in seen:
            continue
        seen.add(one)
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # for another platform, or an extra that is not installed
            continue
        for text in found.requires or ():
            inner = Requirement(text)
            extras = requirement.extras or {""}
            if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in extras):
                todo.append(inner)
        if not _NVIDIA.match(name):
            yield name, _licence(found.metadata)


def _licence(about: Any) -> str:
    if expression := about.get("License-Expression"):
        return expression
    stated: list[str] = [
        one.rsplit(" :: ", 1)[1] for one in about.get_all("Classifier") or () if one.startswith("License :: ")
    ]
    stated = [one for one in stated if one != "OSI Approved"] or [(about.get("License") or "").split("\n")[0].strip()]
    return " AND ".join(_SPDX.get(one, one) for one in stated)
