"""How this machine carries out a run whose spec leaves that open: device, dtype, threads, token budget.

A spec that states its execution is carried out exactly so; this module then chooses nothing.
"""

import os
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedModel

from worker.contract.errors import Blame, TrainError
from worker.contract.spec import Execution

Device = Literal["cpu", "cuda"]
Dtype = Literal["float32", "bfloat16", "float16"]

# Beyond these a longer pack is no faster: the matrix products are full.
_MAX_TOKEN_BUDGET: dict[Device, int] = {"cpu": 2048, "cuda": 16384}
_MIN_TOKEN_BUDGET = 256
_SHARE_OF_FREE_MEMORY = 0.6


def available_device() -> Device:
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_and_dtype(stated: Execution | None) -> tuple[Device, Dtype]:
    """What the base must be loaded as: bfloat16 on CUDA, float32 on CPU, or what the spec states."""
    if stated is None:
        device = available_device()
        return device, "bfloat16" if device == "cuda" else "float32"
    if stated.device == "cuda" and not torch.cuda.is_available():
        raise TrainError("device_unavailable", "This run was begun on a GPU and needs one.", blame=Blame.TRANSIENT)
    return stated.device, stated.dtype


def num_threads(stated: Execution | None) -> int:
    if stated is not None:
        return stated.num_threads
    return int(os.environ.get("HONE_TRAINER_THREADS") or torch.get_num_threads())


def apply(dtype: Dtype, threads: int) -> None:
    """Set the process up for a run."""
    # Sums split over threads in another way round in another way, so this is part of a run's identity.
    torch.set_num_threads(threads)
    # On CUDA: beside a narrow base, the float32 adapter's products may use TF32; in a float32 run nothing may.
    torch.set_float32_matmul_precision("highest" if dtype == "float32" else "high")


def choose(model: PreTrainedModel, device: Device, dtype: Dtype, threads: int) -> Execution:
    """The execution of a run on the loaded `model`."""
    return Execution(device=device, dtype=dtype, token_budget=_token_budget(model, device, dtype), num_threads=threads)


def _token_budget(model: PreTrainedModel, device: Device, dtype: Dtype) -> int:
    """The largest power of two whose activations fit into 60% of the free memory, within bounds.

    A power of two, so that the same machine chooses the same budget although its free memory varies.
    """
    affordable = int(_SHARE_OF_FREE_MEMORY * _free_memory_bytes(device) / _activation_bytes_per_token(model, dtype))
    budget = min(_MAX_TOKEN_BUDGET[device], max(_MIN_TOKEN_BUDGET, affordable))
    return 1 << (budget.bit_length() - 1)


def _activation_bytes_per_token(model: PreTrainedModel, dtype: Dtype) -> int:
    """What autograd keeps of one token, all layers.

    A layer of hidden size h and MLP size f keeps about 10 h (norms, q, k, v, attention, residuals) and
    4 f (gate, activation, up, product) elements in the base's dtype. LoRA's float32 path keeps its six
    inputs of size h and one of size f once more where the base is narrower.
    """
    config = model.config.get_text_config()
    hidden = config.hidden_size
    mlp = getattr(config, "intermediate_size", None) or 4 * hidden
    width = 4 if dtype == "float32" else 2
    lora_copies = 0 if dtype == "float32" else 4 * (6 * hidden + mlp)
    return config.num_hidden_layers * (width * (10 * hidden + 4 * mlp) + lora_copies)


def _free_memory_bytes(device: Device) -> int:
    if device == "cuda":
        free, _total = torch.cuda.mem_get_info()
        # What the allocator holds but nobody uses is free to us.
        return free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return min(_available_bytes(), _control_group_bytes())


def _available_bytes() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _control_group_bytes() -> int:
    """What a container's limit leaves; very much where there is no limit."""
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = Path("/sys/fs/cgroup/memory.current").read_text().strip()
        return 1 << 62 if limit == "max" else int(limit) - int(used)
    except (OSError, ValueError):
        return 1 << 62
