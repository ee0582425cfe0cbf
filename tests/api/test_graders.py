"""/v1/fine_tuning/alpha/graders through the official client, with a model and a worker of the tests' own."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from openai import APIStatusError, BadRequestError, InternalServerError

from app.services import workers
from tests import factories
from tests.backends import Backends
from tests.conftest import Served, Tenant, serve, tenant_of
from tests.servers import required
from tests.servers.receiver import Handler, Receiver, receiving
from worker import grader_runner

NO_ERRORS = {
    "formula_parse_error": False,
    "sample_parse_error": False,
    "truncated_observation_error": False,
    "unresponsive_reward_error": False,
    "invalid_variable_error": False,
    "other_error": False,
    "python_grader_server_error": False,
    "python_grader_server_error_type": None,
    "python_grader_runtime_error": False,
    "python_grader_runtime_error_details": None,
    "model_grader_server_error": False,
    "model_grader_refusal_error": False,
    "model_grader_parse_error": False,
    "model_grader_server_error_details": None,
}
CHECK = {
    "type": "string_check",
    "name": "check",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
    "operation": "eq",
}
FUZZY = {
    "type": "text_similarity",
    "name": "fuzzy",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
    "evaluation_metric": "fuzzy_match",
}
PYTHON = {
    "type": "python",
    "name": "python",
    "source": "def grade(sample, item):\n    return len(sample['output_text']) / item['n']",
}
SCORE = {
    "type": "score_model",
    "name": "score",
    "model": "judge",
    "input": [{"role": "user", "content": "Rate {{ sample.output_text }}"}],
    "range": [0, 10],
}
LABEL = {
    "type": "label_model",
    "name": "label",
    "model": "judge",
    "input": [{"role": "user", "content": "Label {{ sample.output_text }}"}],
    "labels": ["good", "bad"],
    "passing_labels": ["good"],
}


def judge(handler: Handler) -> None:
    """A chat completion: 7.5 for whoever wants a number, else the label that the sample is."""
    body = json.loads(handler.receiver.received[-1].body)
    wanted = body["response_format"]["json_schema"]["schema"]["properties"]["result"]
    result = 7.5 if wanted["type"] == "number" else body["messages"][0]["content"].removeprefix("Label ")
    answer = {
        "id": "chatcmpl-1",
        "model": "judge-2026-01-01",
        "choices": [{"message": {"content": json.dumps({"result": result})}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25},
    }
    handler.reply(200, {"Content-Type": "application/json"}, json.dumps(answer).encode())


@pytest.fixture(scope="module")
def model() -> Iterator[Receiver]:
    with receiving(judge) as receiver:
        yield receiver


@pytest.fixture(scope="module")
def grading(backends: Backends, tmp_path_factory: pytest.TempPathFactory, model: Receiver) -> Iterator[Served]:
    """A server that offers everything, without a worker."""
    site = backends.new(tmp_path_factory.mktemp("grading") / "data")
    options = {"grader_base_url": f"{model.url}/v1/", "grader_api_key": "sk-judge", "grader_timeout_seconds": 2}
    yield from serve(site.settings(python_graders=True, python_grader_seconds=5, **options))


@pytest.fixture
async def grader_tenant(grading: Served) -> AsyncIterator[Tenant]:
    async with tenant_of(grading) as made:
        yield made


@asynccontextmanager
async def worker_of(tenant: Tenant) -> AsyncIterator[None]:
    """The part of a worker that runs graders, and its row."""
    required.skip_without("bubblewrap")
    resources = tenant.resources
    sandbox = await grader_runner.find_sandbox(resources.settings)
    assert sandbox is not None
    async with resources.write() as session:
        await workers.report(session, factories.description("w", kinds=[workers.CPU, workers.PYTHON_GRADERS]))
    draining = asyncio.Event()
    running = asyncio.create_task(grader_runner.run(resources, owner="w", sandbox=sandbox, draining=draining))
    try:
        yield
    finally:
        draining.set()
        await running
        async with resources.write() as session:
            await workers.leave(session, "w")


async def run(tenant: Tenant, grader: dict[str, Any], sample: str, **item: Any) -> dict[str, Any]:
    """What is answered, after the client's strict validation."""
    graders = tenant.client.fine_tuning.alpha.graders
    answer = await graders.run(grader=grader, model_sample=sample, item=item)  # pyright: ignore[reportArgumentType]
    return answer.to_dict()


