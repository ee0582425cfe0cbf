"""Compare a base model with an adapter trained on it, on held-out conversations. Nothing of Hone is used here.

    python examples/compare.py BASE_DIRECTORY ADAPTER_DIRECTORY CONVERSATIONS.jsonl

Prints one JSON object: for the base and for the tuned model the mean loss per assistant token, the
share of answers in the desk's format, and all answers to the last user turn of each conversation.
"""

import json
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

# [queue | priority], one or two paragraphs of reply, and a last line with the next step.
DESK_FORMAT = re.compile(
    r"\[(disputes|fraud|compliance|escalations) \| (routine|high|urgent)\]\n"
    r"(?!Next step:)[^\n]+(\n[^\n]+)?\n"
    r"Next step: [^\n]+"
)
MAX_ANSWER_TOKENS = 160
BATCH = 40
Messages = list[dict[str, Any]]


def main(base_directory: str, adapter_directory: str, conversations: str) -> None:
    rows: list[Messages] = [json.loads(line)["messages"] for line in Path(conversations).read_text().splitlines()]
    with ProcessPoolExecutor(
        2, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as two:
        base = two.submit(measure, base_directory, None, adapter_directory, rows)
        tuned = two.submit(measure, base_directory, adapter_directory, adapter_directory, rows)
        report = {"prompts": [row[-2]["content"] for row in rows], "base": base.result(), "tuned": tuned.result()}
    print(json.dumps(report))


def measure(base_directory: str, adapter: str | None, tokenizer_directory: str, rows: list[Messages]) -> dict[str, Any]:
    """The figures and answers of the base model, or of the base model with the adapter."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_directory, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(base_directory)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    model.eval()
    with torch.inference_mode():
        answers = [
            text
            for start in range(0, len(rows), BATCH)
            for text in answer(model, tokenizer, rows[start : start + BATCH])
        ]
        in_format = sum(DESK_FORMAT.fullmatch(text) is not None for text in answers)
        return {"loss": mean_loss(model, tokenizer, rows), "format_share": in_format / len(rows), "answers": answers}


def answer(model: Any, tokenizer: Any, rows: list[Messages]) -> list[str]:
    """Greedy answers in place of each conversation's last turn."""
    prompts = tokenizer.apply_chat_template(
        [row[:-1] for row in rows], add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    length = prompts["input_ids"].shape[1]
    out = model.generate(
        **prompts, max_new_tokens=MAX_ANSWER_TOKENS, do_sample=False, pad_token_id=tokenizer.pad_token_id
    )
    return [tokenizer.decode(one[length:], skip_special_tokens=True).strip() for one in out]


def mean_loss(model: Any, tokenizer: Any, rows: list[Messages]) -> float:
    """Mean negative log-likelihood of the assistants' tokens, end-of-turn tokens included, weight 0 left out."""
    total, count = 0.0, 0
    for row in rows:
        for place, message in enumerate(row):
            if message["role"] != "assistant" or message.get("weight") == 0:
                continue
            prompt = tokenizer.apply_chat_template(row[:place], add_generation_prompt=True, return_dict=False)
            whole = tokenizer.apply_chat_template(row[: place + 1], return_dict=False)
            scores = model(torch.tensor([whole])).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
            targets = torch.tensor(whole[len(prompt) :])
            total -= scores.gather(1, targets[:, None]).sum().item()
            count += len(targets)
    return total / count


if __name__ == "__main__":
    main(*sys.argv[1:])
