"""The `hone` object and continued jobs, from the request to the numbers that ran."""

import csv
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob

from tests.e2e.processes import BASE, Process, create_job, messages, metrics, rows, wait_for_end

ASKED: dict[str, Any] = {
    "adapter": {"rank": 8, "dropout": 0.1},
    "learning_rate": 5e-3,
    "schedule": "constant",
    "warmup_steps": 3,
    "max_sequence_tokens": 200,
    "eval_interval_steps": 5,
    "checkpoint_interval_steps": 8,
}
# So small that a run leaves its adapter as it was: its validation loss is that of where it began.
STILL = {"hone": {"learning_rate": 1e-12}}


def figures(client: OpenAI, job: FineTuningJob) -> list[dict[str, float]]:
    table = csv.DictReader(io.StringIO("\n".join(metrics(client, job))))
    return [{name: float(value) for name, value in row.items() if value} for row in table]


def spec(job: FineTuningJob) -> dict[str, Any]:
    return job.to_dict()["hone"]["spec"]  # pyright: ignore


@pytest.fixture(scope="module")
def first(server: Process) -> FineTuningJob:
    client = server.client()
    return wait_for_end(client, create_job(client, epochs=2, extra_body={"hone": ASKED}).id)


def test_what_was_asked_is_what_ran(server: Process, first: FineTuningJob) -> None:
    client = server.client()
    table = figures(client, first)
    assert [row["learning_rate"] for row in table] == pytest.approx([1.25e-3, 2.5e-3, 3.75e-3] + [5e-3] * 21)
    assert [row["step"] for row in table if "valid_loss" in row or "full_valid_loss" in row] == [5, 10, 12, 15, 20, 24]
    checkpoints = client.fine_tuning.jobs.checkpoints.list(first.id)
    assert [checkpoint.step_number for checkpoint in checkpoints] == [24, 16, 12, 8]
    ran = spec(first)
    assert (ran["lora"]["rank"], ran["lora"]["alpha"], ran["lora"]["dropout"]) == (8, 16, 0.1)
    assert (ran["optimizer"]["learning_rate"], ran["optimizer"]["schedule"]) == (5e-3, "constant")
    assert ran["max_sequence_tokens"] == 200
    assert first.to_dict()["hone"]["requested"] == ASKED  # pyright: ignore
    assert first.hyperparameters.learning_rate_multiplier == pytest.approx(ran["learning_rate_multiplier"])


def test_a_job_continues_where_a_model_ended(server: Process, first: FineTuningJob) -> None:
    client = server.client()
    assert first.fine_tuned_model is not None

    job = create_job(client, epochs=1, model=first.fine_tuned_model, extra_body=STILL)
    job = wait_for_end(client, job.id)

    before, after = figures(client, first), figures(client, job)
    assert job.model == first.fine_tuned_model
    assert after[-1]["full_valid_loss"] == pytest.approx(before[-1]["full_valid_loss"], abs=1e-4)
    fresh, trained = before[0]["train_loss"], before[-1]["train_loss"]
    assert abs(after[0]["train_loss"] - trained) < abs(after[0]["train_loss"] - fresh)
    assert spec(job)["initial_adapter"] == first.fine_tuned_model
    assert spec(job)["lora"] == spec(first)["lora"]
    assert job.fine_tuned_model is not None
    assert job.fine_tuned_model.startswith(f"ft:{BASE}:default::")
    with server.http() as http:
        archive = http.get(f"/v1/models/{job.fine_tuned_model}/adapter").content
    card = zipfile.ZipFile(io.BytesIO(archive)).read("README.md").decode()
    assert f"| continued from | {first.fine_tuned_model} |" in card