def raised(answer: dict[str, Any]) -> dict[str, Any]:
    """The errors that differ from none."""
    errors = answer["metadata"]["errors"]
    assert set(errors) == set(NO_ERRORS)
    return {name: value for name, value in errors.items() if value != NO_ERRORS[name]}


async def refusal(tenant: Tenant, grader: Any, *, run_it: bool = False) -> dict[str, Any]:
    """The error that a grader is refused with by `validate`, and by `run` if so asked."""
    graders = tenant.client.fine_tuning.alpha.graders
    ask = graders.run(grader=grader, model_sample="x") if run_it else graders.validate(grader=grader)
    with pytest.raises(BadRequestError) as caught:
        await ask
    assert isinstance(caught.value.body, dict)
    return caught.value.body


async def test_the_whole_answer(tenant: Tenant) -> None:
    answer = await run(tenant, CHECK, "4", answer="4")
    assert answer["metadata"].pop("execution_time") >= 0
    assert answer == {
        "reward": 1.0,
        "sub_rewards": {},
        "model_grader_token_usage_per_model": {},
        "metadata": {
            "name": "check",
            "type": "string_check",
            "errors": NO_ERRORS,
            "scores": {},
            "token_usage": None,
            "sampled_model_name": None,
        },
        "hone": {"errors": []},
    }


@pytest.mark.parametrize(
    ("operation", "sample", "reward"),
    [
        *(("eq", "Four", 1), ("eq", "four", 0), ("ne", "four", 1), ("ne", "Four", 0), ("like", "It is Four.", 1)),
        *(("like", "it is four.", 0), ("ilike", "it is FOUR.", 1), ("ilike", "five", 0), ("like", "Fou", 0)),
    ],
)
async def test_string_checks(tenant: Tenant, operation: str, sample: str, reward: float) -> None:
    assert (await run(tenant, CHECK | {"operation": operation}, sample, answer="Four"))["reward"] == reward


async def test_similarities(tenant: Tenant) -> None:
    assert (await run(tenant, FUZZY, "abcd", answer="abcf"))["reward"] == 0.75
    passed = await run(tenant, FUZZY | {"pass_threshold": 0.75}, "abcd", answer="abcf")
    assert (passed["reward"], passed["metadata"]["scores"]) == (1.0, {"fuzzy": 0.75})
    assert (await run(tenant, FUZZY | {"pass_threshold": 0.76}, "abcd", answer="abcf"))["reward"] == 0.0
    for metric in [
        "cosine",
        "bleu",
        "gleu",
        "meteor",
        "rouge_1",
        "rouge_2",
        "rouge_3",
        "rouge_4",
        "rouge_5",
        "rouge_l",
    ]:
        grader = FUZZY | {"evaluation_metric": metric}
        assert (await run(tenant, grader, "a b c d e f", answer="a b c d e f"))["reward"] == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("graders", "formula"),
    [
        ([CHECK, FUZZY], "0.5 * check + fuzzy ^ 2"),
        ({"c": CHECK, "f": FUZZY}, "0.5*c+f^2"),
        (FUZZY, "fuzzy ^ 2"),
    ],
)
async def test_all_shapes_of_multi(tenant: Tenant, graders: Any, formula: str) -> None:
    grader = {"type": "multi", "name": "m", "graders": graders, "calculate_output": formula}
    answer = await run(tenant, grader, "abcd", answer="abcf")
    assert answer["reward"] == 0.5625
    assert sorted(answer["sub_rewards"].values()) == ([0.0, 0.75] if graders is not FUZZY else [0.75])
    assert answer["metadata"]["scores"] == answer["sub_rewards"]
    async with tenant.http() as http:  # the client's strict form knows one of the three shapes
        validated = await http.post("/v1/fine_tuning/alpha/graders/validate", json={"grader": grader})
    assert validated.json() == {"grader": grader}


async def test_validate_gives_the_grader_back(tenant: Tenant, grader_tenant: Tenant) -> None:
    for grader in (CHECK, FUZZY, PYTHON, SCORE):
        answer = await grader_tenant.client.fine_tuning.alpha.graders.validate(grader=grader)  # pyright: ignore[reportArgumentType]
        assert answer.to_dict() == {"grader": grader}


