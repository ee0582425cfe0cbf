"""What the training methods do differently: read the data, train on a micro-batch, evaluate one."""

from collections.abc import Sequence
from dataclasses import replace

from peft import PeftModel
from transformers import PreTrainedModel

from worker.contract.spec import DpoSettings, TrainSpec
from worker.data.pair_file import PairFile
from worker.data.token_file import TokenFile
from worker.engine import dpo, noise, prefixes, sft
from worker.engine.batches import Dataset
from worker.engine.packing import pack
from worker.engine.pair_packing import pack_pairs
from worker.engine.sft import Sums


def load(path: str, model: PreTrainedModel, spec: TrainSpec) -> Dataset:
    """The examples in the form that the spec's method takes. TokenFileError if the file is not of that form."""
    noise.check(spec)
    exact = prefixes.can_be_shared(model, spec)
    if spec.method == "dpo":
        return replace(PairFile.load(path), repeats_prompt=not exact)
    # A spec that leaves its execution open is carried out as execution.choose would.
    wanted = spec.execution is None or spec.execution.share_prefixes
    return replace(TokenFile.load(path), shares_prefixes=wanted and exact)


def train(
    model: PreTrainedModel, adapter: PeftModel, data: Dataset, rows: Sequence[int], *, spec: TrainSpec, step: int
) -> Sums:
    """Forward and backward of one micro-batch; adds the gradient of its *summed* loss to the adapter's."""
    if isinstance(data, PairFile):
        return dpo.train(model, adapter, pack_pairs(data, rows), spec.dpo or DpoSettings())
    drawn = noise.neftune(spec.neftune_noise_alpha, spec.seed, step, rows)
    return sft.train(model, pack(data, rows, drawn))


def evaluate(
    model: PreTrainedModel, adapter: PeftModel, data: Dataset, rows: Sequence[int], *, spec: TrainSpec
) -> Sums:
    """Forward only. The caller has put the model into eval mode."""
    if isinstance(data, PairFile):
        return dpo.evaluate(model, adapter, pack_pairs(data, rows), spec.dpo or DpoSettings())
    return sft.evaluate(model, pack(data, rows))


def rewards(sums: Sums, spec: TrainSpec) -> dict[str, float]:
    """The fields of an event that only preference training fills: mean rewards of both answers."""
    if spec.method != "dpo":
        return {}
    return {
        "reward_chosen": sums.reward_chosen / sums.weight,
        "reward_rejected": sums.reward_rejected / sums.weight,
    }
