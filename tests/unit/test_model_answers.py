"""What is sent to a model that grades, and what is believed of its answer."""

import json
from typing import Any

import pytest
from pydantic import TypeAdapter

from worker.contract.graders import InnerGrader, LabelModel, ScoreModel
from worker.graders import model_answers
from worker.graders.faults import GraderFault
from worker.graders.templates import Context

ADAPTER = TypeAdapter(InnerGrader)
INPUT = [{"role": "user", "content": "Rate {{ sample.output_text }}"}]


def score_model(**more: Any) -> ScoreModel:
    made = ADAPTER.validate_python({"type": "score_model", "name": "s", "model": "judge", "input": INPUT, **more})
    assert isinstance(made, ScoreModel)
    return made


def label_model() -> LabelModel:
    made = ADAPTER.validate_python(
        {
            "type": "label_model",
            "name": "l",
            "model": "judge",
            "input": INPUT,
            "labels": ["good", "bad"],
            "passing_labels": ["good"],
        }
    )
    assert isinstance(made, LabelModel)
    return made


def completion(content: Any, **more: Any) -> bytes:
    choice = {"message": {"role": "assistant", "content": content}, "finish_reason": "stop"} | more
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    return json.dumps({"model": "judge-1", "choices": [choice], "usage": usage}).encode()


def test_the_request() -> None:
    image = {"type": "input_image", "image_url": "{{ item.url }}"}
    content = ["plain", {"type": "input_text", "text": "{{ item.n }}"}, image]
    sampling = {"seed": 1, "temperature": 0.0, "max_completions_tokens": 5, "reasoning_effort": "low"}
    grader = score_model(input=[{"role": "developer", "content": content}], sampling_params=sampling, range=[1, 5])
    body = model_answers.request(grader, Context("x", {"n": 3, "url": "data:image/png;base64,AA"}))

    assert body["messages"] == [
        {
            "role": "developer",
            "content": [
                {"type": "text", "text": "plain"},
                {"type": "text", "text": "3"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA", "detail": "auto"}},
            ],
        }
    ]
    assert (body["model"], body["seed"], body["temperature"]) == ("judge", 1, 0.0)
    assert (body["max_completion_tokens"], body["reasoning_effort"]) == (5, "low")
    assert "max_completions_tokens" not in body
    assert body["response_format"]["json_schema"]["schema"]["properties"]["result"]["type"] == "number"
    labels = model_answers.request(label_model(), Context("x", {}))["response_format"]["json_schema"]["schema"]
    assert labels["properties"]["result"]["enum"] == ["good", "bad"]


@pytest.mark.parametrize("content", ['{"result": 0.25}', "0.25", " 0.25\n", '```json\n{"result": 0.25}\n```', ".25"])
def test_scores(content: str) -> None:
    answer = model_answers.read(score_model(), 200, completion(content))
    assert (answer.reward, answer.model, answer.fault) == (0.25, "judge-1", None)
    assert answer.usage == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


@pytest.mark.parametrize(
    "content", ["", "good", '{"score": 1}', '{"result": null}', '{"result": true}', "1.5", "-1", "nan", None, "[1]"]
)
def test_what_is_no_score(content: str | None) -> None:
    answer = model_answers.read(score_model(), 200, completion(content))
    assert answer.reward == 0
    assert answer.fault is not None
    assert answer.fault.flags == ("model_grader_parse_error",)


@pytest.mark.parametrize(("content", "reward"), [('{"result": "good"}', 1.0), ("good", 1.0), ('"bad"', 0.0)])
def test_labels(content: str, reward: float) -> None:
    assert model_answers.read(label_model(), 200, completion(content)).reward == reward


def test_a_range_of_ones_own() -> None:
    assert model_answers.read(score_model(range=[1, 5]), 200, completion("4")).reward == 4


def test_refusals_and_answers_that_were_cut() -> None:
    refused = model_answers.read(
        score_model(), 200, completion(None, message={"content": None, "refusal": "I will not."})
    )
    assert refused.fault is not None
    assert refused.fault.flags == ("model_grader_refusal_error",)
    assert "I will not." in refused.fault.sentence
    cut = model_answers.read(score_model(), 200, completion('{"resu', finish_reason="length"))
    assert cut.fault is not None
    assert cut.fault.flags == ("model_grader_parse_error", "truncated_observation_error")


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, b"oh no"),
        (429, b""),
        (200, b"<html>"),
        (200, b"[]"),
        (200, b'{"choices": []}'),
        (200, b'{"choices": [1]}'),
    ],
)
def test_what_is_no_answer(status: int, body: bytes) -> None:
    with pytest.raises(GraderFault) as caught:
        model_answers.read(score_model(), status, body)
    assert caught.value.flags == ("model_grader_server_error",)
