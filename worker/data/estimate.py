"""How much memory a run takes, from its spec and the geometry in the base model's config.json.

The model counts what is held at the moment of the peak, beside what the process takes once everything
is imported. Its coefficients are what autograd was seen to save with unmodified transformers layers and
PEFT's LoRA; `benchmarks/memory_model.py` holds it against real runs.

Letters: h hidden size, f MLP size, q and k sizes of all query and of all key heads, r rank, T tokens.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.contract.spec import Execution, TrainSpec

# Bytes per weight in NF4: half a byte, a scale byte per 64 weights, a float per 256 scales.
_NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
_WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2}
# As in engine/losses.py: one chunk of logits, and as much again for its exponentials and for their gradient.
_CHUNK_BYTES = {"cpu": 64 << 20, "cuda": 256 << 20}
_HEAD_CHUNKS = 3
_MAX_CHUNK_ROWS = 1024
# As in engine/frozen.py: what is widened at a time of a weight held in 16 bits.
_WIDENED_BYTES = 4 << 20
# Parameter, gradient and two moments, all float32.
_BYTES_PER_TRAINED_PARAMETER = 16
# Workspaces of matrix products, and code that is loaded when it is first used.
_OVERHEAD_BYTES = {"cpu": 16 << 20, "cuda": 512 << 20}
# bitsandbytes, which is imported with the first base in NF4.
_NF4_OVERHEAD_BYTES = {"cpu": 80 << 20, "cuda": 0}
# An allocator does not fill every gap that freed tensors leave. glibc's heap, with its defaults, held 1.85 times
# what was alive; with its mmap threshold at 1 MiB it held 1.05 times, and the kernel's work made steps slower. Where
# LoRA's product is added in place (engine/lora_product.py), in float32, it held 1.25 to 1.6 times.
_FRAGMENTATION = {"cpu": 1.85, "cuda": 1.1}
_IN_PLACE_FRAGMENTATION = {"cpu": 1.45, "cuda": 1.1}
# With gradient checkpointing, as memory is then short (engine/memory.py), and of what DoRA keeps: large tensors only.
_TIGHT_FRAGMENTATION = 1.1
_UNGATED = {"gpt_neox", "gpt_bigcode", "phi", "starcoder2"}
_TIED_BY_DEFAULT = {"gemma", "gemma2", "gemma3", "gemma3_text"}


@dataclass(frozen=True)
class Geometry:
    """The sizes of a decoder. `query_size` and `key_size` are heads times head size."""

    layers: int
    hidden: int
    query_size: int
    key_size: int
    heads: int
    mlp: int
    vocab: int
    tied: bool
    gated: bool

    @property
    def linear_sizes(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of one layer's linear layers, by the names they have in most families."""
        sizes = {
            "q_proj": (self.hidden, self.query_size),
            "k_proj": (self.hidden, self.key_size),
            "v_proj": (self.hidden, self.key_size),
            "o_proj": (self.query_size, self.hidden),
            "up_proj": (self.hidden, self.mlp),
            "down_proj": (self.mlp, self.hidden),
        }
        return sizes | ({"gate_proj": (self.hidden, self.mlp)} if self.gated else {})

    @property
    def linear_parameters(self) -> int:
        """Of all layers, without head and embeddings."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.linear_sizes.values())

    @property
    def other_parameters(self) -> int:
        return (1 if self.tied else 2) * self.vocab * self.hidden + (2 * self.layers + 1) * self.hidden

    @property
    def parameters(self) -> int:
        return self.linear_parameters + self.other_parameters


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes at the peak of a run, part by part; `tokens` are those of its largest micro-batch."""

    weights: int
    unpacked: int  # one layer's weight out of NF4, or widened part by part, and as DoRA takes its norm
    adapter: int  # with its gradients and the optimizer's moments
    tokens: int
    bytes_per_token: int
    activations: int
    working: int  # the head's chunk or the backward pass of one layer, whichever is more
    overhead: int

    @property
    def total(self) -> int:
        return self.weights + self.unpacked + self.adapter + self.activations + self.working + self.overhead


def read_geometry(directory: Path) -> Geometry:
    """From a base model's config.json. KeyError, ValueError or OSError if it is not a decoder's."""
    return geometry(json.loads((directory / "config.json").read_text(encoding="utf-8")))


def geometry(config: dict[str, Any]) -> Geometry:
    text = config.get("text_config") or config
    hidden, heads = text["hidden_size"], text["num_attention_heads"]
    head_size = text.get("head_dim") or hidden // heads
    kind = text.get("model_type", "")
    tied = text.get("tie_word_embeddings", config.get("tie_word_embeddings", kind in _TIED_BY_DEFAULT))
    return Geometry(
        layers=text["num_hidden_layers"],
        hidden=hidden,
        query_size=heads * head_size,
        key_size=(text.get("num_key_value_heads") or heads) * head_size,
        heads=heads,
        mlp=text.get("intermediate_size") or 4 * hidden,
        vocab=text["vocab_size"],
        tied=bool(tied),
        gated=kind not in _UNGATED,
    )


