"""QLoRA's base: linear layers held in 4-bit NormalFloat with double quantization (arXiv:2305.14314).

bitsandbytes quantizes as transformers loads, weight by weight, and dequantizes; the layer around it is ours.
Its own layer repacks weights when a model enters eval mode, and the base must never change. Ours is a
plain linear layer to PEFT, with a `weight` that is unpacked on sight.

Shapes: O outputs, I inputs of a layer; leading dimensions are left as they are.
"""

from importlib.util import find_spec
from typing import Any, cast

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from worker.contract.errors import TrainError
from worker.engine import frozen

_BLOCK_SIZE = 64


def require(device: torch.device) -> None:
    """TrainError("quantization_unavailable") unless NF4 really works on `device`."""
    if find_spec("bitsandbytes") is None:
        raise _unavailable("the package bitsandbytes is not installed")
    try:
        module = Nf4Linear.of(torch.nn.Linear(_BLOCK_SIZE, 2, device=device))
        works = bool(torch.isfinite(module.weight).all())
    except (ImportError, OSError, RuntimeError, AttributeError, ValueError) as error:
        raise _unavailable("bitsandbytes does not run") from error
    if not works:
        raise _unavailable("bitsandbytes does not quantize right")


def loading_config(dtype: torch.dtype) -> BitsAndBytesConfig:
    """What tells transformers to quantize each weight as it is read. The head stays as it is."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def settle(model: PreTrainedModel) -> None:
    """Make every linear layer but the head an Nf4Linear, and the model an unquantized one to its users."""
    quantize(model, but=model.get_output_embeddings())
    # By these marks PEFT would look for bitsandbytes' layers, and transformers refuse what it allows other models.
    for mark in ("is_loaded_in_4bit", "is_quantized", "hf_quantizer", "quantization_method"):
        if mark in vars(model):
            delattr(model, mark)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config  # pyright: ignore[reportAttributeAccessIssue]


def quantize(module: torch.nn.Module, *, but: torch.nn.Module | None = None) -> None:
    """Make every linear layer inside `module` an Nf4Linear, where it lies; the one named by `but` stays as it is."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, torch.nn.Linear) and child is not but and not isinstance(child, Nf4Linear):
                setattr(parent, name, Nf4Linear.of(child))


class Nf4Linear(torch.nn.Linear):
    """A frozen linear layer in 4 bits; it computes in the dtype that it was quantized from, unless told otherwise."""

    def __init__(self, packed: torch.Tensor, state: Any, bias_O: torch.Tensor | None) -> None:
        torch.nn.Module.__init__(self)  # Linear's own would make the weight that we do not keep
        self.out_features, self.in_features = state.shape
        self._state = state
        # Buffers, so that a checksum of the model covers all that a weight is made from.
        self.register_buffer("packed", packed)
        self.register_buffer("scales", state.absmax)
        self.register_buffer("scales_offset", state.offset)
        self.register_buffer("scales_of_scales", state.state2.absmax)
        self.register_parameter("bias", None if bias_O is None else torch.nn.Parameter(bias_O, requires_grad=False))

    @classmethod
    def of(cls, linear: torch.nn.Linear) -> "Nf4Linear":
        """The same layer in 4 bits; a layer that bitsandbytes has quantized hands over what it holds."""
        from bitsandbytes import functional

        bias_O = None if linear.bias is None else linear.bias.data
        state = getattr(linear.weight, "quant_state", None)
        if state is not None:
            return cls(linear.weight.data, state, bias_O)
        packed, state = functional.quantize_4bit(
            linear.weight.data, blocksize=_BLOCK_SIZE, compress_statistics=True, quant_type="nf4"
        )
        return cls(packed, state, bias_O)

    @property
    def weight(self) -> torch.Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Unpacked, [O, I]: a new tensor each time."""
        from bitsandbytes import functional

        return functional.dequantize_4bit(cast("torch.Tensor", self.packed), self._state)

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 (its name in torch)
        return frozen.multiply(input, self)

    def compute_in(self, dtype: torch.dtype) -> None:
        """Unpack to `dtype` from now on."""
        self._state.dtype = dtype


def _unavailable(why: str) -> TrainError:
    return TrainError(
        "quantization_unavailable",
        f"The base model cannot be held in NF4 on this worker: {why}. Leave out the quantization, or ask the operator.",
        param="hone.quantization",
    )
