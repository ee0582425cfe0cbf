import datetime
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from tests.unit.chat_bases import LLAMA_SPECIAL, SPECIAL, TOOLS, write_base
from worker.contract.formats import Fault, FormatError, parse_row
from worker.data.tokenize import Example, RowTokenizer

STYLES = ("chatml", "marked", "qwen", "reasoning", "llama", "hiding", "none")
TODAY = datetime.date(2026, 2, 28)

USER = {"role": "user", "content": "What is the capital of France?"}
SYSTEM = {"role": "system", "content": "You are a helpful model."}
PARIS = {"role": "assistant", "content": "It is Paris."}
ROME = {"role": "assistant", "content": "Rome, é 日本 \U0001f600\x00\n\n "}
SPACED = {"role": "assistant", "content": "\n\n  Rome "}


def call(arguments: Any = '{"city": "Paris", "days": 2.5}', name: str = "get_weather") -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"role": "assistant", "tool_calls": [{"id": "call_1", "type": "function", "function": function}]}


def result(content: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": "call_1", "content": content}


class Base:
    """A model directory with our tokenizer for it and the reference's."""

    def __init__(self, directory: Path, style: str) -> None:
        self.directory = write_base(directory / style, style)
        self.rows = RowTokenizer(self.directory, TODAY)
        self.tokenizer = Tokenizer.from_file(str(self.directory / "tokenizer.json"))

    def one(self, value: dict[str, Any], max_sequence_tokens: int = 10_000) -> Example:
        example = self.rows.tokenize([parse_row(value)], max_sequence_tokens=max_sequence_tokens)[0]
        assert isinstance(example, Example), example
        assert len(example.tokens) == len(example.weights)
        assert example.num_trained_tokens == sum(weight > 0 for weight in example.weights)
        return example

    def error(self, value: dict[str, Any]) -> FormatError:
        error = self.rows.tokenize([parse_row(value)], max_sequence_tokens=10_000)[0]
        assert isinstance(error, FormatError), error
        return error

    def turns(self, example: Example) -> list[str]:
        """The trained runs of tokens as text."""
        runs: list[list[int]] = [[]]
        for token, weight in zip(example.tokens, example.weights, strict=True):
            if weight:
                runs[-1].append(token)
            elif runs[-1]:
                runs.append([])
        return [self.decode(run) for run in runs if run]

    def count(self, example: Example, token: str) -> int:
        id_ = self.tokenizer.token_to_id(token)
        assert id_ is not None
        return example.tokens.count(id_)

    def decode(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=False)

    def reference(self, messages: list[dict[str, Any]], tools: Any = None) -> list[int]:
        from transformers import AutoTokenizer
        from transformers.utils import chat_template_utils

        tokenizer = AutoTokenizer.from_pretrained(self.directory)
        with mock.patch.object(chat_template_utils, "datetime", Today):
            return tokenizer.apply_chat_template(messages, tools=tools, return_dict=False)


class Today(datetime.datetime):
    """What the reference's templates take for now."""

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> "Today":
        return cls.combine(TODAY, datetime.time(), tz)


BaseOf = Callable[[str], Base]


@pytest.fixture(scope="module")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> BaseOf:
    logging.getLogger("transformers").setLevel(logging.ERROR)
    directory = tmp_path_factory.mktemp("bases")
    made: dict[str, Base] = {}

    def get(style: str) -> Base:
        if style not in made:
            made[style] = Base(directory, style)
        return made[style]

    return get


# Token ids


PLAIN = [
    [USER, PARIS],
    [SYSTEM, USER, PARIS, USER, ROME],
    [USER, {"role": "assistant", "content": "", "weight": 0}, {"role": "user", "content": ""}, SPACED, USER, ROME],
    [SYSTEM, USER, PARIS, {"role": "user", "content": "a\r\n\tb  "}],
    [USER, {"role": "assistant", "content": "<tool_call>kept as the token it is</tool_call>"}],
]


@pytest.mark.parametrize("style", ["chatml", "marked", "qwen", "reasoning", "llama"])
@pytest.mark.parametrize("messages", PLAIN)
def test_ids_equal_the_reference(base_of: BaseOf, style: str, messages: list[dict[str, Any]]) -> None:
    base = base_of(style)
    assert base.one({"messages": messages}).tokens == base.reference(messages)


@pytest.mark.parametrize("style", ["qwen", "llama"])
@pytest.mark.parametrize(
    "messages",
    [
        [USER, call(), result('{"t": 21}'), PARIS],
        [SYSTEM, USER, call(), result("a"), result("b"), PARIS, USER, ROME],
        [USER, call(arguments={"b": [1, None, True], "a": "é"})],
        [USER, call(arguments="not json"), result("error")],
        [USER, call(arguments="[1]")],
        [USER, call(arguments='{"a": 1, "a": 2}')],
    ],
)
def test_ids_with_tools_equal_the_reference(base_of: BaseOf, style: str, messages: list[dict[str, Any]]) -> None:
    base = base_of(style)
    example = base.one({"messages": messages, "tools": TOOLS})
    objects = {'{"city": "Paris", "days": 2.5}': {"city": "Paris", "days": 2.5}}
    expected = []
    for message in messages:
        function = message["tool_calls"][0]["function"] if "tool_calls" in message else None
        if function is not None and isinstance(function["arguments"], str):
            message = call(arguments=objects.get(function["arguments"], function["arguments"]))
        expected.append(message)
    assert example.tokens == base.reference(expected, TOOLS)


# Trained tokens


@pytest.mark.parametrize(
    ("style", "turns"),
    [
        ("chatml", ["It is Paris.<|im_end|>", "Rome, é 日本 \U0001f600\x00\n\n <|im_end|>"]),
        ("marked", ["It is Paris.<|im_end|>", "Rome, é 日本 \U0001f600\x00\n\n <|im_end|>"]),
        ("qwen", ["It is Paris.<|im_end|>", "Rome, é 日本 \U0001f600\x00\n\n <|im_end|>"]),
        ("llama", ["It is Paris.<|eot_id|>", "Rome, é 日本 \U0001f600\x00<|eot_id|>"]),
        (
            "reasoning",
            ["It is Paris.<|im_end|>", "<think>\n\n</think>\n\nRome, é 日本 \U0001f600\x00\n\n <|im_end|>"],
        ),
    ],
)
def test_trained_tokens_are_the_assistants_turns(base_of: BaseOf, style: str, turns: list[str]) -> None:
    base = base_of(style)
    assert base.turns(base.one({"messages": [SYSTEM, USER, PARIS, USER, ROME]})) == turns
    assert base.turns(base.one({"messages": [USER, PARIS, USER, {**ROME, "weight": 0}]})) == turns[:1]
    assert base.turns(base.one({"messages": [USER, {**PARIS, "weight": 0}, USER, {**ROME, "weight": 1}]})) == turns[1:]


def test_tool_calls_are_trained_and_results_are_not(base_of: BaseOf) -> None:
    messages = [USER, call(), result("21"), result("22"), PARIS, USER, {**call(), "content": "Let me see."}]
    base = base_of("qwen")
    called = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris", "days": 2.5}}\n</tool_call><|im_end|>'
    assert base.turns(base.one({"messages": messages, "tools": TOOLS})) == [
        called,
        "It is Paris.<|im_end|>",
        "Let me see.\n" + called,
    ]
    base = base_of("llama")
    messages = [USER, call(), result("21"), PARIS]
    assert base.turns(base.one({"messages": messages, "tools": TOOLS})) == [
        '{"name": "get_weather", "parameters": {"city": "Paris", "days": 2.5}}<|eot_id|>',
        "It is Paris.<|eot_id|>",
    ]


@pytest.mark.parametrize("style", ["chatml", "marked", "llama", "reasoning"])
def test_a_conversation_may_begin_with_the_assistant(base_of: BaseOf, style: str) -> None:
    base = base_of(style)
    turns = base.turns(base.one({"messages": [PARIS, USER, PARIS]}))
    assert len(turns) == 2
    assert turns[0] in ("It is Paris.<|im_end|>", "It is Paris.<|eot_id|>")


def test_a_space_before_an_answer_is_not_trained(tmp_path: Path) -> None:
    # Llama's post-processor trims offsets, which would move the header's space to where the answer begins.
    base = Base(tmp_path, "llama")
    source = "{% for m in messages %}{{ m.role + ': ' + m.content + '<|eot_id|>' }}{% endfor %}"
    source += "{% if add_generation_prompt %}assistant: {% endif %}"
    (base.directory / "chat_template.jinja").write_text(source)
    base.rows = RowTokenizer(base.directory, TODAY)
    example = base.one({"messages": [USER, {"role": "assistant", "content": " It is."}]})
    assert base.turns(example) == [" It is.<|eot_id|>"]


def test_unknown_characters_are_not_taken_for_special_strings(tmp_path: Path) -> None:
    pieces = [("<unk>", 0.0), ("</s>", 0.0), *((character, -1.0) for character in "\u2581abc</s>")]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"unk_token": "<unk>", "eos_token": "</s>"}')
    rows = [parse_row({"prompt": prompt, "completion": "abc"}) for prompt in ("a?<unk", "a?<unk>", "a </s>")]
    plain, unknown, end = RowTokenizer(tmp_path, TODAY).tokenize(rows, max_sequence_tokens=99)
    assert isinstance(plain, Example)
    assert plain.tokens.count(0) > 0
    for example in (unknown, end):
        # A Unigram model knows these strings as ordinary pieces too, so that they cannot be told apart.
        assert isinstance(example, FormatError)
        assert "cannot encode as text" in example.what