def test_a_job_continues_from_a_checkpoint(server: Process, first: FineTuningJob) -> None:
    client = server.client()
    listed = client.fine_tuning.jobs.checkpoints.list(first.id)
    checkpoint = next(one for one in listed if one.step_number == 12)

    job = create_job(client, epochs=1, model=checkpoint.fine_tuned_model_checkpoint, extra_body=STILL)

    last = figures(client, wait_for_end(client, job.id))[-1]
    before = figures(client, first)
    assert last["full_valid_loss"] == pytest.approx(before[11]["full_valid_loss"], abs=1e-4)
    assert abs(before[-1]["full_valid_loss"] - before[11]["full_valid_loss"]) > 1e-3


def test_a_run_that_gets_worse_ends_early_with_its_best_adapter(server: Process) -> None:
    client = server.client()
    asked = {"learning_rate": 0.05, "schedule": "constant", "warmup_steps": 0, "eval_interval_steps": 2}
    asked |= {"early_stopping": {"patience": 2}, "keep_best": True, "adapter": {"rslora": True, "dora": True}}

    job = wait_for_end(client, create_job(client, epochs=20, extra_body={"hone": asked}).id)

    table = figures(client, job)
    assert len(table) < 240
    losses = [row[name] for row in table for name in ("valid_loss", "full_valid_loss") if name in row]
    assert min(losses) < losses[-1]
    assert (spec(job)["lora"]["rslora"], spec(job)["lora"]["dora"]) == (True, True)
    assert job.fine_tuned_model is not None
    again = wait_for_end(client, create_job(client, epochs=1, model=job.fine_tuned_model, extra_body=STILL).id)
    assert figures(client, again)[-1]["full_valid_loss"] == pytest.approx(min(losses), abs=1e-4)


@pytest.mark.parametrize(
    ("asked", "param", "words"),
    [
        ({"warmup_steps": 12}, "hone.warmup_steps", "only 12 steps"),
        ({"adapter": {"target_modules": ["q_prok"]}}, "hone.adapter.target_modules", "it has down_proj, "),
    ],
)
def test_what_only_the_worker_can_know_fails_the_job(
    server: Process, asked: dict[str, Any], param: str, words: str
) -> None:
    client = server.client()
    job = wait_for_end(client, create_job(client, epochs=1, extra_body={"hone": asked}).id)
    assert job.error is not None
    assert (job.error.code, job.error.param) == ("invalid_hyperparameters", param)
    assert words in job.error.message


def test_repeated_rows_are_trained_on_and_told(server: Process) -> None:
    client = server.client()
    job = wait_for_end(client, create_job(client, epochs=1, train=rows(12) * 4).id)
    assert job.status == "succeeded"
    assert "36 example(s) of the training file repeat an earlier one exactly" in messages(client, job.id)
    assert job.to_dict()["hone"]["dataset"]["training"]["duplicates"] == 36  # pyright: ignore


def test_an_adapter_made_elsewhere_is_a_model_like_any_other(
    server: Process, first: FineTuningJob, tmp_path: Path
) -> None:
    client = server.client()
    source = tmp_path / "adapter"
    with server.http() as http:
        archive = http.get(f"/v1/models/{first.fine_tuned_model}/adapter").content
    zipfile.ZipFile(io.BytesIO(archive)).extractall(source)
    config = json.loads((source / "adapter_config.json").read_text())
    (source / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "/etc/passwd"}))

    done = server.installation.hone("models", "import-adapter", "from-afar", "--base", BASE, "--source", str(source))
    assert done.returncode == 0, done.stdout + done.stderr
    name = done.stdout.split()[0]
    assert name.startswith(f"ft:{BASE}:default:from-afar:")
    assert name in [model.id for model in client.models.list()]

    job = wait_for_end(client, create_job(client, epochs=1, model=name, extra_body=STILL).id)

    before, after = figures(client, first), figures(client, job)
    assert after[-1]["full_valid_loss"] == pytest.approx(before[-1]["full_valid_loss"], abs=1e-4)
    assert spec(job)["lora"] == spec(first)["lora"]
    again = server.installation.hone("models", "import-adapter", "a:b", "--base", BASE, "--source", str(source))
    assert (again.returncode, "is no name" in again.stdout) == (1, True)
