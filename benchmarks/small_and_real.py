"""Qwen 2.5 0.5B's geometry, 151k vocabulary and all, under a memory cap: `python -m benchmarks.small_and_real`.

Random weights in bfloat16, held so and computed in what suits the CPU, 20 steps of 4 short examples, LoRA rank 8, by
the real trainer on two threads under RLIMIT_DATA (the heap and private mappings; the weights' file may stay in the
page cache).
The last line is a JSON object with the peak of resident memory, imports and all.
"""

import argparse
import json
import resource
import tempfile
from pathlib import Path

import torch

from benchmarks import presets, runs
from worker.contract.events import Finished, Started, Step
from worker.contract.spec import Execution, LoraSettings
from worker.data.estimate import estimate, read_geometry
from worker.engine.execution import cpu_computes_in_bfloat16

CAP_BYTES = 4 << 30
STEPS, EXAMPLES_A_STEP, LONGEST = 20, 4, 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    usual = "bfloat16" if cpu_computes_in_bfloat16() else "float32"
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default=usual, help="what it computes in")
    parser.add_argument("--quantization", choices=("nf4",), default=None)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        base = presets.build_preset("qwen05b", Path(scratch) / "base", dtype=torch.bfloat16)
        execution = Execution(
            device="cpu",
            dtype=arguments.dtype,
            weights_dtype="bfloat16" if arguments.dtype == "float32" else None,
            token_budget=512,
            num_threads=2,
        )
        spec = runs.spec(
            "qwen05b",
            quantization=arguments.quantization,
            batch_size=EXAMPLES_A_STEP,
            max_sequence_tokens=LONGEST,
            lora=LoraSettings(rank=8, alpha=16),
            execution=execution,
        )
        vocab_size = presets.PRESETS["qwen05b"].vocab_size
        examples = presets.lognormal_examples(
            STEPS * EXAMPLES_A_STEP, vocab_size=vocab_size, mean=48, sigma=0.6, longest=LONGEST
        )
        predicted = estimate(spec, read_geometry(base), execution)
        start = runs.start(Path(scratch), base, spec, examples)
        resource.setrlimit(resource.RLIMIT_DATA, (CAP_BYTES, CAP_BYTES))  # which the trainer inherits
        watched = runs.watch(start)
    steps = [event for event in watched.events if isinstance(event, Step)]
    assert isinstance(watched.events[0], Started)
    assert isinstance(watched.events[-1], Finished)
    assert len(steps) == STEPS
    assert watched.peak_bytes <= CAP_BYTES
    print(f"losses {steps[0].loss:.4f} to {steps[-1].loss:.4f}; {sum(step.seconds for step in steps):.0f} s of steps")
    print(
        json.dumps(
            {
                "benchmark": "small_and_real",
                "device": "cpu",
                "dtype": arguments.dtype,
                "quantization": arguments.quantization,
                "cap_bytes": CAP_BYTES,
                "peak_bytes": watched.peak_bytes,
                "ratio": round(predicted.total / watched.above_idle, 3),
            }
        )
    )


if __name__ == "__main__":
    main()
