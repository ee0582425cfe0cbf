"""From where a request comes: the peer's address, or what a trusted proxy says of its own peer."""

from collections.abc import Collection
from ipaddress import IPv4Network, IPv6Network, ip_address

from starlette.datastructures import Headers
from starlette.types import Scope

from app.origin import Origin

_MAX_USER_AGENT_CHARACTERS = 200


def of(scope: Scope) -> Origin:
    headers = Headers(scope=scope)
    app = scope.get("app")
    proxies = app.state.resources.settings.trusted_proxies if app is not None else ()
    peer = scope["client"][0] if scope.get("client") else None
    address = source_address(peer, headers.getlist("x-forwarded-for"), trusted=proxies)
    agent = headers.get("user-agent", "")[:_MAX_USER_AGENT_CHARACTERS]
    return Origin("api", address, "".join(c if c.isprintable() else "?" for c in agent) or None)


def source_address(
    peer: str | None, forwarded: Collection[str], *, trusted: Collection[IPv4Network | IPv6Network]
) -> str | None:
    """The last address that somebody trusted vouches for: each proxy adds its own peer at the end of the header, so
    it is read from there, for as long as it is proxies of ours that are met. What a client has put before is not."""
    named = [part.strip() for value in forwarded for part in value.split(",")]
    while peer is not None and named and _is_in(peer, trusted) and (before := _plain(named.pop())) is not None:
        peer = before
    return peer


def _is_in(address: str, networks: Collection[IPv4Network | IPv6Network]) -> bool:
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return any((mapped or parsed) in network for network in networks)


def _plain(text: str) -> str | None:
    """An address as proxies write it, with a port or without; None for anything else."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return str(ip_address(text))
    except ValueError:
        return None
