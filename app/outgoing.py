"""Requests to addresses that clients chose. Whoever names a URL here must not reach what only this machine reaches."""

import asyncio
import functools
import ipaddress
import re
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import httpx

Network = IPv4Network | IPv6Network

_MAX_URL_CHARACTERS = 2048
_MAX_ADDRESSES_TRIED = 4
_HOST = re.compile(r"[A-Za-z0-9._\-]{1,253}|[0-9A-Fa-f:.]{2,45}")
_WELL_KNOWN_PORTS = (80, 443)

# What is not for the public, from IANA's registries of special-purpose addresses. Written out, because what Python
# calls global has changed between its releases. Clouds' metadata lies in 169.254/16, 100.64/10 and 192.0.0/24.
_SPECIAL = tuple(
    ipaddress.ip_network(text)
    for text in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24"),
        *("203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        "168.63.129.16/32",  # Azure's agent: a public address that each of its machines reaches for itself
        *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),
    )
)
# Of IPv6 only this is unicast and global. Outside lie loopback, unspecified, local and multicast addresses, and
# those that wrap an IPv4 address: mapped (::ffff:0:0/96), compatible (::/96) and NAT64 (64:ff9b::/96).
_GLOBAL_IPV6 = ipaddress.ip_network("2000::/3")


class LookUps:
    """How many host names may be looked up at the same time. A name server may keep each for minutes, also when whoever
    asked has given up: so what strangers ask for has an allowance of its own, and leaves that of the others alone."""

    def __init__(self, most: int) -> None:
        self.free = threading.BoundedSemaphore(most)


_USUAL = LookUps(64)


class OutgoingRefused(Exception):
    """The URL is one that is never called. The message may be shown to whoever gave the URL."""


class OutgoingFailed(Exception):
    """There was no answer; there may be one later. The message may be shown likewise."""


