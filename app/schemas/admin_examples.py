"""What the objects of the organization's and the operator's API look like, as `app.schemas.examples` has the others."""

import json

from app.schemas.examples import Example, deleted, listed, shown

_AT = 1763800000
_ORGANIZATION: Example = {
    "id": "org-4kQm7Zt0XbV2",
    "object": "organization",
    "name": "acme",
    "created_at": _AT,
    "disabled_at": None,
}
_PROJECT: Example = {
    "id": "proj_9pWn3LsY6cHd",
    "object": "organization.project",
    "name": "support",
    "created_at": _AT,
    "archived_at": None,
    "status": "active",
}
_KEY_TIMES: Example = {"created_at": _AT, "expires_at": None, "last_used_at": _AT + 3600}
_ADMIN_KEY: Example = {
    "id": "key_2vTf8RbG5mKx",
    "object": "organization.admin_api_key",
    "name": "terraform",
    "redacted_value": "sk-admin...3f9a",
    **_KEY_TIMES,
    "owner": {"type": "organization", "object": "organization", "id": _ORGANIZATION["id"], "role": "owner"},
}
_USER: Example = {"id": "user-7dJw1NqB4hSe", "name": "Ada", "email": "ada@example.com"}
_MEMBER: Example = {**_USER, "object": "organization.project.user", "role": "member", "added_at": _AT}
_PROJECT_KEY: Example = {
    "id": "key_6yCz0PaM3uRn",
    "object": "organization.project.api_key",
    "name": "nightly training",
    "redacted_value": "sk-hone-...k2Qd",
    **_KEY_TIMES,
    "owner": {
        "type": "user",
        "user": {**_USER, "role": "member", "created_at": _AT},
        "service_account": None,
    },
    "owner_project_access": "active",
    "hone": {"role": "member", "scopes": ["files.write", "jobs.write"]},
}
_ACCOUNT: Example = {
    "id": "svc_acct_5gXh8TvE1oLb",
    "object": "organization.project.service_account",
    "name": "nightly",
    "role": "member",
    "created_at": _AT,
}
_ACCOUNT_KEY: Example = {
    "id": "key_0sUj4WkF9iDq",
    "object": "organization.project.service_account.api_key",
    "name": "Secret Key",
    "created_at": _AT,
    "expires_at": None,
    "value": "sk-hone-...",
}
_ENTRY: Example = {
    "id": "audit_log-8mZr2HyV7tCp",
    "type": "file.deleted",
    "effective_at": _AT,
    "actor": {"type": "api_key", "api_key": {"id": _PROJECT_KEY["id"], "type": "user"}},
    "project": {"id": _PROJECT["id"]},
    "hone": {
        "actor": "api_key",
        "outcome": "succeeded",
        "target_id": "file-3KjQ0Y8mWlN5xVb2",
        "organization_id": _ORGANIZATION["id"],
        "source_address": "192.0.2.7",
        "user_agent": "OpenAI/Python 3.54.0",
        "request_id": "req_2c1e5b7d90f4",
    },
    "file.deleted": {"id": "file-3KjQ0Y8mWlN5xVb2"},
}
_DAY: Example = {"object": "bucket", "start_time": 1763769600, "end_time": 1763856000}

ORGANIZATION = shown(_ORGANIZATION)
ORGANIZATIONS = listed(ORGANIZATION, ends=True)
PROJECT = shown(_PROJECT)
PROJECTS = listed(PROJECT, ends=True)
OPERATORS_PROJECT = shown({**_PROJECT, "organization_id": _ORGANIZATION["id"], "disabled_at": None})
OPERATORS_PROJECTS = listed(OPERATORS_PROJECT, ends=True)
ADMIN_KEY = shown(_ADMIN_KEY)
ADMIN_KEYS = listed(ADMIN_KEY, ends=True)
ADMIN_KEY_CREATED = shown({**_ADMIN_KEY, "last_used_at": None, "value": "sk-admin-..."})
ADMIN_KEY_DELETED = deleted(_ADMIN_KEY["id"], "organization.admin_api_key.deleted")
USER = shown(
    {
        **_USER,
        "object": "organization.user",
        "role": "reader",
        "added_at": _AT,
        "api_key_last_used_at": _AT + 3600,
        "projects": {"object": "list", "data": [{"id": _PROJECT["id"], "name": "support", "role": "member"}]},
    }
)
USERS = listed(USER, ends=True)
USER_DELETED = deleted(_USER["id"], "organization.user.deleted")
MEMBER = shown(_MEMBER)
MEMBERS = listed(MEMBER, ends=True)
MEMBER_DELETED = deleted(_USER["id"], "organization.project.user.deleted")
PROJECT_KEY = shown(_PROJECT_KEY)
PROJECT_KEYS = listed(PROJECT_KEY, ends=True)
PROJECT_KEY_CREATED = shown({**_PROJECT_KEY, "last_used_at": None, "value": "sk-hone-..."})
PROJECT_KEY_DELETED = deleted(_PROJECT_KEY["id"], "organization.project.api_key.deleted")
ACCOUNT = shown(_ACCOUNT)
ACCOUNTS = listed(ACCOUNT, ends=True)
ACCOUNT_CREATED = shown({**_ACCOUNT, "api_key": _ACCOUNT_KEY})
ACCOUNT_KEY = shown(_ACCOUNT_KEY)
ACCOUNT_DELETED = deleted(_ACCOUNT["id"], "organization.project.service_account.deleted")
AUDIT_LOG = listed(shown(_ENTRY), ends=True)
AUDIT_EXPORT = json.dumps(_ENTRY) + "\n"
USAGE = shown(
    {
        "object": "page",
        "data": [
            {
                **_DAY,
                "results": [
                    {
                        "object": "organization.usage.fine_tuning.result",
                        "project_id": _PROJECT["id"],
                        "model": "our-llama",
                        "gpu_seconds": 5400.0,
                        "cpu_seconds": 0.0,
                        "trained_tokens": 2500000,
                        "stored_bytes": 734003200,
                        "jobs": {"succeeded": 3, "failed": 1, "cancelled": 0},
                    }
                ],
            }
        ],
        "has_more": False,
        "next_page": None,
    }
)
COSTS = shown(
    {
        "object": "page",
        "data": [
            {
                **_DAY,
                "results": [
                    {
                        "object": "organization.costs.result",
                        "amount": {"value": 3.75, "currency": "eur"},
                        "line_item": None,
                        "project_id": _PROJECT["id"],
                        "quantity": None,
                        "quantity_unit": None,
                        "api_key_id": None,
                        "user_id": None,
                    }
                ],
            }
        ],
        "has_more": False,
        "next_page": None,
    }
)
_FREE: Example = {"value": None, "default": None, "override": None, "used": None, "left": None}
LIMITS_CHANGE = shown({"running_jobs": 2, "stored_bytes": 107374182400, "requests_per_minute": None})
LIMITS = shown(
    {
        "object": "project.limits",
        "project_id": _PROJECT["id"],
        "requests_per_minute": {**_FREE, "value": 600, "default": 600},
        "upload_bytes": _FREE,
        "upload_bytes_per_day": {**_FREE, "used": 140213},
        "stored_bytes": {
            "value": 107374182400,
            "default": None,
            "override": 107374182400,
            "used": 734003200,
            "left": 106640179200,
        },
        "files": {**_FREE, "used": 12},
        "queued_jobs": {**_FREE, "used": 0},
        "running_jobs": {"value": 2, "default": None, "override": 2, "used": 1, "left": 1},
        "gpu_seconds_per_month": {**_FREE, "used": 5400},
        "trained_tokens_per_job": _FREE,
    }
)
