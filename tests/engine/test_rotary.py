"""Length-dependent rotary embeddings: each document of a row as if it were alone."""

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.engine import families
from worker.contract.errors import TrainError
from worker.engine import rotary


def model(family: str) -> PreTrainedModel:
    return AutoModelForCausalLM.from_config(families.configs()[family])


@pytest.mark.parametrize("family", ["phi4", "llama-dynamic"])
def test_each_document_gets_its_own_table(family: str) -> None:
    packed = model(family)
    rotary.follow_documents(packed)
    lengths = (30, 16, 1, 17)  # around the original length of 16
    positions_1T = torch.cat([torch.arange(length) for length in lengths])[None]
    found = packed.model.rotary_emb(torch.zeros(1), positions_1T)
    for table_1TE, number in zip(found, (0, 1), strict=True):
        for part_1LE, length in zip(table_1TE.split(lengths, dim=1), lengths, strict=True):
            alone = model(family).model.rotary_emb(torch.zeros(1), torch.arange(length)[None])
            assert torch.equal(part_1LE, alone[number])


def test_other_rotary_embeddings_are_left_alone() -> None:
    plain = model("llama3")
    before = plain.model.rotary_emb.forward
    rotary.follow_documents(plain)
    assert plain.model.rotary_emb.forward == before


def test_a_length_dependence_that_is_not_found_is_refused() -> None:
    strange = model("phi4")
    strange.model.rotary_emb.rope_type = "default"
    with pytest.raises(TrainError, match="in a way of its own"):
        rotary.follow_documents(strange)
