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

from benchmarks import presets, runs
from worker.contract.events import Started
from worker.contract.spec import Execution, TrainSpec
from worker.data.estimate import MemoryEstimate, estimate, read_geometry

STEPS = 3
CASES: dict[str, list[dict[str, object]]] = {
    "deep": [{}, {"token_budget": 512}, {"gradient_checkpointing": True}],
    "v32k": [{}],
    "v151k": [{}, {"quantization": "nf4"}],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("presets", nargs="*", default=list(CASES))
    names = parser.parse_args().presets
    rows = []
    for name in names:
        with tempfile.TemporaryDirectory() as scratch:
            base = presets.build_preset(name, Path(scratch) / "base")
            for number, case in enumerate(CASES[name]):
                predicted, measured = compare(name, base, Path(scratch) / str(number), dict(case))
                rows.append((name, case, predicted.total / measured))
                print(f"{name} {case or ''}: predicted {mib(predicted.total)}, measured {mib(measured)}")
                print("   ", ", ".join(f"{part} {mib(size)}" for part, size in parts(predicted).items()))
    ratios = [ratio for _name, _case, ratio in rows]
    worst = max(ratios, key=lambda ratio: abs(math.log(ratio)))
    for name, case, ratio in rows:
        print(f"{name:8} {ratio:5.2f}x predicted over measured   {case or ''}")
    print(json.dumps({"benchmark": "memory_model", "device": "cpu", "ratio": round(worst, 3), "ratios": ratios}))


def compare(name: str, base: Path, directory: Path, case: dict[str, object]) -> tuple[MemoryEstimate, int]:
    """Predicted and measured bytes of one run."""
    quantization = case.pop("quantization", None)
    execution = Execution(**{"device": "cpu", "dtype": "float32", "token_budget": 2048, "num_threads": 1, **case})
    spec: TrainSpec = runs.spec(name, quantization=quantization, execution=execution)
    examples = presets.lognormal_examples(STEPS * spec.batch_size, vocab_size=presets.PRESETS[name].vocab_size)
    watched = runs.watch(runs.start(directory, base, spec, examples))
    started = watched.events[0]
    assert isinstance(started, Started)
    return estimate(spec, read_geometry(base), started.execution), watched.above_idle


def parts(predicted: MemoryEstimate) -> dict[str, int]:
    names = ("weights", "unpacked", "adapter", "activations", "working", "overhead")
    return {name: getattr(predicted, name) for name in names}


def mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"


if __name__ == "__main__":
    main()
