"""LoRA and QLoRA of large models on one GPU, beside TRL: `python -m benchmarks.gpu [CASE ...]`.

Cases: `gate` (is the GPU right? see gpu_gate.py), `lora-8b`, `qlora-70b`, `qlora-8b`, `lora-7b`; by default all, in
this order, as far as `--seconds` go. Offline: geometries of Llama 3.1 8B and 70B and Qwen 2.5 7B with random
weights, LoRA rank 16 on all linear layers, AdamW, bfloat16, every token trained. Each system of each case runs in a
process of its own, so that what it measures is its own.

Printed: real tokens a second (median of the steps after the first), MFU (4N FLOP a token; N are the weights of all
linear layers and the head, without embeddings; against the rate of a bfloat16 product measured here, and against
790 TFLOP/s), peak bytes of tensors, and what the memory model predicted. `ratio` in the last line, a JSON object,
is our speed over TRL's, the median of the cases that both did, null where TRL is not installed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks import gpu_models, gpu_peer, gpu_shapes

REPOSITORY = Path(__file__).resolve().parents[1]
CASES = ("gate", *gpu_models.SUBJECTS)
STATED_FLOPS = 790e12  # of one H200
GIB = 1 << 30
_LEAST_SECONDS = 20  # less is not enough to import what a case needs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], help="default: all")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--geometry", choices=("real", "tiny"), default="real", help="tiny: the same code on toys")
    parser.add_argument("--shapes", default=",".join(gpu_shapes.shapes(tiny=False)), help="of the data, with commas")
    parser.add_argument("--peer-shapes", default="2k", help="those that TRL is measured on, too; none: no peer")
    parser.add_argument("--seconds", type=float, default=570, help="what does not fit into these is left out, by name")
    arguments = parser.parse_args()
    deadline = time.monotonic() + arguments.seconds
    children = Children(arguments.device, arguments.geometry, deadline)
    machine = children.run("machine", "")
    if not machine:
        raise SystemExit(f"{arguments.device} cannot be used here")
    report: dict[str, Any] = {"benchmark": "gpu", **machine[0]}
    rates = f"{report['flops'] / 1e12:.1f} TFLOP/s in bfloat16, copies {report['bytes_a_second'] / 1e9:.0f} GB/s"
    print(f"{report['device']}: {rates}")
    if missing := gpu_peer.missing():
        print(f"TRL is not measured: not installed here: {', '.join(missing)}")
    figures: list[dict[str, Any]] = []
    for case in arguments.cases or CASES:
        if case == "gate":
            report["gate"] = children.run("gate", "")
            continue
        figures += children.run("ours", case, arguments.shapes)
        for shape in arguments.peer_shapes.split(",") if not missing and arguments.peer_shapes != "none" else []:
            figures += children.run("trl", case, shape)
    for one in figures:
        one |= _utilization(one, report["flops"], tiny=arguments.geometry == "tiny")
    print(table(figures))
    ratios = _ratios(figures)
    print(
        json.dumps(
            {
                **report,
                "geometry": arguments.geometry,
                "cases": figures,
                "left_out": children.left_out,
                "ratios": ratios,
                "ratio": round(statistics.median(ratios.values()), 3) if ratios else None,
            }
        )
    )
    if children.failed:
        raise SystemExit(f"failed: {', '.join(children.failed)}")


class Children:
    """Starts each part in a process of its own, within what is left of the time."""

    def __init__(self, device: str, geometry: str, deadline: float) -> None:
        self._options = ["--device", device, "--geometry", geometry]
        self._deadline = deadline
        self.left_out: list[str] = []
        self.failed: list[str] = []

    def run(self, part: str, case: str, shapes: str = "") -> list[dict[str, Any]]:
        """What the part found; it ends with a line of JSON, and what it prints before is for people."""
        name = " ".join(filter(None, (part, case, shapes)))
        left = self._deadline - time.monotonic()
        if left < _LEAST_SECONDS:
            print(f"== {name}: left out, no time is left", flush=True)
            self.left_out.append(name)
            return []
        print(f"== {name}", flush=True)
        began = time.monotonic()
        command = [sys.executable, "-m", "benchmarks.gpu_part", part, case, shapes, *self._options]
        environment = {"HF_HUB_OFFLINE": "1", "PYTORCH_ALLOC_CONF": "expandable_segments:True", **os.environ}
        found: list[dict[str, Any]] = []
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY, env=environment) as child:
            assert child.stdout is not None
            timer = threading.Timer(left, child.kill)
            timer.start()
            for line in child.stdout:
                if line.startswith('{"'):  # what libraries print is no JSON
                    found.append(json.loads(line))
                else:
                    print(f"   {line}", end="", flush=True)
            timer.cancel()
        took = time.monotonic() - began
        if child.returncode != 0:
            stopped = took >= left
            print(f"   {'stopped: the time is over' if stopped else 'FAILED'} after {took:.0f} s", flush=True)
            (self.left_out if stopped else self.failed).append(name)
        else:
            print(f"   {took:.0f} s", flush=True)
        return found


def _utilization(figure: dict[str, Any], flops: float, *, tiny: bool) -> dict[str, float]:
    """Of the product's rate measured here, and of the stated one; nothing is counted twice that is computed again."""
    weights = gpu_models.linear_parameters(gpu_models.SUBJECTS[figure["case"]].config(tiny=tiny))
    rate = 4 * weights * figure["tokens_per_second"]
    return {"mfu": rate / flops, "mfu_of_stated": rate / STATED_FLOPS}


def _ratios(figures: list[dict[str, Any]]) -> dict[str, float]:
    speeds = {(one["system"], one["case"], one["shape"]): one["tokens_per_second"] for one in figures}
    return {
        f"{case} {shape}": round(speeds["ours", case, shape] / speed, 3)
        for (system, case, shape), speed in speeds.items()
        if system == "TRL" and ("ours", case, shape) in speeds
    }


def table(figures: list[dict[str, Any]]) -> str:
    lines = [
        "| case | data | system | tokens/s | MFU (of 790T) | peak GiB (predicted) | losses | settings |",
        "|" + "---|" * 8,
    ]
    for one in figures:
        predicted = f" ({one['predicted_bytes'] / GIB:.1f})" if one["predicted_bytes"] else ""
        cells = (
            one["case"],
            one["shape"],
            one["system"],
            f"{one['tokens_per_second']:.0f}",
            f"{one['mfu']:.1%} ({one['mfu_of_stated']:.1%})",
            f"{one['peak_bytes'] / GIB:.1f}{predicted}",
            f"{one['losses'][0]:.3f} to {one['losses'][-1]:.3f}",
            one["settings"],
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
