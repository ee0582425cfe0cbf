"""From a grader, a sample and an item to a reward. What needs a sandbox or a model is done by the caller's runners."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from worker.contract.graders import (
    AnyGrader,
    LabelModel,
    Multi,
    Python,
    ScoreModel,
    StringCheck,
    TextSimilarity,
)
from worker.graders import formula, model_answers, similarity
from worker.graders.faults import GraderFault
from worker.graders.outcome import Outcome
from worker.graders.templates import Context, fill

_SIMILARITY_THREADS = 2
_threads = ThreadPoolExecutor(_SIMILARITY_THREADS, thread_name_prefix="similarity")


@dataclass(frozen=True)
class Runners:
    """`run_python(source, sample, item)` gives the number that the grader returned; `ask(body)` the status and body
    of a model's answer to the body of a chat completion. Both raise GraderFault."""

    run_python: Callable[[str, dict[str, Any], Any], Awaitable[float]]
    ask: Callable[[dict[str, Any]], Awaitable[tuple[int, bytes]]]


async def evaluate(grader: AnyGrader, context: Context, runners: Runners) -> Outcome:
    """Never raises for what is wrong with grader or sample: that is in the outcome."""
    try:
        if isinstance(grader, Multi):
            return await _multi(grader, context, runners)
        if isinstance(grader, StringCheck):
            return Outcome(_string_check(grader, context))
        if isinstance(grader, TextSimilarity):
            return await _similarity(grader, context)
        if isinstance(grader, Python):
            return Outcome(await runners.run_python(grader.source, _sample(context), context.item))
        return await _model(grader, context, runners)
    except GraderFault as fault:
        return Outcome.of_fault(fault)


def _string_check(grader: StringCheck, context: Context) -> float:
    text, reference = fill(grader.input, context), fill(grader.reference, context)
    match grader.operation:
        case "eq":
            return float(text == reference)
        case "ne":
            return float(text != reference)
        case "like":
            return float(reference in text)
        case "ilike":
            return float(reference.casefold() in text.casefold())


async def _similarity(grader: TextSimilarity, context: Context) -> Outcome:
    text, reference = fill(grader.input, context), fill(grader.reference, context)
    # Its own threads, and few: whoever sends long texts waits for others of the kind, and nobody else does.
    loop = asyncio.get_running_loop()
    score = await loop.run_in_executor(_threads, similarity.score, grader.evaluation_metric, text, reference)
    if grader.pass_threshold is None:
        return Outcome(score)
    return Outcome(float(score >= grader.pass_threshold), scores={grader.name: score})


def _sample(context: Context) -> dict[str, Any]:
    try:
        parsed = context.output_json
    except GraderFault:  # a Python grader need not use it
        parsed = None
    return {"output_text": context.output_text, "output_json": parsed}


async def _model(grader: ScoreModel | LabelModel, context: Context, runners: Runners) -> Outcome:
    status, body = await runners.ask(model_answers.request(grader, context))
    answer = model_answers.read(grader, status, body)
    outcome = Outcome(answer.reward, model=answer.model)
    outcome.count(answer.model, answer.usage)
    if answer.fault is not None:
        outcome.errors.note(answer.fault)
        outcome.sentences.append(answer.fault.sentence)
    return outcome


async def _multi(grader: Multi, context: Context, runners: Runners) -> Outcome:
    """The reward is 0 when one part has failed: what a formula makes of a part that has no reward means nothing."""
    parts = grader.by_name()
    calculate = formula.parse(grader.calculate_output, [name for name, _ in parts])
    try:
        async with asyncio.TaskGroup() as tasks:
            running = {name: tasks.create_task(evaluate(part, context, runners)) for name, part in parts}
    except ExceptionGroup as group:  # of the runners; one tells enough
        raise group.exceptions[0] from group
    outcomes = {name: task.result() for name, task in running.items()}
    outcome = Outcome(sub_rewards={name: one.reward for name, one in outcomes.items()})
    outcome.scores = dict(outcome.sub_rewards)
    for one in outcomes.values():
        outcome.errors.merge(one.errors)
        outcome.sentences += one.sentences
        outcome.model = outcome.model or one.model
        for model, usage in one.usage.items():
            outcome.count(model, usage)
    if not outcome.sentences:
        try:
            outcome.reward = calculate(outcome.sub_rewards)
        except GraderFault as fault:
            outcome.errors.note(fault)
            outcome.sentences.append(fault.sentence)
    return outcome
