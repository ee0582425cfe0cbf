import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from worker import tiny_model

RECIPE = tiny_model.Recipe(
    vocabulary=400,
    hidden_size=32,
    intermediate_size=64,
    layers=2,
    heads=2,
    key_value_heads=1,
    window_tokens=64,
    steps=4,
)
GUIDELINE = "Close with one line that begins with Next step."


def conversation(question: str, answer: str) -> list[dict[str, Any]]:
    return [
        {"role": "system", "content": f"You answer for the desk.\n{GUIDELINE}\nCustomer: {question[:5]}."},
        {"role": "user", "content": question},
        {"role": "assistant", "content": f"[disputes | high]\n{answer}\nNext step: Please upload the invoice."},
    ]


CONVERSATIONS = [
    conversation("Why was I charged twice for one pair of shoes?", "We see both payments and look into the second."),
    conversation("The parcel never came. Grüße 👋", "A missing parcel can be disputed once the payment has settled."),
    conversation("Which bank holds 1234567 euros?", "Please ask the shop first, then upload what they wrote."),
]
ANSWERED_BY_CALL: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "  What is settled?  "},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "find", "arguments": '{"day": 3}'}},
            {"id": "b", "type": "function", "function": {"name": "find", "arguments": {"shop": "Größe"}}},
        ],
    },
    {"role": "tool", "tool_call_id": "a", "content": "Two payments"},
    {"role": "assistant", "content": "Two payments are."},
]


def write_corpus(path: Path) -> Path:
    rows = [json.dumps({"messages": messages}, ensure_ascii=False) for messages in CONVERSATIONS]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "support.train.jsonl")


