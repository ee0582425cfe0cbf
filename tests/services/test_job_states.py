"""The table of states: what may follow what, and that every move tells of itself."""

import pytest

from app.db.models import TERMINAL, Job, JobStatus
from app.db.queries import database_now
from app.resources import Resources
from app.services import job_states
from app.services.job_states import IllegalTransition
from tests import factories


def test_every_state_has_a_row_and_terminal_states_lead_nowhere() -> None:
    assert set(job_states.TRANSITIONS) == set(JobStatus)
    assert {status for status, following in job_states.TRANSITIONS.items() if not following} == TERMINAL


@pytest.mark.parametrize("current", list(JobStatus))
@pytest.mark.parametrize("wanted", list(JobStatus))
async def test_a_move_is_in_the_table_or_refused(resources: Resources, current: JobStatus, wanted: JobStatus) -> None:
    principal, _ = await factories.project(resources)
    job_id = (await factories.job(resources, principal, status=current)).id
    async with resources.write() as session:
        job = await session.get_one(Job, job_id)
        told = job.event_sequence
        now = await database_now(session)
        if wanted in job_states.TRANSITIONS[current]:
            job_states.move(session, job, wanted, message="moved", now=now)
            assert job.status == wanted
            assert job.event_sequence == told + 1
            assert (job.finished_at == now) == (wanted in TERMINAL)
        else:
            with pytest.raises(IllegalTransition):
                job_states.move(session, job, wanted, message="moved", now=now)
            assert job.status == current
            assert job.event_sequence == told
