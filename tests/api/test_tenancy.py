"""Every operation of the OpenAPI document, by every role and scope: what it lets in, and that what another project has
is to it as what does not exist: the same status, the same answer, the same work in the database.
"""

import itertools
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from fastapi.routing import APIRoute
from sqlalchemy import event, select

from app import main
from app.api import access
from app.api.key_uses import KeyUses
from app.auth import Principal, Role, Scope, new_key
from app.db.metadata import ALL_TABLES
from app.resources import Resources
from app.services import keys
from tests import factories
from tests.api import worlds
from tests.api.tenancy_table import CASES, ID, OPEN, Case
from tests.api.worlds import World

_DOCUMENT = main.describe()
_OPERATIONS = {
    operation["operationId"]: (method.upper(), path, operation)
    for path, methods in _DOCUMENT["paths"].items()
    for method, operation in methods.items()
}
_READS = {"files.read", "jobs.read", "models.read"}
_WRITES = {"files.write", "jobs.write", "models.write"}
# What each role may do, said once more than in app/auth.py.
_MAY = {
    "owner": _READS | _WRITES | {"admin.read", "admin.write"},
    "member": _READS | _WRITES,
    "reader": _READS,
}


@dataclass(frozen=True)
class Caller:
    """A key, and what it should be let in to."""

    label: str
    key: str
    may: frozenset[str]


@dataclass(frozen=True)
class Answer:
    status: int
    kind: str | None
    body: str
    statements: int


class Api:
    """The application in this process, so that its database's work can be counted."""

    def __init__(self, resources: Resources, http: httpx.AsyncClient) -> None:
        self._http = http
        self._statements = 0
        event.listen(resources.database.engine.sync_engine, "before_cursor_execute", self._count)

    async def ask(self, caller: Caller, method: str, path: str, *, body: Any = None, **query: str) -> Answer:
        before = self._statements
        headers = {"Authorization": f"Bearer {caller.key}"}
        answer = await self._http.request(method, path, json=body, params=query, headers=headers)
        kind = answer.headers.get("content-type")
        return Answer(answer.status_code, kind, answer.text, self._statements - before)

    def _count(self, *_: Any) -> None:
        self._statements += 1


@pytest.fixture
async def api(resources: Resources) -> AsyncIterator[Api]:
    async with resources.write() as session:
        await keys.default_project(session)
    app = main.create_app(resources)
    app.state.uses = KeyUses(resources, flush_seconds=3600)  # what is written beside requests would be counted
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://hone") as http:
        yield Api(resources, http)


def test_every_operation_has_a_case_and_every_route_says_what_it_needs() -> None:
    assert set(_OPERATIONS) == set(CASES) | OPEN, "write a line in tests/api/tenancy_table.py"
    for name, case in CASES.items():
        _, _, operation = _OPERATIONS[name]
        assert operation["x-hone-needs"] == case.needs.split(), name
        given = {one["name"] for one in operation.get("parameters", ()) if one["in"] == "path"}
        assert given == set(case.path), name
        lists = any(one["name"] == "after" for one in operation.get("parameters", ()))
        assert lists == (case.lists is not None), name
    assert {path for path, *_ in (_OPERATIONS[name][1:] for name in OPEN)} == {"/healthz", "/readyz"}


async def test_no_route_is_left_open(resources: Resources) -> None:
    """Those that the document leaves out included."""
    for route in main.routes():
        if not route.path.startswith("/v1"):
            continue
        need = access.need_of(route)
        assert need is not None, f"{route.path} states no requirement: give its router or itself needs(...)"
        twins = [one for one in main.routes() if one.path == route.path and "GET" in (one.methods or ())]
        if "HEAD" in (route.methods or ()):
            assert [access.need_of(twin) for twin in twins] == [need]
    direct = [route.path for route in main.create_app(resources).routes if isinstance(route, APIRoute)]
    assert [path for path in direct if path.startswith("/v1")] == []


async def test_every_operation_lets_in_whom_it_says(api: Api, resources: Resources, subtests: pytest.Subtests) -> None:
    """Whoever is let in meets a missing id or an empty body; who is not is told so alike for what others have."""
    world, victim = await worlds.build(resources), await worlds.build(resources)
    async with resources.write() as session:
        default = await keys.default_project(session)
    tenants = await _callers(resources, world.principal)
    operators = await _callers(resources, Principal("", default.id, default.organization_id), is_operator=True)
    for name, case in CASES.items():
        method, path, _ = _OPERATIONS[name]
        foreign = {parameter: victim.ids.get(kind, kind) for parameter, kind in case.path.items()}
        missing = {parameter: worlds.like(one, seed=1) for parameter, one in foreign.items()}
        body = {} if method == "POST" else None
        with subtests.test(name):
            for caller in [*tenants, *(operators if case.needs.startswith("server") else ())]:
                if set(case.needs.split()) & caller.may:
                    answer = await api.ask(caller, method, _filled(path, missing), body=body)
                    assert answer.status in (200, 400, 404), f"{caller.label}: {answer}"
                    continue
                answer = await api.ask(caller, method, _filled(path, foreign), body=body)
                assert answer.status == 403, f"{caller.label}: {answer}"
                error = json.loads(answer.body)["error"]
                assert (error["type"], error["param"]) == ("invalid_request_error", None)
                if error["code"] is None:  # an owner's key: what is missing is the project
                    assert case.needs.startswith("server")
                else:
                    assert error["code"] == "missing_scope"
                    assert f"Missing scopes: {case.needs.split()[0]}." in error["message"]
                assert not any(one in answer.body for one in foreign.values())


