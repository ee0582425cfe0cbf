"""Ours: the run that the trainer carries out, step by step."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from benchmarks import runs
from benchmarks.contest import LORA, Contest, our_form, steps_of
from worker.contract.spec import DpoSettings, Execution
from worker.data import pair_file
from worker.engine import adapters, base_model, execution
from worker.engine.batches import Plan
from worker.engine.run import Run, load_data

if TYPE_CHECKING:
    from benchmarks.contestant import Turns

# What the trainer chooses on a CPU with memory to spare.
TOKEN_BUDGET = 2048


@dataclass(frozen=True)
class GivenPlan(Plan):
    """The contest's steps instead of shuffled ones."""

    steps: tuple[tuple[int, ...], ...] = ()

    def rows(self, step: int) -> list[int]:
        return list(self.steps[step - 1])


def take_part(contest: Contest, directory: Path, turns: "Turns") -> None:
    form = our_form(contest)
    execution.apply(form.dtype, contest.threads)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    base = directory / "base"
    model = base_model.load(base, **form._asdict(), tick=lambda: None)
    steps = tuple(tuple(rows) for rows in steps_of(directory))
    spec = runs.spec(
        contest.preset,
        method=contest.method,
        dpo=DpoSettings(beta=0.1) if contest.method == "dpo" else None,
        batch_size=contest.batch_size,
        max_sequence_tokens=contest.longest,
        lora=LORA,
        optimizer=runs.OPTIMIZER,
    )
    data = json.loads((directory / "data.json").read_text())
    start = runs.start(directory, base, spec, [] if contest.method == "dpo" else data)
    if contest.method == "dpo":
        pair_file.write(start.training_data, data)
    training = load_data(start.training_data, model, start, param="training_file")
    adapter = adapters.attach(model, LORA, seed=0)
    adapters.restore(adapter, directory / "initial")
    chosen = Execution(**form._asdict(), token_budget=TOKEN_BUDGET, num_threads=contest.threads)
    run = Run(start, model, adapter, chosen, training, None, lambda _event: None, lambda: None)
    run._plan = GivenPlan(len(training), 1, contest.batch_size, spec.seed, steps)
    run.prepare()
    turns.ready()
    for _ in steps:
        turns.begin()
        step = run.step()
        turns.end(step.loss)
