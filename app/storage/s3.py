"""Objects in a bucket of S3 or of anything that speaks its API. boto3 is used here and nowhere else.

boto3 blocks, so each call runs on a thread of this storage's own; there are a fixed number of them. Timeouts of
sockets do not end a transfer that trickles: `app.storage.pace` does.
"""

import asyncio
import hashlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from io import SEEK_END
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import boto3.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError
from urllib3.exceptions import HTTPError, IncompleteRead
from urllib3.exceptions import TimeoutError as StalledError

from app.storage import verified
from app.storage.base import (
    CHUNK_BYTES,
    ObjectCorrupt,
    ObjectInfo,
    ObjectMissing,
    StorageRefused,
    StorageUnavailable,
    StoredObject,
)
from app.storage.keys import is_ours, require_key
from app.storage.local import opened
from app.storage.pace import PacedPart, read_paced

PART_BYTES = 8 << 20
LONGEST_PUT_SECONDS = 3 * 3600.0  # sweeps take an object for abandoned after a multiple of this
_MOST_PARTS = 10_000
_PARTS_AT_ONCE = 3  # of one put
_PUTS_AT_ONCE = 4  # so that no more than 16 parts are in memory
_CALLS_AT_ONCE = 32
_CONNECT_SECONDS = 5
_ATTEMPTS = 3
_REOPENINGS = 3  # of one read whose connection broke
_URL_SECONDS = 300
_PAGE = 1000
_REFUSALS = {"AuthorizationHeaderMalformed", "ExpiredToken", "IllegalLocationConstraintException", "InvalidToken"}
Result = TypeVar("Result")


@dataclass(frozen=True)
class S3Options:
    """Where the bucket is, and who asks. Without keys, boto3 looks for credentials in its usual places."""

    bucket: str
    endpoint_url: str | None = None
    region: str | None = None
    access_key_id: str | None = None
    secret_access_key: str | None = None
    prefix: str | None = None
    public_url: str | None = None
    timeout_seconds: float = 20.0