async def test_what_others_have_is_as_what_does_not_exist(
    api: Api, resources: Resources, subtests: pytest.Subtests
) -> None:
    """For every caller that is let in at all."""
    victim, stranger = await worlds.build(resources), await worlds.build(resources)
    neighbour = await worlds.build(resources, beside=victim.principal)
    attacks = [(caller, stranger) for caller in await _callers(resources, stranger.principal)]
    next_door = await factories.key(resources, neighbour.principal)
    attacks.append((Caller("owner next door", next_door, frozenset(_MAY["owner"])), neighbour))
    before = await _everything(resources)
    for name, case in CASES.items():
        method, path, _ = _OPERATIONS[name]
        with subtests.test(name):
            compared = 0
            for caller, own in attacks:
                if not set(case.needs.split()) & caller.may:
                    continue
                for seed, attempt in enumerate(_attempts(case, victim, own)):
                    missing_ids = {one: worlds.like(one, seed=seed) for one in attempt.ids}
                    moved = {parameter: missing_ids.get(one, one) for parameter, one in attempt.path.items()}
                    foreign = await api.ask(caller, method, _filled(path, attempt.path), **attempt.sent(attempt.ids))
                    missing = await api.ask(caller, method, _filled(path, moved), **attempt.sent(missing_ids.values()))
                    label = f"{caller.label}, {attempt}"
                    assert foreign.status < 500, label
                    assert _masked(foreign, attempt.ids) == _masked(missing, missing_ids.values()), label
                    compared += 1
            names_nothing = not (case.path or case.lists or case.asks)
            assert compared > 0 or names_nothing or case.needs.startswith("server")
    after = await _everything(resources)
    for table, rows in before.items():
        lost = [row for row in rows if row not in after[table] and victim.principal.project_id in row.values()]
        assert lost == [], f"rows of {table} were changed"


@dataclass(frozen=True)
class _Attempt:
    """A request that names `ids`, which are not the caller's."""

    path: dict[str, str]
    ids: tuple[str, ...]
    body: Any = None
    query: tuple[tuple[str, str], ...] = ()

    def sent(self, ids: Any) -> dict[str, Any]:
        """Body and query with the ids in question, or with others in their place."""
        changed = json.dumps([self.body, dict(self.query)])
        for old, new in zip(self.ids, ids, strict=True):
            changed = changed.replace(old, new)
        body, query = json.loads(changed)
        return {"body": body, **query}


def _attempts(case: Case, victim: World, own: World) -> Iterator[_Attempt]:
    """The first ids of the path are the caller's own, the others are not, from all to none; then those in the body,
    in the query and of `after`."""
    names = list(case.path)
    same_organization = victim.principal.organization_id == own.principal.organization_id
    visible = {"user", "email", "project"} if same_organization else set[str]()
    bodies = [ask.body for ask in case.asks if ask.kind == "nothing"] or [{}]
    for count, body in itertools.product(range(len(names)), bodies):
        path = {
            name: (own if index < count else victim).ids.get(case.path[name], case.path[name])
            for index, name in enumerate(names)
        }
        if count and case.path[names[-1]] in visible:
            continue
        yield _Attempt(path, tuple(dict.fromkeys(list(path.values())[count:])), body)
    path = {name: own.ids.get(kind, kind) for name, kind in case.path.items()}
    for ask in case.asks:
        if ask.kind != "nothing" and ask.kind not in visible:
            foreign = victim.ids[ask.kind]
            text = json.dumps([ask.body, ask.query]).replace(ID, foreign).replace("<own file>", own.ids["file"])
            body, query = json.loads(text)
            yield _Attempt(path, (foreign,), body, tuple(query.items()))
    if case.lists is not None and case.lists not in visible:
        foreign = victim.ids[case.lists]
        yield _Attempt(path, (foreign,), None, (("after", foreign),))


async def _callers(resources: Resources, principal: Principal, *, is_operator: bool = False) -> list[Caller]:
    """A key of every role without restriction and with each scope, and an admin key."""
    restrictions: list[list[str] | None] = [None, *([scope.value] for scope in Scope), ["files.read", "jobs.write"]]
    whose = "operator" if is_operator else "tenant"
    found: list[Caller] = []
    async with resources.write() as session:
        for role, scopes in itertools.product(Role, restrictions):
            key = new_key()
            keys.create(session, project_id=principal.project_id, name="test", key=key, role=role, scopes=scopes)
            may = set(_MAY[role.value])
            if scopes is not None:
                may &= {word for scope in scopes for word in (scope, scope.replace(".write", ".read"))}
            if is_operator:
                may |= {word.replace("admin.", "server.") for word in may if word.startswith("admin.")}
            found.append(Caller(f"{whose}, {role}, {scopes}", key, frozenset(may)))
    admin_key = await factories.admin_key(resources, principal)
    found.append(Caller("admin key", admin_key, frozenset({"organization.read", "organization.write"})))
    return found


def _filled(path: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        path = path.replace(f"{{{name}}}", quote(value, safe=":"))
    return path


def _masked(answer: Answer, ids: Any) -> Answer:
    body = answer.body
    for number, one in enumerate(ids):
        body = body.replace(one, f"<{number}>")
    return Answer(answer.status, answer.kind, body, answer.statements)


async def _everything(resources: Resources) -> dict[str, list[dict[str, Any]]]:
    async with resources.read() as session:
        return {
            table.name: [dict(row) for row in (await session.execute(select(table))).mappings()]
            for table in ALL_TABLES.sorted_tables
        }
