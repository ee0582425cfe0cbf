"""Writes down what clients ask a server and what it tells them, whichever client they use."""

import hashlib
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, cast

import httpx
from openai import DefaultHttpxClient, OpenAI

from app.auth import hash_key

_EXCHANGE = "hone.exchange"


@dataclass(frozen=True)
class Content:
    num_bytes: int
    sha256: str

    @classmethod
    def of(cls, content: bytes) -> "Content":
        return cls(len(content), hashlib.sha256(content).hexdigest())


@dataclass(frozen=True)
class Seen:
    """An object in an answer. `kind` is its wire name, such as fine_tuning.job; only checkpoints have a `step`."""

    kind: str
    id: str
    status: str | None
    step: int | None = None


@dataclass
class Exchange:
    """A request and its answer; without a `status` nobody knows what the server has done. Times are monotonic."""

    method: str
    path: str
    began: float
    caller: str | None = None  # the hash of the key
    idempotency_key: str | None = None
    uploaded: Content | None = None
    ended: float = 0.0
    status: int | None = None
    retry_after: str | None = None
    seen: tuple[Seen, ...] = ()
    downloaded: Content | None = None
    shown_secrets: tuple[str, ...] = ()

    @property
    def is_acknowledged(self) -> bool:
        return self.status is not None and 200 <= self.status < 300

    def __str__(self) -> str:
        return f"{self.method} {self.path} -> {self.status}"


@dataclass
class History:
    """`exchanges` in the order of their requests. No answer may hold one of the `secrets`."""

    exchanges: list[Exchange] = field(default_factory=list)
    secrets: set[str] = field(default_factory=set)

    def openai(self, *, api_key: str, base_url: str) -> OpenAI:
        """OpenAI's client, written down; closed when nobody has it any more, as its own would be."""
        recorded = _Client(event_hooks=self.hooks)
        return OpenAI(api_key=api_key, base_url=base_url, max_retries=0, http_client=recorded)

    @property
    def hooks(self) -> dict[str, list[Any]]:
        """For a client of httpx's kind, as its event hooks."""
        return {"request": [self._asked], "response": [self._told]}

    @property
    def async_hooks(self) -> dict[str, list[Any]]:
        async def asked(request: httpx.Request) -> None:
            await request.aread()
            self._asked(request)

        async def told(response: httpx.Response) -> None:
            await response.aread()
            self._told(response)

        return {"request": [asked], "response": [told]}

    def _asked(self, request: httpx.Request) -> None:
        made = Exchange(request.method, request.url.path, time.monotonic(), caller=_caller(request))
        made.idempotency_key = request.headers.get("idempotency-key")
        if request.method == "POST" and made.path.endswith("/files"):
            made.uploaded = _uploaded(request.read(), request.headers.get("content-type", ""))
        self.exchanges.append(made)
        request.extensions[_EXCHANGE] = made

    def _told(self, response: httpx.Response) -> None:
        exchange = cast(Exchange, response.request.extensions[_EXCHANGE])
        content = response.read()
        if response.headers.get("content-type", "").startswith("application/json"):
            exchange.seen = tuple(_objects(content))
        elif response.status_code == 200:
            exchange.downloaded = Content.of(content)
        exchange.shown_secrets = tuple(secret for secret in self.secrets if secret.encode() in content)
        exchange.retry_after = response.headers.get("retry-after")
        exchange.ended, exchange.status = time.monotonic(), response.status_code


class _Client(DefaultHttpxClient):
    def __del__(self) -> None:
        if not self.is_closed:
            self.close()


def _caller(request: httpx.Request) -> str | None:
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    return hash_key(key) if scheme == "Bearer" else None


def _uploaded(form: bytes, content_type: str) -> Content | None:
    """The file in a form, as httpx writes it."""
    boundary = content_type.partition("boundary=")[2].encode()
    for part in form.split(b"--" + boundary):
        head, separator, content = part.partition(b"\r\n\r\n")
        if separator and b'name="file"' in head:
            return Content.of(content.removesuffix(b"\r\n"))
    return None


def _objects(content: bytes) -> Iterable[Seen]:
    """The object that an answer is, and those that it lists."""
    body = json.loads(content)
    listed = body.get("data") if isinstance(body, dict) else None
    for one in [body, *(listed if isinstance(listed, list) else [])]:
        if isinstance(one, dict) and isinstance(one.get("id"), str) and isinstance(one.get("object"), str):
            yield Seen(one["object"], one["id"], one.get("status"), one.get("step_number"))
