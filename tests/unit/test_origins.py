"""Whose word is taken for where a request comes from."""

from ipaddress import ip_network

import pytest

from app.api.origins import of, source_address

PROXIES = [ip_network("10.0.0.0/8"), ip_network("fd00::/8")]


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("203.0.113.9", [], "203.0.113.9"),
        ("203.0.113.9", ["198.51.100.1"], "203.0.113.9"),  # anybody may send the header
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["1.2.3.4, 198.51.100.1"], "198.51.100.1"),  # what the client put before
        ("10.0.0.1", ["1.2.3.4", "198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["198.51.100.1, 10.9.9.9"], "198.51.100.1"),  # a proxy behind a proxy
        ("10.0.0.1", ["198.51.100.1:4711"], "198.51.100.1"),
        ("10.0.0.1", ["[2001:db8::1]:4711"], "2001:db8::1"),
        ("fd00::1", ["2001:db8::1"], "2001:db8::1"),
        ("::ffff:10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["unknown"], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1, "], "10.0.0.1"),
        (None, ["198.51.100.1"], None),  # a socket in the file system has no address
    ],
)
def test_only_proxies_that_are_ours_are_believed(peer: str | None, forwarded: list[str], address: str | None) -> None:
    assert source_address(peer, forwarded, trusted=PROXIES) == address


def test_without_proxies_the_header_means_nothing() -> None:
    assert source_address("127.0.0.1", ["198.51.100.1"], trusted=()) == "127.0.0.1"


def test_user_agents_are_cut_and_hold_nothing_that_does_not_print() -> None:
    scope = {"type": "http", "client": ("127.0.0.1", 1), "headers": [(b"user-agent", b"a\x00\n" + b"b" * 500)]}
    found = of(scope)
    assert found.user_agent == "a??" + "b" * 197
    assert (found.kind, found.source_address) == ("api", "127.0.0.1")
