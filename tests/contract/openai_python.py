"""Runs openai-python's own tests of what Hone promises against a Hone server.

    python -m tests.contract.openai_python CHECKOUT [-- arguments for pytest]

CHECKOUT is a clone of openai/openai-python; nothing of it is kept here. Its tests were made for a server that answers
any id with an example; ours has state, so the things that they name are seeded as rows before each test. The SDK is
the one of this environment; `--own-sdk` takes the checkout's. Where aiohttp is missing, so is a fifth of the tests.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from xml.etree import ElementTree

from app.db import migrations
from app.resources import open_resources
from app.settings import Settings
from tests.conftest import serve
from tests.contract import seeds

_WHAT = ("test_files.py", "test_uploads.py", "uploads", "fine_tuning", "test_models.py", "test_webhooks.py", "webhooks")
_HERE = Path(__file__).resolve().parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--own-sdk", action="store_true", help="the checkout's SDK instead of the installed one")
    parser.add_argument("--keep", type=Path, help="where to leave the report (JUnit's XML)")
    parser.add_argument("pytest", nargs="*", help="further arguments for pytest")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        report = chosen.keep or Path(directory) / "report.xml"
        settings = _settings(Path(directory) / "data")
        for served in serve(settings):
            with _seeding(settings) as seeding_url:
                _run(chosen, report, base_url=f"{served.url}/v1", seeding_url=seeding_url)
        return _tell(report)


def _settings(data: Path) -> Settings:
    data.mkdir()
    # The tests take no state but those of the enum, in which `paused` is missing.
    chosen = {"data_directory": data, "wandb_api_key": "0" * 40, "paused_status": "queued"}
    settings = Settings.model_validate(chosen)
    migrations.upgrade(settings.resolved_database_url)
    return settings


def _run(chosen: argparse.Namespace, report: Path, *, base_url: str, seeding_url: str) -> None:
    tests = [
        f"tests/api_resources/{name}" for name in _WHAT if (chosen.checkout / "tests/api_resources" / name).exists()
    ]
    paths = [str(chosen.checkout.resolve() / "src")] if chosen.own_sdk else []
    paths += [str(_HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "TEST_API_BASE_URL": base_url,
        "HONE_SEEDING_URL": seeding_url,
    }
    command = [sys.executable, "-m", "pytest", "-p", "hone_seeding", "-p", "no:schemathesis", "-p", "no:socket"]
    command += ["-q", "-o", "addopts=", "-W", "default", f"--junitxml={report.resolve()}", *chosen.pytest, *tests]
    subprocess.run(command, cwd=chosen.checkout, env=environment, check=False)


@contextmanager
def _seeding(settings: Settings) -> Iterator[str]:
    """A server of the test's own, beside Hone: a POST with a test's name makes the rows that it needs."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            test = self.rfile.read(int(self.headers["Content-Length"])).decode()
            asyncio.run(_seed(settings, test))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class calls it so
            """Nothing: pytest tells enough."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


async def _seed(settings: Settings, test: str) -> None:
    async with open_resources(settings) as resources:
        await seeds.seed(resources, test)


def _tell(report: Path) -> int:
    """Prints how many passed, and each reason why others did not."""
    reasons: Counter[str] = Counter()
    names: dict[str, list[str]] = {}
    passed = 0
    for case in ElementTree.parse(report).iter("testcase"):
        problem = next((child for child in case if child.tag in {"failure", "error", "skipped"}), None)
        if problem is None:
            passed += 1
            continue
        reason = " ".join(problem.get("message", problem.tag).split())[:160]
        reasons[reason] += 1
        names.setdefault(reason, []).append(f"{case.get('classname', '').rpartition('.')[2]}.{case.get('name')}")
    print(f"\n{passed} of {passed + reasons.total()} passed")
    for reason, count in reasons.most_common():
        print(f"{count:4d}  {reason}\n      {', '.join(names[reason][:6])}{' ...' if count > 6 else ''}")
    return 0 if not reasons else 1


if __name__ == "__main__":
    sys.exit(main())
