"""Every operation of the API: what it needs of a key, and where a request to it names something by an id.

`test_tenancy.py` holds the OpenAPI document to it: an operation without a line here fails.
"""

from dataclasses import dataclass, field
from typing import Any

ID = "<id>"  # stands for the id in question; "<own file>" is one of the caller's own


@dataclass(frozen=True)
class Ask:
    """A body or a query that names something of `kind` by ID."""

    kind: str
    body: dict[str, Any] | None = None
    query: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """`needs`: any of these. `path`: the kinds of its parameters. `lists`: the kind of its items, for `after`."""

    needs: str
    path: dict[str, str] = field(default_factory=dict)
    lists: str | None = None
    asks: tuple[Ask, ...] = ()


_JOB = {"fine_tuning_job_id": "job"}
_SHARED = {"fine_tuned_model_checkpoint": "model"}
_ENDPOINT = {"webhook_endpoint_id": "endpoint"}
_PROJECT = {"project_id": "project"}
_USER = {**_PROJECT, "user_id": "user"}
_ACCOUNT = {**_PROJECT, "service_account_id": "account"}
_KEY = {**_PROJECT, "api_key_id": "key"}
_READ, _WRITE = "admin.read organization.read", "admin.write organization.write"
_SINCE = {"start_time": "1700000000"}
_TRAIN = {"model": "hone-tiny", "training_file": "<own file>"}

