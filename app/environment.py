"""The environment: which of it is secret, and what of it a child of ours gets."""

import os

# What our libraries read for themselves; our own settings begin with HONE_.
_OF_OTHERS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "WANDB_API_KEY")
_KEPT_FROM_CHILDREN = ("HONE_", "AWS_", *_OF_OTHERS)
_HARMLESS = "HONE_TRAINER_THREADS"


def secrets() -> set[str]:
    """Those of our libraries."""
    return {os.environ[name] for name in _OF_OTHERS if os.environ.get(name)}


def for_a_child() -> dict[str, str]:
    """For one that is to build, merge or look, and needs no secret for it."""
    return {
        name: value
        for name, value in os.environ.items()
        if name == _HARMLESS or not name.startswith(_KEPT_FROM_CHILDREN)
    }
