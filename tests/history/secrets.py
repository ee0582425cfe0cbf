"""What nobody may read who is not told it: keys, tokens, passwords; and how to look for them in what was written."""

import base64
import io
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import quote

from app.settings import Settings

HUB_TOKEN = "hf_e2e0123456789abcdef"  # of no use anywhere: workers have it to keep it secret


def secrets_of(settings: Settings) -> set[str]:
    """Those of an installation."""
    return {*settings.secrets, HUB_TOKEN, os.environ.get("HF_TOKEN", HUB_TOKEN)}


def found(secrets: Mapping[str, str], texts: Iterable[tuple[str, bytes]]) -> list[str]:
    """Which of the secrets, by their names, stand where, in whatever way they are written there."""
    ways = {name: set(_ways(secret)) for name, secret in secrets.items()}
    return [
        f"{name} in {place}"
        for place, text in texts
        for name, forms in ways.items()
        if any(form in text for form in forms)
    ]


def unpacked(place: str, content: bytes) -> Iterator[tuple[str, bytes]]:
    """What was written, and what it holds if it is an archive."""
    yield place, content
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for name in archive.namelist():
                yield f"{place}:{name}", archive.read(name)


def _ways(secret: str) -> Iterator[bytes]:
    """As it is, as URLs and databases write it, as a key's bytes, and in base64 wherever it begins there."""
    plain = secret.encode()
    yield plain
    yield quote(secret, safe="").encode()
    yield plain.hex().encode()
    key = secret.removeprefix("whsec_")
    if key != secret:
        yield key.encode()
        yield base64.b64decode(key)
    for before in range(3):  # bytes that may stand before it; what they share with it is left out, at both its ends
        coded = base64.b64encode(b"\0" * before + plain)
        whole = coded[4 if before else 0 : len(coded) - 4]
        yield whole
        yield whole.translate(bytes.maketrans(b"+/", b"-_"))
