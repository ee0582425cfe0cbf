"""Hold the memory model against real runs: `python -m benchmarks.memory_model [preset ...]`.

Each preset is trained by the real trainer in a process of its own, on one thread; measured is the peak of its
resident memory above what it takes when idle. The last line is a JSON object; `ratio` is the worst
predicted over measured, by its distance from 1.
"""

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks import presets, runs
from worker.contract.events import Started
from worker.contract.spec import Execution, LoraSettings, TrainSpec
from worker.data.estimate import MemoryEstimate, estimate, read_geometry

STEPS = 3
DORA = LoraSettings(rank=16, alpha=32, dora=True)
# Each is trained as benchmarks/runs.py says, but for these fields of the spec and of the execution.
CASES: dict[str, list[dict[str, Any]]] = {
    "deep": [
        {},
        {"token_budget": 512},
        {"gradient_checkpointing": True},
        {"method": "dpo"},
        {"lora": DORA},
        # Few tokens and one step, here and below: it is slow where bfloat16 is emulated.
        {"dtype": "bfloat16", "token_budget": 512, "max_sequence_tokens": 256, "batch_size": 4, "steps": 1},
        {"weights_dtype": "bfloat16"},
        {"weights_dtype": "bfloat16", "lora": DORA},
    ],
    "v32k": [{}],
    "v151k": [
        {},
        {"weights_dtype": "bfloat16"},
        {"quantization": "nf4"},
        {"quantization": "nf4", "lora": DORA},
        {"quantization": "nf4", "weights_dtype": "bfloat16"},
    ],
    "qwen05b": [
        {**numbers, "token_budget": 512, "max_sequence_tokens": 128, "steps": 1}
        for numbers in ({"dtype": "float32"}, {"weights_dtype": "bfloat16"}, {"dtype": "bfloat16"})
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("presets", nargs="*", default=list(CASES))
    names = parser.parse_args().presets
    rows = []
    for name in names:
        with tempfile.TemporaryDirectory() as scratch:
            bases: dict[str, Path] = {}
            for number, case in enumerate(CASES[name]):
                # Files of the type that the base is held in, as such runs have.
                held_in = case.get("weights_dtype") or case.get("dtype", "float32")
                if held_in not in bases:
                    dtype = getattr(torch, held_in)
                    bases[held_in] = presets.build_preset(name, Path(scratch) / held_in, dtype=dtype)
                predicted, measured = compare(name, bases[held_in], Path(scratch) / str(number), dict(case))
                rows.append((name, title(case), predicted.total / measured))
                print(f"{name} {title(case)}: predicted {mib(predicted.total)}, measured {mib(measured)}", flush=True)
                print("   ", ", ".join(f"{part} {mib(size)}" for part, size in parts(predicted).items()))
    ratios = [ratio for _name, _case, ratio in rows]
    worst = max(ratios, key=lambda ratio: abs(math.log(ratio)))
    for name, case, ratio in rows:
        print(f"{name:8} {ratio:5.2f}x predicted over measured   {case}")
    print(json.dumps({"benchmark": "memory_model", "device": "cpu", "ratio": round(worst, 3), "ratios": ratios}))


def compare(name: str, base: Path, directory: Path, case: dict[str, Any]) -> tuple[MemoryEstimate, int]:
    """Predicted and measured bytes of one run."""
    steps = case.pop("steps", STEPS)
    settings = {"device": "cpu", "dtype": "float32", "token_budget": 2048, "num_threads": 1}
    settings |= {key: case.pop(key) for key in list(case) if key in Execution.model_fields}
    spec: TrainSpec = runs.spec(name, execution=Execution(**settings), **case)
    count, vocab_size = steps * spec.batch_size, presets.PRESETS[name].vocab_size
    if spec.method == "dpo":  # a prompt and an answer together are one sequence
        examples = presets.lognormal_pairs(count, vocab_size=vocab_size, longest=spec.max_sequence_tokens // 2)
    else:
        examples = presets.lognormal_examples(count, vocab_size=vocab_size, longest=spec.max_sequence_tokens)
    watched = runs.watch(runs.start(directory, base, spec, examples))
    started = watched.events[0]
    assert isinstance(started, Started)
    return estimate(spec, read_geometry(base), started.execution), watched.above_idle


def title(case: dict[str, Any]) -> str:
    """The case in a few words."""
    return ", ".join("DoRA" if value is DORA else f"{key} {value}" for key, value in case.items())


def parts(predicted: MemoryEstimate) -> dict[str, int]:
    names = ("weights", "unpacked", "adapter", "activations", "working", "overhead")
    return {name: getattr(predicted, name) for name in names}


def mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"


if __name__ == "__main__":
    main()
