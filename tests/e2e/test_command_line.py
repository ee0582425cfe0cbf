"""`hone`, as an operator uses it."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import httpx

from tests.backends import Site
from tests.e2e.processes import BASE, KEY, Installation, Process
from tests.servers import redis, required


def test_the_first_start_makes_a_key_and_says_what_to_do(tmp_path: Path) -> None:
    installation = Installation(tmp_path / "data")
    installation.data.mkdir()
    installation.settings["HONE_API_KEY"] = ""
    with installation.serving() as server:
        printed = server.output.read_text()
        (key,) = re.findall(r"sk-hone-[\w\-]{20,}", printed)
        assert str(installation.data) in printed
        assert f"OPENAI_BASE_URL={server.url}/v1" in printed
        for given, status in ((key, 200), (KEY, 401)):
            answer = httpx.get(f"{server.url}/v1/models", headers={"Authorization": f"Bearer {given}"})
            assert answer.status_code == status
    with installation.serving() as again:
        assert "sk-hone-" not in again.output.read_text()
        made = installation.hone("keys", "create").stdout.strip()
        assert httpx.get(f"{again.url}/v1/models", headers={"Authorization": f"Bearer {made}"}).status_code == 200


def test_teams_are_let_in_and_out_by_commands(tmp_path: Path) -> None:
    installation = Installation(tmp_path / "data")
    installation.data.mkdir()
    hone = installation.hone

    def made(*arguments: str) -> str:
        done = hone(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    with installation.serving() as server:

        def status(key: str, path: str = "/v1/files") -> int:
            return httpx.get(f"{server.url}{path}", headers={"Authorization": f"Bearer {key}"}).status_code

        organization = made("organizations", "create", "acme")
        project = made("projects", "create", "bots", "--organization", "acme")
        made("members", "add", "Ada@example.com", "--project", "bots", "--role", "reader")
        assert "ada@example.com" in made("members", "list", "--project", "bots")
        of_ada = made("keys", "create", "--project", "bots", "--member", "ada@example.com", "--expires-in-days", "9")
        narrow = made("keys", "create", "--project", project, "--scope", "jobs.read", "--name", "narrow")
        administers = made("keys", "create", "--admin", "--organization", organization)
        assert (status(of_ada), status(narrow), status(narrow, "/v1/fine_tuning/jobs")) == (200, 403, 200)
        assert (status(administers), status(administers, "/v1/organization/projects")) == (403, 200)
        listed = made("keys", "list", "--project", "bots")
        assert "ada@example.com" in listed
        assert not any(key in listed for key in (of_ada, narrow))
        (narrow_id,) = re.findall(r"(key_\w+) .*narrow", listed)
        made("keys", "revoke", narrow_id)
        assert (status(narrow), status(of_ada)) == (401, 200)
        made("members", "remove", "ada@example.com", "--project", "bots")
        assert status(of_ada) == 401
        made("organizations", "disable", "acme")
        assert status(administers, "/v1/organization/projects") == 401
        made("organizations", "enable", "acme")
        assert status(administers, "/v1/organization/projects") == 200
        made("projects", "archive", "bots")
        assert "archived" in made("projects", "list")
        for wrong in (
            ["organizations", "create", "acme"],
            ["organizations", "disable", "default"],
            ["projects", "archive", "default"],
            ["keys", "create", "--project", "nothing"],
            ["keys", "create", "--admin", "--project", "bots"],
            ["members", "add", "no address"],
            ["members", "remove", "bob@example.com"],
        ):
            refused = hone(*wrong)
            assert (refused.returncode, "Traceback" in refused.stdout + refused.stderr) == (1, False), wrong


def test_models_are_registered_by_the_operator_only(install: Callable[..., Installation], tmp_path: Path) -> None:
    installation = install()
    assert BASE in installation.hone("models", "list").stdout
    wrong = installation.hone("models", "add", "other", "--source", str(tmp_path / "nowhere"))
    assert wrong.returncode == 1
    assert "neither a directory on this machine nor a hub repository" in wrong.stdout
    assert "Traceback" not in wrong.stdout + wrong.stderr


def test_a_base_model_is_given_another_name(install: Callable[..., Installation]) -> None:
    installation = install()
    alias = "gpt-4o-mini-2024-07-18"
    assert f"{alias} stands for {BASE}" in installation.hone("models", "alias", alias, BASE).stdout
    assert f"{alias} stands for {BASE}" in installation.hone("models", "list").stdout
    for arguments in (
        ["alias", BASE, BASE],
        ["alias", "ft:mine", BASE],
        ["alias", "mine", "nothing"],
        ["unalias", "mine"],
    ):
        refused = installation.hone("models", *arguments)
        assert (refused.returncode, "Traceback" in refused.stdout + refused.stderr) == (1, False)
    assert installation.hone("models", "unalias", alias).returncode == 0
    assert alias not in installation.hone("models", "list").stdout


def test_limits_are_shown_set_and_taken_back(install: Callable[..., Installation]) -> None:
    installation = install(limit_files="7")

    def row(*command: str) -> list[str]:
        shown = installation.hone("limits", *command)
        assert shown.returncode == 0, shown.stdout + shown.stderr
        return next(line.split() for line in shown.stdout.splitlines() if line.split()[:1] == ["files"])

    assert row("show")[:3] == ["files", "7", "server"]
    assert row("set", "files=3", "running_jobs=0")[:3] == ["files", "3", "project"]
    assert row("set", "files=default")[:3] == ["files", "7", "server"]
    for pair in ("files", "files=-1", "nothing=1", "requests_per_minute=0"):
        refused = installation.hone("limits", "set", pair)
        assert refused.returncode == 1
        assert "Traceback" not in refused.stdout + refused.stderr


def test_doctor_says_what_is_missing(tmp_path: Path, install: Callable[..., Installation]) -> None:
    empty = Installation(tmp_path / "empty").hone("doctor")
    assert empty.returncode == 1
    assert "hone migrate" in empty.stdout
    installation = install()
    whole = installation.hone("doctor")
    assert f"Base model {BASE}" in whole.stdout
    assert "PyTorch" in whole.stdout
    has_redis = "HONE_REDIS_URL" in installation.settings
    assert f"Queue: {'Redis answers' if has_redis else 'within each process'}" in whole.stdout


def test_doctor_asks_redis(tmp_path: Path) -> None:
    required.skip_without("redis-server")
    with redis.running(tmp_path / "redis", password="a-secret-word") as server:
        installation = Installation(tmp_path / "data", {"HONE_REDIS_URL": server.url})
        assert "Queue: Redis answers" in installation.hone("doctor").stdout
        server.kill()
        examined = installation.hone("doctor")
        assert "Queue: Redis: Error" in examined.stdout
        assert "HONE_REDIS_URL" in examined.stdout
        assert "a-secret-word" not in examined.stdout + examined.stderr


def test_a_wrong_setting_is_named_and_not_shown(tmp_path: Path) -> None:
    installation = Installation(tmp_path / "data", {"HONE_API_KEY": "tooshort", "HONE_PORT": "many"})
    refused = installation.hone("serve")
    assert refused.returncode == 1
    assert "HONE_API_KEY: " in refused.stdout
    assert "HONE_PORT: " in refused.stdout
    assert "tooshort" not in refused.stdout + refused.stderr
    assert "Traceback" not in refused.stderr


def test_an_old_schema_is_refused_with_a_sentence(unmigrated_site: Site) -> None:
    installation = Installation.at(unmigrated_site)
    for command in (["worker"], ["serve", "--api-only", "--port", "0"]):
        refused = installation.hone(*command)
        assert refused.returncode == 1
        assert "hone migrate" in refused.stdout
        assert "Traceback" not in refused.stdout + refused.stderr


def test_a_taken_port_is_told(server: Process, install: Callable[..., Installation]) -> None:
    refused = install().hone("serve", "--port", server.url.rpartition(":")[2])
    assert refused.returncode == 1
    assert "choose another with --port" in refused.stdout


def test_the_audit_log_is_exported_with_what_was_done_at_the_command_line(install: Callable[..., Installation]) -> None:
    installation = install()
    installation.hone("models", "alias", "another", BASE)
    lines = [json.loads(line) for line in installation.hone("audit", "export").stdout.splitlines()]
    (done,) = [line for line in lines if line["type"] == "model_alias.created"]
    assert done["model_alias.created"] == {"id": "another", "base_model": BASE}
    assert (done["hone"]["actor"], done["actor"]) == ("cli", None)
    assert lines[-1]["type"] == "audit_log.exported"
    assert installation.hone("audit", "export", "--since", "2999-01-01").stdout == ""