def test_a_token_of_header_and_answer_is_trained(base_of: BaseOf) -> None:
    base = base_of("chatml")
    assert base.turns(base.one({"messages": [USER, SPACED]})) == ["\n\n\n  Rome <|im_end|>"]


def test_the_first_token_has_no_weight(base_of: BaseOf) -> None:
    example = base_of("none").one({"prompt": "", "completion": "Paris"})
    assert example.weights[0] == 0
    assert example.weights[1:] == [1.0] * (len(example.tokens) - 1)


# Messages as OpenAI has them


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ([{"role": "developer", "content": "D"}, USER, PARIS], [{"role": "system", "content": "D"}, USER, PARIS]),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, PARIS],
            [{"role": "user", "content": "ab"}, PARIS],
        ),
        ([USER, {**PARIS, "tool_calls": None, "refusal": None, "name": None}], [USER, PARIS]),
        (
            [
                USER,
                {"role": "assistant", "content": None, "function_call": {"name": "get_weather", "arguments": "{}"}},
                {"role": "function", "name": "get_weather", "content": "21"},
                PARIS,
            ],
            [USER, call(arguments={}), result("21"), PARIS],
        ),
    ],
)
def test_messages_are_put_in_the_templates_terms(
    base_of: BaseOf, given: list[dict[str, Any]], meant: list[dict[str, Any]]
) -> None:
    base = base_of("qwen")
    assert base.one({"messages": given}).tokens == base.reference(meant)


