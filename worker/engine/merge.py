"""An adapter merged into its base: plain 16-bit weights for servers that take no adapter (or no DoRA)."""

import os
import shutil
import warnings
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from worker.contract.errors import TrainError
from worker.engine.export import copy_tokenizer

_SIXTEEN_BITS = (torch.bfloat16, torch.float16)


def merge(base_directory: Path, adapter_directory: Path, out_directory: Path) -> None:
    """Write base + adapter as a model directory, whole or not at all; one that is there must be empty.

    The sums are made in float32 and rounded once, to the base's dtype, or to bfloat16 if that is not of 16
    bits. TrainError if a weight becomes infinite or not a number, OSError where it cannot be written.
    """
    if out_directory.exists():
        out_directory.rmdir()
    config = AutoConfig.from_pretrained(base_directory, local_files_only=True, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(
        base_directory,
        dtype=config.dtype if config.dtype in _SIXTEEN_BITS else torch.bfloat16,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
    )
    merged = _merged(model, adapter_directory)
    partial = out_directory.with_name(f".{out_directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    merged.save_pretrained(partial)
    copy_tokenizer(base_directory, partial)
    _publish(partial, out_directory)


def _merged(model: PreTrainedModel, adapter_directory: Path) -> PreTrainedModel:
    with warnings.catch_warnings():
        # PEFT asks transformers under a name that it has since changed
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        adapter = PeftModel.from_pretrained(model, str(adapter_directory))
    try:
        merged = adapter.merge_and_unload(safe_merge=True)
    except ValueError as error:  # what PEFT raises for weights that are not finite
        raise TrainError("merge_not_finite", "The adapter makes weights that are infinite or not numbers.") from error
    assert isinstance(merged, PreTrainedModel)
    return merged


def _publish(partial: Path, directory: Path) -> None:
    """Flush everything under `partial` to the disk, then give it its name."""
    for folder, _folders, files in os.walk(partial):
        for name in files:
            _sync(Path(folder) / name)
        _sync(Path(folder))
    partial.rename(directory)
    _sync(directory.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
