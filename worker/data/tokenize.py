"""Rows of a supervised file to token ids and weights, the form in which the trainer takes them."""

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from worker.contract.formats import ChatRow, CompletionRow, Fault, FormatError, SupervisedRow
from worker.data import special_strings
from worker.data.conversation import keep_last_turn, to_conversation
from worker.data.encoder import Encoded, Encoder
from worker.data.template import Span, load_template
from worker.data.turns import TurnFinder

NO_TEMPLATE = (
    "Input file is in the fine-tune-chat format, but the base model has no chat template. "
    "Use prompt/completion pairs, or a base model with a chat template."
)


@dataclass(frozen=True, slots=True)
class Example:
    """One encoded row: `tokens` and `weights` of equal length, the first weight 0.

    `is_truncated` says that it was cut at the end; only then can `num_trained_tokens` be 0.
    `num_special_strings` counts special-token strings of the user that were encoded as text.
    """

    tokens: list[int]
    weights: list[float]
    num_trained_tokens: int
    is_truncated: bool
    num_special_strings: int

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)


class RowTokenizer:
    """The tokenizer and the chat template of one base model directory."""

    def __init__(self, directory: str | Path, rendering_date: datetime.date, *, last_turn_only: bool = False) -> None:
        """OSError, ValueError or TemplateError if the directory has no usable tokenizer or a broken template.

        `last_turn_only` takes the weight from all assistant messages but a conversation's last.
        """
        self._last_turn_only = last_turn_only
        self._encoder = Encoder(directory)
        self._template = load_template(directory, rendering_date)
        self._turns = TurnFinder(self._template, self._encoder.special) if self._template is not None else None

    def tokenize(
        self, rows: Sequence[SupervisedRow], *, max_sequence_tokens: int | None
    ) -> list[Example | FormatError]:
        """Encode a batch of rows, in order; a row that cannot be trained on is answered by its error.

        Token ids of a conversation equal the tokenizer's own chat template, but for special-token strings
        in the user's text. Trained are assistant turns of weight 1 as the template renders them, their
        end-of-turn token included; of prompt/completion rows the completion and the end-of-sequence token.
        Where the tokenizer joins the header's last character to the answer's first, as it does with two
        newlines, that token is trained too, as in transformers' own assistant masks.
        A batch of a few hundred rows is encoded in parallel. Without `max_sequence_tokens` nothing is cut.
        """
        drafts = [self._draft(row) for row in rows]
        texts = [text for draft in drafts if not isinstance(draft, FormatError) for text in draft.texts]
        encoded = iter(self._encode(texts))
        examples: list[Example | FormatError] = []
        for draft in drafts:
            if isinstance(draft, FormatError):
                examples.append(draft)
                continue
            parts = [next(encoded) for _ in draft.texts]
            error = next((part for part in parts if isinstance(part, FormatError)), None)
            whole = [part for part in parts if not isinstance(part, FormatError)]
            examples.append(error or self._example(draft, whole, max_sequence_tokens))
        return examples

    def count_special_strings(self, value: object) -> int:
        """How often special-token strings occur in the strings of messages and tools."""
        return special_strings.count(value, self._encoder.special)

    def _draft(self, row: SupervisedRow) -> "_Draft | FormatError":
        try:
            return self._completion(row) if isinstance(row, CompletionRow) else self._conversation(row)
        except FormatError as error:
            return error

    def _completion(self, row: CompletionRow) -> "_Draft":
        special = self._encoder.special
        texts = [_Text(text, _matches(special, text)) for text in (row.prompt, row.completion)]
        joined = len(row.prompt)
        spans = texts[0].user_spans + [(start + joined, end + joined) for start, end in texts[1].user_spans]
        return _Draft([*texts, _Text(row.prompt + row.completion, spans)], None, len(spans))

    def _conversation(self, row: ChatRow) -> "_Draft":
        if self._template is None or self._turns is None:
            raise FormatError(NO_TEMPLATE, fault=Fault.FILE)
        conversation = to_conversation(row, self._template)
        if self._last_turn_only:
            keep_last_turn(conversation)
        if not any(conversation.weights):
            which = "the last" if self._last_turn_only else "every"
            raise FormatError(f"has nothing to train on: {which} assistant message has weight 0", field="messages")
        special = self._encoder.special
        text, trained = self._turns.trained_spans(conversation)
        num_special_strings = special_strings.count([conversation.messages, conversation.tools], special)
        spans = special_strings.user_spans(conversation, self._template, text, special) if num_special_strings else []
        return _Draft([_Text(text, spans)], trained, num_special_strings)

    def _encode(self, texts: "list[_Text]") -> list[Encoded | FormatError]:
        ordinary = iter(self._encoder.encode([text.text for text in texts if not text.user_spans]))
        return [self._encode_apart(text) if text.user_spans else next(ordinary) for text in texts]

    def _encode_apart(self, text: "_Text") -> Encoded | FormatError:
        try:
            return self._encoder.encode_apart(text.text, text.user_spans)
        except FormatError as error:
            return error

    def _example(self, draft: "_Draft", parts: list[Encoded], max_sequence_tokens: int | None) -> Example | FormatError:
        if draft.trained is not None:
            tokens, is_trained = parts[0].ids, parts[0].overlapping(draft.trained)
        else:
            tokens, is_trained = self._join(*parts)
        is_trained[:1] = False  # nothing comes before the first token to predict it from
        if not is_trained.any():
            field = "messages" if draft.trained is not None else "completion"
            return FormatError("has nothing to train on: what the model should write has no tokens", field=field)
        is_trained = is_trained[:max_sequence_tokens]
        return Example(
            tokens=tokens[:max_sequence_tokens],
            weights=is_trained.astype(np.float32).tolist(),
            num_trained_tokens=int(is_trained.sum()),
            is_truncated=max_sequence_tokens is not None and len(tokens) > max_sequence_tokens,
            num_special_strings=draft.num_special_strings,
        )

    def _join(self, prompt: Encoded, completion: Encoded, both: Encoded) -> tuple[list[int], npt.NDArray[np.bool_]]:
        """Begin of sequence, prompt, completion, end of sequence; the last two are trained.

        The prompt keeps the tokens it will have when the model is used. The completion is encoded in its
        context where that leaves the prompt alone, else by itself.
        """
        in_context = both.ids[: len(prompt.ids)] == prompt.ids
        written = both.ids[len(prompt.ids) :] if in_context else completion.ids
        begin = [self._encoder.bos_id] if self._encoder.bos_id is not None else []
        end = [self._encoder.eos_id] if self._encoder.eos_id is not None else []
        context = begin + prompt.ids
        is_trained = np.arange(len(context) + len(written) + len(end)) >= len(context)
        return context + written + end, is_trained


@dataclass(frozen=True, slots=True)
class _Text:
    """A text to encode; special-token strings in `user_spans` are ordinary text."""

    text: str
    user_spans: list[Span]


@dataclass(frozen=True, slots=True)
class _Draft:
    """A row before encoding: one rendered conversation with its trained spans, or prompt, completion and both."""

    texts: list[_Text]
    trained: list[Span] | None
    num_special_strings: int


def _matches(special: re.Pattern[str], text: str) -> list[Span]:
    return [found.span() for found in special.finditer(text)]