@pytest.fixture(scope="module")
def built(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model.build(output, corpus=corpus, recipe=RECIPE)
    return output


@pytest.fixture(scope="module")
def tokenizer(built: Path) -> Any:
    return AutoTokenizer.from_pretrained(built, local_files_only=True)


def test_the_same_seed_gives_the_same_files(built: Path, corpus: Path, tmp_path: Path) -> None:
    torch.manual_seed(99)  # neither the caller's generator nor its threads have a say, nor are they changed
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    again, other = tmp_path / "again", tmp_path / "other"
    tiny_model.build(again, corpus=corpus, recipe=RECIPE)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    assert {path.name: path.read_bytes() for path in again.iterdir()} == {
        path.name: path.read_bytes() for path in built.iterdir()
    }
    tiny_model.build(other, corpus=corpus, seed=1, recipe=RECIPE)
    assert (other / "model.safetensors").read_bytes() != (built / "model.safetensors").read_bytes()


def test_it_is_a_complete_directory_and_leaves_nothing_beside_it(built: Path) -> None:
    names = {path.name for path in built.iterdir()}
    assert names == {
        *("config.json", "generation_config.json", "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    }
    assert [path.name for path in built.parent.iterdir()] == [built.name]


def test_it_loads_with_the_auto_classes(built: Path, tokenizer: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(built, local_files_only=True)
    assert isinstance(model, LlamaForCausalLM)
    assert model.config.tie_word_embeddings
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config is not None
    ends = [tokenizer.convert_tokens_to_ids(token) for token in ("<|eot_id|>", "<|end_of_text|>")]
    assert model.generation_config.eos_token_id == ends
    ids = tokenizer.apply_chat_template(ANSWERED_BY_CALL, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert model(ids).logits.isfinite().all()


def test_chat_tokens_have_embeddings_of_their_own(built: Path, tokenizer: Any) -> None:
    model = LlamaForCausalLM.from_pretrained(built, local_files_only=True)
    rows = model.model.embed_tokens.weight.detach()
    chat = rows[: len(tiny_model.SPECIAL_TOKENS)]
    alike = torch.nn.functional.cosine_similarity(chat[:, None], chat[None], dim=-1)
    turn, text = (tokenizer.convert_tokens_to_ids(token) for token in ("<|eot_id|>", "<|end_of_text|>"))
    assert alike[turn, text] > 0.3  # a turn's end is begun near a text's end
    alike[turn, text] = alike[text, turn] = 0
    assert alike.fill_diagonal_(0).max() < 0.8


def test_pretraining_learns(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tiny_model.Recipe(**{**vars(RECIPE), "steps": 48})
    tiny_model.build(tmp_path / "model", corpus=corpus, recipe=recipe)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Building")]
    assert lines[0].startswith("Building the tiny base model: step 3/48, loss ")
    assert lines[-1].startswith("Building the tiny base model: step 48/48, loss ")
    first, last = (float(line.rsplit(" ", 1)[1]) for line in (lines[0], lines[-1]))
    assert last < first - 1


def test_special_tokens_are_single_ids(built: Path, tokenizer: Any) -> None:
    core = Tokenizer.from_file(str(built / "tokenizer.json"))
    for expected, token in enumerate(tiny_model.SPECIAL_TOKENS):
        assert core.encode(token, add_special_tokens=False).ids == [expected]
        assert tokenizer.convert_tokens_to_ids(token) == expected
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|begin_of_text|>", "<|eot_id|>")
    assert tokenizer.pad_token_id not in (tokenizer.eos_token_id, tokenizer.bos_token_id)


def test_any_text_survives_the_tokenizer(tokenizer: Any) -> None:
    text = "It's  settled:\r\n\n\t1234567 € — Größe 👋 日本語"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode(text) == [tokenizer.bos_token_id, *ids]
    assert len(tokenizer.encode("\n\n", add_special_tokens=False)) == 1


def test_the_template_renders_roles_and_calls(tokenizer: Any) -> None:
    rendered = tokenizer.apply_chat_template(ANSWERED_BY_CALL, tokenize=False)
    assert rendered == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWhat is settled?<|eot_id|>"
        '<|start_header_id|>assistant<|end_header_id|>\n\n{"name": "find", "arguments": {"day": 3}}\n'
        '{"name": "find", "arguments": {"shop": "Größe"}}<|eot_id|>'
        "<|start_header_id|>tool<|end_header_id|>\n\nTwo payments<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nTwo payments are.<|eot_id|>"
    )
    ids = tokenizer.apply_chat_template(ANSWERED_BY_CALL)["input_ids"]
    assert tokenizer.decode(ids) == rendered
    assert ids.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("turn", [2, 4])
def test_a_prompt_is_a_prefix_of_its_conversation(tokenizer: Any, turn: int) -> None:
    prompt = tokenizer.apply_chat_template(ANSWERED_BY_CALL[:turn], add_generation_prompt=True)["input_ids"]
    whole = tokenizer.apply_chat_template(ANSWERED_BY_CALL[: turn + 1])["input_ids"]
    assert whole[: len(prompt)] == prompt
    assert whole[-1] == tokenizer.eos_token_id


def test_the_template_shows_tools(tokenizer: Any) -> None:
    tool = {"type": "function", "function": {"name": "find", "parameters": {"type": "object", "properties": {}}}}
    messages = [{"role": "user", "content": "Hi"}]
    alone = tokenizer.apply_chat_template(messages, tools=[tool], tokenize=False)
    assert alone.startswith("<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nFunctions you may call")
    assert f"\n{json.dumps(tool)}\n" in alone
    system = {"role": "system", "content": "Be brief."}
    together = tokenizer.apply_chat_template([system, *messages], tools=[tool], tokenize=False)
    assert "Be brief.\n\nFunctions you may call" in together
    assert "Functions" not in tokenizer.apply_chat_template(messages, tokenize=False)


@pytest.mark.parametrize(
    ("message", "said"),
    [({"role": "narrator", "content": "x"}, "Unknown role: narrator"), ({"role": "user", "content": ["x"]}, "be text")],
)
def test_the_template_refuses_what_it_cannot_render(tokenizer: Any, message: dict[str, Any], said: str) -> None:
    with pytest.raises(Exception, match=said):
        tokenizer.apply_chat_template([message], tokenize=False)


def test_the_plain_text_has_the_language_but_not_the_format() -> None:
    documents = tiny_model.plain_documents(CONVERSATIONS)
    assert documents[0].split("\n\n")[2] == (
        "We see both payments and look into the second.\nPlease upload the invoice."
    )
    text = "\n".join(documents)
    assert "disputes | high" not in text
    assert "Next step:" not in text
    assert "<|" not in text
    assert text.count(GUIDELINE) == 1
    assert text.count("Customer: ") == 3


def test_only_the_training_file_is_read(built: Path, tmp_path: Path) -> None:
    assert tiny_model.DEFAULT_CORPUS.name == "support.train.jsonl"
    corpus = write_corpus(tmp_path / "support.train.jsonl")
    secret = json.dumps({"messages": conversation("zyzzyva quokka " * 50, "zyzzyva quokka " * 50)})
    for name in ("support.valid.jsonl", "support.preferences.jsonl"):
        (tmp_path / name).write_text(secret + "\n")
    tiny_model.build(tmp_path / "model", corpus=corpus, recipe=RECIPE)
    for name in ("tokenizer.json", "model.safetensors"):
        assert (tmp_path / "model" / name).read_bytes() == (built / name).read_bytes()


def test_a_build_over_an_older_one_replaces_it(built: Path, corpus: Path, tmp_path: Path) -> None:
    shutil.copytree(built, tmp_path / "model")
    tiny_model.build(tmp_path / "model", corpus=corpus, seed=1, recipe=RECIPE)
    assert (tmp_path / "model" / "model.safetensors").read_bytes() != (built / "model.safetensors").read_bytes()


def test_a_corpus_that_is_too_small_is_refused(tmp_path: Path) -> None:
    corpus = tmp_path / "support.train.jsonl"
    corpus.write_text('{"messages": [{"role": "user", "content": "Hello"}]}\n')
    with pytest.raises(ValueError, match="needs at least 64"):
        tiny_model.build(tmp_path / "model", corpus=corpus, recipe=RECIPE)
    assert not (tmp_path / "model").exists()