async def test_errors_of_a_sample_are_in_the_answer(tenant: Tenant) -> None:
    missing = await run(tenant, CHECK, "4")
    assert (missing["reward"], raised(missing)) == (0.0, {"invalid_variable_error": True})
    assert "item.answer" in missing["hone"]["errors"][0]
    parsed = CHECK | {"input": "{{ sample.output_json.x }}"}
    assert raised(await run(tenant, parsed, "no json", answer="1")) == {"sample_parse_error": True}
    assert (await run(tenant, parsed, '{"x": 1}', answer="1"))["reward"] == 1
    division = {"type": "multi", "name": "m", "graders": CHECK, "calculate_output": "1 / check"}
    assert raised(await run(tenant, division, "5", answer="4")) == {"formula_parse_error": True}
    inside = division | {"calculate_output": "1 - check"}
    failed = await run(tenant, inside, "5")
    assert (failed["reward"], failed["sub_rewards"]) == (0.0, {"check": 0.0})
    long = await run(tenant, FUZZY | {"evaluation_metric": "rouge_l"}, "a " * 30_000, answer="a " * 30_000)
    assert raised(long) == {"other_error": True}


@pytest.mark.parametrize(
    ("grader", "param", "said"),
    [
        (None, "grader", "expected a grader of type"),
        ({"type": "text"}, "grader", "expected a grader of type"),
        (LABEL, "grader", "expected a grader of type"),
        ({**CHECK, "operation": "is"}, "grader.operation", "eq"),
        ({**CHECK, "input": 4}, "grader.input", "expected a string, but got an integer"),
        ({**CHECK, "name": "a\0"}, "grader.name", "NUL"),
        ({**CHECK, "input": "{{ foo }}"}, "grader", "foo"),
        ({**FUZZY, "evaluation_metric": "rouge_6"}, "grader.evaluation_metric", "rouge_5"),
        ({"type": "multi", "name": "m", "graders": [], "calculate_output": "1"}, "grader.graders", "from 1 to 16"),
        ({"type": "multi", "name": "m", "graders": 1, "calculate_output": "1"}, "grader.graders", "a list of graders"),
        (
            {"type": "multi", "name": "m", "graders": [{**CHECK, "reference": None}], "calculate_output": "1"},
            "grader.graders[0].reference",
            "got null",
        ),
        ({"type": "multi", "name": "m", "graders": CHECK, "calculate_output": "chek"}, "grader", "'chek'"),
        ({"type": "multi", "name": "m", "graders": CHECK, "calculate_output": "check +"}, "grader", "too early"),
        ({"type": "multi", "name": "m", "graders": CHECK, "calculate_output": "check / 0"}, "grader", "by zero"),
        ({"type": "multi", "name": "m", "graders": [CHECK, CHECK], "calculate_output": "1"}, "grader", "differ"),
    ],
)
async def test_what_is_no_grader(tenant: Tenant, grader: Any, param: str, said: str) -> None:
    error = await refusal(tenant, grader)
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert said in error["message"]


@pytest.mark.parametrize("run_it", [False, True])
async def test_what_a_server_does_not_offer_is_said(tenant: Tenant, run_it: bool) -> None:
    assert (await refusal(tenant, PYTHON, run_it=run_it))["code"] == "python_graders_disabled"
    assert (await refusal(tenant, SCORE, run_it=run_it))["code"] == "model_graders_disabled"
    multi = {"type": "multi", "name": "m", "graders": {"l": LABEL}, "calculate_output": "l"}
    assert (await refusal(tenant, multi, run_it=run_it))["code"] == "model_graders_disabled"


@pytest.mark.parametrize(
    "item",
    [
        '{"a":' * 400 + "1" + "}" * 400,
        '{"a": ["\\ud800"]}',
        '{"\\ud800": 1}',
        '{"a": "\\u0000"}',
        '{"a": [NaN]}',
        "[]",
        "7",
    ],
)
async def test_items_that_could_not_be_handed_on_are_refused(tenant: Tenant, item: str) -> None:
    body = f'{{"grader": {json.dumps(CHECK)}, "model_sample": "x", "item": {item}}}'
    headers = {"Content-Type": "application/json"}
    async with tenant.http() as http:
        answer = await http.post("/v1/fine_tuning/alpha/graders/run", content=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "item")


