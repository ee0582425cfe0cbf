"""Base and adapter made one model: real children, on a registered base of random weights."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from app import adapter_import, adapter_merge
from app.db import migrations
from app.errors import CannotDo, InvalidRequest
from app.resources import Resources
from app.services import base_models
from tests.e2e.processes import Installation
from tests.engine import reference
from tests.tiny import build_tiny_base
from worker.data import base_model_source
from worker.data.adapter_source import BadAdapter
from worker.engine import adapters, base_model

TOKENS_1T = torch.arange(3, 43)[None] * 11
BASE = "tiny-for-merging"
# PEFT asks transformers under a name that it has since changed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def base_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_base(tmp_path_factory.mktemp("merging") / "base")


@pytest.fixture(scope="module")
def adapter_directory(tmp_path_factory: pytest.TempPathFactory, base_directory: Path) -> Path:
    directory = tmp_path_factory.mktemp("merging") / "adapter"
    model = base_model.load(base_directory, device="cpu", dtype="float32", tick=lambda: None)
    adapters.save(reference.attach(model, reference.LORA), directory, base_id=BASE)
    return directory


@pytest.fixture
async def registered(resources: Resources, base_directory: Path) -> Resources:
    facts = base_model_source.inspect(base_directory, base_model_source.directory_revision(base_directory))
    async with resources.write() as session:
        await base_models.add(session, model_id=BASE, source=str(base_directory), facts=facts)
    return resources


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS_1T).logits[0].float()


async def test_a_merged_model_computes_what_base_and_adapter_do(
    registered: Resources, base_directory: Path, adapter_directory: Path, tmp_path: Path
) -> None:
    """Within 5% in bfloat16, as in tests/engine/test_export.py."""
    named = await adapter_import.run(registered, name="tuned", base_id=BASE, source=adapter_directory)
    (tmp_path / "from-directory").mkdir()  # an empty one may be there

    assert await adapter_merge.run(registered, name=named.id, base_id=None, output=tmp_path / "merged") == BASE
    await adapter_merge.run(registered, name=str(adapter_directory), base_id=BASE, output=tmp_path / "from-directory")

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    plain = AutoModelForCausalLM.from_pretrained(base_directory, dtype="float32")
    of_base = logits(plain)
    exact = logits(PeftModel.from_pretrained(plain, str(adapter_directory)))
    assert model.dtype == torch.bfloat16
    assert (logits(model) - exact).norm() < 0.05 * exact.norm()
    assert (of_base - exact).norm() > 0.2 * exact.norm()  # the adapter is there to be seen
    chat = [{"role": "user", "content": "Hello"}]
    merged, base = (AutoTokenizer.from_pretrained(path) for path in (tmp_path / "merged", base_directory))
    assert merged.apply_chat_template(chat) == base.apply_chat_template(chat)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("merged", "from-directory")]
    assert weights[0] == weights[1]
    assert not any(name.startswith(".") for name in os.listdir(tmp_path))  # noqa: PTH208
    assert not list(registered.settings.data.glob("merge-*"))


async def test_what_cannot_be_merged_is_refused(
    registered: Resources, base_directory: Path, adapter_directory: Path, tmp_path: Path
) -> None:
    output = tmp_path / "new"
    refused: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (InvalidRequest, "neither a fine-tuned model", {"name": "ft:nobody:knows::it", "base_id": None}),
        (InvalidRequest, "needs --base", {"name": str(adapter_directory), "base_id": None}),
        (InvalidRequest, "not a registered base", {"name": str(adapter_directory), "base_id": "unknown"}),
        (BadAdapter, "adapter_config.json", {"name": str(base_directory), "base_id": BASE}),
    ]
    for error, words, arguments in refused:
        with pytest.raises(error, match=words):
            await adapter_merge.run(registered, output=output, **arguments)
        assert not output.exists()
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    with pytest.raises(CannotDo, match="not an empty directory"):
        await adapter_merge.run(registered, name=str(adapter_directory), base_id=BASE, output=output)
    assert [path.name for path in output.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("has_torch", "words"),
    [
        (True, "ft:any is neither a fine-tuned model, nor a checkpoint, nor a directory."),
        (False, "this machine cannot merge: torch not installed. Install 'hone[worker]'."),
    ],
)
def test_the_command_says_why_not(tmp_path: Path, has_torch: bool, words: str) -> None:
    installation = Installation(tmp_path / "data")
    installation.data.mkdir()
    migrations.upgrade(f"sqlite+aiosqlite:///{installation.data}/hone.db")
    code = "from app import cli; cli.main()"
    if not has_torch:
        code = f"import sys; sys.modules['torch'] = None; {code}"
    done = subprocess.run(
        [sys.executable, "-c", code, "models", "merge", "ft:any", "--output", str(tmp_path / "new")],
        env=os.environ | installation.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert words in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "new").exists()
