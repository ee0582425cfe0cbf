"""Groups 22 to 44: forms of POST /v1/files that are not as they should be."""

from typing import Any

from tests.factories import jsonl
from tests.hostile.cases import ANY, JSON, Case

_FORM = b"Content-Type: multipart/form-data; boundary=B"
END = b"--B--\r\n"


def part(name: str, value: bytes, filename: str | None = None, extra: bytes = b"") -> bytes:
    end = "" if filename is None else f'; filename="{filename}"'
    return f'--B\r\nContent-Disposition: form-data; name="{name}"{end}\r\n'.encode() + extra + b"\r\n" + value + b"\r\n"


def _disposition(rest: bytes) -> bytes:
    """A file whose name is given in another way."""
    return b'--B\r\nContent-Disposition: form-data; name="file"; ' + rest + b"\r\n\r\n" + jsonl() + b"\r\n"


PURPOSE = part("purpose", b"fine-tune")
FILE = part("file", jsonl(), "a.jsonl")


def _form(group: int, name: str, body: bytes, param: Any, status: Any = 400, **more: Any) -> Case:
    values = {"code": ANY, "headers": (_FORM,), "method": "POST"} | more
    return Case(group=group, name=name, body=body, param=param, status=status, **values)


CASES = [
    _form(22, "no file", PURPOSE + END, "file"),
    _form(23, "no purpose", FILE + END, "purpose"),
    _form(24, "unknown purpose", part("purpose", b"nonsense") + FILE + END, "purpose"),
    _form(24, "results are not uploaded", part("purpose", b"fine-tune-results") + FILE + END, "purpose"),
    _form(25, "empty file", PURPOSE + part("file", b"", "a.jsonl") + END, "file"),
    _form(25, "only blank lines", PURPOSE + part("file", b"\n\n  \n", "a.jsonl") + END, None),
    _form(26, "empty filename", PURPOSE + part("file", jsonl(), "") + END, "file"),
    _form(27, "filename is a path of dots", PURPOSE + part("file", jsonl(), "../..") + END, "file"),
    _form(
        27,
        "filename is a path",
        PURPOSE + part("file", jsonl(), "../../etc/x") + END,
        ANY,
        status=200,
        note="the last part of a path is kept as a label; keys of storage hold ids only",
    ),
    _form(27, "filename of 300 characters", PURPOSE + part("file", jsonl(), "x" * 300) + END, "file"),
    _form(28, "NUL in the filename", PURPOSE + part("file", jsonl(), "a\0b.jsonl") + END, ANY, status=(200, 400)),
    _form(29, "filename is not UTF-8", PURPOSE + _disposition(b'filename="\xff\xfe.jsonl"') + END, ANY, (200, 400)),
    _form(
        30,
        "filename* alone",
        PURPOSE + _disposition(b"filename*=UTF-8''%e2%98%83.jsonl") + END,
        ANY,
        status=(200, 400),
    ),
    _form(30, "filename* of nonsense", PURPOSE + _disposition(b"filename*=''%zz%") + END, ANY, status=(200, 400)),
    _form(31, "file as a field", PURPOSE + part("file", b"{}") + END, "file"),
    _form(32, "purpose as a file", part("purpose", b"fine-tune", "p") + FILE + END, "purpose"),
    _form(33, "two files", PURPOSE + FILE + FILE + END, "file"),
    _form(34, "two purposes", PURPOSE + PURPOSE + FILE + END, "purpose"),
    _form(35, "no closing boundary", PURPOSE + FILE, None),
    _form(36, "cut short", PURPOSE + FILE[:-20], None),
    _form(36, "cut in a header", PURPOSE + FILE[:30], None),
    *(
        _form(37, f"{header[:60]!r}", PURPOSE + FILE + END, None, headers=(b"Content-Type: " + header,))
        for header in (
            b"multipart/form-data",
            b"multipart/form-data; boundary=",
            b"multipart/form-data; boundary=" + b"B" * 5000,
            b"multipart/form-data; boundary=other",
            b'multipart/form-data; boundary="',
        )
    ),
    _form(38, "2000 fields", part("purpose", b"x") * 2000 + END, ANY),
    _form(38, "2000 unknown fields", b"".join(part(f"f{i}", b"x") for i in range(2000)) + END, ANY),
    _form(39, "purpose of 2 MiB", part("purpose", b"x" * 2 * 1024**2) + FILE + END, "purpose"),
    _form(40, "part header of 1 MiB", part("file", b"{}", "a.jsonl", b"X: " + b"y" * 1024**2 + b"\r\n") + END, None),
    _form(40, "100 part headers", part("file", b"{}", "a.jsonl", b"X: y\r\n" * 100) + END, None),
    _form(40, "name of 20 kB", part("n" * 20_000, b"x") + FILE + END, ANY),
    _form(41, "JSON", b'{"purpose": "fine-tune"}', None, headers=(JSON,)),
    _form(
        41,
        "a form of another kind",
        b"purpose=fine-tune",
        None,
        headers=(b"Content-Type: application/x-www-form-urlencoded",),
    ),
    _form(41, "no Content-Type", PURPOSE + FILE + END, None, headers=()),
    _form(
        42, "declared beyond the limit", PURPOSE, "file", status=413, headers=(_FORM, b"Content-Length: 99999999999")
    ),
    _form(
        43,
        "chunks beyond the limit",
        part("purpose", b"user_data") + part("file", b"x" * 5 * 1024**2, "big.bin") + END,
        "file",
        status=413,
        is_chunked=True,
    ),
    _form(
        44,
        "charset=utf-7",
        PURPOSE + FILE + END,
        ANY,
        status=(200, 400),
        headers=(_FORM + b"; charset=utf-7",),
        note="a charset means nothing here and is ignored",
    ),
]
