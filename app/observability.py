"""Logs: one line a record, with the request or job they belong to, and no secret in them."""

import logging
import re
import sys
import threading
from collections import Counter
from collections.abc import Iterable
from contextvars import ContextVar
from urllib.parse import quote

request_id: ContextVar[str] = ContextVar("request_id", default="-")

# What must not happen, counted since the process started.
tally: Counter[str] = Counter()

# Keys and bearer tokens, whoever's they are, and what makes a signed link work.
_SECRET = re.compile(
    r"\b(sk-|hf_|Bearer\s+|whsec_|X-Amz-(?:Signature|Credential|Security-Token)=)[A-Za-z0-9_\-./+=%]{6,}"
)


# The password of a URL, of a database or any other.
_PASSWORD = re.compile(r"(://[^/\s:@]*:)\S+@")


_LEAST_CHARACTERS = 6  # a password shorter than this is also a word of every third line
_hidden: re.Pattern[str] | None = None


def hide(secrets: Iterable[str]) -> None:
    """From now on none of these is in what `redact` returns, whatever brought it there, nor as a URL writes it."""
    global _hidden
    ways = {way for secret in secrets if len(secret) >= _LEAST_CHARACTERS for way in (secret, quote(secret, safe=""))}
    longest_first = sorted(ways, key=lambda way: (-len(way), way))
    _hidden = re.compile("|".join(map(re.escape, longest_first))) if ways else None


def redact(text: str) -> str:
    if _hidden is not None:
        text = _hidden.sub("[redacted]", text)
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
    # What nobody has caught would be written past the log, with whatever its message holds.
    sys.excepthook = lambda _kind, error, _trace: _tell_of_the_end(error)
    threading.excepthook = lambda end: _tell_of_the_end(end.exc_value)
    logging.getLogger("arq").setLevel("ERROR")  # it tells of every wake, and of each that came too late
    # At level "debug", botocore would write down signatures and links.
    noisy_ones = ("httpx", "httpcore", "aiosqlite", "alembic", "python_multipart", "boto3", "botocore", "urllib3")
    for noisy in noisy_ones:
        logging.getLogger(noisy).setLevel("WARNING")


def _tell_of_the_end(error: BaseException | None) -> None:
    if isinstance(error, KeyboardInterrupt):
        return
    logging.getLogger(__name__).critical("an error that nothing has caught", exc_info=error)
