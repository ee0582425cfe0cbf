"""Whether the fields of a request's `hone` object can be had together; each alone is checked by its schema."""

from typing import Any, Literal

from app.errors import InvalidRequest
from worker.contract.extension import AdapterOptions, Extension


def check(extension: Extension, *, method: str, multiplier: float | Literal["auto"], has_validation_file: bool) -> None:
    """Raises InvalidRequest for settings that exclude each other or need what the job does not have."""
    if extension.learning_rate is not None and multiplier != "auto":
        raise _refusal("learning_rate", "excludes 'learning_rate_multiplier'; give only one of them as a number")
    for name in ("early_stopping", "keep_best"):
        if getattr(extension, name) and not has_validation_file:
            raise _refusal(name, "goes by the validation loss, so it needs a 'validation_file'")
    if extension.dpo.loss == "ipo" and extension.dpo.label_smoothing > 0:
        raise _refusal("dpo.label_smoothing", "is for the sigmoid loss; IPO has none")
    if method != "dpo" and "dpo" in extension.model_fields_set:
        raise _refusal("dpo", f"is for the method 'dpo', but the method is '{method}'")
    if method == "dpo":
        if extension.train_on_last_turn_only:
            what = "is for the method 'supervised': of pairs only the answers are trained"
            raise _refusal("train_on_last_turn_only", what)
        if extension.neftune_noise_alpha > 0:
            raise _refusal("neftune_noise_alpha", "is for the method 'supervised'")


def check_length(extension: Extension, *, most: int, base_model_id: str) -> None:
    wanted = extension.max_sequence_tokens
    if wanted is not None and wanted > most:
        raise _refusal("max_sequence_tokens", f"is {wanted}, but {base_model_id} takes at most {most} on this server")


def check_adapter(options: AdapterOptions, made_with: dict[str, Any], *, model: str) -> None:
    """A run that continues keeps the shape of its adapter: what is said about it must be what it is."""
    for name in sorted(options.model_fields_set):
        wanted, is_now = getattr(options, name), made_with[name]
        if name == "alpha" and wanted is None:
            continue
        if (set(wanted) if isinstance(wanted, list) else wanted) != (
            set(is_now) if isinstance(is_now, list) else is_now
        ):
            detail = f"cannot differ from that of {model}, which is {is_now}; leave it out to continue with that"
            raise _refusal(f"adapter.{name}", detail)


def _refusal(name: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid value for 'hone.{name}': it {what}.", code="invalid_value", param=f"hone.{name}")
