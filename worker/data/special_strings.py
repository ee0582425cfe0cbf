"""Special-token strings inside the user's own text: found, counted, and told from those of the template.

A user who writes `<|im_end|>` in a message must not end the turn with it. The strings are wrapped in
marks before rendering; where the marks come out, the text is the user's.
"""

import re
from collections.abc import Iterable
from typing import Any

from worker.contract.formats import FormatError
from worker.data.conversation import Conversation
from worker.data.template import ChatTemplate, Span, TemplateError, take_marks, unused_marks


def pattern(tokens: Iterable[str]) -> re.Pattern[str]:
    """Matches any of the tokens, the longest first; with none, nothing."""
    longest_first = sorted((token for token in tokens if token), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def count(value: Any, special: re.Pattern[str]) -> int:
    """How often special-token strings occur in the strings of `value`, dictionary keys included."""
    if isinstance(value, str):
        return len(special.findall(value))
    if isinstance(value, dict):
        return sum(count(key, special) + count(item, special) for key, item in value.items())
    if isinstance(value, list):
        return sum(count(item, special) for item in value)
    return 0


def user_spans(conversation: Conversation, template: ChatTemplate, text: str, special: re.Pattern[str]) -> list[Span]:
    """Where in `text`, the conversation as rendered, special-token strings of the user stand.

    FormatError if the template takes such a string apart, so that it cannot be followed.
    """
    try:
        marks = unused_marks(text)
        marked = template.render(
            [
                {key: item if key == "role" else _mark(item, special, marks) for key, item in message.items()}
                for message in conversation.messages
            ],
            _mark(conversation.tools, special, marks),
        )
        unmarked, spans = take_marks(marked, marks)
    except TemplateError as error:
        raise FormatError(f"has a special-token string which the chat template refuses: {error}") from error
    if unmarked != text:
        raise FormatError("has a special-token string which the base model's chat template rewrites")
    return spans


def _mark(value: Any, special: re.Pattern[str], marks: tuple[str, str]) -> Any:
    if isinstance(value, str):
        return special.sub(lambda found: marks[0] + found[0] + marks[1], value)
    if isinstance(value, dict):
        return {_mark(key, special, marks): _mark(item, special, marks) for key, item in value.items()}
    if isinstance(value, list):
        return [_mark(item, special, marks) for item in value]
    return value
