"""The main job, end to end: start Hone, fine-tune a model through its API, and see what was learned.

`make demo` runs this. It starts `hone serve` as a process of its own and drives it with the official
`openai` client, as any program would. Exits with 1 and a sentence when something fails.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import plotext
from openai.types.fine_tuning import FineTuningJob
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

HERE = Path(__file__).resolve().parent
DATA = HERE.parent / ".hone" / "demo"
BASE_MODEL = "hone-tiny"
EVAL_INTERVAL_STEPS = 28  # twice an epoch
HYPERPARAMETERS = {"n_epochs": 4, "batch_size": 4}
START_SECONDS = 300  # the first start builds the tiny base model
TRAINING_SECONDS = 600
SHOWN_ANSWERS = 3
console = Console(highlight=False)


class DemoFailed(Exception):
    """The message says what went wrong."""


def main() -> int:
    started = time.monotonic()
    try:
        with hone_server() as client:
            job = train(client)
            draw_losses(client, job)
            adapter = download(client, job)
        compare(adapter)
    except (DemoFailed, openai.OpenAIError) as error:
        console.print(f"[red]The demo failed:[/] {escape(str(error))}")
        return 1
    except KeyboardInterrupt:
        console.print("Stopped.")
        return 130
    console.print(f"\nDone in {time.monotonic() - started:.0f} seconds. The adapter lies in {adapter}")
    return 0


@contextmanager
def hone_server() -> Iterator[openai.OpenAI]:
    """`hone serve` on a free port, ended when the block is left, however it is left."""
    DATA.mkdir(parents=True, exist_ok=True)
    key = f"sk-hone-{secrets.token_urlsafe(24)}"
    environment = os.environ | {"HONE_DATA_DIRECTORY": str(DATA), "HONE_API_KEY": key, "HONE_PORT": "0"}
    log_path = DATA / "server.log"
    with log_path.open("w") as log:
        server = subprocess.Popen(
            [Path(sys.executable).with_name("hone"), "serve"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        url = wait_for_url(server, log_path)
        console.print(f"[bold]Hone serves {url}[/] (log: {log_path})")
        with openai.OpenAI(base_url=url, api_key=key) as client:
            yield client
    finally:
        stop(server)


def wait_for_url(server: "subprocess.Popen[bytes]", log: Path) -> str:
    shown = 0
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        lines = log.read_text().splitlines()
        for line in lines[shown:]:
            if line.startswith("Building "):
                console.print(f"[dim]{escape(line)}[/]")
            if line.startswith("Hone serves "):
                return line.split()[2]
        shown = len(lines)
        if server.poll() is not None:
            raise DemoFailed("the server did not start:\n" + "\n".join(lines[-15:]))
        time.sleep(0.1)
    raise DemoFailed(f"the server was not ready after {START_SECONDS} seconds; see {log}")


def stop(server: "subprocess.Popen[bytes]") -> None:
    if server.poll() is None:
        server.send_signal(signal.SIGINT)
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def train(client: openai.OpenAI) -> FineTuningJob:
    """Upload, create the job, and follow its events to the end."""
    files = {}
    for part in ("train", "valid"):
        path = HERE / f"support.{part}.jsonl"
        with path.open("rb") as content:
            files[part] = client.files.create(file=(path.name, content), purpose="fine-tune")
        console.print(f"Uploaded {path.name}: {files[part].id}, {files[part].bytes:,} bytes")
    job = client.fine_tuning.jobs.create(
        model=BASE_MODEL,
        training_file=files["train"].id,
        validation_file=files["valid"].id,
        suffix="support-desk",
        seed=7,
        method={"type": "supervised", "supervised": {"hyperparameters": HYPERPARAMETERS}},  # pyright: ignore[reportArgumentType]
        extra_body={"hone": {"eval_interval_steps": EVAL_INTERVAL_STEPS}},
    )
    console.print(f"Created {job.id} on {BASE_MODEL}")
    job = follow(client, job)
    if job.status != "succeeded":
        reason = job.error.message if job.error else "no reason given"
        raise DemoFailed(f"the job ended as {job.status}: {reason}")
    console.print(f"[bold]{job.fine_tuned_model}[/] was made from {job.trained_tokens:,} tokens")
    return job


def follow(client: openai.OpenAI, job: FineTuningJob) -> FineTuningJob:
    deadline = time.monotonic() + TRAINING_SECONDS
    seen: set[str] = set()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
        TextColumn("loss {task.fields[loss]}"),
        TextColumn("{task.fields[speed]} tokens/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("training", total=1, loss="-", speed="-")
        while time.monotonic() < deadline:
            job = client.fine_tuning.jobs.retrieve(job.id)
            for event in new_events(client, job.id, seen):
                if event.type == "metrics":
                    data: dict[str, Any] = event.data
                    speed = f"{data['tokens_per_second'] or 0:,.0f}"
                    progress.update(
                        bar,
                        total=data["total_steps"],
                        completed=data["step"],
                        loss=f"{data['train_loss']:.3f}",
                        speed=speed,
                    )
                else:
                    progress.console.print(f"[dim]{escape(event.message)}[/]")
            if job.status in ("succeeded", "failed", "cancelled"):
                return job
            time.sleep(0.5)
    raise DemoFailed(f"the job was still {job.status} after {TRAINING_SECONDS} seconds")


def new_events(client: openai.OpenAI, job_id: str, seen: set[str]) -> list[Any]:
    """Events that were not seen before, oldest first. The API lists the newest first."""
    fresh = []
    for event in client.fine_tuning.jobs.list_events(job_id, limit=50):
        if event.id in seen:
            break
        seen.add(event.id)
        fresh.append(event)
    return fresh[::-1]


def draw_losses(client: openai.OpenAI, job: FineTuningJob) -> None:
    lines = client.files.content(job.result_files[0]).text.splitlines()
    header = lines[0].split(",")
    rows = [dict(zip(header, line.split(","), strict=True)) for line in lines[1:]]
    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plot_size(min(100, console.width), 18)
    plotext.title("loss by step")
    plotext.plot([int(row["step"]) for row in rows], [float(row["train_loss"]) for row in rows], label="training")
    held_out = [row for row in rows if row["valid_loss"]]
    steps, losses = [int(row["step"]) for row in held_out], [float(row["valid_loss"]) for row in held_out]
    plotext.plot(steps, losses, label="validation", marker="o")
    console.print(plotext.build(), markup=False)


def download(client: openai.OpenAI, job: FineTuningJob) -> Path:
    """Save the step metrics and unpack the adapter; returns the adapter's directory."""
    target = DATA / "results" / job.id
    target.mkdir(parents=True, exist_ok=True)
    metrics, archive = job.result_files
    (target / "step_metrics.csv").write_bytes(client.files.content(metrics).read())
    (target / "adapter.zip").write_bytes(client.files.content(archive).read())
    with zipfile.ZipFile(target / "adapter.zip") as bundle:
        bundle.extractall(target / "adapter")
    return target / "adapter"


