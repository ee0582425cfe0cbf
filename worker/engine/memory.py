"""Running out of memory: to notice it, to free what can be freed, and to go on with less."""

import ctypes
import gc
import logging
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from worker.contract.errors import TrainError
from worker.contract.spec import Execution

log = logging.getLogger(__name__)

_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
# The most that glibc's own, growing threshold comes to: what a process that has run for a while has anyway.
_USUAL_THRESHOLD_BYTES = 32 << 20
_TIGHT_THRESHOLD_BYTES = 1 << 20
# What other than torch's allocators say, the CPU's with a plain RuntimeError: CUDA's own calls, and cuBLAS' workspaces.
_OUT_OF_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
Result = TypeVar("Result")


def is_out_of_memory(error: BaseException) -> bool:
    """Also where torch raises a plain RuntimeError."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


def free() -> None:
    """Give back what nobody uses any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def recompute_activations(model: PreTrainedModel, wanted: bool) -> None:
    """Have each layer compute its activations again in the backward pass, or keep them: the numbers are the same.

    The model's own switch also hooks its embeddings, which only reentrant checkpointing needs.
    """
    hold_tightly(wanted)
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            layer: Any = module
            layer.gradient_checkpointing = wanted
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)


def hold_tightly(wanted: bool) -> None:
    """Have glibc give freed tensors back at once, at the price of asking for each anew; or leave it as usual.

    Its heap otherwise holds twice what is alive, and with recomputed activations five times.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _TIGHT_THRESHOLD_BYTES if wanted else _USUAL_THRESHOLD_BYTES)


def retrying(action: Callable[[], Result], adjust: Callable[[], None]) -> Result:
    """`action`, again after each `adjust` while it runs out of memory; `adjust` raises when nothing is left to do."""
    while True:
        try:
            return action()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            log.warning("out of memory: %s", str(error).splitlines()[0])
        # Here, where the error and with it the frames that hold the step's tensors are gone.
        adjust()


def smaller(execution: Execution, *, largest_example: int) -> Execution:
    """Half the token budget; where the longest example already has a micro-batch of its own, gradient checkpointing.

    TrainError("out_of_memory") if there is nothing smaller.
    """
    if execution.token_budget > largest_example:
        return execution.model_copy(update={"token_budget": execution.token_budget // 2})
    if not execution.gradient_checkpointing:
        return execution.model_copy(update={"gradient_checkpointing": True})
    raise TrainError(
        "out_of_memory",
        f"The worker has too little memory for a single example: the longest has {largest_example} tokens. "
        "A lower max_sequence_tokens, the base model held in NF4 or a smaller base model needs less.",
        param="model",
    )
