"""Preference rows to a prompt and two answers in tokens, the form in which the trainer takes them.

Both conversations are encoded whole, as they would be for supervised training on their last turn alone.
The prompt is what their token ids have in common, at most up to the first trained token of either: so an
answer never gets other tokens than in its own conversation, also where the tokenizer joins a header's last
character to an answer's first, or the template shows the messages before an answer in its light.

Over-long conversations are cut at the end, each by itself.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from worker.contract.formats import ChatRow, FormatError, PreferenceRow
from worker.data.tokenize import Example, RowTokenizer


@dataclass(frozen=True, slots=True)
class PairExample:
    """One encoded row; of each answer the token ids and their weights.

    With `is_truncated` a conversation was cut; only then can `num_trained_tokens` be 0, which says that
    an answer has lost every trained token, or both have lost all that they differ in.
    """

    prompt: list[int]
    chosen: tuple[list[int], list[float]]
    rejected: tuple[list[int], list[float]]
    num_trained_tokens: int
    is_truncated: bool
    num_special_strings: int

    @property
    def num_tokens(self) -> int:
        return len(self.prompt) + len(self.chosen[0]) + len(self.rejected[0])


def tokenize(
    tokenizer: RowTokenizer, rows: Sequence[PreferenceRow], *, max_sequence_tokens: int
) -> list[PairExample | FormatError]:
    """Encode a batch of rows, in order; a row that cannot be trained on is answered by its error."""
    chats = [ChatRow(_conversation(row, answer), row.tools) for row in rows for answer in (0, 1)]
    encoded = iter(tokenizer.tokenize(chats, max_sequence_tokens=None))
    return [_pair(tokenizer, row, encoded, max_sequence_tokens) for row in rows]


def _conversation(row: PreferenceRow, answer: int) -> list[dict[str, Any]]:
    """The messages with one of the answers; of the assistant's turns only the answer is trained on."""
    before = [message | {"weight": 0} if message["role"] == "assistant" else message for message in row.messages]
    return [*before, (row.preferred, row.non_preferred)[answer]]


def _pair(
    tokenizer: RowTokenizer, row: PreferenceRow, encoded: Iterator[Example | FormatError], max_sequence_tokens: int
) -> PairExample | FormatError:
    chosen, rejected = next(encoded), next(encoded)
    for answer, key in ((chosen, row.keys[0]), (rejected, row.keys[1])):
        if isinstance(answer, FormatError):
            return _located(answer, row, key)
    assert isinstance(chosen, Example)
    assert isinstance(rejected, Example)
    if chosen.tokens == rejected.tokens:
        return FormatError(
            f"has the same tokens in {row.keys[0]} and {row.keys[1]}: there is nothing to prefer", field=row.keys[1]
        )
    prompt = _prompt_length(chosen, rejected)
    if prompt == 0:
        return FormatError("has nothing before its answers that both begin with", field="input.messages")
    cut = slice(prompt, max_sequence_tokens)
    is_truncated = max(len(chosen.tokens), len(rejected.tokens)) > max_sequence_tokens
    trained = [sum(weight > 0 for weight in example.weights[cut]) for example in (chosen, rejected)]
    is_usable = all(trained) and chosen.tokens[cut] != rejected.tokens[cut]
    return PairExample(
        prompt=chosen.tokens[:prompt],
        chosen=(chosen.tokens[cut], chosen.weights[cut]),
        rejected=(rejected.tokens[cut], rejected.weights[cut]),
        num_trained_tokens=sum(trained) if is_usable else 0,
        is_truncated=is_truncated,
        # Both conversations have those of the prompt.
        num_special_strings=chosen.num_special_strings
        + rejected.num_special_strings
        - tokenizer.count_special_strings([row.messages, row.tools]),
    )


def _prompt_length(chosen: Example, rejected: Example) -> int:
    most = min(_first_trained(chosen), _first_trained(rejected))
    pairs = zip(chosen.tokens[:most], rejected.tokens[:most], strict=True)
    return next((place for place, (one, other) in enumerate(pairs) if one != other), most)


def _first_trained(example: Example) -> int:
    return next(place for place, weight in enumerate(example.weights) if weight > 0)


def _located(error: FormatError, row: PreferenceRow, key: str) -> FormatError:
    """The error of a conversation in the terms of the row that it came from."""
    field, where = error.field, error.where
    answer = f"messages[{len(row.messages)}]"
    if field is not None and field.startswith(answer):
        field, where = f"{key}[0]{field.removeprefix(answer)}", key
    elif field is not None and field.startswith("messages"):
        field = f"input.{field}"
    return FormatError(error.what, field=field, where=where, fault=error.fault)
