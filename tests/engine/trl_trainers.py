"""TRL's trainers on our terms: given rows in the given order, given initial LoRA weights, no network, no files.

TRL trains without gradient checkpointing here, with AdamW's usual settings, a constant rate and clipping at 1.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from peft import LoraConfig, PeftModel, set_peft_model_state_dict
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Trainer, TrainerCallback
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from tests.engine.examples import Example
from tests.engine.pairs import Pair

PAD, EOS = 0, 1


def tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """A word for each token id, so that TRL's own tokenizing gives back the ids that `words` wrote."""
    names = {_word(token): token for token in range(vocab_size)}
    made = Tokenizer(WordLevel(names, unk_token=_word(PAD)))
    made.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token=_word(PAD), eos_token=_word(EOS))


def sft_trainer(
    model: PreTrainedModel,
    lora: LoraConfig,
    initial: dict[str, torch.Tensor],
    examples: Sequence[Example],
    output: Path,
    **settings: Any,
) -> SFTTrainer:
    """TRL has no token weights: a token is trained or it is not. Its loss is the mean over a step's trained tokens."""
    rows = {
        "input_ids": [tokens for tokens, _ in examples],
        "labels": [
            [token if weight > 0 else -100 for token, weight in zip(*example, strict=True)] for example in examples
        ],
    }
    config = SFTConfig(**_arguments(output, settings))
    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=_dataset(rows),
        processing_class=tokenizer(_vocab_size(model)),
        peft_config=lora,
    )
    _begin_with(trainer, initial)
    return trainer


def dpo_trainer(
    model: PreTrainedModel,
    lora: LoraConfig,
    initial: dict[str, torch.Tensor],
    pairs: Sequence[Pair],
    output: Path,
    **settings: Any,
) -> DPOTrainer:
    """Each answer must end with EOS, or TRL adds it, and all of its tokens are trained. The reference is the base."""
    rows = {
        "prompt": [words(prompt) + " " for prompt, _, _ in pairs],
        "chosen": [words(chosen) for _, (chosen, _), _ in pairs],
        "rejected": [words(rejected) for _, _, (rejected, _) in pairs],
    }
    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(**_arguments(output, settings)),
        train_dataset=_dataset(rows),
        processing_class=tokenizer(_vocab_size(model)),
        peft_config=lora,
    )
    _begin_with(trainer, initial)
    return trainer


class LossOfStep:
    """Adds up what the trainer's micro-batches report: its loss at the step's end, unrounded."""

    def __init__(self, trainer: Trainer) -> None:
        self._sum = 0.0
        self._inner = trainer.training_step
        trainer.training_step = self._training_step

    def take(self) -> float:
        """The loss since the last call."""
        taken, self._sum = self._sum, 0.0
        return taken

    def _training_step(self, *given: Any, **named: Any) -> torch.Tensor:
        loss = self._inner(*given, **named)
        self._sum += loss.item()
        return loss


class _EndOfStep(TrainerCallback):
    def __init__(self, loss: LossOfStep) -> None:
        self._loss, self.taken = loss, []

    def on_step_end(self, *given: Any, **named: Any) -> None:
        self.taken.append(self._loss.take())


def losses_of_steps(trainer: Trainer) -> list[float]:
    """Train, and say what each optimizer step's loss was."""
    listener = _EndOfStep(LossOfStep(trainer))
    trainer.add_callback(listener)
    trainer.train()
    return listener.taken


def words(tokens: Sequence[int]) -> str:
    return " ".join(_word(token) for token in tokens)


def _word(token: int) -> str:
    return {PAD: "<pad>", EOS: "<eos>"}.get(token, f"w{token}")


def _arguments(output: Path, settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "output_dir": str(output),
        "use_cpu": True,
        "bf16": False,
        "activation_checkpointing": False,
        "train_sampling_strategy": "sequential",
        "lr_scheduler_type": "constant",
        "learning_rate": 2e-4,
        "max_grad_norm": 1.0,
        "optim": "adamw_torch_fused",
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        **settings,
    }


def _dataset(rows: dict[str, list[Any]]) -> Dataset:
    disable_progress_bar()
    return Dataset.from_dict(rows)


def _vocab_size(model: PreTrainedModel) -> int:
    return model.config.get_text_config().vocab_size


def _begin_with(trainer: Trainer, initial: dict[str, torch.Tensor]) -> None:
    assert isinstance(trainer.model, PeftModel)
    report = set_peft_model_state_dict(trainer.model, initial)
    assert not report.unexpected_keys
