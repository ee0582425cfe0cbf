"""/v1/fine_tuning/alpha/graders"""

from dataclasses import asdict

from fastapi import APIRouter, Request

from app.api import access
from app.api.access import needs
from app.api.deps import Caller, Opened
from app.api.trail import Trail
from app.db.audit_models import Action
from app.schemas.graders import (
    GraderDetails,
    GraderErrors,
    GraderMetadata,
    GraderResult,
    GraderRun,
    GraderValidate,
    GraderValidated,
)
from app.services import graders

router = APIRouter(
    prefix="/v1/fine_tuning/alpha/graders", tags=["Graders"], dependencies=needs("jobs"), responses=access.RESPONSES
)


@router.post("/validate", response_model_exclude_unset=True)
async def validate_grader(body: GraderValidate, resources: Opened) -> GraderValidated:
    """Check a grader without running it. A Python grader's source is parsed up to 16 KB; faults of a longer one are
    found when it runs."""
    await graders.validate(resources.settings, body.grader)
    return GraderValidated(grader=body.grader)


@router.post("/run")
async def run_grader(body: GraderRun, request: Request, principal: Caller, resources: Opened) -> GraderResult:
    """Grade one sample. Faults of the grader or the sample are in `metadata.errors` of the answer."""
    trail: Trail = request.app.state.trail
    trail.note(principal, Action.GRADER_RUN, None, type=body.grader.type)
    graded = await graders.run(resources, principal, grader=body.grader, sample=body.model_sample, item=body.item)
    outcome = graded.outcome
    tokens = [usage.get("total_tokens", 0) for usage in outcome.usage.values()]
    return GraderResult(
        reward=outcome.reward,
        sub_rewards=dict(outcome.sub_rewards),
        model_grader_token_usage_per_model=dict(outcome.usage),
        metadata=GraderMetadata(
            name=body.grader.name,
            type=body.grader.type,
            errors=GraderErrors(**asdict(outcome.errors)),
            execution_time=graded.seconds,
            scores=dict(outcome.scores),
            token_usage=sum(tokens) if tokens else None,
            sampled_model_name=outcome.model,
        ),
        hone=GraderDetails(errors=outcome.sentences),
    )
