"""Requests to addresses that clients chose: what they reach, and what they must not."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from app import outgoing
from app.outgoing import Answer, Network, OutgoingFailed, OutgoingRefused
from tests.hostile.urls import HOSTILE_URLS
from tests.servers import receiver
from tests.servers.certificates import Authority
from tests.servers.receiver import receiving, says

LOOPBACK = (ip_network("127.0.0.0/8"),)


async def post(
    url: str,
    *,
    allowed: Sequence[Network] = LOOPBACK,
    timeout_seconds: float = 10,
    most: int = 1000,
    body: bytes = b"?",
) -> Answer:
    return await outgoing.post(
        url,
        body=body,
        headers={"Content-Type": "application/json"},
        timeout_seconds=timeout_seconds,
        max_response_bytes=most,
        allowed_networks=allowed,
    )


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Authority]:
    """One that is trusted, as an owner trusts their own."""
    made = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(made.file))
    outgoing.trusted.cache_clear()
    yield made
    outgoing.trusted.cache_clear()


def names(monkeypatch: pytest.MonkeyPatch, **answers: Sequence[str]) -> list[str]:
    """A name service of the test's own: what it answers in turn, the last for good. Returns what is asked."""
    asked: list[str] = []
    real = socket.getaddrinfo

    def look_up(host: str, port: int, *args: object, **kwargs: object) -> list:
        label = host.partition(".")[0]
        if label not in answers:
            return real(host, port, *args, **kwargs)  # pyright: ignore[reportArgumentType]
        turn = min(asked.count(host), len(answers[label]) - 1)
        asked.append(host)
        return [entry for address in answers[label][turn].split() for entry in real(address, port, *args, **kwargs)]  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return asked


async def test_posts_and_gives_the_answer() -> None:
    with receiving(says(201, b"thanks", Flavour="sweet")) as server:
        answer = await post(f"{server.url}/hook?a=b#c", body=b'{"x": 1}')
    assert (answer.status, answer.body, answer.is_whole) == (201, b"thanks", True)
    assert answer.headers["flavour"] == "sweet"
    (got,) = server.received
    assert (got.path, got.body) == ("/hook?a=b", b'{"x": 1}')
    assert got.headers["content-type"] == "application/json"
    assert got.headers["host"] == f"127.0.0.1:{server.port}"


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}/",
        "http://localhost:{port}/",
        "http://2130706433:{port}/",  # decimal
        "http://0x7f000001:{port}/",
        "http://0x7f.1:{port}/",
        "http://0177.0.0.1:{port}/",  # octal
        "http://127.1:{port}/",
        "http://0:{port}/",
        "http://[::1]:{port}/",
        "http://[::]:{port}/",
        "http://[::ffff:127.0.0.1]:{port}/",
        "http://[::ffff:7f00:1]:{port}/",
        "http://[::127.0.0.1]:{port}/",
        "http://[64:ff9b::127.0.0.1]:{port}/",
        "http://[fe80::1%25lo]:{port}/",
        "http://[fe80::1]:{port}/",
        "https://127.0.0.1:{port}/",
        "http://user@127.0.0.1:{port}/",
        "http://user:word@127.0.0.1:{port}/",
        "http://good.example@127.0.0.1:{port}/",
        "http://127.0.0.1:{port}\\@good.example/",
        "http://\uff11\uff12\uff17.0.0.1:{port}/",
        "http://127\u30020\u30020\u30021:{port}/",
    ],
)
async def test_nothing_reaches_loopback_unless_allowed(url: str) -> None:
    """With another network allowed, so that it is not the scheme that is refused."""
    with receiving(says(200)) as server, pytest.raises(OutgoingRefused):
        await post(url.format(port=server.port), allowed=(ip_network("192.0.2.0/24"),))
    assert server.received == []


def test_there_are_22_hostile_forms() -> None:
    assert len(set(HOSTILE_URLS)) == 22


@pytest.mark.parametrize("url", HOSTILE_URLS)
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_no_hostile_form_reaches_loopback(url: str, scheme: str) -> None:
    """By whichever of the two, with another network allowed, so that it is not the scheme that is refused."""
    with receiving(says(200)) as server:
        hostile = url.replace("PORT", str(server.port)).replace("http://", f"{scheme}://")
        with pytest.raises(OutgoingRefused):
            await post(hostile, allowed=(ip_network("192.0.2.0/24"),))
    assert server.received == []


