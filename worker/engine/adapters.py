"""LoRA adapters on a resident base: attach, reset, detach; the base's weights are never written."""

import json
import math
import warnings
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear
from peft.tuners.lora.dora import DoraLinearLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils.integrations import dequantize_module_weight
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from worker.contract.errors import TrainError
from worker.contract.spec import LoraSettings
from worker.engine import lora_product
from worker.engine.seeds import derive


def attach(model: PreTrainedModel, lora: LoraSettings, *, seed: int) -> PeftModel:
    """Put a fresh float32 adapter on the linear layers that `lora` names; the head is never one of them."""
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        # declared an int, which other readers of the file rely on; PEFT itself only divides it
        lora_alpha=int(lora.alpha) if lora.alpha.is_integer() else lora.alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=lora.dropout,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        target_modules=_targets(model, lora),
        init_lora_weights=False,  # reset() does it, from the seed alone
    )
    with warnings.catch_warnings():
        # PEFT asks transformers under a name that it has since changed
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        adapter = get_peft_model(model, config)
    assert isinstance(adapter, PeftModel)
    lora_product.use(adapter)
    reset(adapter, seed=seed)
    return adapter


def reset(adapter: PeftModel, *, seed: int) -> None:
    """Initialise as PEFT and the papers do: A uniform (Kaiming, a = sqrt 5), B zero, DoRA's magnitudes the base's.

    The numbers come from a generator on the CPU, so they are the same on every device, on a warm and
    on a cold base.
    """
    generator = torch.Generator().manual_seed(derive(seed, "adapter"))
    with torch.no_grad():
        for name, parameter in parameters(adapter).items():
            if ".lora_B." in name:
                parameter.zero_()
            elif ".lora_A." in name:
                bound = 1 / math.sqrt(parameter.shape[1])
                parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))
        for layer in adapter.modules():
            if isinstance(layer, Linear):
                _reset_magnitudes(layer)


def detach(adapter: PeftModel) -> None:
    """Remove every trace of the adapter: the base is again what was loaded."""
    base = adapter.get_base_model()
    adapter.unload()
    if hasattr(base, "peft_config"):
        del base.peft_config
    for parameter in base.parameters():
        parameter.requires_grad_(False)


def _reset_magnitudes(layer: Linear) -> None:
    # The norms of the base's rows, in float32 as DoRA's forward computes them: their ratio is then 1 at the start.
    for name, magnitude in cast("dict[str, DoraLinearLayer]", layer.lora_magnitude_vector).items():
        weight_OI = dequantize_module_weight(layer.get_base_layer()).float()
        magnitude.weight.copy_(magnitude.get_weight_norm(weight_OI, torch.zeros_like(weight_OI), layer.scaling[name]))


def _targets(model: PreTrainedModel, lora: LoraSettings) -> list[str]:
    known = _linear_names(model)
    if lora.target_modules == "all-linear":
        return known
    unknown = sorted(set(lora.target_modules) - set(known))
    if unknown or not lora.target_modules:
        raise TrainError(
            "unknown_target_module",
            f"This base model has no linear layers named {', '.join(unknown) or 'nothing'}; "
            f"LoRA can train {', '.join(known)}.",
            param="hone.adapter.target_modules",
        )
    return sorted(set(lora.target_modules))


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


def tensors(adapter: PeftModel) -> dict[str, torch.Tensor]:
    """The adapter's weights under the names of its file."""
    return get_peft_model_state_dict(adapter, save_embedding_layers=False)


def save(adapter: PeftModel, directory: Path, *, base_id: str) -> None:
    """Write a standard PEFT directory; the base is named by its id, not by a path of this machine."""
    directory.mkdir(parents=True)
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors(adapter).items())},
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
    """Load weights that `save` wrote; they must fit exactly."""
    stored, own = load_file(directory / "adapter_model.safetensors"), tensors(adapter)
    if {name: value.shape for name, value in own.items()} != {name: value.shape for name, value in stored.items()}:
        raise ValueError("the stored adapter has other tensors than this run's")
    set_peft_model_state_dict(adapter, stored)
