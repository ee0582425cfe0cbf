"""How long the fuzzers here run: seconds in CI, with the same cases each time; hours by `make fuzz-parsers`."""

import os

from hypothesis import HealthCheck, settings

_TIMES = int(os.environ.get("HONE_TEST_FUZZ_PARSERS", "0"))


def fuzzed(examples: int) -> settings:
    """So many examples in CI; else that many times as many, each time others."""
    return settings(
        max_examples=examples * max(1, _TIMES),
        derandomize=not _TIMES,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )
