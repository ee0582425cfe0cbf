"""One adapter's whole life on a resident base: prepare, step, evaluate, save, finish.

The order of events at a step is Evaluation(s), Step, Checkpoint; after the last step's, Finished.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from peft import PeftModel
from transformers import PreTrainedModel

from worker.contract.errors import Blame, TrainError
from worker.contract.events import (
    Adjusted,
    Checkpoint,
    Evaluation,
    Event,
    Finished,
    Start,
    Started,
    Step,
    Stopped,
    Tick,
)
from worker.contract.spec import Execution
from worker.data.token_file import TokenFileError
from worker.engine import adapters, batches, best, checkpoint, initial_adapter, memory, methods, optim
from worker.engine.batches import Dataset
from worker.engine.export import export
from worker.engine.seeds import seed_step, step_seed
from worker.engine.sft import Sums

log = logging.getLogger(__name__)

# Every validation row is scored at the end of each epoch only while they are at most this many samples.
_FULL_VALIDATION_SAMPLES = 8

StopRequest = Literal["checkpoint", "now"] | None


class Interrupted(Exception):
    """The run was told to stop now, between two micro-batches."""


def carry_out(
    start: Start,
    model: PreTrainedModel,
    execution: Execution,
    *,
    emit: Callable[[Event], None],
    stop_request: Callable[[], StopRequest],
) -> Finished | Stopped:
    """Do everything that `start` asks for and leave the base as it was.

    The last event is returned, not emitted, so that it is true when it is sent: nothing of the run
    is left by then. TrainError where the run cannot go on.
    """
    best.require_validation(start.spec, has_validation=start.validation_data is not None)
    training = load_data(start.training_data, model, start, param="training_file")
    validation = None
    if start.validation_data is not None:
        validation = load_data(start.validation_data, model, start, param="validation_file")
    adapter = adapters.attach(model, start.spec.lora, seed=start.spec.seed)
    try:
        initial_adapter.load(adapter, start)
        run = Run(start, model, adapter, execution, training, validation, emit, stop_request)
        run.prepare()
        return run.train()
    finally:
        memory.recompute_activations(model, False)
        adapters.detach(adapter)
        model.eval()


def load_data(path: str, model: PreTrainedModel, start: Start, *, param: str) -> Dataset:
    try:
        data = methods.load(path, model, start.spec)
    except TokenFileError as error:
        raise TrainError(
            "invalid_token_file", "The examples could not be read.", param=param, blame=Blame.INTERNAL
        ) from error
    batches.check_data(
        data,
        vocab_size=model.get_input_embeddings().num_embeddings,  # pyright: ignore[reportArgumentType]
        max_sequence_tokens=start.spec.max_sequence_tokens,
        param=param,
    )
    return data


class Run:
    """Holds a run's adapter, optimizer, data and position; `state` says where it stands."""

    def __init__(
        self,
        start: Start,
        model: PreTrainedModel,
        adapter: PeftModel,
        execution: Execution,
        training: Dataset,
        validation: Dataset | None,
        emit: Callable[[Event], None],
        stop_request: Callable[[], StopRequest],
    ) -> None:
        spec = start.spec.model_copy(update={"execution": execution})
        self._start, self._spec, self._execution = start, spec, execution
        self._model, self._adapter = model, adapter
        self._training, self._validation = training, validation
        self._emit, self._stop_request = emit, stop_request
        self._plan = batches.Plan(len(training), spec.n_epochs, spec.batch_size, spec.seed)
        self._optimizer = optim.adamw(adapters.parameters(adapter).values(), spec.optimizer)
        self._saved_step = 0
        self._best = best.BestAdapter(Path(start.work_directory) / "best")
        self.state = checkpoint.State(
            spec=spec,
            step=0,
            data=batches.fingerprint(training),
            next_step_seed=step_seed(spec.seed, 1),
            trained_tokens=0,
        )

    def prepare(self) -> None:
        """Continue from the checkpoint, if one is given, and announce the run."""
        if self._start.resume_directory is not None:
            directory = Path(self._start.resume_directory)
            state = checkpoint.read_state(directory)
            checkpoint.check(state, self._spec, self.state.data)
            checkpoint.restore(directory, self._adapter, self._optimizer, state)
            self.state = state.model_copy(update={"spec": self._spec})
            self._saved_step = state.step
            self._best.take_from(checkpoint.kept_best(directory))
            if state.spec.execution != self._execution:
                log.info("execution changed from %s to %s", state.spec.execution, self._execution)
            log.info("resumed from step %d", state.step)
        memory.recompute_activations(self._model, self._execution.gradient_checkpointing)
        trainable = sum(parameter.numel() for parameter in adapters.parameters(self._adapter).values())
        self._emit(
            Started(
                run=self._start.run,
                execution=self._execution,
                total_steps=self._plan.total_steps,
                resumed_from_step=self.state.step,
                trainable_parameters=trainable,
            )
        )
        log.info(
            "training %d parameters on %d examples: %d steps in %d epochs, on %s in %s, %d tokens per pass, base in %s",
            trainable,
            len(self._training),
            self._plan.total_steps,
            self._spec.n_epochs,
            self._execution.device,
            self._execution.dtype,
            self._execution.token_budget,
            self._spec.quantization or self._execution.weights_dtype or self._execution.dtype,
        )

    def train(self) -> Finished | Stopped:
        """Take the remaining steps, then finish; or stop where that is asked."""
        try:
            while not self._is_last_step():
                if self._stop_request() == "checkpoint" and self.state.step == self._saved_step:
                    return self._stopped()
                step = memory.retrying(self.step, self._shrink)
                self.evaluate_if_due()
                self._emit(step)  # after its evaluations, so that whoever reads knows all of the step at once
                stopping = self._stop_request() == "checkpoint"
                if stopping or self._checkpoint_is_due():
                    self.save()
                if stopping and not self._is_last_step():
                    return self._stopped()
            return self.finish()
        except Interrupted:
            return self._stopped()

    def step(self) -> Step:
        """One optimizer step over `batch_size` examples, however many micro-batches they take."""
        began = time.monotonic()
        number = self.state.step + 1
        self._model.train()
        seed_step(self._spec.seed, number)
        sums = Sums()
        for rows in batches.micro_batches(self._training, self._plan.rows(number), self._execution.token_budget):
            self._between_micro_batches()
            sums += methods.train(self._model, self._adapter, self._training, rows, spec=self._spec, step=number)
        sums = sums.read()
        if not math.isfinite(sums.loss):
            raise optim.non_finite(number, "loss")
        rate = optim.learning_rate(self._spec.optimizer, number, self._plan.total_steps)
        norm = optim.take_step(self._optimizer, self._spec.optimizer, total_weight=sums.weight, rate=rate, step=number)
        self.state = self.state.model_copy(
            update={
                "step": number,
                "next_step_seed": step_seed(self._spec.seed, number + 1),
                "trained_tokens": self.state.trained_tokens + sums.trained_tokens,
                "train_loss": sums.mean_loss,
            }
        )
        return Step(
            run=self._start.run,
            step=number,
            epoch=self._plan.epoch(number),
            loss=sums.mean_loss,
            token_accuracy=sums.token_accuracy,
            learning_rate=rate,
            gradient_norm=norm,
            tokens=sums.tokens,
            trained_tokens=sums.trained_tokens,
            seconds=time.monotonic() - began,
        ).model_copy(update=methods.rewards(sums, self._spec))

    def evaluate_if_due(self) -> None:
        """The sample at each interval and at the end; all rows at the end, and at epoch ends if they are few."""
        if self._validation is None:
            return
        spec, step, rows = self._spec, self.state.step, len(self._validation)
        few = rows <= _FULL_VALIDATION_SAMPLES * spec.eval_examples
        if step % spec.eval_interval_steps == 0 or self._is_last_step():
            sample = batches.evaluation_sample(rows, spec.eval_examples, spec.seed)
            memory.retrying(lambda: self._evaluate("valid", sample), self._shrink)
            self.state = best.judged(self.state)
            self._best.keep(self._adapter, self.state)
        if self._is_last_step() or (few and self._plan.is_epoch_end(step)):
            memory.retrying(lambda: self._evaluate("full_valid", range(rows)), self._shrink)

    def save(self) -> None:
        """Write a checkpoint of the step just taken."""
        self._emit(Tick(run=self._start.run))
        directory = Path(self._start.work_directory) / "checkpoints" / f"step-{self.state.step:06d}"
        checkpoint.save(directory, self._adapter, self._optimizer, self.state, self._best.directory)
        self._saved_step = self.state.step
        self._emit(
            Checkpoint(
                run=self._start.run,
                step=self.state.step,
                epoch_end=self._plan.is_epoch_end(self.state.step),
                is_last=self._is_last_step(),
                directory=str(directory),
            )
        )
        log.info("checkpoint at step %d", self.state.step)

    def finish(self) -> Finished:
        """Write the result: the adapter of the last step, or the best one where the spec asks for that."""
        self._emit(Tick(run=self._start.run))
        if best.is_exhausted(self.state):
            log.info("stopped early: the validation loss was lowest at step %s", self.state.best_step)
        self._best.put_back(self._adapter)
        directory = Path(self._start.work_directory) / "result"
        export(
            directory,
            self._adapter,
            base_directory=Path(self._start.base_directory),
            state=self.state,
            card=self._start.card,
        )
        log.info("finished after step %d", self.state.step)
        return Finished(run=self._start.run, step=self.state.step, directory=str(directory))

    def _evaluate(self, kind: Literal["valid", "full_valid"], rows: Sequence[int]) -> None:
        assert self._validation is not None
        self._model.eval()
        sums = Sums()
        for group in batches.evaluation_batches(self._validation, list(rows), self._execution.token_budget):
            self._between_micro_batches()
            sums += methods.evaluate(self._model, self._adapter, self._validation, group, spec=self._spec)
        self.state = self.state.model_copy(update={f"{kind}_loss": sums.mean_loss})
        evaluation = Evaluation(
            run=self._start.run,
            step=self.state.step,
            kind=kind,
            loss=sums.mean_loss,
            token_accuracy=sums.token_accuracy,
        )
        self._emit(evaluation.model_copy(update=methods.rewards(sums, self._spec)))

    def _shrink(self) -> None:
        """After running out of memory: go on with less, and say so first, so that a resumed run repeats it."""
        self._optimizer.zero_grad(set_to_none=True)
        memory.free()
        longest = max(batches.longest(data) for data in (self._training, self._validation) if data is not None)
        self._execution = memory.smaller(self._execution, largest_example=longest)
        self._spec = self._spec.model_copy(update={"execution": self._execution})
        self.state = self.state.model_copy(update={"spec": self._spec})
        memory.recompute_activations(self._model, self._execution.gradient_checkpointing)
        self._emit(Adjusted(run=self._start.run, execution=self._execution))
        log.info("going on with %s", self._execution)

    def _between_micro_batches(self) -> None:
        self._emit(Tick(run=self._start.run))
        if self._stop_request() == "now":
            raise Interrupted

    def _checkpoint_is_due(self) -> bool:
        interval = self._spec.checkpoint_interval_steps
        step = self.state.step
        return self._plan.is_epoch_end(step) or step % interval == 0 or self._is_last_step()

    def _is_last_step(self) -> bool:
        return self.state.step == self._plan.total_steps or best.is_exhausted(self.state)

    def _stopped(self) -> Stopped:
        log.info("stopped after step %d", self.state.step)
        return Stopped(run=self._start.run, step=self.state.step)
