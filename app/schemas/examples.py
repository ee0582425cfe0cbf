"""What objects on the wire look like, for the OpenAPI document; `tests/unit/test_examples.py` holds them to it."""

import json
from typing import Any

from pydantic import BaseModel, ConfigDict

Example = dict[str, Any]

_MESSAGES = [{"role": "user", "content": "How do I reset my password?"}]
_STRING_CHECK: Example = {
    "type": "string_check",
    "name": "exact",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
    "operation": "eq",
}
_HYPERPARAMETERS: Example = {"n_epochs": 3, "batch_size": 8, "learning_rate_multiplier": 1.0}
_NO_GRADER_ERRORS: Example = {
    "formula_parse_error": False,
    "sample_parse_error": False,
    "truncated_observation_error": False,
    "unresponsive_reward_error": False,
    "invalid_variable_error": False,
    "other_error": False,
    "python_grader_server_error": False,
    "python_grader_server_error_type": None,
    "python_grader_runtime_error": False,
    "python_grader_runtime_error_details": None,
    "model_grader_server_error": False,
    "model_grader_refusal_error": False,
    "model_grader_parse_error": False,
    "model_grader_server_error_details": None,
}
_FILE: Example = {
    "id": "file-3KjQ0Y8mWlN5xVb2",
    "object": "file",
    "bytes": 140213,
    "created_at": 1763800000,
    "expires_at": None,
    "filename": "support.jsonl",
    "purpose": "fine-tune",
    "status": "processed",
    "status_details": None,
}

_WEBHOOK_ENDPOINT: Example = {
    "id": "we_6bTn0QxL3rVy",
    "object": "webhook_endpoint",
    "name": "deploy",
    "url": "https://hooks.example.com/hone",
    "event_types": ["fine_tuning.job.succeeded", "fine_tuning.job.failed"],
    "created_at": 1763800000,
    "updated_at": 1763800000,
    "signing_secret_hint": "whsec_...8f2k",
}


def shown(*examples: Example) -> ConfigDict:
    """The configuration of a model whose schema shows these."""
    return ConfigDict(json_schema_extra={"examples": list(examples)})


def listed(of: ConfigDict, *, ends: bool = False, more: bool | None = False) -> ConfigDict:
    """The configuration of a list of what `of` shows first: with the ids of both ends, and whether there is more."""
    extra: Any = of.get("json_schema_extra")
    item = extra["examples"][0]
    page: Example = {"object": "list", "data": [item]}
    if ends:
        page |= {"first_id": item["id"], "last_id": item["id"]}
    return shown(page if more is None else page | {"has_more": more})


def deleted(item_id: str, kind: str) -> ConfigDict:
    return shown({"id": item_id, "object": kind, "deleted": True})


def of_kinds(root: type[BaseModel]) -> dict[str, list[Example]]:
    """What each model below `root` shows, by its name."""
    found: dict[str, list[Example]] = {}
    for kind in root.__subclasses__():
        extra: Any = kind.model_config.get("json_schema_extra")
        if extra is not None and "examples" in extra:
            found[kind.__name__] = extra["examples"]
        found |= of_kinds(kind)
    return found