def compare(adapter: Path) -> None:
    """Have a process that knows nothing of Hone load the adapter, and show what it says."""
    base = DATA / "models" / BASE_MODEL
    with console.status("Loading the adapter with plain PEFT and answering all validation conversations ..."):
        child = subprocess.run(
            [sys.executable, HERE / "compare.py", base, adapter, HERE / "support.valid.jsonl"],
            env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE"},  # threads that spin while they wait slow a busy machine
            capture_output=True,
            text=True,
            check=False,
        )
    if child.returncode != 0:
        raise DemoFailed("the adapter could not be used:\n" + child.stderr.strip()[-2000:])
    report = json.loads(child.stdout)
    base_says, tuned_says = report["base"], report["tuned"]
    for number in range(SHOWN_ANSWERS):
        console.print(Panel(escape(report["prompts"][number]), title="customer", border_style="cyan"))
        answers = Table.grid(expand=True, padding=(0, 1))
        answers.add_column(ratio=1)
        answers.add_column(ratio=1)
        answers.add_row(
            Panel(escape(base_says["answers"][number][:700]) or "(nothing)", title="base model"),
            Panel(escape(tuned_says["answers"][number]) or "(nothing)", title="tuned model", border_style="green"),
        )
        console.print(answers)
    table = Table("over all validation conversations", "base model", "tuned model")
    table.add_row("loss per answer token", f"{base_says['loss']:.3f}", f"{tuned_says['loss']:.3f}")
    share = "answers in the desk's format"
    table.add_row(share, f"{base_says['format_share']:.0%}", f"{tuned_says['format_share']:.0%}")
    console.print(table)
    if tuned_says["loss"] >= base_says["loss"]:
        raise DemoFailed("the tuned model's validation loss is not lower than the base model's")
    if tuned_says["format_share"] <= base_says["format_share"]:
        raise DemoFailed("the tuned model does not keep the desk's format more often than the base model")


if __name__ == "__main__":
    sys.exit(main())
