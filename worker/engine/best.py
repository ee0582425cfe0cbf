"""The validation loss as a judge: which adapter of a run is its best, and when more steps bring nothing.

The measure is the loss on the run's fixed validation sample (`valid`), taken at every evaluation on the same
rows. The loss on all rows (`full_valid`) is only known at some steps, and losses on different rows do not
compare; where the sample has all rows the two are equal.
"""

import math
import shutil
from pathlib import Path

from peft import PeftModel

from worker.contract.errors import TrainError
from worker.contract.spec import TrainSpec
from worker.engine import adapters
from worker.engine.checkpoint import State


def require_validation(spec: TrainSpec, *, has_validation: bool) -> None:
    """TrainError naming the setting that needs a validation file where there is none."""
    wanted = {"hone.early_stopping": spec.early_stopping_patience is not None, "hone.keep_best": spec.keep_best}
    for param, is_wanted in wanted.items():
        if is_wanted and not has_validation:
            raise TrainError(
                "missing_validation_file",
                f"'{param}' goes by the validation loss, so it needs a validation_file.",
                param=param,
            )


def judged(state: State) -> State:
    """The state after its newest `valid_loss`: a new best, or one more evaluation without."""
    loss = state.valid_loss
    if loss is not None and math.isfinite(loss) and (state.best_loss is None or loss < state.best_loss):
        return state.model_copy(update={"best_loss": loss, "best_step": state.step, "evaluations_since_best": 0})
    return state.model_copy(update={"evaluations_since_best": state.evaluations_since_best + 1})


def is_exhausted(state: State) -> bool:
    """Whether patience has run out."""
    patience = state.spec.early_stopping_patience
    return patience is not None and state.evaluations_since_best >= patience


class BestAdapter:
    """A copy of the best adapter so far, beside the run and inside its checkpoints."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def keep(self, adapter: PeftModel, state: State) -> None:
        """Take the adapter as it is now, if the state says that it is the best."""
        if state.spec.keep_best and state.best_step == state.step:
            shutil.rmtree(self.directory, ignore_errors=True)
            adapters.save(adapter, self.directory, base_id=state.spec.base.id)

    def take_from(self, kept: Path) -> None:
        """Go on with what a checkpoint kept; before the first evaluation that is nothing."""
        if kept.is_dir():
            shutil.rmtree(self.directory, ignore_errors=True)
            shutil.copytree(kept, self.directory)

    def put_back(self, adapter: PeftModel) -> None:
        """Make the best adapter the current one; without a finite validation loss it stays as it is."""
        if self.directory.is_dir():
            adapters.restore(adapter, self.directory)