@dataclass(frozen=True)
class Answer:
    """`body` is at most as long as was asked for; `is_whole` says whether that was all. Header names are lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    is_whole: bool


async def post(
    url: str,
    *,
    body: bytes,
    headers: Mapping[str, str],
    timeout_seconds: float,
    max_response_bytes: int,
    allowed_networks: Sequence[Network],
    look_ups: LookUps = _USUAL,
) -> Answer:
    """One POST, to a public address or one in `allowed_networks`; plain http goes only to the latter.

    The host is looked up once, every one of its addresses is checked, and one of these very addresses is connected
    to. Redirects are answers like others. Nothing is taken from the environment, neither proxies nor netrc, but
    the certificates to trust (`SSL_CERT_FILE`, else the system's). The time limit is for everything together.
    With `max_response_bytes=0` only status and headers are waited for. Raises OutgoingRefused and OutgoingFailed.
    """
    target = checked(url, allowed_networks=allowed_networks)
    try:
        async with asyncio.timeout(timeout_seconds):
            addresses = await _look_up(target.raw_host.decode("ascii"), _port(target), look_ups)
            for address in addresses:
                _check_address(address, target, allowed_networks)
            return await _first_answer(target, addresses, body, headers, timeout_seconds, max_response_bytes)
    except TimeoutError:
        raise OutgoingFailed(f"No answer within {timeout_seconds:g} seconds.") from None
    except httpx.TransportError as error:
        raise OutgoingFailed(_reason(error)) from error


def checked(url: str, *, allowed_networks: Sequence[Network]) -> httpx.URL:
    """What can be said of a URL without asking anyone: raises OutgoingRefused."""
    if len(url) > _MAX_URL_CHARACTERS:
        raise OutgoingRefused(f"The URL is longer than {_MAX_URL_CHARACTERS} characters.")
    try:
        target = httpx.URL(url)
        host = target.raw_host.decode("ascii")
    except (httpx.InvalidURL, UnicodeError, TypeError):
        raise OutgoingRefused("This is not a URL.") from None
    if target.scheme not in ("https", "http"):
        raise OutgoingRefused("Only https URLs can be called.")
    if target.scheme == "http" and not allowed_networks:
        raise OutgoingRefused("Only https URLs can be called; http needs HONE_OUTGOING_ALLOWED_NETWORKS.")
    if target.userinfo:
        raise OutgoingRefused("A URL with a user name or password is not called.")
    if not _HOST.fullmatch(host):
        raise OutgoingRefused("The URL names no valid host.")
    if not 1 <= _port(target) <= 65535:
        raise OutgoingRefused("The URL names no valid port.")
    with suppress(ValueError):  # a name, which is looked up when it is called
        _check_address(ipaddress.ip_address(host), target, allowed_networks)
    return target


def is_public(address: IPv4Address | IPv6Address) -> bool:
    if address.version == 6 and address not in _GLOBAL_IPV6:
        return False
    return not any(address in network for network in _SPECIAL)


def _check_address(address: IPv4Address | IPv6Address, target: httpx.URL, allowed: Sequence[Network]) -> None:
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        raise OutgoingRefused("The URL's host has an address that is not called: it holds on one link only.")
    if any(address in network for network in allowed):
        return
    if not is_public(address):
        raise OutgoingRefused("The URL's host has an address that is not called: it is not a public one.")
    if target.scheme != "https":
        raise OutgoingRefused("A public address is only called by https.")
    if _port(target) < 1024 and _port(target) not in _WELL_KNOWN_PORTS:
        raise OutgoingRefused("Of the ports below 1024 only 80 and 443 are called.")


async def _look_up(host: str, port: int, look_ups: LookUps) -> list[IPv4Address | IPv6Address]:
    """A thread of its own for each: the loop's threads have other work, and a name server may keep one for minutes."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[IPv4Address | IPv6Address]] = loop.create_future()

    def tell(found: list[IPv4Address | IPv6Address]) -> None:
        if not answer.done():
            answer.set_result(found)

    def ask() -> None:
        found = []
        try:
            with suppress(OSError, UnicodeError, ValueError):
                entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
                found = [ipaddress.ip_address(entry[4][0]) for entry in entries]
        finally:
            look_ups.free.release()
        with suppress(RuntimeError):  # the loop has closed: nobody waits any more
            loop.call_soon_threadsafe(tell, found)

    if not look_ups.free.acquire(blocking=False):
        raise OutgoingFailed("Too many host names are being looked up.")
    threading.Thread(target=ask, name="look-up", daemon=True).start()
    found = list(dict.fromkeys(await answer))
    if not found:
        raise OutgoingFailed("The URL's host has no address.")
    return found


async def _first_answer(
    target: httpx.URL,
    addresses: Sequence[IPv4Address | IPv6Address],
    body: bytes,
    headers: Mapping[str, str],
    timeout_seconds: float,
    max_response_bytes: int,
) -> Answer:
    """From the first address that takes the connection; each but the last gets its share of the time to do so."""
    tried = addresses[:_MAX_ADDRESSES_TRIED]
    share = httpx.Timeout(None, connect=timeout_seconds / len(tried))
    for address in tried[:-1]:
        with suppress(httpx.ConnectError, httpx.ConnectTimeout):
            return await _ask(target, address, body, headers, share, max_response_bytes)
    return await _ask(target, tried[-1], body, headers, httpx.Timeout(None), max_response_bytes)


async def _ask(
    target: httpx.URL,
    address: IPv4Address | IPv6Address,
    body: bytes,
    headers: Mapping[str, str],
    patience: httpx.Timeout,
    max_response_bytes: int,
) -> Answer:
    request = httpx.Request(
        "POST",
        target.copy_with(host=str(address)),
        headers={
            **headers,
            "Host": target.netloc.decode("ascii"),
            "Accept-Encoding": "identity",
            "Connection": "close",
        },
        content=body,
        # The certificate must be the name's, not the address's.
        extensions={"sni_hostname": target.raw_host.decode("ascii").rstrip("."), "timeout": patience.as_dict()},
    )
    async with _exchange(request) as response:
        content, is_whole = await _up_to(response, max_response_bytes)
        return Answer(response.status_code, dict(response.headers), content, is_whole)


@asynccontextmanager
async def _exchange(request: httpx.Request) -> AsyncIterator[httpx.Response]:
    """By the bare transport: it knows neither redirects nor cookies, and keeps no connection."""
    async with httpx.AsyncHTTPTransport(verify=trusted(), trust_env=False) as transport:
        response = await transport.handle_async_request(request)
        try:
            yield response
        finally:
            await response.aclose()


async def _up_to(response: httpx.Response, most: int) -> tuple[bytes, bool]:
    if most == 0:
        return b"", False
    received = bytearray()
    async for chunk in response.aiter_raw():
        received += chunk
        if len(received) > most:
            return bytes(received[:most]), False
    return bytes(received), True


@functools.cache
def trusted() -> ssl.SSLContext:
    """Read once: parsing a system's hundred certificates takes longer than a request."""
    return ssl.create_default_context()


def _port(target: httpx.URL) -> int:
    if target.port is None:
        return 443 if target.scheme == "https" else 80
    return target.port


def _reason(error: httpx.TransportError) -> str:
    """In words that do not depend on what the libraries below say."""
    if isinstance(error, httpx.ConnectTimeout):
        return "The connection was not answered."
    if isinstance(error, httpx.ConnectError):
        cause = error.__cause__
        while cause is not None and not isinstance(cause, ssl.SSLError):
            cause = cause.__cause__ or cause.__context__
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"The certificate was not accepted: {cause.verify_message}."
        return "The connection was refused." if cause is None else "There was no TLS connection."
    if isinstance(error, httpx.ReadError | httpx.WriteError | httpx.RemoteProtocolError):
        return "The connection broke off, or the answer was not HTTP."
    return "The request failed."
