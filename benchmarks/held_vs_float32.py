"""A base held in bfloat16 against the same held in float32, both computed in float32:
`python -m benchmarks.held_vs_float32 [--preset deep|v32k|v151k] [--pairs N]`.

Both train on one thread, taking turns step by step, in one process. Compared are CPU seconds per real token and the
bytes of all weights. Asserted: losses within LOSS_TOLERANCE. The last line is a JSON object; `ratio` is the speed of
the base held in bfloat16 over the other's.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Literal

import torch

from benchmarks import presets
from benchmarks.qlora_vs_lora import System
from worker.data.token_file import TokenFile, write

EXAMPLES_A_STEP = 8
LOSS_TOLERANCE = 1e-6  # nats: sums over a large matrix are made block by block
Held = Literal["float32", "bfloat16"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=("deep", "v32k", "v151k"), default="deep")
    parser.add_argument("--pairs", type=int, default=5, help="steps after the one for warming up")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    steps = arguments.pairs + 1
    with tempfile.TemporaryDirectory() as scratch:
        base = presets.build_preset(arguments.preset, Path(scratch) / "base", dtype=torch.bfloat16)
        vocab_size = presets.PRESETS[arguments.preset].vocab_size
        write(Path(scratch) / "data", presets.lognormal_examples(EXAMPLES_A_STEP * steps, vocab_size=vocab_size))
        data = TokenFile.load(Path(scratch) / "data")
        systems: dict[Held, System] = {
            "float32": System(base, dtype="float32"),
            "bfloat16": System(base, dtype="float32", weights_dtype="bfloat16"),
        }
    ratios = []
    for number in range(steps):
        rows = list(range(number * EXAMPLES_A_STEP, (number + 1) * EXAMPLES_A_STEP))
        order: tuple[Held, ...] = ("float32", "bfloat16") if number % 2 == 0 else ("bfloat16", "float32")
        found = {held: systems[held].step(data, rows) for held in order}
        (wide_seconds, wide_loss), (narrow_seconds, narrow_loss) = found["float32"], found["bfloat16"]
        assert abs(wide_loss - narrow_loss) <= LOSS_TOLERANCE, (wide_loss, narrow_loss)
        ratio = wide_seconds / narrow_seconds
        print(
            f"{f'pair {number}' if number else 'warm-up'}: float32 {1e3 * wide_seconds:.3f}, "
            f"held in bfloat16 {1e3 * narrow_seconds:.3f} CPU ms per token: {ratio:.3f}x; "
            f"losses {wide_loss:.7f}, {narrow_loss:.7f}",
            flush=True,
        )
        if number > 0:
            ratios.append(ratio)
    weights = {
        held: sum(value.nbytes for value in system.model.parameters() if not value.requires_grad)
        for held, system in systems.items()
    }
    print(
        json.dumps(
            {
                "benchmark": "held_vs_float32",
                "device": "cpu",
                "preset": arguments.preset,
                "ratio": round(statistics.median(ratios), 3),
                "ratios": [round(ratio, 3) for ratio in ratios],
                "weights": round(weights["bfloat16"] / weights["float32"], 3),
            }
        )
    )


if __name__ == "__main__":
    main()