@pytest.mark.parametrize("form", ["2130706433", "127.1", "0x7f000001"])
async def test_an_allowed_network_may_be_written_in_any_form(form: str) -> None:
    with receiving(says(200)) as server:
        assert (await post(f"http://{form}:{server.port}/")).status == 200


@pytest.mark.parametrize(
    "address",
    [
        *("0.0.0.0", "10.1.2.3", "100.64.0.1", "100.100.100.200", "127.9.9.9", "169.254.169.254", "172.31.0.1"),
        *("192.0.0.192", "192.168.1.1", "198.18.0.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255"),
        *("168.63.129.16", "192.0.2.1", "203.0.113.9", "198.51.100.1"),
        *("::", "::1", "::ffff:8.8.8.8", "::8.8.8.8", "64:ff9b::808:808", "64:ff9b:1::1", "100::1", "fc00::1"),
        *("fd00:ec2::254", "fe80::1", "fec0::1", "ff02::1", "2001::1", "2001:db8::1", "2002:7f00:1::", "3fff::1"),
    ],
)
def test_special_addresses_are_not_public(address: str) -> None:
    assert not outgoing.is_public(ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00::1"])
def test_others_are(address: str) -> None:
    assert outgoing.is_public(ip_address(address))


@pytest.mark.parametrize(
    "url",
    [
        *("", "hello", "//host/", "ftp://host/", "file:///etc/passwd", "gopher://host/", "https://", "https:///x"),
        *("https://ex ample/", "https://host:0/", "https://host:65536/", "https://host:x/", "https://a\x00b/"),
        *("https://h/\r\nX: y", "https://u:p@host/", "https://" + "a" * 3000, "https://10.0.0.1/", "https://[::1]/"),
        *("http://host/", "https://8.8.8.8:25/"),
    ],
)
def test_what_is_no_url_to_call_is_refused_unseen(url: str) -> None:
    with pytest.raises(OutgoingRefused):
        outgoing.checked(url, allowed_networks=())


@pytest.mark.parametrize(
    "url", ["https://host/", "https://host:8443/x?y", "https://8.8.8.8/", "https://bücher.example"]
)
def test_what_may_be_one_is_not(url: str) -> None:
    outgoing.checked(url, allowed_networks=())


async def test_a_name_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says the second time, to whoever checks first and connects later, is never heard."""
    asked = names(monkeypatch, turning=["::1", "127.0.0.1"])
    with (
        receiving(says(200)) as server,
        pytest.raises(OutgoingFailed),
    ):  # nobody listens at ::1, which was checked and is what is connected to
        await post(f"http://turning.example:{server.port}/", allowed=(ip_network("::1/128"),))
    assert asked == ["turning.example"]
    assert server.received == []


async def test_one_address_of_many_that_is_not_public_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    names(monkeypatch, mixed=["127.0.0.1 10.0.0.1"])
    with receiving(says(200)) as server, pytest.raises(OutgoingRefused):
        await post(f"http://mixed.example:{server.port}/")
    assert server.received == []


@pytest.mark.parametrize("answers", ["8.8.8.8 127.0.0.1", "127.0.0.1 8.8.8.8", "2606:4700::1111 ::1"])
async def test_a_public_address_does_not_bring_loopback_along(answers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before anything is connected to: the public one would be tried first."""
    names(monkeypatch, mixed=[answers])
    with receiving(says(200)) as server, pytest.raises(OutgoingRefused, match="not a public one"):
        await post(f"https://mixed.example:{server.port}/", allowed=())
    assert server.received == []


async def test_an_address_of_one_link_is_never_called(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fe80::1%lo", 443, 0, 1))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_kwargs: [entry])
    with pytest.raises(OutgoingRefused, match="one link"):
        await post("https://linked.example/", allowed=(ip_network("::/0"),))


async def test_a_public_address_is_called_by_https_only(monkeypatch: pytest.MonkeyPatch) -> None:
    names(monkeypatch, public=["8.8.8.8"])
    with pytest.raises(OutgoingRefused, match="by https"):
        await post("http://public.example/")


async def test_goes_on_to_the_next_address(monkeypatch: pytest.MonkeyPatch) -> None:
    names(monkeypatch, several=["::1 127.0.0.1"])
    with receiving(says(200)) as server:
        url = f"http://several.example:{server.port}/"
        assert (await post(url, allowed=(*LOOPBACK, ip_network("::1/128")))).status == 200
    assert server.received[0].headers["host"] == f"several.example:{server.port}"


async def test_a_redirect_is_an_answer() -> None:
    with receiving(says(200)) as inner, receiving(says(302, Location=f"{inner.url}/secret")) as server:
        answer = await post(server.url)
    assert (answer.status, answer.headers["location"]) == (302, f"{inner.url}/secret")
    assert (len(server.received), inner.received) == (1, [])


async def test_proxies_and_netrc_are_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password mine\n")
    with receiving(says(200)) as proxy, receiving(says(204)) as server:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        assert (await post(server.url)).status == 204
    assert proxy.received == []
    assert "authorization" not in server.received[0].headers


async def test_an_endless_body_is_cut() -> None:
    with receiving(receiver.endless) as server:
        answer = await post(server.url, most=100_000)
    assert (len(answer.body), answer.is_whole) == (100_000, False)


async def test_without_a_wish_for_the_body_none_is_waited_for() -> None:
    with receiving(receiver.dripping) as server:
        began = time.monotonic()
        answer = await post(server.url, most=0)
    assert (answer.status, answer.body, answer.is_whole) == (200, b"", False)
    assert time.monotonic() - began < 5


async def test_a_body_is_not_unpacked() -> None:
    with receiving(says(200, b"not gzip", **{"Content-Encoding": "gzip"})) as server:
        assert (await post(server.url)).body == b"not gzip"


@pytest.mark.parametrize("behaviour", [receiver.dripping, receiver.silent])
async def test_the_time_limit_is_for_everything(behaviour: receiver.Behaviour) -> None:
    with receiving(behaviour) as server:
        began = time.monotonic()
        with pytest.raises(OutgoingFailed, match=r"within 0\.5 seconds"):
            await post(server.url, timeout_seconds=0.5)
        assert time.monotonic() - began < 5


async def test_a_name_server_that_does_not_answer_costs_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    def look_up(*_args: object, **_kwargs: object) -> list:
        released.wait(60)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    try:
        with pytest.raises(OutgoingFailed, match="within"):
            await asyncio.wait_for(post("https://slow.example/", timeout_seconds=0.3), 5)
        waiting = [asyncio.create_task(post("https://slow.example/", timeout_seconds=3)) for _ in range(63)]
        await asyncio.sleep(0)
        with pytest.raises(OutgoingFailed, match="Too many"):
            await post("https://slow.example/")
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    finally:
        released.set()


@pytest.mark.parametrize("behaviour", [receiver.resetting, receiver.babbling])
async def test_a_broken_answer_is_a_failure(behaviour: receiver.Behaviour) -> None:
    with receiving(behaviour) as server, pytest.raises(OutgoingFailed, match="broke off"):
        await post(server.url)


async def test_nobody_there_is_a_failure() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(OutgoingFailed, match="connection was refused"):
        await post(f"http://127.0.0.1:{port}/")
    with pytest.raises(OutgoingFailed, match="has no address"):
        await post("https://name.invalid/")


async def test_tls_is_for_the_name(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    names(monkeypatch, good=["127.0.0.1"], bad=["127.0.0.1"])
    with receiving(says(200), tls=authority.server(name="good.example")) as server:
        assert (await post(f"https://good.example:{server.port}/")).status == 200
        with pytest.raises(OutgoingFailed, match=r"certificate was not accepted: .*bad.example"):
            await post(f"https://bad.example:{server.port}/")
        with pytest.raises(OutgoingFailed, match="certificate was not accepted"):
            await post(server.url)
    assert [got.headers["host"] for got in server.received] == [f"good.example:{server.port}"]


async def test_tls_may_be_for_an_address(authority: Authority) -> None:
    with receiving(says(200), tls=authority.server(name="127.0.0.1")) as server:
        assert (await post(server.url)).status == 200


async def test_an_authority_that_nobody_trusts_is_not_trusted(tmp_path: Path) -> None:
    with (
        receiving(says(200), tls=Authority(tmp_path).server(name="127.0.0.1")) as server,
        pytest.raises(OutgoingFailed, match="certificate was not accepted"),
    ):
        await post(server.url)
    assert server.received == []


async def test_what_speaks_no_tls_is_a_failure() -> None:
    with receiving(says(200)) as server, pytest.raises(OutgoingFailed, match="no TLS"):
        await post(server.url.replace("http:", "https:"))
