"""The result of a run: the adapter as a PEFT directory, the base's tokenizer, and a model card."""

import json
import shutil
from pathlib import Path

from peft import PeftModel

from worker.contract.spec import TrainSpec
from worker.engine import adapters
from worker.engine.checkpoint import State

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)


def export(directory: Path, adapter: PeftModel, *, base_directory: Path, state: State, card: dict[str, str]) -> None:
    """Write the finished adapter to `directory`, whole or not at all."""
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(directory, ignore_errors=True)
    adapters.save(adapter, partial, base_id=state.spec.base.id)
    copy_tokenizer(base_directory, partial)
    (partial / "README.md").write_text(model_card(state, card))
    partial.rename(directory)


def copy_tokenizer(base_directory: Path, directory: Path) -> None:
    for name in _TOKENIZER_FILES:
        if (base_directory / name).is_file():
            shutil.copyfile(base_directory / name, directory / name)


def model_card(state: State, card: dict[str, str]) -> str:
    """Markdown with the metadata block that model hubs read."""
    spec = state.spec
    losses = {
        "Training loss, last step": state.train_loss,
        "Validation loss, sample": state.valid_loss,
        "Validation loss, all rows": state.full_valid_loss,
        "Validation loss, best sample": state.best_loss,
    }
    facts = {
        "Base model": spec.base.id,
        "Base revision": spec.base.revision,
        **({"Base held in": held} if (held := _held_in(spec)) else {}),
        "Steps": str(state.step),
        "Trained tokens": str(state.trained_tokens),
        **({"Adapter of step": f"{state.best_step}, the best by validation loss"} if spec.keep_best else {}),
        **{name: f"{loss:.6f}" for name, loss in losses.items() if loss is not None},
        **card,
    }
    tags = "lora, qlora, hone" if spec.quantization else "lora, hone"
    table = "\n".join(f"| {_cell(name)} | {_cell(value)} |" for name, value in facts.items())
    return f"""---
base_model: {json.dumps(spec.base.id)}
library_name: peft
pipeline_tag: text-generation
tags: [{tags}]
---

# LoRA adapter

Trained with Hone. Load it with `peft.PeftModel.from_pretrained(base_model, this_directory)`.

| | |
|---|---|
{table}

## Settings

Everything that shaped this run; the same settings on the same data give the same adapter.

```json
{spec.model_dump_json(indent=2)}
```
"""


def _held_in(spec: TrainSpec) -> str:
    """In words, where it is not simply what was computed in."""
    narrow = spec.execution.weights_dtype if spec.execution is not None else None
    if spec.quantization == "nf4":
        return "nf4 (QLoRA)" + (f", embeddings and head in {narrow}" if narrow else "")
    return f"{narrow}, computed in float32" if narrow else ""


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
