"""Logs: one line a record, with the request or job they belong to, and no secret in them."""

import logging
import re
import sys
from collections import Counter
from contextvars import ContextVar

request_id: ContextVar[str] = ContextVar("request_id", default="-")

# What must not happen, counted since the process started.
tally: Counter[str] = Counter()

# Keys and bearer tokens, whoever's they are, and what makes a signed link work.
_SECRET = re.compile(
    r"\b(sk-|hf_|Bearer\s+|whsec_|X-Amz-(?:Signature|Credential|Security-Token)=)[A-Za-z0-9_\-./+=%]{6,}"
)


# The password of a URL, of a database or any other.
_PASSWORD = re.compile(r"(://[^/\s:@]*:)\S+@")


def redact(text: str) -> str:
    return _PASSWORD.sub(r"\1[redacted]@", _SECRET.sub(r"\1[redacted]", text))


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        record.request_id = request_id.get()
        return redact(super().format(record))


def configure_logging(level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)-7s %(name)s [%(request_id)s] %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("arq").setLevel("ERROR")  # it tells of every wake, and of each that came too late
    # At level "debug", botocore would write down signatures and links.
    noisy_ones = ("httpx", "httpcore", "aiosqlite", "alembic", "python_multipart", "boto3", "botocore", "urllib3")
    for noisy in noisy_ones:
        logging.getLogger(noisy).setLevel("WARNING")
