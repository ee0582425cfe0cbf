"""The main job, from upload to an adapter that plain PEFT loads."""

import csv
import io
import json
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import httpx

from tests.backends import Site
from tests.e2e.processes import (
    BASE,
    KEY,
    PATIENCE,
    Installation,
    Process,
    create_job,
    messages,
    metrics,
    rows,
    wait_for_end,
    wait_for_step,
)

# Runs where nothing of Hone is imported: what any user of the adapter would write.
_USE_ADAPTER = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
base, adapter = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(adapter)
model = AutoModelForCausalLM.from_pretrained(base)
tuned = PeftModel.from_pretrained(model, adapter).eval()
chat = [json.loads(line)["messages"] for line in sys.stdin]
weight = loss = 0.0
for messages in chat:
    for end, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        ids = tokenizer.apply_chat_template(messages[:end + 1], return_dict=False)
        start = len(tokenizer.apply_chat_template(messages[:end], add_generation_prompt=True, return_dict=False))
        with torch.no_grad():
            scores = tuned(torch.tensor([ids])).logits[0, start - 1:-1].log_softmax(-1)
        loss -= scores.gather(1, torch.tensor(ids[start:])[:, None]).sum().item()
        weight += len(ids) - start
print(json.dumps({"loss": loss / weight, "tokens": weight}))
"""


def test_a_job_from_upload_to_adapter(server: Process, template: Site, tmp_path: Path) -> None:
    client = server.client()
    job = create_job(client, epochs=2, suffix="weeks")
    assert job.status == "validating_files"

    job = wait_for_end(client, job.id)

    table = list(csv.DictReader(io.StringIO("\n".join(metrics(client, job)))))
    assert [row["step"] for row in table] == [str(step) for step in range(1, 25)]
    assert float(table[-1]["train_loss"]) < float(table[0]["train_loss"])
    assert float(table[-1]["full_valid_loss"]) > 0
    assert job.hyperparameters.n_epochs == 2
    assert job.fine_tuned_model is not None
    assert job.fine_tuned_model.startswith(f"ft:{BASE}:default:weeks:")
    assert job.fine_tuned_model in [model.id for model in client.models.list()]
    assert job.trained_tokens == sum(int(row["tokens"]) for row in table)

    archive = client.files.content(job.result_files[1]).read()
    with server.http() as http:
        assert http.get(f"/v1/fine_tuning/jobs/{job.id}/adapter").content == archive
    adapter = tmp_path / "adapter"
    zipfile.ZipFile(io.BytesIO(archive)).extractall(adapter)
    answer = subprocess.run(
        [sys.executable, "-c", _USE_ADAPTER, str(template.data.parent / "base"), str(adapter)],
        input=rows(12, start=100).decode(),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    independent = json.loads(answer.stdout)
    assert abs(independent["loss"] - float(table[-1]["full_valid_loss"])) < 1e-4
    card = (adapter / "README.md").read_text()
    assert BASE in card
    assert str(template.data) not in card


def test_the_events_tell_the_story_in_order(server: Process) -> None:
    """As a list and as a stream: one and the same story."""
    client = server.client()
    job = create_job(client, epochs=2)
    with server.http() as http:
        followed = http.get(f"/v1/fine_tuning/jobs/{job.id}/events", params={"stream": "true"}, timeout=90).text

    job = client.fine_tuning.jobs.retrieve(job.id)
    assert job.status == "succeeded"
    listed = list(client.fine_tuning.jobs.list_events(job.id, limit=100))[::-1]
    *streamed, done = [line[6:] for line in followed.splitlines() if line.startswith("data: ")]
    assert done == "[DONE]"
    assert [json.loads(data) for data in streamed] == [event.to_dict() for event in listed]

    told = [event.message for event in listed]
    names = {
        one.step_number: one.fine_tuned_model_checkpoint for one in client.fine_tuning.jobs.checkpoints.list(job.id)
    }
    assert told[:4] == [
        f"Created fine-tuning job: {job.id}",
        f"Validating training file: {job.training_file} and validation file: {job.validation_file}",
        "Files validated, moving job to queued state",
        "Fine-tuning job started",
    ]
    steps = [event for event in listed if event.type == "metrics"]
    loss = r"-?\d+\.\d\d"
    for number, event in enumerate(steps, start=1):
        figures = cast("dict[str, Any]", event.data)
        story = rf"Step {number}/24: training loss={loss}"
        story += rf", validation loss={loss}" if "valid_loss" in figures else ""
        story += rf", full validation loss={loss}" if "full_valid_loss" in figures else ""
        assert re.fullmatch(story, event.message)
        assert ("full_valid_mean_token_accuracy" in figures) == (number in (12, 24))
        expected = {"step", "total_steps", "train_loss", "train_mean_token_accuracy"}
        assert expected <= set(figures)
        assert (figures["step"], figures["total_steps"]) == (number, 24)
    assert len(steps) == 24
    assert any(", validation loss=" in message for message in told)
    for step in (10, 12, 20):
        created = told.index(f"Checkpoint created at step {step} with Snapshot ID: {names[step]}")
        assert created > told.index(steps[step - 1].message)
    assert len(told) == 4 + 24 + 3 + 2
    assert told[-2:] == [
        f"New fine-tuned model created: {job.fine_tuned_model}",
        "The job has successfully completed",
    ]
    assert {event.level for event in listed} == {"info"}


def test_while_a_job_runs_its_end_is_estimated(server: Process) -> None:
    client = server.client()
    job = create_job(client, epochs=50)
    assert job.estimated_finish is None
    began = time.time()
    running = wait_for_step(client, job.id, 20)
    assert running.estimated_finish is not None
    assert began < running.estimated_finish < began + 1800
    assert running.trained_tokens is None
    cancelled = client.fine_tuning.jobs.cancel(job.id)
    assert cancelled.estimated_finish is None
    assert cancelled.trained_tokens is not None
    assert cancelled.trained_tokens > 20 * 4 * 10  # of each step's four examples more than ten


def test_a_stream_ends_when_the_server_stops(install: Callable[..., Installation]) -> None:
    """Without its last word, so that whoever reads it comes back, and goes on after the last event."""
    installation = install()
    with installation.serving("--api-only") as api:
        job = create_job(api.client(), epochs=1)
        headers = {"Authorization": f"Bearer {KEY}"}
        with (
            httpx.Client(base_url=api.url, headers=headers, timeout=30) as http,
            http.stream("GET", f"/v1/fine_tuning/jobs/{job.id}/events?stream=true") as answer,
        ):
            lines = answer.iter_lines()
            assert next(lines).startswith("id: ")
            with http.stream("GET", f"/v1/fine_tuning/jobs/{job.id}/logs?follow=true") as log:
                api.signal(signal.SIGTERM)
                signalled = time.monotonic()
                rest = list(lines)
                assert list(log.iter_lines()) == []
        assert api.ended() == 0
        assert time.monotonic() - signalled < 4 * PATIENCE  # connections that do not end get five seconds
        assert "data: [DONE]" not in rest


def test_a_second_job_on_the_warm_trainer_equals_the_first(server: Process, undisturbed: list[str]) -> None:
    client = server.client()
    trainers = server.trainers()

    job = create_job(client, epochs=8)

    assert metrics(client, wait_for_end(client, job.id)) == undisturbed
    assert server.trainers() == trainers


def test_checkpoints_are_listed_and_the_last_carries_the_models_name(server: Process) -> None:
    client = server.client()
    job = create_job(client, epochs=2)
    job = wait_for_end(client, job.id)

    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id))

    assert [checkpoint.step_number for checkpoint in checkpoints] == [24, 20, 12, 10]
    assert checkpoints[0].fine_tuned_model_checkpoint == job.fine_tuned_model
    assert checkpoints[1].fine_tuned_model_checkpoint.endswith(":ckpt-step-20")
    assert checkpoints[0].metrics.full_valid_loss is not None
    with server.http() as http:
        answer = http.get(f"/v1/fine_tuning/jobs/{job.id}/checkpoints/{checkpoints[2].id}/adapter")
    assert "adapter_model.safetensors" in zipfile.ZipFile(io.BytesIO(answer.content)).namelist()


def test_of_long_jobs_the_checkpoints_of_the_last_three_epochs_stay(server: Process) -> None:
    client = server.client()
    job = create_job(client, epochs=5, extra_body={"hone": {"checkpoint_interval_steps": 1000}})
    job = wait_for_end(client, job.id)

    kept = list(client.fine_tuning.jobs.checkpoints.list(job.id))

    assert [checkpoint.step_number for checkpoint in kept] == [60, 48, 36]
    names = [checkpoint.fine_tuned_model_checkpoint for checkpoint in kept]
    assert names[0] == job.fine_tuned_model
    assert [name.partition(":ckpt-")[2] for name in names] == ["", "step-48", "step-36"]
    assert len({name.split(":")[4] for name in names}) == 3  # eight characters of its own each


def test_the_log_reaches_the_api(server: Process) -> None:
    client = server.client()
    job = create_job(client, epochs=1)

    with server.http() as http:
        followed = http.get(f"/v1/fine_tuning/jobs/{job.id}/logs", params={"follow": "true"}, timeout=90).text

    assert client.fine_tuning.jobs.retrieve(job.id).status == "succeeded"
    assert "finished after step 12" in followed


def test_a_bad_file_fails_the_job_with_line_and_count(server: Process) -> None:
    client = server.client()
    good = rows(12).decode().splitlines()
    bad = [json.dumps({"messages": [{"content": "no role"}]}), json.dumps({"messages": []})]

    job = wait_for_end(client, create_job(client, epochs=1, train="\n".join(good + bad).encode()).id)

    assert job.status == "failed"
    assert job.error is not None
    assert job.error.code == "invalid_training_file"
    assert job.error.param == "training_file"
    assert "13" in job.error.message
    assert "2" in job.error.message
    assert job.error.message in messages(client, job.id)[-1]


def test_too_few_examples_fail_the_job(server: Process) -> None:
    client = server.client()

    job = wait_for_end(client, create_job(client, epochs=1, train=rows(7)).id)

    assert job.error is not None
    assert job.error.code == "invalid_n_examples"
    assert job.error.message == "Training file has 7 example(s), but must have at least 10 examples"