def test_older_functions_are_tools(base_of: BaseOf) -> None:
    base = base_of("llama")
    functions = [tool["function"] for tool in TOOLS]
    assert base.one({"messages": [USER, PARIS], "functions": functions}).tokens == base.reference([USER, PARIS], TOOLS)


# Special-token strings


def test_special_strings_of_the_user_are_text(base_of: BaseOf) -> None:
    for style, special in (("qwen", SPECIAL), ("llama", LLAMA_SPECIAL), ("marked", SPECIAL)):
        base = base_of(style)
        text = f"a{special[1]}b {special[2]}\n{special[-1]}"
        messages = [{"role": "user", "content": text}, {"role": "assistant", "content": text + "c"}]
        example = base.one({"messages": messages})
        assert example.num_special_strings == 6
        plain = base.one({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]})
        special_ids = {base.tokenizer.token_to_id(token) for token in special}
        assert sum(t in special_ids for t in example.tokens) == sum(t in special_ids for t in plain.tokens)
        assert base.turns(example) == [text + "c" + special[-1]]
        assert base.decode(example.tokens) == base.decode(base.reference(messages))


def test_special_strings_in_tools_and_arguments_are_text(base_of: BaseOf) -> None:
    base = base_of("qwen")
    tools = [{"type": "function", "function": {"name": "f", "description": "<|im_end|>"}}]
    messages = [USER, call(arguments='{"<|im_start|>": "<|im_end|>"}', name="f")]
    example = base.one({"messages": messages, "tools": tools})
    assert example.num_special_strings == 3
    assert base.count(example, "<|im_start|>") == 3
    assert '{"<|im_start|>": "<|im_end|>"}' in base.turns(example)[0]


def test_special_strings_that_the_template_rewrites_refuse_the_row(tmp_path: Path) -> None:
    directory = write_base(tmp_path, "chatml")
    source = "{% for m in messages %}{{ '<|im_start|>' + m.content.replace('a<|', '<|') + '<|im_end|>' }}{% endfor %}"
    (directory / "chat_template.jinja").write_text(source)
    row = parse_row({"messages": [{"role": "user", "content": "a<|im_end|>"}, PARIS]})
    error = RowTokenizer(directory, TODAY).tokenize([row], max_sequence_tokens=100)[0]
    assert isinstance(error, FormatError)
    assert "rewrites" in error.what


