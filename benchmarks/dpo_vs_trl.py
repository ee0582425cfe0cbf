"""Our preference training against TRL's DPOTrainer: `python -m benchmarks.dpo_vs_trl --preset deep|v32k [...]`.

As `benchmarks.sft_vs_trl`, with pairs whose prompts and answers have log-normal lengths, and beta 0.1. The
reference is the base without its adapter, in all three systems, computed at each step. A pair's real tokens are
those of both conversations, the prompt counted twice, as who pads computes it.
"""

import argparse
import json

from benchmarks import presets, verdict
from benchmarks.contest import Contest

LONGEST = 1024  # prompt, and answer
PAIRS_A_STEP = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=("deep", "v32k"), default="deep")
    parser.add_argument("--dtype", choices=("float32", "bf16"), default="float32")
    parser.add_argument("--pairs", type=int, default=3, help="rounds after the one for warming up")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    steps = arguments.pairs + 1
    given = Contest(
        method="dpo",
        preset=arguments.preset,
        dtype="bfloat16" if arguments.dtype == "bf16" else "float32",
        threads=arguments.threads,
        steps=steps,
        batch_size=PAIRS_A_STEP,
        longest=2 * LONGEST,
    )
    vocab_size = presets.PRESETS[arguments.preset].vocab_size
    pairs = presets.lognormal_pairs(PAIRS_A_STEP * steps, vocab_size=vocab_size, longest=LONGEST)
    tokens = [2 * len(prompt) + len(chosen) + len(rejected) for prompt, (chosen, _), (rejected, _) in pairs]
    figures = verdict.hold(given, pairs, tokens)
    print(json.dumps({"benchmark": "dpo_vs_trl", **figures}))


if __name__ == "__main__":
    main()
