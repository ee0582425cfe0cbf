"""What follows from the end of a job, whoever has ended it, in the same transaction."""

from sqlalchemy import func
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import after_commit
from app.db.models import TERMINAL, Job, StepMetric
from app.db.queries import of_job
from app.services import objects, retention


async def after(session: AsyncSession, job: Job) -> None:
    """To be called after any change that may have ended the job; of one that goes on nothing is changed."""
    if job.status not in TERMINAL:
        return
    if job.current_step > 0 and job.trained_tokens is None:
        job.trained_tokens = await _trained_tokens(session, job)
    await retention.drop_states(session, job)
    _drop_encoded_data(session, job)
    await objects.let_go_after(session, job)


def _drop_encoded_data(session: AsyncSession, job: Job) -> None:
    """Nobody else reads it, and it may be as large as the files; their hashes and counts stay."""
    kept = {}
    for part, facts in (job.dataset or {}).items():
        if tokens := facts.get("tokens"):
            after_commit.delete_object(session, tokens["key"])
        kept[part] = {name: fact for name, fact in facts.items() if name != "tokens"}
    if kept:
        job.dataset = kept


async def _trained_tokens(session: AsyncSession, job: Job) -> int:
    """Tokens of all examples that were trained on, times epochs, as OpenAI counts them: of the steps on record."""
    tokens = func.sum(StepMetric.values["tokens"].as_integer())
    query = of_job(StepMetric, job.id).where(StepMetric.kind == "train").with_only_columns(tokens)
    return (await session.scalar(query)) or 0
