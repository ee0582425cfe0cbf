"""Hold a contest and say who was how fast: a line for each round, a table, and the result as one JSON object."""

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import contest
from benchmarks.contest import Contest, System, Turn
from worker.engine.execution import cpu_computes_in_bfloat16

# Nats. In float32 what is left is rounding, after a few steps of updates; bfloat16 has three digits.
TOLERANCES = {
    ("supervised", "float32"): 1e-4,
    ("dpo", "float32"): 5e-4,
    ("supervised", "bfloat16"): 2e-2,
    ("dpo", "bfloat16"): 5e-2,
}
ORDERS: tuple[tuple[System, ...], ...] = (("ours", "trl", "loop"), ("loop", "trl", "ours"))


def hold(given: Contest, data: Sequence[Any], tokens: Sequence[int]) -> dict[str, Any]:
    """The contest's figures. The first step warms up; `tokens` counts the real tokens of each example or pair.

    Ends the benchmark if the systems' losses differ.
    """
    print(
        f"preset {given.preset}, {given.method}, {given.dtype}, {given.threads} CPU thread(s), "
        f"bfloat16 hardware: {cpu_computes_in_bfloat16()}; TRL {version('trl')}: {peer_settings(given)}",
        flush=True,
    )
    if ours_widens(given):
        print(
            "this CPU emulates bfloat16, many times slower than float32: the peers compute in it all the same, "
            "ours holds the base in bfloat16 and computes in float32",
            flush=True,
        )
    tolerance = TOLERANCES[given.method, given.dtype]
    rounds: list[dict[System, Turn]] = []
    counts: list[int] = []
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        contest.prepare(directory, given, data)
        with contest.contestants(directory, given) as systems:
            for number, rows in enumerate(contest.steps_of(directory)):
                order = ORDERS[number % 2]
                turns: dict[System, Turn] = {
                    system: systems[system].take_turn() for system in order if system in systems
                }
                losses = [turn.loss for turn in turns.values()]
                assert max(losses) - min(losses) <= tolerance, {system: turn.loss for system, turn in turns.items()}
                rounds.append(turns)
                counts.append(sum(tokens[row] for row in rows))
                print(_line(number, turns, counts[-1]), flush=True)
            idle: dict[System, int] = {system: one.idle_bytes for system, one in systems.items()}
    return _figures(given, rounds, counts, idle, tolerance)


def ours_widens(given: Contest) -> bool:
    return contest.our_form(given).weights_dtype is not None


def peer_settings(given: Contest) -> str:
    shape = f"batch of {given.batch_size}, padded"
    if given.packing:
        shape = f"bfd packing, 2 rows of {given.longest} tokens a step, {given.rows_a_pass} a pass"
    checkpointing = "gradient checkpointing" if given.checkpointing else "no gradient checkpointing"
    return f"{shape}, {'assistant-only loss, ' if given.method == 'supervised' else ''}sdpa, {checkpointing}"


def _line(number: int, turns: dict[System, Turn], count: int) -> str:
    found = ", ".join(f"{system} {1e3 * turns[system].cpu_seconds / count:.3f}" for system in turns)
    return (
        f"{f'round {number}' if number else 'warm-up'}: {count} tokens, CPU ms per token: {found}; "
        f"{turns['trl'].cpu_seconds / turns['ours'].cpu_seconds:.2f}x TRL; "
        f"losses {', '.join(f'{turn.loss:.5f}' for turn in turns.values())}"
    )


def _figures(
    given: Contest,
    rounds: list[dict[System, Turn]],
    counts: list[int],
    idle: dict[System, int],
    tolerance: float,
) -> dict[str, Any]:
    measured, warm = rounds[1:], counts[1:]
    peaks = {system: rounds[-1][system].peak_bytes for system in idle}

    def ratios(other: System, clock: str) -> list[float]:
        return [getattr(turns[other], clock) / getattr(turns["ours"], clock) for turns in measured]

    ours = ratios("trl", "cpu_seconds")
    for system in idle:
        cpu = sum(turns[system].cpu_seconds for turns in measured)
        wall = sum(turns[system].wall_seconds for turns in measured)
        print(
            f"{system:5} {1e3 * cpu / sum(warm):8.3f} CPU ms per token, {sum(warm) / wall:7.1f} tokens/s (wall), "
            f"peak memory {_mib(peaks[system])}, {_mib(peaks[system] - idle[system])} above idle"
        )
    print(f"{statistics.median(ours):.2f}x TRL in CPU seconds ({min(ours):.2f} to {max(ours):.2f})")
    return {
        "device": "cpu",
        **asdict(given),
        "bfloat16_hardware": cpu_computes_in_bfloat16(),
        "ours": "bfloat16 held, float32 computed" if ours_widens(given) else given.dtype,
        "peer": f"trl {version('trl')}",
        "peer_settings": peer_settings(given),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "ratio": round(statistics.median(ours), 3),
        "ratios": [round(ratio, 3) for ratio in ours],
        "wall_ratio": round(statistics.median(ratios("trl", "wall_seconds")), 3),
        "loop_ratio": round(statistics.median(ratios("loop", "cpu_seconds")), 3) if given.has_loop else None,
        "peak_memory_ratio": round(peaks["ours"] / peaks["trl"], 3),
        "peak_memory_above_idle_ratio": round((peaks["ours"] - idle["ours"]) / (peaks["trl"] - idle["trl"]), 3),
        "loss_tolerance": tolerance,
        "worst_loss_difference": max(
            abs(turns["ours"].loss - turn.loss) for turns in rounds for turn in turns.values()
        ),
    }


def _mib(size: int) -> str:
    return f"{size / 2**20:6.0f} MiB"
