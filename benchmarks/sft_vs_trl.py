"""Our supervised training against TRL's: `python -m benchmarks.sft_vs_trl --preset v32k|deep|v151k [...]`.

Three systems train the same steps from the same adapter, each in a process of its own, taking turns: our run,
TRL's SFTTrainer, and a plain loop over transformers and PEFT. Measured is a whole step: fetching and padding or
packing its data, forward, backward, clipping, AdamW. Asserted: equal losses at each step. The last line is a JSON
object; `ratio` is TRL's CPU seconds per real token (padding does not count) over ours, the median of the rounds.
"""

import argparse
import json

from benchmarks import presets, verdict
from benchmarks.contest import Contest

LONGEST = 1024
BATCH_SIZES = {"v151k": 4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=("v32k", "deep", "v151k"), default="deep")
    parser.add_argument("--packing", action="store_true", help="let TRL pack, best-fit-decreasing")
    parser.add_argument(
        "--trl-rows-a-pass",
        type=int,
        choices=(1, 2),
        default=2,
        help="of the 2 rows a step that TRL packs: joined in one pass, or one after the other, which may suit it",
    )
    parser.add_argument("--trl-checkpointing", action="store_true", help="TRL's default: gradient checkpointing")
    parser.add_argument("--dtype", choices=("float32", "bf16"), default="float32")
    parser.add_argument(
        "--shared-system-prompt", type=int, default=0, metavar="N", help="tokens that all examples share"
    )
    parser.add_argument("--pairs", type=int, default=3, help="rounds after the one for warming up")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-loop", action="store_true", help="leave out the plain loop, the slowest of the three")
    parser.add_argument("--batch-size", type=int, help="examples a step, where TRL does not pack")
    arguments = parser.parse_args()
    steps = arguments.pairs + 1
    batch_size = arguments.batch_size or BATCH_SIZES.get(arguments.preset, 8)
    given = Contest(
        method="supervised",
        preset=arguments.preset,
        dtype="bfloat16" if arguments.dtype == "bf16" else "float32",
        threads=arguments.threads,
        steps=steps,
        batch_size=batch_size,
        longest=LONGEST,
        packing=arguments.packing,
        rows_a_pass=arguments.trl_rows_a_pass,
        checkpointing=arguments.trl_checkpointing,
        has_loop=not arguments.no_loop,
    )
    examples = presets.lognormal_examples(
        batch_size * steps * (2 if arguments.packing else 1),
        vocab_size=presets.PRESETS[arguments.preset].vocab_size,
        longest=LONGEST,
        system_prompt=arguments.shared_system_prompt,
    )
    figures = verdict.hold(given, examples, [len(tokens) for tokens, _ in examples])
    print(json.dumps({"benchmark": "sft_vs_trl", "shared_system_prompt": arguments.shared_system_prompt, **figures}))


if __name__ == "__main__":
    main()