CASES = {
    "create_file": Case("files.write"),
    "list_files": Case("files.read", lists="file"),
    "retrieve_file": Case("files.read", {"file_id": "file"}),
    "delete_file": Case("files.write", {"file_id": "file"}),
    "download_file": Case("files.read", {"file_id": "file"}),
    "create_upload": Case("files.write"),
    "add_upload_part": Case("files.write", {"upload_id": "upload"}),
    "complete_upload": Case("files.write", {"upload_id": "upload"}, asks=(Ask("part", {"part_ids": [ID]}),)),
    "cancel_upload": Case("files.write", {"upload_id": "upload"}),
    "create_fine_tuning_job": Case(
        "jobs.write",
        asks=(
            Ask("file", {**_TRAIN, "training_file": ID}),
            Ask("file", {**_TRAIN, "validation_file": ID}),
            Ask("model", {**_TRAIN, "model": ID}),
            Ask("checkpoint model", {**_TRAIN, "model": ID}),
        ),
    ),
    "list_fine_tuning_jobs": Case("jobs.read", lists="job"),
    "retrieve_fine_tuning_job": Case("jobs.read", _JOB),
    "cancel_fine_tuning_job": Case("jobs.write", _JOB),
    "pause_fine_tuning_job": Case("jobs.write", _JOB),
    "resume_fine_tuning_job": Case("jobs.write", _JOB),
    "list_fine_tuning_events": Case(
        "jobs.read", _JOB, lists="event", asks=(Ask("event", query={"stream": "true", "after": ID}),)
    ),
    "list_fine_tuning_checkpoints": Case("jobs.read", _JOB, lists="checkpoint"),
    "download_checkpoint_adapter": Case("models.read", {**_JOB, "checkpoint_id": "checkpoint"}),
    "download_adapter": Case("models.read", _JOB),
    "list_fine_tuning_checkpoint_permissions": Case(
        "models.read organization.read", _SHARED, "permission", (Ask("project", query={"project_id": ID}),)
    ),
    "create_fine_tuning_checkpoint_permission": Case(
        "models.write organization.write", _SHARED, asks=(Ask("project", {"project_ids": [ID]}),)
    ),
    "delete_fine_tuning_checkpoint_permission": Case(
        "models.write organization.write", {**_SHARED, "permission_id": "permission"}
    ),
    "read_log": Case("jobs.read", _JOB),
    "validate_grader": Case("jobs.write"),
    "run_grader": Case("jobs.write"),
    "list_models": Case("models.read"),
    "download_model_adapter": Case("models.read", {"model": "model"}),
    "retrieve_model": Case("models.read", {"model": "model"}),
    "delete_model": Case("models.write", {"model": "model"}),
    "list_webhook_event_types": Case("jobs.read"),
    "create_webhook_endpoint": Case("jobs.write"),
    "list_webhook_endpoints": Case("jobs.read", lists="endpoint"),
    "retrieve_webhook_endpoint": Case("jobs.read", _ENDPOINT),
    "update_webhook_endpoint": Case("jobs.write", _ENDPOINT),
    "delete_webhook_endpoint": Case("jobs.write", _ENDPOINT),
    "rotate_webhook_endpoint_secret": Case("jobs.write", _ENDPOINT),
    "test_webhook_endpoint": Case(
        "jobs.write", _ENDPOINT, asks=(Ask("nothing", {"event_type": "fine_tuning.job.succeeded"}),)
    ),
    "list_webhook_deliveries": Case("jobs.read", _ENDPOINT, lists="delivery"),
    "list_projects": Case("organization.read", lists="project"),
    "create_project": Case("organization.write"),
    "retrieve_project": Case(_READ, _PROJECT),
    "modify_project": Case(_WRITE, _PROJECT, asks=(Ask("nothing", {"name": "theirs"}),)),
    "archive_project": Case("organization.write", _PROJECT),
    "list_project_users": Case(_READ, _PROJECT, lists="user"),
    "create_project_user": Case(
        _WRITE,
        _PROJECT,
        asks=(
            Ask("user", {"role": "member", "user_id": ID}),
            Ask("nothing", {"role": "owner", "email": "mallory@example.com"}),
        ),
    ),
    "retrieve_project_user": Case(_READ, _USER),
    "modify_project_user": Case(_WRITE, _USER, asks=(Ask("nothing", {"role": "reader"}),)),
    "delete_project_user": Case(_WRITE, _USER),
    "list_project_service_accounts": Case(_READ, _PROJECT, lists="account"),
    "create_project_service_account": Case(_WRITE, _PROJECT, asks=(Ask("nothing", {"name": "mine"}),)),
    "retrieve_project_service_account": Case(_READ, _ACCOUNT),
    "modify_project_service_account": Case(_WRITE, _ACCOUNT, asks=(Ask("nothing", {"role": "owner"}),)),
    "delete_project_service_account": Case(_WRITE, _ACCOUNT),
    "create_project_service_account_api_key": Case(_WRITE, _ACCOUNT),
    "list_project_api_keys": Case(_READ, _PROJECT, lists="key"),
    "create_project_api_key": Case(
        _WRITE, _PROJECT, asks=(Ask("user", {"name": "theirs", "role": "reader", "user_id": ID}),)
    ),
    "retrieve_project_api_key": Case(_READ, _KEY),
    "modify_project_api_key": Case(_WRITE, _KEY, asks=(Ask("nothing", {"scopes": []}),)),
    "delete_project_api_key": Case(_WRITE, _KEY),
    "list_users": Case("organization.read", lists="user", asks=(Ask("email", query={"emails[]": ID}),)),
    "retrieve_user": Case("organization.read", {"user_id": "user"}),
    "modify_user": Case("organization.write", {"user_id": "user"}, asks=(Ask("nothing", {"role": "owner"}),)),
    "delete_user": Case("organization.write", {"user_id": "user"}),
    "list_admin_api_keys": Case("organization.read", lists="admin key"),
    "create_admin_api_key": Case("organization.write"),
    "retrieve_admin_api_key": Case("organization.read", {"key_id": "admin key"}),
    "delete_admin_api_key": Case("organization.write", {"key_id": "admin key"}),
    "list_fine_tuning_usage": Case(
        _READ, asks=(Ask("project", query={"project_ids[]": ID, "start_time": "1700000000"}),)
    ),
    "list_costs": Case(_READ, asks=(Ask("project", query=_SINCE | {"project_ids[]": ID}),)),
    "list_audit_logs": Case(_READ, lists="audit entry", asks=(Ask("project", query={"project_ids[]": ID}),)),
    "export_audit_logs": Case(_READ),  # filters as the list does; the entry of its own comes later, by another task
    "list_workers": Case("server.read"),
    "drain_worker": Case("server.write", {"worker_id": "worker"}),
    "list_organizations": Case("server.read", lists="organization"),
    "create_organization": Case("server.write"),
    "modify_organization": Case(
        "server.write", {"organization_id": "organization"}, asks=(Ask("nothing", {"disabled": True}),)
    ),
    "create_organization_admin_api_key": Case(
        "server.write", {"organization_id": "organization"}, asks=(Ask("nothing", {"name": "mine"}),)
    ),
    "create_organization_project": Case(
        "server.write", {"organization_id": "organization"}, asks=(Ask("nothing", {"name": "mine"}),)
    ),
    "list_all_projects": Case("server.read", lists="project"),
    "modify_any_project": Case("server.write", _PROJECT, asks=(Ask("nothing", {"disabled": True}),)),
    "create_any_project_api_key": Case("server.write", _PROJECT, asks=(Ask("nothing", {"name": "mine"}),)),
    "delete_any_api_key": Case("server.write", {"api_key_id": "key"}),
    "list_project_limits": Case("server.read", _PROJECT),
    "change_project_limits": Case("server.write", _PROJECT, asks=(Ask("nothing", {"files": 5}),)),
    "list_model_aliases": Case("server.read"),
    "create_model_alias": Case("server.write"),
    "delete_model_alias": Case("server.write", {"alias": "alias"}),
}
# Where there is nobody yet to ask for a key.
OPEN = {"is_alive", "is_ready"}
