"""Load a base model from a directory of this machine, and check that it is one we can train."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from worker.contract.errors import Blame, TrainError
from worker.data import estimate
from worker.data.estimate import Geometry
from worker.engine import attention, last_layer, narrow, nf4, probe, rotary
from worker.engine.execution import Device, Dtype, NarrowDtype


def load(
    directory: Path,
    *,
    device: Device,
    dtype: Dtype,
    weights_dtype: NarrowDtype | None = None,
    quantization: Literal["nf4"] | None = None,
    tick: Callable[[], None],
) -> PreTrainedModel:
    """The frozen model on `device` in `dtype`, with packed attention; `tick` is called as weights arrive.

    With `weights_dtype`, its matrices are held in that and still compute in `dtype`, which is then float32. With
    `quantization`, all linear layers but the head are held in 4 bits and compute in `dtype`.
    Nothing is fetched and no code of the model's repository runs. TrainError for a directory that
    is not a whole model, weights that are not finite, or a model whose layers we cannot honour.
    """
    held_in = getattr(torch, weights_dtype or dtype)
    attention.register()
    if quantization is not None:
        nf4.require(torch.device(device))
    previous = transformers_logging.set_tqdm_hook(
        lambda factory, args, kwargs: _Ticking(factory(*args, **kwargs), tick)
    )
    transformers_logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        _check_config(config)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            directory,
            config=config,
            dtype=held_in,
            attn_implementation=attention.PACKED,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **(
                {"device_map": {"": "cuda:0" if device == "cuda" else "cpu"}}
                if device == "cuda" or quantization
                else {}
            ),
            **({"quantization_config": nf4.loading_config(held_in)} if quantization else {}),
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise TrainError(
            "base_model_unreadable", "The base model could not be loaded.", param="model", blame=Blame.INTERNAL
        ) from error
    finally:
        transformers_logging.set_tqdm_hook(previous)
    model, report = loaded
    absent = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    if absent:
        # transformers would have filled them with random numbers
        raise TrainError(
            "base_model_incomplete",
            f"The base model lacks {len(absent)} of its weights, {absent[0]} for one.",
            param="model",
            blame=Blame.INTERNAL,
        )
    if quantization is not None:  # which hides what is not a number in a layer that is now in 4 bits
        _check_finite(_stored_weights(directory), tick)
    settle(model, weights_dtype=weights_dtype, quantization=quantization, tick=tick)
    return model


def settle(
    model: PreTrainedModel,
    *,
    weights_dtype: NarrowDtype | None = None,
    quantization: Literal["nf4"] | None,
    tick: Callable[[], None],
) -> None:
    """Make a model that has its weights, wherever they came from, one that runs can be carried out on.

    Its attention must have been PACKED from the start. Layers that are not in 4 bits yet, though
    `quantization` says so, are quantized where they lie. With `weights_dtype` it must have been loaded in that.
    TrainError as for `load`.
    """
    if quantization is not None:
        nf4.settle(model)
    if weights_dtype is not None:
        narrow.hold(model)
    model.requires_grad_(False)
    rotary.follow_documents(model)
    last_layer.compute_where_read(model)
    _check_weights(model)
    _check_finite(model.named_parameters(), tick)
    probe.check(model)
    tick()


def read_geometry(directory: Path) -> Geometry:
    """The sizes that the memory model needs. TrainError if config.json does not give them."""
    try:
        return estimate.read_geometry(directory)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrainError(
            "base_model_unreadable", "The base model could not be loaded.", param="model", blame=Blame.INTERNAL
        ) from error


class _Ticking:
    """A progress bar of transformers that also reports each item."""

    def __init__(self, bar: Any, tick: Callable[[], None]) -> None:
        self._bar = bar
        self._tick = tick

    def __iter__(self) -> Iterator[Any]:
        for item in self._bar:
            self._tick()
            yield item

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bar, name)


def _check_config(config: PreTrainedConfig) -> None:
    config = config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        raise TrainError(
            "unsupported_model",
            f"This base model cannot be trained here: it has layers of kind {', '.join(sorted(kinds))}.",
            param="model",
        )


def _check_weights(model: PreTrainedModel) -> None:
    if not isinstance(model.get_output_embeddings(), torch.nn.Linear):
        raise TrainError("unsupported_model", "This base model has no linear output head.", param="model")
    # "All linear layers" would quietly leave out experts held in one tensor, convolutions and the like.
    for name, module in model.named_modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Embedding)):
            continue
        for parameter_name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim > 1:
                raise TrainError(
                    "unsupported_model",
                    "This base model cannot be trained here: "
                    f"{name}.{parameter_name} is not the weight of a linear layer.",
                    param="model",
                )


def _stored_weights(directory: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                tensor = file.get_tensor(name)
                if tensor.is_floating_point() and tensor.numel():
                    yield name, tensor


def _check_finite(weights: Iterable[tuple[str, torch.Tensor]], tick: Callable[[], None]) -> None:
    for name, weight in weights:
        # min and max carry NaN and infinity on, without a mask as large as the weight
        low, high = weight.aminmax()
        if not torch.isfinite(torch.stack((low, high))).all():
            raise TrainError(
                "base_model_not_finite",
                f"The base model's weight {name} has values that are infinite or not numbers.",
                param="model",
                blame=Blame.INTERNAL,
            )
        tick()
