"""LoRA adapters on a resident base: attach, reset, detach; the base's weights are never written."""

import json
import math
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from worker.contract.errors import TrainError
from worker.contract.events import Start
from worker.contract.spec import LoraSettings
from worker.engine.seeds import derive


def attach(model: PreTrainedModel, lora: LoraSettings, *, seed: int) -> PeftModel:
    """Put a fresh float32 adapter on every linear layer of the model but its head."""
    if lora.target_modules != "all-linear":
        raise TrainError("unsupported_target_modules", "LoRA trains all linear layers.", param="lora.target_modules")
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        # declared an int, which other readers of the file rely on; PEFT itself only divides it
        lora_alpha=int(lora.alpha) if lora.alpha.is_integer() else lora.alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=lora.dropout,
        target_modules=_linear_names(model),
        init_lora_weights=False,  # reset() does it, from the seed alone
    )
    with warnings.catch_warnings():
        # PEFT asks transformers under a name that it has since changed
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        adapter = get_peft_model(model, config)
    assert isinstance(adapter, PeftModel)
    reset(adapter, seed=seed)
    return adapter


def reset(adapter: PeftModel, *, seed: int) -> None:
    """Initialise as PEFT and the LoRA paper do: A uniform (Kaiming, a = sqrt 5), B zero.

    The numbers come from a generator on the CPU, so they are the same on every device, on a warm and
    on a cold base.
    """
    generator = torch.Generator().manual_seed(derive(seed, "adapter"))
    with torch.no_grad():
        for name, parameter in parameters(adapter).items():
            if ".lora_B." in name:
                parameter.zero_()
            else:
                bound = 1 / math.sqrt(parameter.shape[1])
                parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))


def detach(adapter: PeftModel) -> None:
    """Remove every trace of the adapter: the base is again what was loaded."""
    base = adapter.get_base_model()
    adapter.unload()
    if hasattr(base, "peft_config"):
        del base.peft_config
    for parameter in base.parameters():
        parameter.requires_grad_(False)


def _linear_names(model: PreTrainedModel) -> list[str]:
    """The names that all linear layers but the head go by, such as q_proj."""
    head = model.get_output_embeddings()
    linear = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    names = {name.rpartition(".")[2] for name, module in linear.items() if module is not head}
    if any(name.rpartition(".")[2] in names for name, module in linear.items() if module is head):
        raise TrainError(
            "unsupported_model", "This base model's head has the same name as other layers.", param="model"
        )
    return sorted(names)


def parameters(adapter: PeftModel) -> dict[str, torch.nn.Parameter]:
    """The trainable parameters by name, in the order of names."""
    return dict(sorted((name, value) for name, value in adapter.named_parameters() if value.requires_grad))


def save(adapter: PeftModel, directory: Path, *, base_id: str) -> None:
    """Write a standard PEFT directory; the base is named by its id, not by a path of this machine."""
    directory.mkdir(parents=True)
    tensors = get_peft_model_state_dict(adapter, save_embedding_layers=False)
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())},
        directory / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    config = {
        name: sorted(value) if isinstance(value, set) else value
        for name, value in adapter.peft_config["default"].to_dict().items()
    }
    config |= {"base_model_name_or_path": base_id, "inference_mode": True, "init_lora_weights": True}
    (directory / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def restore(adapter: PeftModel, directory: Path) -> None:
    """Load the weights of a PEFT directory; they must fit exactly. ValueError if they do not."""
    tensors = load_file(directory / "adapter_model.safetensors")
    own = get_peft_model_state_dict(adapter, save_embedding_layers=False)
    if {name: value.shape for name, value in own.items()} != {name: value.shape for name, value in tensors.items()}:
        raise ValueError("the stored adapter has other tensors than this run's")
    set_peft_model_state_dict(adapter, tensors)


def continue_from(adapter: PeftModel, start: Start) -> None:
    """Begin where another run ended, if that is asked for. A checkpoint of this run is loaded over it."""
    if start.initial_adapter_directory is None:
        return
    try:
        restore(adapter, Path(start.initial_adapter_directory))
    except (OSError, ValueError, SafetensorError) as error:
        message = f"The adapter of {start.spec.initial_adapter} does not fit the base model."
        raise TrainError("initial_adapter_unusable", message, param="model") from error
