"""Which characters of a rendered conversation the model is to learn: the assistant's turns.

A template with `{% generation %}` blocks says so itself. For the others a turn is what stands between
two renderings: the messages before it with the generation prompt, and the messages up to it. Both must
begin the rendering of the whole, or the row is refused: a guess would train on the wrong tokens.
"""

import re
from collections.abc import Mapping
from typing import Any

from worker.contract.formats import FormatError
from worker.data import special_strings
from worker.data.conversation import Conversation
from worker.data.template import ChatTemplate, Span, TemplateError

PROBE_QUESTION = "hone-probe-question"
PROBE_ANSWER = "hone-probe-answer"
TAIL_CHARS = 32


class TurnFinder:
    """Finds the trained spans of conversations for one template.

    `special` matches the tokenizer's special-token strings, by which a turn's end is known.
    """

    def __init__(self, template: ChatTemplate, special: re.Pattern[str]) -> None:
        self._template = template
        self._special = special
        self._probed = False
        self._generation_prompt = ""
        self._end_of_turn: str | None = None

    def trained_spans(self, conversation: Conversation) -> tuple[str, list[Span]]:
        """The rendered text and the spans of the assistant turns with weight 1, in order.

        FormatError, quoting the template, if it refuses the row; or if it hides where a turn begins or ends.
        """
        try:
            rendering = self._template.render_marked(conversation.messages, conversation.tools)
        except TemplateError as error:
            raise FormatError(f"was refused by the base model's chat template: {error}", field="messages") from error
        if self._template.has_generation_blocks(conversation.tools):
            return rendering.text, _marked_spans(rendering.generated, conversation)
        spans: list[Span] = []
        for index, weight in enumerate(conversation.weights):
            if weight > 0:
                span = self._turn(conversation, index, rendering.text)
                if spans and span[0] < spans[-1][1]:
                    raise _hidden(index, "turns overlap")
                spans.append(span)
        return rendering.text, spans

    def _turn(self, conversation: Conversation, index: int, text: str) -> Span:
        start = self._start(conversation, index, text)
        end = self._end(conversation, index, text, start)
        if end <= start:
            raise _hidden(index, "it renders the turn as nothing")
        # The last turn's newline after its end-of-turn token belongs to the format, not to the model.
        specials = list(self._special.finditer(text, start, end))
        if specials and not text[specials[-1].end() : end].strip():
            end = specials[-1].end()
        return start, end

    def _start(self, conversation: Conversation, index: int, text: str) -> int:
        if index == 0:
            return self._start_of_first(conversation, text)
        prompt = self._prefix(conversation, index, add_generation_prompt=True)
        if not text.startswith(prompt):
            raise _hidden(index, "the conversation before it renders differently on its own")
        return len(prompt)

    def _start_of_first(self, conversation: Conversation, text: str) -> int:
        """A conversation that the assistant opens has no messages before; look for the generation prompt."""
        self._probe()
        first = self._prefix(conversation, 1, add_generation_prompt=False)
        prompt = self._generation_prompt
        if not prompt or first.count(prompt) != 1 or text.find(prompt) != first.find(prompt):
            raise _hidden(0, "the conversation begins with it")
        return text.find(prompt) + len(prompt)

    def _end(self, conversation: Conversation, index: int, text: str, start: int) -> int:
        if index == len(conversation.messages) - 1:
            return len(text)
        through = self._prefix(conversation, index + 1, add_generation_prompt=False)
        if text.startswith(through):
            return len(through)
        # Some templates show a turn differently once others follow (Qwen 3 drops its reasoning). Its end is
        # still certain if the template ends every turn with one token which the turn itself does not hold.
        self._probe()
        message = conversation.messages[index]
        end_of_turn = self._end_of_turn
        if end_of_turn is not None and special_strings.count(message, self._special) == 0:
            place = text.find(end_of_turn, start)
            tail = message.get("content", "").strip()[-TAIL_CHARS:]
            if place >= 0 and tail in text[start:place]:
                return place + len(end_of_turn)
        raise _hidden(index, "the conversation up to it renders differently on its own")

    def _prefix(self, conversation: Conversation, length: int, *, add_generation_prompt: bool) -> str:
        try:
            return self._template.render(
                conversation.messages[:length], conversation.tools, add_generation_prompt=add_generation_prompt
            )
        except TemplateError as error:
            raise _hidden(length, f"it does not render the first {length} messages alone: {error}") from error

    def _probe(self) -> None:
        """Learn the generation prompt and the token that ends a turn from a conversation of our own."""
        if self._probed:
            return
        self._probed = True
        question: Mapping[str, Any] = {"role": "user", "content": PROBE_QUESTION}
        answer: Mapping[str, Any] = {"role": "assistant", "content": PROBE_ANSWER}
        try:
            without = self._template.render([question])
            prompted = self._template.render([question], add_generation_prompt=True)
            answered = self._template.render([question, answer])
        except TemplateError:
            return  # then neither is known, and the rows that need them are refused
        if prompted.startswith(without):
            self._generation_prompt = prompted[len(without) :]
        place = answered.rfind(PROBE_ANSWER)
        ending = self._special.search(answered, place + len(PROBE_ANSWER)) if place >= 0 else None
        self._end_of_turn = ending[0] if ending is not None else None


def _marked_spans(generated: list[Span], conversation: Conversation) -> list[Span]:
    pairs = zip(conversation.messages, conversation.weights, strict=True)
    turns = [weight for message, weight in pairs if message["role"] == "assistant"]
    if all(weight > 0 for weight in turns):
        return generated
    if len(generated) != len(turns):
        raise FormatError(
            f"has turns not to train on, but the base model's chat template marks {len(generated)} generated parts "
            f"for {len(turns)} assistant messages, so that they cannot be told apart",
            field="messages",
        )
    return [span for span, weight in zip(generated, turns, strict=True) if weight > 0]


def _hidden(index: int, reason: str) -> FormatError:
    return FormatError(
        f"cannot be trained on: the base model's chat template hides where this turn begins or ends ({reason})",
        field=f"messages[{index}]",
        where=f"message {index + 1}",
    )
