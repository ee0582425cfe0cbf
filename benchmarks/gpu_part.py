"""One part of the GPU benchmark, in a process of its own; `benchmarks.gpu` starts it and reads its lines of JSON."""

import argparse
import json
import logging
import time
from collections.abc import Callable
from typing import Any, Literal

import torch

Device = Literal["cpu", "cuda"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=("machine", "gate", "ours", "trl"))
    parser.add_argument("case")
    parser.add_argument("shapes")
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    parser.add_argument("--geometry", choices=("real", "tiny"), required=True)
    given = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("worker").setLevel(logging.INFO)
    tiny = given.geometry == "tiny"
    if given.part == "machine":
        _report(_machine(given.device))
        return
    from benchmarks import gpu_ours, gpu_peer  # whose imports take seconds

    if given.part == "gate":
        _report(_gate(given.device))
    elif given.part == "ours":
        for figures in gpu_ours.measure(given.case, given.shapes.split(","), given.device, tiny=tiny):
            _report(figures)
    else:
        _report(gpu_peer.measure(given.case, given.shapes, given.device, tiny=tiny))


def _report(found: dict[str, Any]) -> None:
    print(json.dumps(found), flush=True)


def _gate(device: Device) -> dict[str, Any]:
    """Ends with the first check that fails."""
    from benchmarks import gpu_gate

    passed, left_out = [], {}
    for name, check in gpu_gate.CHECKS.items():
        began = time.monotonic()
        try:
            check(device)
        except gpu_gate.NotHere as why:
            left_out[name] = str(why)
            print(f"{name}: left out, {why}", flush=True)
        else:
            passed.append(name)
            print(f"{name}: passed, {time.monotonic() - began:.1f} s", flush=True)
    return {"passed": passed, "left_out": left_out}


def _machine(device: Device) -> dict[str, Any]:
    """The rate of a bfloat16 product of random matrices, and of copies counting what is read and written."""
    size = 8192 if device == "cuda" else 256
    one, other = (torch.randn(size, size, device=device).to(torch.bfloat16) for _ in range(2))
    product_seconds = _seconds(lambda: one @ other, device)
    source = torch.randn(1 << 30 if device == "cuda" else 1 << 20, device=device)
    target = torch.empty_like(source)
    copy_seconds = _seconds(lambda: target.copy_(source), device)
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
        "flops": 2 * size**3 / product_seconds,
        "bytes_a_second": 2 * source.nbytes / copy_seconds,
    }


def _seconds(work: Callable[[], object], device: Device) -> float:
    def taken(times: int) -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(times):
            work()
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - began) / times

    taken(3)
    return taken(10)


if __name__ == "__main__":
    main()
