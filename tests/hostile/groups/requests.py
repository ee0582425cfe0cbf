"""Groups 1 to 21: what is wrong with a request wherever it goes."""

from tests.hostile.cases import ANY, JOBS, JSON, Case

_HUGE_KEY = b"Authorization: Bearer " + b"x" * 10_000

CASES = [
    Case(group=1, name="no key", status=401, has_key=False),
    Case(group=2, name="empty key", status=401, has_key=False, headers=(b"Authorization: Bearer ",)),
    Case(group=2, name="scheme alone", status=401, has_key=False, headers=(b"Authorization: Bearer",)),
    Case(group=2, name="another scheme", status=401, has_key=False, headers=(b"Authorization: Basic {KEY}",)),
    Case(
        group=3,
        name="unknown key",
        status=401,
        code="invalid_api_key",
        has_key=False,
        headers=(b"Authorization: Bearer sk-hone-unknown-0123456789",),
    ),
    Case(
        group=4,
        name="revoked key",
        status=401,
        code="invalid_api_key",
        has_key=False,
        headers=(b"Authorization: Bearer {REVOKED}",),
    ),
    Case(group=5, name="key in the query", status=401, has_key=False, target="/v1/files?api_key={KEY}"),
    Case(group=6, name="two headers", status=401, headers=(b"Authorization: Bearer {KEY}",)),
    Case(group=7, name="key of 10 kB", status=401, code="invalid_api_key", has_key=False, headers=(_HUGE_KEY,)),
    Case(
        group=8,
        name="key with a letter that is not ASCII",
        status=401,
        code="invalid_api_key",
        has_key=False,
        headers=("Authorization: Bearer {KEY}é☃".encode(),),
    ),
    Case(
        group=8,
        name="key with NUL",
        status=(400, 401),
        has_key=False,
        headers=(b"Authorization: Bearer {KEY}\0",),
        is_servers_own=True,
    ),
    *(
        Case(group=9, name=f"unknown path {path}", status=404, code="unknown_url", target=path)
        for path in ("/", "/v1", "/v1/unknown", "/v2/files", "/v1/files/x/y/z", "/v1/" + "x" * 5000)
    ),
    *(
        Case(group=10, name=f"{method} {path}", status=405, code="method_not_allowed", method=method, target=path)
        for method, path in (
            ("PUT", "/v1/files"),
            ("GET", "/v1/uploads"),
            ("DELETE", JOBS),
            ("PATCH", "/v1/models/x"),
            ("POST", "/healthz"),
        )
    ),
    *(
        Case(group=11, name=f"trailing slash {path}", status=404, code=ANY, param=ANY, target=path)
        for path in ("/v1/files/", f"{JOBS}/", "/v1/models/")
    ),
]

_RESOURCES = {
    "/v1/files/{}": "id",
    "/v1/files/{}/content": "id",
    f"{JOBS}/{{}}": "fine_tune_id",
    f"{JOBS}/{{}}/events": "fine_tune_id",
    f"{JOBS}/{{}}/checkpoints": "fine_tune_id",
    f"{JOBS}/{{}}/logs": "fine_tune_id",
    f"{JOBS}/{{}}/adapter": "fine_tune_id",
    "/v1/models/{}": "model",
}
_IDS = {
    12: ("..", "%2e%2e", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "..%5c..%5cx", "';%20drop%20table%20jobs--"),
    13: ("%00", "file-a%00b", "%ED%A0%80", "%0a", "%F0%9F%A6%8A"),
    14: ("x" * 5000, "ftjob-" + "9" * 5000),
}
CASES += [
    Case(group=group, name=f"{path} with {bad[:20]}", status=404, code=ANY, param=ANY, target=path.replace("{}", bad))
    for group, ids in _IDS.items()
    for path in _RESOURCES
    for bad in ids
]
CASES += [
    Case(
        group=12,
        name=f"{method} {path}",
        status=404,
        code=ANY,
        param=ANY,
        method=method,
        target=path,
        headers=(JSON,),
        body=b"{}",
    )
    for method, path in (
        ("DELETE", "/v1/files/.."),
        ("DELETE", "/v1/models/%2e%2e"),
        ("POST", f"{JOBS}/../cancel"),
        ("POST", f"{JOBS}/%00/pause"),
        ("POST", f"{JOBS}/%2e%2e/resume"),
        ("POST", "/v1/uploads/../cancel"),
    )
]

_SERVERS = {"is_servers_own": True, "method": "POST", "target": JOBS}
CASES += [
    Case(
        group=15,
        name="length and chunks",
        status=400,
        headers=(JSON, b"Content-Length: 5", b"Transfer-Encoding: chunked"),
        body=b"0\r\n\r\n",
        **_SERVERS,
    ),
    Case(
        group=16,
        name="two lengths",
        status=400,
        headers=(JSON, b"Content-Length: 5", b"Content-Length: 6"),
        body=b"12345",
        **_SERVERS,
    ),
    Case(
        group=17,
        name="a chunk without a length",
        status=400,
        headers=(JSON, b"Transfer-Encoding: chunked", b"Content-Length:"),
        body=b"zz\r\nhello\r\n0\r\n\r\n",
        **_SERVERS,
    ),
    Case(group=18, name="header of 200 KiB", status=(400, 431), headers=(b"X: " + b"y" * 200 * 1024,), code=ANY),
    Case(group=18, name="3000 headers", status=(400, 431), headers=(b"X: " + b"y" * 30,) * 3000, code=ANY),
    Case(
        group=20,
        name="packed job",
        status=(400, 415),
        method="POST",
        target=JOBS,
        headers=(JSON, b"Content-Encoding: gzip"),
        body=b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xab\x56\x4a",
        code=ANY,
    ),
    Case(
        group=20,
        name="packed form",
        status=(400, 415),
        method="POST",
        headers=(b"Content-Type: multipart/form-data; boundary=B", b"Content-Encoding: gzip"),
        body=b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xab\x56\x4a",
        code=ANY,
    ),
    Case(group=21, name="no Host", status=400, has_host=False, code=ANY),
]