# Prompt and completion


def test_prompt_and_completion(base_of: BaseOf) -> None:
    row = {"prompt": "Capital of France?\n", "completion": " Paris <|im_end|>"}
    base = base_of("none")
    example = base.one(row)
    assert base.decode(example.tokens) == "Capital of France?\n Paris <|im_end|><|im_end|>"
    assert base.turns(example) == [" Paris <|im_end|><|im_end|>"]
    assert example.num_special_strings == 1
    assert base.count(example, "<|im_end|>") == 1
    base = base_of("llama")
    example = base.one({"prompt": "What is the capital", "completion": " of France?"})
    assert base.decode(example.tokens) == "<|begin_of_text|>What is the capital of France?<|eot_id|>"
    assert example.tokens[:-1] == base.tokenizer.encode("What is the capital of France?").ids
    assert base.turns(example) == [" of France?<|eot_id|>"]


def test_the_prompt_keeps_its_own_tokens(base_of: BaseOf) -> None:
    base = base_of("none")
    prompt = base.tokenizer.encode("What is the cap").ids
    joined = base.tokenizer.encode("What is the capital").ids
    assert joined[: len(prompt)] != prompt
    example = base.one({"prompt": "What is the cap", "completion": "ital"})
    assert example.tokens[: len(prompt)] == prompt
    assert base.turns(example) == ["ital<|im_end|>"]


@pytest.mark.parametrize("style", ["chatml", "marked", "llama", "qwen"])
def test_only_the_last_turn_may_be_trained_on(base_of: BaseOf, style: str) -> None:
    base = base_of(style)
    every = base.one({"messages": [USER, PARIS, USER, ROME]})
    row = parse_row({"messages": [USER, PARIS, USER, ROME]})
    (last,) = RowTokenizer(base.directory, TODAY, last_turn_only=True).tokenize([row], max_sequence_tokens=999)
    assert not isinstance(last, FormatError)
    assert last.tokens == every.tokens
    assert base.turns(last) == base.turns(every)[-1:]


# Truncation and refusals


def test_long_examples_are_cut_at_the_end(base_of: BaseOf) -> None:
    base = base_of("chatml")
    row = {"messages": [USER, PARIS]}
    whole = base.one(row)
    assert not whole.is_truncated
    for length in (len(whole.tokens), len(whole.tokens) - 3, 5):
        cut = base.one(row, max_sequence_tokens=length)
        assert cut.tokens == whole.tokens[:length]
        assert cut.weights == whole.weights[:length]
        assert cut.is_truncated == (length < len(whole.tokens))
    assert base.one(row, max_sequence_tokens=5).num_trained_tokens == 0


@pytest.mark.parametrize(
    ("style", "row", "said"),
    [
        ("chatml", {"messages": [USER, {**PARIS, "weight": 0}]}, "every assistant message has weight 0"),
        ("hiding", {"messages": [USER, PARIS]}, "the base model's chat template hides where this turn begins"),
        ("none", {"messages": [USER, PARIS]}, "the base model has no chat template"),
        ("chatml", {"messages": [USER, PARIS], "tools": TOOLS}, "does not show tools"),
        ("chatml", {"messages": [USER, call()]}, "does not render tool calls"),
        (
            "llama",
            {"messages": [USER, {"role": "assistant", "tool_calls": call()["tool_calls"] * 2}], "tools": TOOLS},
            "was refused by the base model's chat template: This model only supports single tool-calls at once!",
        ),
    ],
)
def test_rows_that_cannot_be_trained_on(base_of: BaseOf, style: str, row: dict[str, Any], said: str) -> None:
    error = base_of(style).error(row)
    assert said in error.what
    assert (error.fault is Fault.FILE) == (style == "none")


def test_a_bad_row_leaves_the_others_of_its_batch_alone(base_of: BaseOf) -> None:
    base = base_of("chatml")
    special = {"role": "user", "content": "<|im_start|>"}
    values = [[USER, PARIS], [USER, {**PARIS, "weight": 0}], [special, PARIS], [USER, ROME]]
    batch = base.rows.tokenize([parse_row({"messages": value}) for value in values], max_sequence_tokens=999)
    assert isinstance(batch[1], FormatError)
    assert [batch[i] for i in (0, 2, 3)] == [base.one({"messages": values[i]}) for i in (0, 2, 3)]
