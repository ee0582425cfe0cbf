"""A preference job, from upload to an adapter that prefers what it was shown."""

import csv
import io
import json

from tests.e2e.processes import Process, create_job, messages, metrics, rows, wait_for_end


def preferences(count: int, *, start: int = 0) -> bytes:
    """Pairs of a short and a rambling answer, in both spellings of the keys."""
    lines: list[str] = []
    for number in range(start, start + count):
        name = ("output", "completion")[number % 2]
        answers = (f"{7 * number} days.", f"That is a good question! In {number} weeks, let me see, maybe many?")
        pair = [[{"role": "assistant", "content": text}] for text in answers]
        asked = {"role": "user", "content": f"How many days are there in {number} weeks?"}
        row = {"input": {"messages": [asked]}, f"preferred_{name}": pair[0], f"non_preferred_{name}": pair[1]}
        lines.append(json.dumps(row))
    return ("\n".join(lines) + "\n").encode()


def test_a_preference_job_from_upload_to_adapter(server: Process) -> None:
    client = server.client()
    validation = client.files.create(file=("valid.jsonl", preferences(6, start=100)), purpose="fine-tune")
    method = {"type": "dpo", "dpo": {"hyperparameters": {"n_epochs": 2, "batch_size": 4, "beta": "auto"}}}
    job = create_job(client, epochs=0, train=preferences(24), validation_file=validation.id, method=method)
    assert job.hyperparameters.to_dict() == {}

    job = wait_for_end(client, job.id)

    table = list(csv.DictReader(io.StringIO("\n".join(metrics(client, job)))))
    assert len(table) == 12
    assert abs(float(table[0]["train_loss"]) - 0.69315) < 1e-5
    last = table[-1]
    assert float(last["train_loss"]) < 0.6
    assert float(last["train_accuracy"]) == 1
    assert float(last["full_valid_mean_token_accuracy"]) == 1
    assert float(last["full_valid_reward_chosen"]) > float(last["full_valid_reward_rejected"])
    assert job.method is not None
    assert job.method.to_dict() == {
        "type": "dpo",
        "dpo": {
            "hyperparameters": {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 1.0, "beta": 0.1},
        },
    }
    events = [event for event in client.fine_tuning.jobs.list_events(job.id) if event.type == "metrics"]
    data = events[0].data
    assert isinstance(data, dict)
    assert data["train_reward_chosen"] > data["train_reward_rejected"]
    assert job.fine_tuned_model in [model.id for model in client.models.list()]


def test_a_chat_file_is_not_a_preference_file(server: Process) -> None:
    client = server.client()
    job = wait_for_end(client, create_job(client, epochs=0, train=rows(12), method={"type": "dpo"}).id)
    assert job.error is not None
    assert (job.error.code, job.error.param) == ("invalid_training_file", "training_file")
    assert f"Input file {job.training_file} is in the fine-tune-chat format" in job.error.message
    assert "(provided method=dpo)" in job.error.message
    assert job.error.message in messages(client, job.id)[-1]