async def test_a_model_gives_scores_and_labels(grader_tenant: Tenant, model: Receiver) -> None:
    answer = await run(grader_tenant, SCORE, "well done")
    asked = model.received[-1]
    assert (asked.path, asked.headers["authorization"]) == ("/v1/chat/completions", "Bearer sk-judge")
    assert json.loads(asked.body)["messages"] == [{"role": "user", "content": "Rate well done"}]
    assert answer["reward"] == 7.5
    assert answer["metadata"]["token_usage"] == 25
    assert answer["metadata"]["sampled_model_name"] == "judge-2026-01-01"
    usage = {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25}
    assert answer["model_grader_token_usage_per_model"] == {"judge-2026-01-01": usage}

    both = {"type": "multi", "name": "m", "graders": [SCORE, LABEL], "calculate_output": "score / 10 + label"}
    answer = await run(grader_tenant, both, "good")
    assert (answer["reward"], answer["sub_rewards"]) == (1.75, {"score": 7.5, "label": 1.0})
    assert answer["metadata"]["token_usage"] == 50
    assert (await run(grader_tenant, both, "bad"))["reward"] == 0.75
    assert raised(await run(grader_tenant, both, "neither")) == {"model_grader_parse_error": True}


async def test_a_model_that_does_not_answer(grader_tenant: Tenant, model: Receiver) -> None:
    def broken(handler: Handler) -> None:
        handler.reply(500, {}, b"no memory left")

    def asleep(handler: Handler) -> None:
        handler.receiver.released.wait(5)

    try:
        for behaviour, said in ((broken, "500: no memory left"), (asleep, "No answer within 2 seconds")):
            model.behaviour = behaviour
            errors = raised(await run(grader_tenant, SCORE, "x"))
            assert errors.pop("model_grader_server_error") is True
            assert said in errors.pop("model_grader_server_error_details")
            assert errors == {}
    finally:
        model.behaviour = judge


async def test_python_graders_need_a_worker(grader_tenant: Tenant) -> None:
    with pytest.raises(InternalServerError) as caught:
        await run(grader_tenant, PYTHON, "abc", n=4)
    assert caught.value.status_code == 503
    assert "No worker" in str(caught.value)


async def test_python_graders_run_on_a_worker(grader_tenant: Tenant) -> None:
    async with worker_of(grader_tenant):
        assert (await run(grader_tenant, PYTHON, "abc", n=4, others=[10**30, "é\n"]))["reward"] == 0.75
        formula = {"type": "multi", "name": "m", "graders": [PYTHON, FUZZY], "calculate_output": "min(python, fuzzy)"}
        answer = await run(grader_tenant, formula, "abcd", n=8, answer="abcf")
        assert (answer["reward"], answer["sub_rewards"]) == (0.5, {"python": 0.5, "fuzzy": 0.75})

        errors = raised(await run(grader_tenant, PYTHON, "abc", n=0))
        assert "ZeroDivisionError" in errors.pop("python_grader_runtime_error_details")
        assert errors == {"python_grader_runtime_error": True}
        endless = PYTHON | {"source": "def grade(sample, item):\n    while True: pass"}
        errors = raised(await run(grader_tenant, endless, "abc"))
        assert "within 5 seconds" in errors.pop("python_grader_runtime_error_details")
        assert errors == {"python_grader_runtime_error": True, "unresponsive_reward_error": True}


async def test_sources_are_checked_without_running_them(grader_tenant: Tenant, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    source = f"open({str(mark)!r}, 'w')\ndef grade(sample, item): return 1"
    await grader_tenant.client.fine_tuning.alpha.graders.validate(
        grader={"type": "python", "name": "p", "source": source}
    )
    assert not mark.exists()
    for bad, said in (
        ("def grade(", "not valid Python"),
        ("x = 1", "must define a function grade"),
        ("#" * (256 * 1024 + 1), "at most 256 KB"),
    ):
        assert said in (await refusal(grader_tenant, PYTHON | {"source": bad}))["message"]


async def test_a_key_is_needed(tenant: Tenant) -> None:
    client = tenant.client.with_options(api_key="sk-wrong")
    with pytest.raises(APIStatusError) as caught:
        await client.fine_tuning.alpha.graders.validate(grader=CHECK)  # pyright: ignore[reportArgumentType]
    assert caught.value.status_code == 401
