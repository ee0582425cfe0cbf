"""Where this worker's trackers send their figures, and with what key."""

from importlib.util import find_spec

from app.settings import Settings
from worker.contract.tracking import TrackerKind

_PACKAGES: dict[TrackerKind, str] = {"wandb": "wandb", "mlflow": "mlflow", "tensorboard": "tensorboardX"}


class NotHere(Exception):
    """This worker cannot serve such a tracker. The text says why."""


def access(settings: Settings, kind: TrackerKind) -> dict[str, str]:
    """Holds secrets. Raises NotHere."""
    if kind not in settings.trackers:
        raise NotHere("the worker has no settings for it")
    if find_spec(_PACKAGES[kind]) is None:
        raise NotHere(f"{_PACKAGES[kind]} is not installed on the worker")
    if kind == "mlflow":
        assert settings.mlflow_tracking_uri is not None
        return {"tracking_uri": settings.mlflow_tracking_uri.get_secret_value()}
    if kind == "tensorboard":
        assert settings.tensorboard_directory is not None
        return {"directory": str(settings.tensorboard_directory.expanduser().absolute())}
    if settings.wandb_offline:
        directory = settings.data / "wandb"
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        return {"offline": "true", "directory": str(directory)}
    assert settings.wandb_api_key is not None
    places = {"api_key": settings.wandb_api_key.get_secret_value()}
    return places | ({"base_url": settings.wandb_base_url} if settings.wandb_base_url else {})
