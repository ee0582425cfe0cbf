"""A pytest plugin for the SDK's own tests: before each of them it has the rows seeded that the test's ids need.

It runs in the SDK's process, where nothing of Hone can be imported, and knows only where to ask for it.
"""

import os
from collections.abc import Iterator
from urllib.request import Request, urlopen

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    with urlopen(Request(os.environ["HONE_SEEDING_URL"], item.nodeid.encode()), timeout=60):
        pass
    return (yield)
