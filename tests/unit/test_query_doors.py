"""Tenants are kept apart at few doors: outside of them, nothing begins a query of its own."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[2]
_DOORS = {
    "app/db/holdings.py",
    "app/db/queries.py",
    "app/services/grader_runs.py",
    "app/services/leases.py",
    "app/services/scheduling.py",
    "app/services/sealed_secrets.py",
    "app/services/webhook_deliveries.py",
}
_VERBS = {"select", "update", "delete", "insert", "text"}
_LOOK_UPS = {"get", "get_one", "query"}  # of a session: by primary key, past every tenant


def _beginnings(source: str) -> Iterator[tuple[int, str]]:
    """Lines that begin a query: a call of one of SQLAlchemy's verbs, or a session's look-up by primary key."""
    tree = ast.parse(source)
    verbs: set[str] = set()
    modules: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "sqlalchemy":
            verbs |= {alias.asname or alias.name for alias in node.names if alias.name in _VERBS}
        if isinstance(node, ast.Import):
            modules |= {(a.asname or a.name).partition(".")[0] for a in node.names if a.name.startswith("sqlalchemy")}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id in verbs:
            yield node.lineno, node.func.id
        if isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
            owner, name = node.func.value.id, node.func.attr
            if (owner in modules and name in _VERBS) or (owner.endswith("session") and name in _LOOK_UPS):
                yield node.lineno, f"{owner}.{name}"


def test_no_query_begins_elsewhere() -> None:
    found = [
        f"{path.relative_to(_ROOT)}:{line}: {call}"
        for plane in ("app", "worker")
        for path in sorted((_ROOT / plane).rglob("*.py"))
        if str(path.relative_to(_ROOT)) not in _DOORS and "migrations" not in path.name
        for line, call in _beginnings(path.read_text())
    ]
    assert found == [], "begin queries with scoped(), server_rows(), of_job() or a lease"


@pytest.mark.parametrize(
    "source",
    [
        "from sqlalchemy import select\nselect(Job)",
        "from sqlalchemy import update as change\nchange(Job)",
        "from sqlalchemy.sql import delete\ndelete(Job)",
        "import sqlalchemy as sa\nsa.select(Job)",
        "async def f(session): await session.get(Job, 'x')",
        "async def f(write_session): await write_session.get_one(Job, 'x')",
    ],
)
def test_the_check_sees_every_way_to_begin_one(source: str) -> None:
    assert len(list(_beginnings(source))) == 1


def test_the_check_minds_its_own_business() -> None:
    source = "from sqlalchemy import func\nfunc.count()\n{}.get('x')\nasync def f(session): await session.delete(row)"
    assert list(_beginnings(source)) == []
