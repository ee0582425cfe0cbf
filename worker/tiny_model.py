"""Builds the project's tiny base model: a real Llama, small enough to train and tune on two CPU cores.

The demo, the quick start and the tests need a base model that is free, offline and ours. This one reads
a few hundred support conversations as plain text, so it knows the language of the desk. It has never
seen a chat token, the desk's routing line or its "Next step:" line: those are what a fine-tune teaches.

The same corpus, seed, torch build and kind of CPU give the same bytes.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

DEFAULT_CORPUS = Path(__file__).resolve().parents[1] / "examples" / "support.train.jsonl"

BEGIN, END_OF_TEXT, PAD = "<|begin_of_text|>", "<|end_of_text|>", "<|pad|>"
START_HEADER, END_HEADER, END_OF_TURN = "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"
SPECIAL_TOKENS = (BEGIN, END_OF_TEXT, START_HEADER, END_HEADER, END_OF_TURN, PAD)
MAX_POSITIONS = 2048

# Llama 3's pre-tokenizer: contractions, words with one leading mark, numbers of up to three digits,
# punctuation with its line ends, runs of line ends, runs of spaces.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# The layout is Llama 3's. As there, no {% generation %} marks: a trainer must find the trained tokens without them.
CHAT_TEMPLATE = """\
{%- macro text(message) -%}
    {%- if message['content'] is string -%}
        {{- message['content'] | trim -}}
    {%- elif message['content'] is defined and message['content'] is not none -%}
        {{- raise_exception('The content of a message must be text.') -}}
    {%- endif -%}
{%- endmacro -%}
{%- macro header(role) -%}
    {{- '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' -}}
{%- endmacro -%}
{{- bos_token -}}
{%- set rest = messages -%}
{%- set instructions = '' -%}
{%- if messages and messages[0]['role'] in ['system', 'developer'] -%}
    {%- set instructions = text(messages[0]) -%}
    {%- set rest = messages[1:] -%}
{%- endif -%}
{%- if instructions or tools -%}
    {{- header('system') + instructions -}}
    {%- if tools -%}
        {%- if instructions -%}{{- '\\n\\n' -}}{%- endif -%}
        {{- 'Functions you may call, one JSON definition per line:\\n' -}}
        {%- for tool in tools -%}
            {{- tool | tojson + '\\n' -}}
        {%- endfor -%}
        {{- 'To call a function, write one line of JSON for each call: {"name": ..., "arguments": {...}}' -}}
    {%- endif -%}
    {{- '<|eot_id|>' -}}
{%- endif -%}
{%- for message in rest -%}
    {%- if message['role'] not in ['system', 'developer', 'user', 'assistant', 'tool'] -%}
        {{- raise_exception('Unknown role: ' + message['role'] | string) -}}
    {%- endif -%}
    {{- header('system' if message['role'] == 'developer' else message['role']) + text(message) -}}
    {%- if message['role'] == 'assistant' and message['tool_calls'] -%}
        {%- for call in message['tool_calls'] -%}
            {%- if not loop.first or text(message) -%}{{- '\\n' -}}{%- endif -%}
            {%- set arguments = call['function']['arguments'] -%}
            {{- '{"name": ' + call['function']['name'] | tojson + ', "arguments": ' -}}
            {{- (arguments if arguments is string else arguments | tojson) + '}' -}}
        {%- endfor -%}
    {%- endif -%}
    {{- '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- header('assistant') -}}
{%- endif -%}
"""


@dataclass(frozen=True)
class Recipe:
    """Sizes and schedule of the build; a step reads one window of `window_tokens` tokens.

    Found by measurement within a minute of processor time: many small steps beat few large ones by far, and
    two layers that have read the corpus more often tune better in the same time than four.
    """

    vocabulary: int = 4096
    hidden_size: int = 192
    intermediate_size: int = 512
    layers: int = 2
    heads: int = 6
    key_value_heads: int = 3
    window_tokens: int = 256
    steps: int = 900
    learning_rate: float = 1.5e-3
    embedding_learning_rate: float = 5e-3
    weight_decay: float = 0.1


def build(output: Path, *, corpus: Path = DEFAULT_CORPUS, seed: int = 0, recipe: Recipe | None = None) -> None:
    """Writes the model and its tokenizer to `output`, in the layout of the Hugging Face hub.

    `corpus` is a chat file of training conversations, and the only file that is read.
    """
    recipe = recipe or Recipe()
    conversations = read_conversations(corpus)
    tokenizer = train_tokenizer(conversations, recipe.vocabulary)
    model = pretrain(plain_documents(conversations), tokenizer, recipe, seed)
    output.mkdir(parents=True, exist_ok=True)
    # Weights come last and by rename: a directory that has them is complete, whenever the build was stopped.
    with TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        for path in sorted(Path(partial).iterdir(), key=lambda path: path.suffix == ".safetensors"):
            path.replace(output / path.name)
            (output / path.name).chmod(0o644)


def read_conversations(corpus: Path) -> list[list[dict[str, Any]]]:
    """The messages of every row of a chat file."""
    with corpus.open(encoding="utf-8") as lines:
        return [json.loads(line)["messages"] for line in lines if line.strip()]


def plain_documents(conversations: list[list[dict[str, Any]]]) -> list[str]:
    """One text per conversation, without roles and without the desk's format.

    A line of instructions is kept only where it first occurs: the guidelines open every conversation, and
    repeating them would spend most of the training on a page of text.
    """
    seen: set[str] = set()
    documents = []
    for messages in conversations:
        parts = []
        for message in messages:
            content = message.get("content") or ""
            if message["role"] == "system":
                lines = [line for line in content.split("\n") if line not in seen]
                seen.update(lines)
                content = "\n".join(lines)
            elif message["role"] == "assistant":
                content = re.sub(r"\A\[[^\]\n]*\]\n", "", content)
                content = re.sub(r"(?m)^Next step: ", "", content)
            parts.append(content)
        documents.append("\n\n".join(part for part in parts if part))
    return documents


def train_tokenizer(conversations: list[list[dict[str, Any]]], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most `vocabulary` tokens, special tokens included."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        show_progress=False,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    # Joined by blank lines, as the chat template and the plain documents have them, so that "\n\n" becomes one token.
    texts = ("\n\n".join(message.get("content") or "" for message in messages) for messages in conversations)
    core.train_from_iterator(texts, trainer)
    # As with Llama 3, encoding a plain text puts the begin token in front; a rendered chat brings its own.
    core.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A",
        pair=f"{BEGIN} $A {BEGIN} $B",
        special_tokens=[(BEGIN, core.token_to_id(BEGIN))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BEGIN,
        eos_token=END_OF_TURN,
        pad_token=PAD,
        additional_special_tokens=[END_OF_TEXT, START_HEADER, END_HEADER],
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def pretrain(documents: list[str], tokenizer: PreTrainedTokenizerFast, recipe: Recipe, seed: int) -> LlamaForCausalLM:
    """A language model of the documents; a pure function of its arguments on one kind of machine."""
    threads = torch.get_num_threads()
    # Sums are split by thread, so one is the same everywhere; and layers this small gain nothing from a second.
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _pretrain(documents, tokenizer, recipe)
    finally:
        torch.set_num_threads(threads)


def _pretrain(documents: list[str], tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> LlamaForCausalLM:
    model = _new_model(tokenizer, recipe)
    optimizer = _optimizer(model, recipe)
    end_of_text = _token_id(tokenizer, END_OF_TEXT)
    stream = [end_of_text]
    for document in documents:
        stream += [*tokenizer.encode(document, add_special_tokens=False), end_of_text]
    windows = _windows(torch.tensor(stream), recipe.window_tokens)
    peaks = [group["lr"] for group in optimizer.param_groups]
    recent: list[float] = []
    model.train()
    for step in range(1, recipe.steps + 1):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * _schedule(step, recipe.steps)
        window = next(windows)[None]
        loss = model(input_ids=window, labels=window, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        recent.append(loss.item())
        if step % max(1, recipe.steps // 16) == 0 or step == recipe.steps:
            mean = sum(recent) / len(recent)
            sys.stderr.write(f"Building the tiny base model: step {step}/{recipe.steps}, loss {mean:.2f}\n")
            sys.stderr.flush()
            recent.clear()
    _reset_unseen_rows(model, stream, tokenizer)
    return model.eval()


@torch.no_grad()
def _reset_unseen_rows(model: LlamaForCausalLM, stream: list[int], tokenizer: PreTrainedTokenizerFast) -> None:
    """Gives every token that the plain text lacks an embedding of its own, as the seen ones are spread.

    Softmax pushes all of them the same way, until the chat tokens and the names of the queues are nearly one
    vector. A LoRA does not train embeddings, so it could tell them apart neither when it reads nor when it writes.
    """
    rows = model.model.embed_tokens.weight
    seen = torch.zeros(len(rows), dtype=torch.bool)
    seen[stream] = True
    mean, spread = rows[seen].mean(0), rows[seen].std(0)
    rows[~seen] = mean + spread * torch.randn(int((~seen).sum()), rows.shape[1])
    # A turn ends much as a text does: near the token that the model has learned to end a text with.
    turn, text = _token_id(tokenizer, END_OF_TURN), _token_id(tokenizer, END_OF_TEXT)
    rows[turn] = 0.7 * (rows[turn] + rows[text])


def _new_model(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.key_value_heads,
        max_position_embeddings=MAX_POSITIONS,
        initializer_range=0.05,  # the usual 0.02 is for wider models
        tie_word_embeddings=True,
        bos_token_id=_token_id(tokenizer, BEGIN),
        eos_token_id=_token_id(tokenizer, END_OF_TURN),
        pad_token_id=_token_id(tokenizer, PAD),
        dtype="float32",
    )
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            torch.nn.init.zeros_(parameter)  # layers begin as the identity: word pairs are learned first, and soon
    model.generation_config = GenerationConfig(
        bos_token_id=_token_id(tokenizer, BEGIN),
        eos_token_id=[_token_id(tokenizer, END_OF_TURN), _token_id(tokenizer, END_OF_TEXT)],
        pad_token_id=_token_id(tokenizer, PAD),
    )
    return model


def _optimizer(model: LlamaForCausalLM, recipe: Recipe) -> torch.optim.Optimizer:
    embedding = model.model.embed_tokens.weight
    matrices = [p for p in model.parameters() if p.dim() == 2 and p is not embedding]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [
        {"params": [embedding], "lr": recipe.embedding_learning_rate, "weight_decay": recipe.weight_decay},
        {"params": matrices, "lr": recipe.learning_rate, "weight_decay": recipe.weight_decay},
        {"params": vectors, "lr": recipe.learning_rate, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.99))


def _schedule(step: int, steps: int) -> float:
    """Up over the first sixteenth, flat, and down to near zero over the second half."""
    return max(0.02, min(1.0, 16 * step / steps, 2 * (steps - step) / steps))


def _windows(tokens: torch.Tensor, size: int) -> Iterator[torch.Tensor]:
    """Endless windows of `size` tokens in random order; every pass cuts the text at other places."""
    if len(tokens) < size:
        raise ValueError(f"The corpus has {len(tokens)} tokens; the tiny base model needs at least {size}.")
    while True:
        turned = tokens.roll(int(torch.randint(size, ())))
        whole = turned[: len(turned) // size * size].view(-1, size)
        for index in torch.randperm(len(whole)).tolist():
            yield whole[index]


def _token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    found = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(found, int)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m worker.tiny_model", description="Build the tiny base model.")
    parser.add_argument("--output", type=Path, required=True, help="directory to write the model to")
    parser.add_argument("--corpus", type=Path, default=DEFAULT_CORPUS, help="chat file to learn from")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    disable_progress_bar()  # a bar for one file of 10 MB says less than our own lines
    build(arguments.output, corpus=arguments.corpus, seed=arguments.seed)
    sys.stderr.write(f"The tiny base model is in {arguments.output}\n")


if __name__ == "__main__":
    main()
