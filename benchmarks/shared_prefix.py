"""What sharing a system prompt saves: `python -m benchmarks.shared_prefix [--prompt 200] [--mean 200] [--pairs N]`.

Supervised training of preset `deep` in float32 on one thread, the prompt computed once for all examples of a
micro-batch and once for each, taking turns step by step in one process. Compared are CPU seconds per real token;
real are the prompt's tokens in each example. Asserted: equal losses. The last line is a JSON object; `ratio` is the
speed with sharing over that without, `token_ratio` the tokens computed without over those with: what could be
gained if the head, which runs on trained tokens only, and attention to the prompt cost nothing.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks import presets
from worker.contract.spec import LoraSettings, OptimizerSettings
from worker.data.token_file import TokenFile, write
from worker.engine import adapters, base_model, batches, optim, sft
from worker.engine.packing import pack

TOKEN_BUDGET = 2048
LOSS_TOLERANCE = 1e-4  # nats, after several steps apart
OPTIMIZER = OptimizerSettings(learning_rate=2e-4)


class System:
    """A base with an adapter; `step` trains on some rows."""

    def __init__(self, base: Path, data: TokenFile) -> None:
        self.model = base_model.load(base, device="cpu", dtype="float32", tick=lambda: None)
        self._data = data
        self._adapter = adapters.attach(self.model, LoraSettings(rank=16, alpha=32), seed=0)
        self._optimizer = optim.adamw(adapters.parameters(self._adapter).values(), OPTIMIZER)
        self._number = 0

    def step(self, rows: list[int]) -> tuple[float, float, int]:
        """CPU seconds per real token, the mean loss, and the tokens computed."""
        self._number += 1
        began = time.process_time()
        self.model.train()
        sums = sft.Sums()
        computed = 0
        for group in batches.micro_batches(self._data, rows, TOKEN_BUDGET):
            batch = pack(self._data, group)
            sums += sft.train(self.model, batch)
            computed += len(batch.tokens_T)
        optim.take_step(self._optimizer, OPTIMIZER, total_weight=sums.weight, rate=2e-4, step=self._number)
        return (time.process_time() - began) / sums.tokens, sums.mean_loss, computed


def examples(count: int, prompt: int, mean: float) -> list[presets.Example]:
    source = random.Random(1)
    common = [source.randrange(8192) for _ in range(prompt)]
    own = presets.lognormal_examples(count, vocab_size=8192, mean=mean, longest=1024 - prompt)
    return [([*common, *tokens], [*[0.0] * prompt, *weights]) for tokens, weights in own]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompt", type=int, default=200, help="tokens that all examples begin with")
    parser.add_argument("--mean", type=float, default=200, help="tokens of an example besides the prompt, about")
    parser.add_argument("--examples", type=int, default=8, help="of one step")
    parser.add_argument("--pairs", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    steps = arguments.pairs + 1  # the first is for warming up
    with tempfile.TemporaryDirectory() as scratch:
        base = presets.build_preset("deep", Path(scratch) / "base")
        write(Path(scratch) / "data", examples(arguments.examples * steps, arguments.prompt, arguments.mean))
        data = TokenFile.load(Path(scratch) / "data")
        systems = {shares: System(base, replace(data, shares_prefixes=shares)) for shares in (True, False)}
    ratios, token_ratios = [], []
    for number in range(steps):
        rows = list(range(number * arguments.examples, (number + 1) * arguments.examples))
        order = (True, False) if number % 2 == 0 else (False, True)
        found = {shares: systems[shares].step(rows) for shares in order}
        (once, once_loss, computed), (each, each_loss, real) = found[True], found[False]
        assert abs(once_loss - each_loss) <= LOSS_TOLERANCE, (once_loss, each_loss)
        print(
            f"{'warm-up' if number == 0 else f'pair {number}'}: {real} tokens, {computed} computed; once "
            f"{1e3 * once:.3f}, with each {1e3 * each:.3f} CPU ms per token: {each / once:.3f}x; "
            f"losses {once_loss:.5f}, {each_loss:.5f}",
            flush=True,
        )
        if number > 0:
            ratios.append(round(each / once, 3))
            token_ratios.append(round(real / computed, 3))
    figures = {"ratio": statistics.median(ratios), "ratios": ratios, "token_ratio": statistics.median(token_ratios)}
    print(json.dumps({"benchmark": "shared_prefix", "device": "cpu", **figures}))


if __name__ == "__main__":
    main()