class S3Storage:
    """`close` must be awaited at the end. Raises StorageRefused if boto3 cannot make a client of the options."""

    def __init__(self, options: S3Options) -> None:
        self._bucket = options.bucket
        prefix = (options.prefix or "").strip("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._seconds = options.timeout_seconds
        self._client = _client(options, options.endpoint_url)
        self._public_client = _client(options, options.public_url) if options.public_url else None
        self._calls = ThreadPoolExecutor(_CALLS_AT_ONCE, thread_name_prefix="s3")
        self._part_calls = ThreadPoolExecutor(_PUTS_AT_ONCE * _PARTS_AT_ONCE, thread_name_prefix="s3-part")
        self._puts = asyncio.Semaphore(_PUTS_AT_ONCE)
        self._closing = threading.Event()

    async def put_file(self, key: str, source: Path | BinaryIO) -> StoredObject:
        return await self._put(key, source, sha256=None)

    async def put_known(self, key: str, source: Path, *, sha256: str) -> StoredObject:
        return await self._put(key, source, sha256=sha256)

    def local_path(self, key: str) -> Path | None:
        return None

    async def _put(self, key: str, source: Path | BinaryIO, *, sha256: str | None) -> StoredObject:
        require_key(key)
        async with self._puts:
            put = _Put(self, key, sha256=sha256, deadline=time.monotonic() + LONGEST_PUT_SECONDS)
            try:
                return await self._in_thread(put.run, source)
            except asyncio.CancelledError:
                put.stopped.set()  # its thread notices, and clears away what it has sent
                raise

    async def get_file(self, key: str, path: Path, *, sha256: str) -> None:
        await verified.save(self._chunks(key, 0, None), path, key=key, sha256=sha256)

    async def read(self, key: str, *, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        chunks = self._chunks(key, start, end)
        if start == 0 and end is None:
            answer = await self._in_thread(self.call, "head_object", Key=self.name(key))
            if sha256 := answer["Metadata"].get("sha256"):
                chunks = verified.checked(chunks, key=key, sha256=sha256)
        async for chunk in chunks:
            yield chunk

    async def stat(self, key: str) -> ObjectInfo:
        answer = await self._in_thread(self.call, "head_object", Key=self.name(key))
        return ObjectInfo(key, answer["ContentLength"], _now(answer) - answer["LastModified"])

    async def list_objects(self, prefix: str) -> AsyncIterator[Sequence[ObjectInfo]]:
        more: dict[str, Any] = {"MaxKeys": _PAGE}
        while more:
            answer = await self._in_thread(self.call, "list_objects_v2", Prefix=self._prefix + prefix, **more)
            now = _now(answer)
            yield [
                ObjectInfo(found["Key"].removeprefix(self._prefix), found["Size"], now - found["LastModified"])
                for found in answer.get("Contents", ())
            ]
            token = answer.get("NextContinuationToken")
            more = {"MaxKeys": _PAGE, "ContinuationToken": token} if token else {}

    async def download_url(self, key: str, *, disposition: str) -> str | None:
        if self._public_client is None:
            return None
        parameters = {
            "Bucket": self._bucket,
            "Key": self.name(key),
            "ResponseContentDisposition": disposition,
            "ResponseContentType": "application/octet-stream",
        }
        sign = self._public_client.generate_presigned_url  # may have to fetch credentials
        return await self._in_thread(_told, sign, "get_object", Params=parameters, ExpiresIn=_URL_SECONDS)

    async def delete(self, key: str) -> None:
        await self._in_thread(self.call, "delete_object", Key=self.name(key))

    async def remove_unfinished(self, *, older_than: timedelta) -> int:
        removed = 0
        more: dict[str, Any] = {"MaxUploads": _PAGE}
        while more:
            answer = await self._in_thread(self.call, "list_multipart_uploads", Prefix=self._prefix, **more)
            for upload in answer.get("Uploads", ()):
                is_old = _now(answer) - upload["Initiated"] > older_than
                if is_old and is_ours(upload["Key"].removeprefix(self._prefix)):
                    with suppress(ObjectMissing):  # completed or aborted since
                        named = {"Key": upload["Key"], "UploadId": upload["UploadId"]}
                        await self._in_thread(self.call, "abort_multipart_upload", **named)
                        removed += 1
            more = {}
            if answer.get("IsTruncated"):
                more = {"KeyMarker": answer["NextKeyMarker"], "UploadIdMarker": answer.get("NextUploadIdMarker", "")}
        return removed

    async def close(self) -> None:
        self._closing.set()
        for pool in (self._part_calls, self._calls):
            pool.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    def name(self, key: str) -> str:
        return self._prefix + require_key(key)

    def call(self, operation: str, **parameters: Any) -> Any:
        """Blocks. Raises ObjectMissing, StorageRefused or StorageUnavailable."""
        return _told(getattr(self._client, operation), Bucket=self._bucket, **parameters)

    def send_part(self, content: bytes, is_stopped: Callable[[], bool], operation: str, **parameters: Any) -> Any:
        """Blocks for as long as the part moves."""
        body = PacedPart(content, self._seconds, lambda: is_stopped() or self._closing.is_set())
        return self.call(operation, Body=body, **parameters)

    def submit_part(self, *arguments: Any, **parameters: Any) -> Future[Any]:
        return self._part_calls.submit(self.send_part, *arguments, **parameters)

    async def _in_thread(self, function: Callable[..., Result], *arguments: Any, **named: Any) -> Result:
        return await asyncio.wrap_future(self._calls.submit(function, *arguments, **named))

    async def _chunks(self, key: str, start: int, end: int | None) -> AsyncIterator[bytes]:
        """The bytes, from one object even when the connection has to be opened anew in between."""
        reopenings, etag = _REOPENINGS, None
        while end is None or start < end:
            answer = await self._in_thread(self._open, key, start, end, etag)
            if answer is None:
                return
            body, etag = answer["Body"], answer["ETag"]
            raw = body.__enter__()  # boto3's own wrapper cannot read what has arrived without waiting for more
            left = answer["ContentLength"]
            call: Future[bytes] | None = None
            try:
                while True:
                    call = self._calls.submit(read_paced, raw, CHUNK_BYTES, self._seconds)
                    chunk = await asyncio.wrap_future(call)
                    start, left = start + len(chunk), left - len(chunk)
                    if not chunk:
                        if left > 0:  # boto3 has this checked by nobody
                            raise IncompleteRead(0, left)
                        return
                    yield chunk
            except (BotoCoreError, HTTPError, OSError) as error:
                reopenings -= 1
                if reopenings < 0 or isinstance(error, TimeoutError | StalledError):
                    raise StorageUnavailable(f"S3 broke off while {key} was read: {type(error).__name__}") from error
            finally:  # not while a thread that we no longer wait for still reads it
                if call is None or call.done():
                    body.close()
                else:
                    call.add_done_callback(lambda _, body=body: body.close())

    def _open(self, key: str, start: int, end: int | None, etag: str | None) -> Any:
        """The answer to a GET, or None where nothing lies beyond `start`."""
        asked: dict[str, Any] = {"IfMatch": etag} if etag else {}
        if start or end is not None:
            asked["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
        try:
            return self.call("get_object", Key=self.name(key), **asked)
        except StorageUnavailable as error:
            if isinstance(error.__cause__, ClientError) and _status(error.__cause__) == 416:
                return None
            raise


class _Put:
    """One object on its way; all of it happens on one thread, which also clears up after itself."""

    def __init__(self, storage: S3Storage, key: str, *, sha256: str | None, deadline: float) -> None:
        self.stopped = threading.Event()
        self._known = sha256
        self._storage = storage
        self._key = key
        self._deadline = deadline
        self._digest = hashlib.sha256()

    def run(self, source: Path | BinaryIO) -> StoredObject:
        with opened(source) as file:
            size, sha256 = _measure(file) if self._known is None else (_size(file), self._known)
            target = {"Key": self._storage.name(self._key)}
            described = {"Metadata": {"sha256": sha256}}
            if size <= PART_BYTES:
                self._storage.send_part(self._next(file), self._is_stopped, "put_object", **target, **described)
            else:
                upload = self._storage.call("create_multipart_upload", **target, **described)
                self._put_parts(file, size, {**target, "UploadId": upload["UploadId"]})
        if self._digest.hexdigest() != sha256:
            self._storage.call("delete_object", **target)
            if self._known is not None:
                raise ObjectCorrupt(self._key)
            raise OSError(f"the source of {self._key} changed while it was put into storage")
        return StoredObject(self._key, size, sha256)

    def _put_parts(self, file: BinaryIO, size: int, named: dict[str, str]) -> None:
        sent: list[Future[Any]] = []
        try:
            for content in self._parts(file, size):
                if len(sent) >= _PARTS_AT_ONCE:
                    sent[-_PARTS_AT_ONCE].result()
                number = {"PartNumber": len(sent) + 1}
                sent.append(self._storage.submit_part(content, self._is_stopped, "upload_part", **named, **number))
            parts = [{"PartNumber": number, "ETag": part.result()["ETag"]} for number, part in enumerate(sent, 1)]
            self._raise_if_stopped()
            self._complete(named, parts, size)
        except BaseException:
            self.stopped.set()
            for part in sent:
                part.cancel()
            wait(sent)  # a part that arrives after the abort would stay for ever
            with suppress(StorageUnavailable, ObjectMissing):  # the sweep finds it
                self._storage.call("abort_multipart_upload", **named)
            raise

    def _complete(self, named: dict[str, str], parts: list[dict[str, Any]], size: int) -> None:
        """A completion whose answer is lost has happened, and to ask again is an error: then look."""
        try:
            self._storage.call("complete_multipart_upload", **named, MultipartUpload={"Parts": parts})
        except (StorageUnavailable, ObjectMissing) as error:
            with suppress(ObjectMissing):
                found = self._storage.call("head_object", Key=named["Key"])
                if (found["ContentLength"], found["Metadata"].get("sha256")) == (size, self._digest.hexdigest()):
                    return
            raise StorageUnavailable(f"the parts of {self._key} could not be put together") from error

    def _parts(self, file: BinaryIO, size: int) -> Iterator[bytes]:
        part_bytes = max(PART_BYTES, -(-size // _MOST_PARTS))
        while content := self._next(file, part_bytes):
            yield content

    def _next(self, file: BinaryIO, size: int = PART_BYTES) -> bytes:
        content = file.read(size)
        self._digest.update(content)
        return content

    def _raise_if_stopped(self) -> None:
        if self._is_stopped():
            raise StorageUnavailable(f"the put of {self._key} was stopped")

    def _is_stopped(self) -> bool:
        return self.stopped.is_set() or time.monotonic() > self._deadline


def _size(file: BinaryIO) -> int:
    size = file.seek(0, SEEK_END)
    file.seek(0)
    return size


def _measure(file: BinaryIO) -> tuple[int, str]:
    """Its size and hash, which must be known before the first part is sent; the file is at its beginning again."""
    digest = hashlib.sha256()
    while content := file.read(CHUNK_BYTES):
        digest.update(content)
    size = file.tell()
    file.seek(0)
    return size, digest.hexdigest()


def _client(options: S3Options, endpoint_url: str | None) -> Any:
    config = Config(
        signature_version="s3v4",
        connect_timeout=_CONNECT_SECONDS,
        read_timeout=options.timeout_seconds,
        retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
        max_pool_connections=_CALLS_AT_ONCE + _PUTS_AT_ONCE * _PARTS_AT_ONCE,
        # Servers other than AWS's do not all know the newer checksums; the signed hash of the payload all check.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"payload_signing_enabled": True, "addressing_style": "path" if endpoint_url else "auto"},
    )
    session = boto3.session.Session(
        aws_access_key_id=options.access_key_id,
        aws_secret_access_key=options.secret_access_key,
        region_name=options.region,
    )
    region = options.region or session.region_name or "us-east-1"  # what servers that know no regions expect
    try:
        return session.client("s3", endpoint_url=endpoint_url, region_name=region, config=config)
    except (BotoCoreError, ValueError) as error:
        raise StorageRefused(f"The S3 settings cannot be used: {error}") from error


def _told(function: Callable[..., Result], *arguments: Any, **parameters: Any) -> Result:
    """What the function returns; boto3's errors as ours. Messages name the operation, never what was signed."""
    try:
        return function(*arguments, **parameters)
    except ClientError as error:
        code, status = error.response.get("Error", {}).get("Code", "?"), _status(error)
        if code in {"NoSuchKey", "NoSuchUpload"} or (code == "404" and status == 404):
            raise ObjectMissing(parameters.get("Key", "")) from error
        bucket = parameters.get("Bucket", "")
        if code == "NoSuchBucket":
            raise StorageRefused(f"there is no bucket {bucket}") from error
        if status in {301, 401, 403} or code in _REFUSALS:
            raise StorageRefused(f"S3 refuses {error.operation_name} in the bucket {bucket}: {code}") from error
        raise StorageUnavailable(f"S3 failed at {error.operation_name}: {code} ({status})") from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise StorageRefused("no credentials for S3 were found") from error
    except (BotoCoreError, HTTPError) as error:
        raise StorageUnavailable(f"S3 does not answer: {type(error).__name__}") from error


def _status(error: ClientError) -> int:
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)


def _now(answer: Any) -> datetime:
    """The storage's clock, as it was when it answered."""
    date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    return parsedate_to_datetime(date) if date else datetime.now(UTC)
