"""Our QLoRA against our LoRA on the same base: `python -m benchmarks.qlora_vs_lora [--dtype ...] [--pairs N]`.

Both train preset `deep` on one thread, taking turns step by step, in one process. Compared are CPU seconds
per real token (the two see the same tokens) and the bytes of the linear layers' weights. Asserted: losses
within LOSS_TOLERANCE of each other, whose weights differ by NF4's rounding. The last line is a JSON object;
`ratio` is QLoRA's speed over LoRA's.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from benchmarks import presets
from worker.contract.spec import LoraSettings, OptimizerSettings
from worker.data.token_file import TokenFile, write
from worker.engine import adapters, base_model, batches, optim, sft
from worker.engine.execution import cpu_computes_in_bfloat16
from worker.engine.nf4 import Nf4Linear
from worker.engine.packing import pack

EXAMPLES_A_STEP = 8
TOKEN_BUDGET = 2048
LOSS_TOLERANCE = 0.02  # nats, at losses of about 9
OPTIMIZER = OptimizerSettings(learning_rate=2e-4)
Kind = Literal["lora", "qlora"]


class System:
    """A base with an adapter; `step` trains on some rows."""

    def __init__(self, base: Path, **form: Any) -> None:
        self.model = base_model.load(base, device="cpu", tick=lambda: None, **form)
        self.adapter: PeftModel = adapters.attach(self.model, LoraSettings(rank=16, alpha=32), seed=0)
        self._optimizer = optim.adamw(adapters.parameters(self.adapter).values(), OPTIMIZER)
        self._number = 0

    def step(self, data: TokenFile, rows: list[int]) -> tuple[float, float]:
        """CPU seconds per real token, and the mean loss."""
        self._number += 1
        began = time.process_time()
        self.model.train()
        sums = sft.Sums()
        for group in batches.micro_batches(data, rows, TOKEN_BUDGET):
            sums += sft.train(self.model, pack(data, group))
        optim.take_step(self._optimizer, OPTIMIZER, total_weight=sums.weight, rate=2e-4, step=self._number)
        return (time.process_time() - began) / sums.tokens, sums.mean_loss


def linear_bytes(model: PreTrainedModel) -> int:
    """Of all adapted layers' weights: packed, with all scales, or plain."""
    head = model.get_output_embeddings()
    total = 0
    for name, module in model.named_modules():
        if isinstance(module, Nf4Linear):
            total += sum(buffer.nbytes for buffer in module.buffers())
        elif isinstance(module, torch.nn.Linear) and module is not head and "lora_" not in name:
            total += module.weight.nbytes
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--pairs", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        base = presets.build_preset("deep", Path(scratch) / "base")
        steps = arguments.pairs + 1  # the first is for warming up
        write(Path(scratch) / "data", presets.lognormal_examples(EXAMPLES_A_STEP * steps, vocab_size=8192))
        data = TokenFile.load(Path(scratch) / "data")
        kinds: tuple[Kind, ...] = ("lora", "qlora")
        systems: dict[Kind, System] = {
            "lora": System(base, dtype=arguments.dtype),
            "qlora": System(base, dtype=arguments.dtype, quantization="nf4"),
        }
    print(f"one CPU thread, {arguments.dtype}, bfloat16 hardware: {cpu_computes_in_bfloat16()}")
    ratios = []
    for number in range(steps):
        rows = list(range(number * EXAMPLES_A_STEP, (number + 1) * EXAMPLES_A_STEP))
        order = kinds if number % 2 == 0 else kinds[::-1]
        found = {kind: systems[kind].step(data, rows) for kind in order}
        (lora_seconds, lora_loss), (qlora_seconds, qlora_loss) = found["lora"], found["qlora"]
        assert abs(lora_loss - qlora_loss) <= LOSS_TOLERANCE, (lora_loss, qlora_loss)
        ratio = lora_seconds / qlora_seconds
        print(
            f"{'warm-up' if number == 0 else f'pair {number}'}: LoRA {1e3 * lora_seconds:.3f}, "
            f"QLoRA {1e3 * qlora_seconds:.3f} CPU ms per token: {ratio:.3f}x; "
            f"losses {lora_loss:.4f}, {qlora_loss:.4f}",
            flush=True,
        )
        if number > 0:
            ratios.append(ratio)
    weights = linear_bytes(systems["qlora"].model) / linear_bytes(systems["lora"].model)
    of_bfloat16 = weights * (2 if arguments.dtype == "float32" else 1)
    print(f"linear weights: {of_bfloat16:.3f}x of bfloat16")
    print(
        json.dumps(
            {
                "benchmark": "qlora_vs_lora",
                "device": "cpu",
                "dtype": arguments.dtype,
                "ratio": round(statistics.median(ratios), 3),
                "ratios": [round(ratio, 3) for ratio in ratios],
                "weights_of_bfloat16": round(of_bfloat16, 3),
            }
        )
    )


if __name__ == "__main__":
    main()