def estimate(spec: TrainSpec, geometry: Geometry, execution: Execution) -> MemoryEstimate:
    """The peak of the run that `spec` describes, carried out as `execution` says."""
    width = _WIDTH[execution.dtype]
    is_nf4 = spec.quantization == "nf4"
    in_place = width == 4 and not spec.lora.dora
    slack = (_IN_PLACE_FRAGMENTATION if in_place else _FRAGMENTATION)[execution.device]
    slack = _TIGHT_FRAGMENTATION if execution.gradient_checkpointing else slack
    tokens = largest_micro_batch(spec, execution.token_budget)
    layer = slack * _layer_bytes_per_token(spec, geometry, width)
    layer += _TIGHT_FRAGMENTATION * _dora_bytes_per_token(spec, geometry, width)
    outside = slack * geometry.hidden * 4 * width  # embeddings, last hidden states, their norm and gradient
    head = _head_bytes(geometry, tokens, execution.device)
    backward = _backward_bytes_per_token(spec, geometry, width) * tokens
    if execution.gradient_checkpointing:
        # Each layer's input; and all of one layer, which is computed again when the head is done.
        inputs = outside + slack * geometry.layers * geometry.hidden * width
        per_token, working = max(
            (inputs, head), (inputs + layer, backward), key=lambda moment: moment[0] * tokens + moment[1]
        )
    else:
        per_token, working = outside + geometry.layers * layer, max(head, backward)
    return MemoryEstimate(
        weights=_weight_bytes(spec, geometry, _WIDTH[execution.weights_dtype or execution.dtype]),
        unpacked=_unpacked_bytes(spec, geometry, width, is_widened=execution.weights_dtype is not None),
        adapter=_BYTES_PER_TRAINED_PARAMETER * _trained_parameters(spec, geometry),
        tokens=tokens,
        bytes_per_token=int(per_token),
        activations=int(per_token * tokens),
        working=working,
        overhead=_OVERHEAD_BYTES[execution.device] + (_NF4_OVERHEAD_BYTES[execution.device] if is_nf4 else 0),
    )


def largest_micro_batch(spec: TrainSpec, token_budget: int) -> int:
    """Tokens. A longer example than the budget has a micro-batch of its own; a pair of answers is one example."""
    longest = spec.max_sequence_tokens * (2 if spec.method == "dpo" else 1)
    return min(max(token_budget, longest), spec.batch_size * longest)


def _weight_bytes(spec: TrainSpec, geometry: Geometry, width: int) -> int:
    per_linear = _NF4_BYTES if spec.quantization == "nf4" else width
    return int(geometry.linear_parameters * per_linear + geometry.other_parameters * width)


def _trained_parameters(spec: TrainSpec, geometry: Geometry) -> int:
    sizes = geometry.linear_sizes
    if spec.lora.target_modules != "all-linear":
        # Names that are not known here stand for fused layers: then all are counted, which is never too few.
        known = {name: size for name, size in sizes.items() if name in spec.lora.target_modules}
        sizes = known if len(known) == len(spec.lora.target_modules) else sizes
    each = sum(spec.lora.rank * (inputs + outputs) for inputs, outputs in sizes.values())
    magnitudes = sum(outputs for _inputs, outputs in sizes.values()) if spec.lora.dora else 0
    return geometry.layers * (each + magnitudes)


def _layer_bytes_per_token(spec: TrainSpec, geometry: Geometry, width: int) -> int:
    """What autograd keeps of one token in one layer.

    float32: 4 h + 3 q + 2 k (norms, residuals, attention), 4 f (gate, its activation, up, product), the
    ranks of the adapters. Beside a narrow base the norms keep theirs in float32, and the output of attention
    is also the input of its projection. DoRA's products are float32 there, with their inputs once more.
    """
    h, q, k, f = geometry.hidden, geometry.query_size, geometry.key_size, geometry.mlp
    inner = 4 if geometry.gated else 2
    ranks = 4 * spec.lora.rank * len(geometry.linear_sizes)
    wide = 4 * (4 * h + 3 * q + 2 * k + inner * f)
    narrow = 12 * h + 4 * q + 4 * k + 2 * inner * f
    if spec.lora.dora:
        narrow += 18 * h + 2 * q + 2 * f
    kept = wide if width == 4 else narrow
    if spec.lora.dropout > 0:  # masks and masked inputs
        kept += (36 if width == 4 else 24) * h + 4 * f
    return kept + ranks + 4 * geometry.heads + 8


def _dora_bytes_per_token(spec: TrainSpec, geometry: Geometry, width: int) -> int:
    """What DoRA keeps of one token in one layer beside LoRA: the outputs of each base layer and of its adapter."""
    if not spec.lora.dora:
        return 0
    return (width + 4) * sum(outputs for _inputs, outputs in geometry.linear_sizes.values())


def _unpacked_bytes(spec: TrainSpec, geometry: Geometry, width: int, *, is_widened: bool) -> int:
    """What is made anew of the largest layer's weight; DoRA's norm takes the adapter's product and a unit matrix."""
    sizes = geometry.linear_sizes.values()
    if spec.lora.dora:
        copies = 4 if is_widened else 3
        return max(copies * 4 * inputs * outputs + 4 * inputs * inputs for inputs, outputs in sizes)
    if spec.quantization:
        return width * max(inputs * outputs for inputs, outputs in sizes)
    return _WIDENED_BYTES if is_widened else 0


def _backward_bytes_per_token(spec: TrainSpec, geometry: Geometry, width: int) -> int:
    """Gradients that are alive together in the backward pass of one MLP."""
    return (4 if spec.lora.dora else width) * geometry.mlp * 3 + width * geometry.hidden * 2


def _head_bytes(geometry: Geometry, tokens: int, device: str) -> int:
    rows = min(tokens, _MAX_CHUNK_ROWS)
    return _HEAD_CHUNKS * min(_CHUNK_BYTES[device], 4 * rows * geometry.vocab)
