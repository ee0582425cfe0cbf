"""The engine on a CUDA device, against itself on the CPU: the checks that the GPU benchmark begins with."""

import pytest
import torch

from benchmarks import gpu_gate

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("name", gpu_gate.CHECKS)
def test_a_gpu_computes_what_the_cpu_does(name: str) -> None:
    try:
        gpu_gate.CHECKS[name]("cuda")
    except gpu_gate.NotHere as why:
        pytest.skip(str(why))
