"""The resident trainer: holds a base model, takes commands, carries out one run after another.

`python -m worker.trainer --command-fd N --event-fd M`, started as the leader of its own session.
Commands and events are JSON lines on the two inherited descriptors; stdout is not used and stderr is
the log that a job's owner reads. Whoever started it must outlive it: at the end of the command
stream, or when the parent dies, the trainer kills its process group.
"""

import argparse
import gc
import importlib
import logging
import os
import queue
import resource
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from worker.child import bind, die_with_parent, kill_group
from worker.contract.errors import Blame, TrainError
from worker.contract.events import MAX_LINE_BYTES, Event, Failed, Finished, Ready, Start, Stop, Stopped, Tick, commands
from worker.contract.spec import Execution

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from worker.engine.execution import Form
    from worker.engine.run import StopRequest

log = logging.getLogger("worker.trainer")

_MAX_MESSAGE_CHARACTERS = 4000
_MAX_FILE_BYTES = 64 << 30
_MAX_OPEN_FILES = 4096


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--command-fd", type=int, required=True)
    parser.add_argument("--event-fd", type=int, required=True)
    parser.add_argument("--parent-pid", type=int)
    parser.add_argument("--memory-bytes", type=int)
    arguments = parser.parse_args()
    die_with_parent(arguments.parent_pid)
    _limit(arguments.memory_bytes)
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S")
    logging.getLogger("worker").setLevel(logging.INFO)
    # The reader comes first: imports take seconds, and the parent may go in that time.
    inbox = Commands(arguments.command_fd)
    inbox.start()
    trainer = Trainer(inbox, EventWriter(arguments.event_fd).emit)
    trainer.serve()


def _limit(memory_bytes: int | None) -> None:
    """Of address space it could take any amount, which CUDA does; what it can fill with its own data is bounded."""
    os.umask(0o077)
    data = {} if memory_bytes is None else {resource.RLIMIT_DATA: memory_bytes}
    bind({resource.RLIMIT_FSIZE: _MAX_FILE_BYTES, resource.RLIMIT_NOFILE: _MAX_OPEN_FILES, **data})


class Commands(threading.Thread):
    """Reads the command stream: starts are queued, stops are remembered until their run has ended."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(name="commands", daemon=True)
        self.starts: queue.SimpleQueue[Start] = queue.SimpleQueue()
        self._stops: dict[str, StopRequest] = {}
        self._stream = os.fdopen(descriptor, "rb")

    def run(self) -> None:
        try:
            while line := self._stream.readline(MAX_LINE_BYTES):
                command = commands.validate_json(line)
                if isinstance(command, Stop):
                    self._remember(command)
                else:
                    self.forget(command.run)  # a stop of before was for an earlier run of that name
                    self.starts.put(command)
        except Exception:
            log.exception("the trainer was sent a line that is not a command")
        kill_group()

    def stop_request(self, run: str) -> "StopRequest":
        return self._stops.get(run)

    def forget(self, run: str) -> None:
        self._stops.pop(run, None)

    def _remember(self, stop: Stop) -> None:
        if self._stops.get(stop.run) != "now":  # which a later, milder stop does not take back
            self._stops[stop.run] = "checkpoint" if stop.checkpoint else "now"


class EventWriter:
    """Writes whole lines to the event descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def emit(self, event: Event) -> None:
        line = memoryview(event.model_dump_json().encode() + b"\n")
        assert len(line) <= MAX_LINE_BYTES
        try:
            while line:
                line = line[os.write(self._descriptor, line) :]
        except BrokenPipeError:
            kill_group()  # nobody reads: the parent is gone


