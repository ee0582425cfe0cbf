"""Random streams as pure functions of the run's seed: nothing depends on what ran before."""

import hashlib

import numpy as np
import torch

_MASK = np.uint64(0xFFFFFFFFFFFFFFFF)


def derive(seed: int, *labels: str | int) -> int:
    """A 63-bit seed for the stream that `labels` name."""
    text = "/".join(str(part) for part in (seed, *labels))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def shuffled(count: int, seed: int, *labels: str | int) -> np.ndarray:
    """A permutation of range(count), int64[count].

    Sorts by a bijective mix of the index (splitmix64, Steele et al. 2014), because the streams of
    NumPy's and torch's generators may change between their releases and this order must not.
    """
    with np.errstate(over="ignore"):
        mixed = np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(derive(seed, *labels))
        mixed = ((mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)) & _MASK
        mixed = ((mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)) & _MASK
    return np.argsort(mixed ^ (mixed >> np.uint64(31)), kind="stable")


def step_seed(seed: int, step: int) -> int:
    """The seed of everything random in one step (dropout)."""
    return derive(seed, "step", step)


def seed_step(seed: int, step: int) -> None:
    """Seed torch for one step, so that dropout is a function of (seed, step) and a resume needs no RNG state."""
    torch.manual_seed(step_seed(seed, step))
