"""How this machine carries out a run whose spec leaves that open: device, dtype, threads, memory.

A spec that states its execution is carried out exactly so; this module then chooses nothing.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from worker.contract.errors import Blame, TrainError
from worker.contract.spec import Execution, TrainSpec
from worker.data import base_layers
from worker.data.estimate import Geometry, MemoryEstimate, estimate

Device = Literal["cpu", "cuda"]
Dtype = Literal["float32", "bfloat16", "float16"]
NarrowDtype = Literal["bfloat16", "float16"]

# Beyond these a longer pack is no faster: the matrix products are full.
_MAX_TOKEN_BUDGET: dict[Device, int] = {"cpu": 2048, "cuda": 16384}
_MIN_TOKEN_BUDGET = 256
# Below these a GPU spends more on starting kernels and on unpacking NF4, which each pass does anew, than it
# would on computing activations again. A CPU does not mind.
_MIN_BUDGET_WITH_ACTIVATIONS: dict[Device, int] = {"cpu": 256, "cuda": 2048}
# The memory model is right to a fifth.
_SHARE_OF_FREE_MEMORY = 0.8
# From here on a base is large: bfloat16's speed is worth its rounding.
_LARGE_BASE_PARAMETERS = 1_000_000_000


class Form(NamedTuple):
    """What a base is loaded as: where, in what it computes, and what its matrices are held in if not in that."""

    device: Device
    dtype: Dtype
    weights_dtype: NarrowDtype | None


def available_device() -> Device:
    return "cuda" if torch.cuda.is_available() else "cpu"


def form_of_base(stated: Execution | None, geometry: Geometry, directory: Path) -> Form:
    """What the base in `directory` must be loaded as: what the spec states, or else what suits the machine.

    CUDA computes in bfloat16. A CPU does so for a base of a billion parameters and more where its hardware can, and
    in float32 otherwise; what the files hold in 16 bits then stays in 16 bits, which changes no result.
    """
    if stated is None:
        device = available_device()
        is_large = geometry.parameters >= _LARGE_BASE_PARAMETERS
        if device == "cuda" or (is_large and cpu_computes_in_bfloat16()):
            return Form(device, "bfloat16", None)
        return Form(device, "float32", base_layers.narrow_dtype(directory))
    if stated.device == "cuda" and not torch.cuda.is_available():
        raise TrainError("device_unavailable", "This run was begun on a GPU and needs one.", blame=Blame.TRANSIENT)
    return Form(stated.device, stated.dtype, stated.weights_dtype)


def cpu_computes_in_bfloat16() -> bool:
    """Elsewhere torch emulates it, many times slower than float32."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


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


def choose(spec: TrainSpec, geometry: Geometry, *, form: Form, threads: int, base_is_loaded: bool) -> Execution:
    """The fastest execution that fits into the free memory: the largest token budget, all activations kept if they can.

    A power of two, so that the same machine chooses the same budget although its free memory varies.
    TrainError("does_not_fit") if none does, with the numbers and with what would fit.
    """
    device = form.device
    free = int(_SHARE_OF_FREE_MEMORY * _free_memory_bytes(device))

    def fits(predicted: MemoryEstimate) -> bool:
        return predicted.total - (predicted.weights if base_is_loaded else 0) <= free

    for checkpointing in (False, True):
        budget = _MAX_TOKEN_BUDGET[device]
        while budget >= (_MIN_TOKEN_BUDGET if checkpointing else _MIN_BUDGET_WITH_ACTIVATIONS[device]):
            chosen = Execution(
                **form._asdict(),
                token_budget=budget,
                num_threads=threads,
                gradient_checkpointing=checkpointing,
                share_prefixes=True,
            )
            if fits(estimate(spec, geometry, chosen)):
                return chosen
            budget //= 2
    smallest = Execution(
        **form._asdict(),
        token_budget=_MIN_TOKEN_BUDGET,
        num_threads=threads,
        gradient_checkpointing=True,
    )
    needed = estimate(spec, geometry, smallest)
    remedies = _remedies(spec, lambda other: fits(estimate(other, geometry, smallest)))
    raise TrainError(
        "does_not_fit",
        f"This run needs about {_gigabytes(needed.total)} of memory ({_gigabytes(needed.weights)} of them for the base "
        f"model's weights, {_gigabytes(needed.activations)} for examples of up to {spec.max_sequence_tokens} tokens) "
        f"and this worker can give it {_gigabytes(free + (needed.weights if base_is_loaded else 0))}. "
        + (f"It would fit with {' or with '.join(remedies)}." if remedies else "Choose a smaller base model."),
        param="model",
    )


def _remedies(spec: TrainSpec, fits: Callable[[TrainSpec], bool]) -> list[str]:
    """What a job's owner could ask for instead, in words: NF4, shorter examples, or if it must be, both."""
    in_nf4 = spec.model_copy(update={"quantization": "nf4"})
    found = ["the base model held in NF4"] if spec.quantization is None and fits(in_nf4) else []
    for other, also in ((spec, ""), (in_nf4, "the base model held in NF4 and ")):
        length = 1 << (spec.max_sequence_tokens - 1).bit_length() - 1
        while length >= _MIN_TOKEN_BUDGET and not fits(other.model_copy(update={"max_sequence_tokens": length})):
            length //= 2
        if length >= _MIN_TOKEN_BUDGET and not (also and found):
            found.append(f"{also}examples of at most {length} tokens (max_sequence_tokens)")
    return found


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


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