class Trainer:
    """Carries out runs, one at a time, and keeps the base model between them."""

    def __init__(self, inbox: Commands, emit: Callable[[Event], None]) -> None:
        self._inbox = inbox
        self._emit = emit
        self._base: PreTrainedModel | None = None
        self._base_key: tuple[object, ...] = ()

    def serve(self) -> None:
        """Import torch, say so, then work through the commands until the process is killed."""
        os.environ["HF_HUB_OFFLINE"] = "1"
        # Threads that wait for each other by spinning took two to three times as long on a shared machine.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        # Packs differ in length: memory that can grow in place does not break into pieces that fit none of them.
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
        import torch

        _import_peft()
        from worker.engine import execution, run  # noqa: F401 (imported before the first command)

        torch.use_deterministic_algorithms(not torch.cuda.is_available())
        # Deterministic mode would also fill every new tensor; we read none that we have not written.
        torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
        gc.freeze()  # what was imported is there to stay: each collection would look through it for a quarter second
        self._emit(Ready(device=execution.available_device()))
        while True:
            self._take(self._inbox.starts.get())

    def _take(self, start: Start) -> None:
        log.info("starting: base %s at %s, seed %d", start.spec.base.id, start.spec.base.revision, start.spec.seed)
        try:
            last = self._carry_out(start)
        except TrainError as error:
            log.info("failed: %s", error.message, exc_info=error.__cause__)  # the cause may name paths: log only
            last = _failed(start, error)
        except Exception as error:
            log.exception("failed by an internal error")
            self._forget_base()  # nobody knows what state it is in
            last = _failed(start, _internal(error))
        _free()
        self._inbox.forget(start.run)
        self._emit(last)

    def _carry_out(self, start: Start) -> Finished | Stopped:
        from worker.engine import base_model, execution
        from worker.engine.run import Interrupted, carry_out

        step, stated = _position(start)
        threads = execution.num_threads(stated)
        geometry = base_model.read_geometry(Path(start.base_directory))
        form = execution.form_of_base(stated, geometry, Path(start.base_directory))
        execution.apply(form.dtype, threads)
        key = (start.spec.base.id, start.spec.base.revision, form, start.spec.quantization or "")
        if self._base_key != key:
            self._forget_base()
        chosen = stated or execution.choose(
            start.spec,
            geometry,
            form=form,
            threads=threads,
            base_is_loaded=self._base is not None,
        )

        def stop_request() -> "StopRequest":
            return self._inbox.stop_request(start.run)

        def tick() -> None:
            self._emit(Tick(run=start.run))
            if stop_request() == "now":
                raise Interrupted

        try:
            model = self._load_base(start, form, tick)
        except Interrupted:
            return Stopped(run=start.run, step=step)
        self._base_key = key
        return carry_out(start, model, chosen, emit=self._emit, stop_request=stop_request)

    def _load_base(self, start: Start, form: "Form", tick: Callable[[], None]) -> "PreTrainedModel":
        from worker.engine import base_model

        if self._base is None:
            log.info("loading the base model")
            self._base = base_model.load(
                Path(start.base_directory),
                **form._asdict(),
                quantization=start.spec.quantization,
                tick=tick,
            )
        return self._base

    def _forget_base(self) -> None:
        self._base, self._base_key = None, ()
        _free()


def _import_peft() -> None:
    """Import PEFT without bitsandbytes, which takes seconds more: only runs in NF4 need it, and not from PEFT."""
    sys.modules["bitsandbytes"] = None  # pyright: ignore[reportArgumentType] (Python's mark of a module not to be found)
    try:
        importlib.import_module("peft")
        # It asks again when the first adapter is attached, and then imports it; the first answer is kept.
        availability = importlib.import_module("peft.import_utils")
        availability.is_bnb_available()
        availability.is_bnb_4bit_available()
    finally:
        del sys.modules["bitsandbytes"]


def _position(start: Start) -> tuple[int, Execution | None]:
    """The step to go on from, and the execution that the spec states or, where it states none, the checkpoint."""
    from worker.engine import checkpoint

    if start.resume_directory is None:
        return 0, start.spec.execution
    state = checkpoint.read_state(Path(start.resume_directory))
    return state.step, start.spec.execution or state.spec.execution


def _failed(start: Start, error: TrainError) -> Failed:
    message = error.message[:_MAX_MESSAGE_CHARACTERS]
    return Failed(run=start.run, code=error.code, message=message, param=error.param, blame=error.blame)


def _internal(error: Exception) -> TrainError:
    from worker.engine import memory

    if memory.is_out_of_memory(error):
        return TrainError("out_of_memory", "The worker ran out of memory.", blame=Blame.INTERNAL)
    return TrainError("internal_error", "Training failed by an internal error.", blame=Blame.INTERNAL)


def _free() -> None:
    from worker.engine import memory

    memory.free()


if __name__ == "__main__":
    main()