ERROR = shown(
    {
        "error": {
            "message": "Invalid value for 'hyperparameters.n_epochs': expected \"auto\" or an integer from 1 to 50.",
            "type": "invalid_request_error",
            "param": "hyperparameters.n_epochs",
            "code": "invalid_value",
        }
    }
)
FILE = shown(_FILE)
FILES = listed(FILE, ends=True)
FILE_DELETED = deleted(_FILE["id"], "file")
_ROW = {"messages": [*_MESSAGES, {"role": "assistant", "content": "Open the settings and choose a new password."}]}
FILE_FORM: Example = {"file": json.dumps(_ROW) + "\n", "purpose": "fine-tune"}
UPLOAD_CREATE = shown(
    {"filename": "support.jsonl", "purpose": "fine-tune", "bytes": 1073741824, "mime_type": "text/jsonl"}
)
UPLOAD_COMPLETE = shown({"part_ids": ["part_8fXw1Zr0", "part_Qm27hT5e"], "md5": "9e107d9d372bb6826bd81d3542a419d6"})
UPLOAD = shown(
    {
        "id": "upload_Zt6bR1vQ8w0e",
        "object": "upload",
        "bytes": 140213,
        "created_at": 1763800000,
        "expires_at": 1763803600,
        "filename": "support.jsonl",
        "purpose": "fine-tune",
        "status": "completed",
        "file": _FILE,
    }
)
UPLOAD_PART = shown(
    {
        "id": "part_8fXw1Zr0",
        "object": "upload.part",
        "created_at": 1763800100,
        "upload_id": "upload_Zt6bR1vQ8w0e",
    }
)
JOB_CREATE = shown(
    {"model": "hone-tiny", "training_file": "file-3KjQ0Y8mWlN5xVb2"},
    {
        "model": "hone-tiny",
        "training_file": "file-3KjQ0Y8mWlN5xVb2",
        "validation_file": "file-p7Rk2ZcD4tVh9sXq",
        "suffix": "support",
        "seed": 42,
        "metadata": {"team": "help-desk"},
        "method": {"type": "supervised", "supervised": {"hyperparameters": _HYPERPARAMETERS}},
        "hone": {"adapter": {"rank": 32}, "early_stopping": {"patience": 2}},
    },
    {
        "model": "hone-tiny",
        "training_file": "file-3KjQ0Y8mWlN5xVb2",
        "method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.1, "n_epochs": "auto"}}},
    },
)
JOB = shown(
    {
        "id": "ftjob-h2Vb8LwQ0nXs5RtK",
        "object": "fine_tuning.job",
        "created_at": 1763800200,
        "finished_at": 1763803800,
        "estimated_finish": None,
        "model": "hone-tiny",
        "fine_tuned_model": "ft:hone-tiny:default:support:Wq3nZ8xk",
        "organization_id": "org-default",
        "status": "succeeded",
        "training_file": "file-3KjQ0Y8mWlN5xVb2",
        "validation_file": None,
        "result_files": ["file-Jr5mB1yT7cWd0aHs", "file-Lq8vN4xK2bGf6eTz"],
        "trained_tokens": 412893,
        "seed": 42,
        "error": None,
        "hyperparameters": _HYPERPARAMETERS,
        "method": {"type": "supervised", "supervised": {"hyperparameters": _HYPERPARAMETERS}},
        "metadata": {"team": "help-desk"},
        "integrations": [],
        "user_provided_suffix": "support",
        "usage_metrics": None,
        "shared_with_openai": False,
        "hone": {
            "status": "succeeded",
            "requested_model": "hone-tiny",
            "current_step": 75,
            "total_steps": 75,
            "requested": None,
            "spec": None,
            "dataset": {"training": {"examples": 200}},
            "trackers": [],
        },
    }
)
JOBS = listed(JOB)
_EVENT: Example = {
    "id": "ftevent-c9Xh4NvT2bLq",
    "object": "fine_tuning.job.event",
    "created_at": 1763803000,
    "level": "info",
    "type": "metrics",
    "message": "Step 60/75: training loss=0.71",
    "data": {"step": 60, "total_steps": 75, "train_loss": 0.7134, "train_mean_token_accuracy": 0.812},
}
EVENT = shown(_EVENT)
EVENTS = listed(EVENT, more=True)
EVENT_STREAM = f"id: {_EVENT['id']}\ndata: {json.dumps(_EVENT)}\n\ndata: [DONE]\n\n"
LOG = "loading hone-tiny\nstep 1 of 75\n"
CHECKPOINT = shown(
    {
        "id": "ftckpt_k1Mz6WsY9pRg",
        "object": "fine_tuning.job.checkpoint",
        "created_at": 1763802500,
        "fine_tuned_model_checkpoint": "ft:hone-tiny:default:support:Hc7pV2md:ckpt-step-50",
        "fine_tuning_job_id": "ftjob-h2Vb8LwQ0nXs5RtK",
        "step_number": 50,
        "metrics": {
            "step": 50.0,
            "train_loss": 0.7421,
            "train_mean_token_accuracy": 0.804,
            "valid_loss": None,
            "valid_mean_token_accuracy": None,
            "full_valid_loss": 0.8012,
            "full_valid_mean_token_accuracy": 0.791,
        },
    }
)
CHECKPOINTS = listed(CHECKPOINT, ends=True)
MODEL = shown(
    {
        "id": "ft:hone-tiny:default:support:Wq3nZ8xk",
        "object": "model",
        "created": 1763803800,
        "owned_by": "org-default",
        "shutdown_date": None,
        "hone": {"kind": "fine_tuned", "base_model": "hone-tiny"},
    }
)
MODELS = listed(MODEL, more=None)
MODEL_DELETED = deleted("ft:hone-tiny:default:support:Wq3nZ8xk", "model")
_ALIAS: Example = {"id": "gpt-4o-mini-2024-07-18", "base_model": "llama-3.1-8b-instruct"}
MODEL_ALIAS_CREATE = shown(_ALIAS)
MODEL_ALIAS = shown({**_ALIAS, "object": "model_alias", "created_at": 1763800000})
MODEL_ALIASES = listed(MODEL_ALIAS, more=None)
MODEL_ALIAS_DELETED = deleted(_ALIAS["id"], "model_alias")
PERMISSION_CREATE = shown({"project_ids": ["proj_Yb5tK0xWn3Qe"]})
PERMISSION = shown(
    {
        "id": "cp_4VdR8sLj1zMc",
        "object": "checkpoint.permission",
        "created_at": 1763804000,
        "project_id": "proj_Yb5tK0xWn3Qe",
    }
)
PERMISSIONS = listed(PERMISSION, ends=True)
PERMISSION_DELETED = deleted("cp_4VdR8sLj1zMc", "checkpoint.permission")
GRADER_VALIDATE = shown({"grader": _STRING_CHECK})
GRADER_RUN = shown(
    {"grader": _STRING_CHECK, "model_sample": "Lisbon", "item": {"answer": "Lisbon"}},
    {
        "grader": {
            "type": "text_similarity",
            "name": "close",
            "input": "{{ sample.output_text }}",
            "reference": "{{ item.answer }}",
            "evaluation_metric": "fuzzy_match",
        },
        "model_sample": "Go to the settings and choose a new password.",
        "item": {"messages": _MESSAGES, "answer": "Open the settings and choose a new password."},
    },
)
GRADER_RESULT = shown(
    {
        "reward": 1.0,
        "sub_rewards": {},
        "model_grader_token_usage_per_model": {},
        "metadata": {
            "name": "exact",
            "type": "string_check",
            "errors": _NO_GRADER_ERRORS,
            "execution_time": 0.0004,
            "scores": {"exact": 1.0},
            "token_usage": None,
            "sampled_model_name": None,
        },
        "hone": {"errors": []},
    }
)
WEBHOOK_ENDPOINT_CREATE = shown(
    {
        "name": "deploy",
        "url": "https://hooks.example.com/hone",
        "event_types": ["fine_tuning.job.succeeded", "fine_tuning.job.failed"],
    }
)
WEBHOOK_ENDPOINT = shown(_WEBHOOK_ENDPOINT)
WEBHOOK_ENDPOINT_WITH_SECRET = shown(
    {**_WEBHOOK_ENDPOINT, "signing_secret": "whsec_V2hhdCBzaWducyBkZWxpdmVyaWVzLCA4ZjJr"}
)
WEBHOOK_ENDPOINTS = listed(WEBHOOK_ENDPOINT, ends=True)
WEBHOOK_ENDPOINT_UPDATE = shown({"url": "https://hooks.example.com/hone/2"})
WEBHOOK_ENDPOINT_DELETED = deleted(_WEBHOOK_ENDPOINT["id"], "webhook_endpoint.deleted")
WEBHOOK_ROTATION = shown({"keep_old_secret_active_for_24_hours": True})
WEBHOOK_TEST = shown({"event_type": "fine_tuning.job.succeeded"})
WEBHOOK_TEST_RESULT = shown(
    {
        "object": "webhook_endpoint.test",
        "success": True,
        "status_code": 204,
        "event_type": "fine_tuning.job.succeeded",
        "webhook_endpoint_id": _WEBHOOK_ENDPOINT["id"],
    }
)
WEBHOOK_EVENT_TYPES = shown({"object": "list", "data": ["fine_tuning.job.succeeded", "fine_tuning.job.failed"]})
WEBHOOK_DELIVERY = shown(
    {
        "id": "wh_q8Lz2VnX7cRb",
        "object": "webhook_endpoint.delivery",
        "webhook_endpoint_id": _WEBHOOK_ENDPOINT["id"],
        "event_id": "evt_5Hs0PdKw9mTy",
        "event_type": "fine_tuning.job.succeeded",
        "payload": '{"id": "evt_5Hs0PdKw9mTy", "object": "event", "type": "fine_tuning.job.succeeded", '
        '"created_at": 1763803800, "data": {"id": "ftjob-h2Vb8LwQ0nXs5RtK"}}',
        "created_at": 1763803800,
        "status": "pending",
        "attempts": 1,
        "last_attempt_at": 1763803801,
        "next_attempt_at": 1763803806,
        "delivered_at": None,
        "last_status_code": 503,
        "last_error": None,
    }
)
WEBHOOK_DELIVERIES = listed(WEBHOOK_DELIVERY, ends=True)
WORKER = shown(
    {
        "id": "gpu-1-4711-x8Kq",
        "object": "worker",
        "hostname": "gpu-1",
        "pid": 4711,
        "version": "1.0",
        "pool": "default",
        "kinds": ["train", "cpu"],
        "state": "ready",
        "slots": [
            {
                "number": 0,
                "device": "cuda:0",
                "state": "busy",
                "base_model": "hone-tiny",
                "quantization": None,
                "job_id": "ftjob-h2Vb8LwQ0nXs5RtK",
            }
        ],
        "unavailable_bases": {},
        "started_at": 1763800000,
        "heartbeat_at": 1763803000,
        "drain_requested_at": None,
    }
)
WORKERS = listed(WORKER, more=None)
HEALTH = shown({"status": "ok"})
READINESS = shown({"status": "ok", "queue": "ok"})
