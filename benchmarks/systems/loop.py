"""The loop that one writes first: transformers and PEFT, a padded batch, the model's own loss, full logits for DPO."""

import json
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from benchmarks.contest import Contest, steps_of

if TYPE_CHECKING:
    from benchmarks.contestant import Turns

UNTRAINED = -100
BETA = 0.1


def take_part(contest: Contest, directory: Path, turns: "Turns") -> None:
    dtype = getattr(torch, contest.dtype)
    config = LoraConfig.from_pretrained(str(directory / "initial"))
    config.inference_mode = False
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(directory / "base", dtype=dtype), config)
    assert isinstance(model, PeftModel)
    set_peft_model_state_dict(model, load_file(directory / "initial" / "adapter_model.safetensors"))
    model.train()
    data = json.loads((directory / "data.json").read_text())
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=2e-4, weight_decay=0.0, fused=True)
    compute = _preference_loss if contest.method == "dpo" else _supervised_loss
    steps = steps_of(directory)
    turns.ready()
    for rows in steps:
        turns.begin()
        loss = compute(model, [data[row] for row in rows])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        turns.end(loss.item())


def _supervised_loss(model: PeftModel, examples: list[Any]) -> torch.Tensor:
    return model(**_padded(examples), use_cache=False).loss


def _preference_loss(model: PeftModel, pairs: list[Any]) -> torch.Tensor:
    """Chosen answers first, then rejected ones, each after its prompt."""
    sequences = [
        ([*pair[0], *pair[answer][0]], [*[0.0] * len(pair[0]), *pair[answer][1]]) for answer in (1, 2) for pair in pairs
    ]
    batch = _padded(sequences)
    with torch.no_grad(), model.disable_adapter():
        reference = _log_probs(model, batch)
    chosen, rejected = (_log_probs(model, batch) - reference).chunk(2)
    return -F.logsigmoid(BETA * (chosen - rejected)).mean()


def _log_probs(model: PeftModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Of each sequence's trained tokens, summed."""
    labels = batch["labels"][:, 1:]
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    losses = F.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), labels.flatten(), ignore_index=UNTRAINED, reduction="none"
    )
    return -losses.view(labels.shape).sum(dim=1)


def _padded(examples: list[Any]) -> dict[str, torch.Tensor]:
    """Filled up to the longest on the right."""

    def rows(given: list[list[int]], fill: int) -> torch.Tensor:
        return torch.tensor(list(zip_longest(*given, fillvalue=fill))).T.contiguous()

    labels = [
        [token if weight > 0 else UNTRAINED for token, weight in zip(*example, strict=True)] for example in examples
    ]
    return {
        "input_ids": rows([tokens for tokens, _ in examples], 0),
        "attention_mask": rows([[1] * len(tokens) for tokens, _ in examples], 0),
        "labels": rows(labels, UNTRAINED),
    }
