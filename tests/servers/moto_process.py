"""moto's S3 in a process of its own, with faults to order; it keeps everything in memory.

`python -m tests.servers.moto_process` prints its port and serves until its standard input ends. Faults are ordered
by POST /-/faults with a list of them as JSON; each applies to the requests in whose line its pattern is found.
"""

import json
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

_faults: list[dict[str, Any]] = []
_requests: list[str] = []
_s3 = DomainDispatcherApplication(create_backend_app)


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    if environ["PATH_INFO"] == "/-/faults":
        _faults[:] = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
        _requests.clear()
        start_response("204 No Content", [])
        return []
    line = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}?{environ['QUERY_STRING']}"
    if environ["PATH_INFO"] == "/-/requests":
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(_requests).encode()]
    _requests.append(line)
    for fault in [fault for fault in _faults if re.search(fault["request"], line)]:
        match fault["kind"]:
            case "error":
                start_response("500 Internal Server Error", [("Content-Type", "application/xml")])
                return [b"<Error><Code>InternalError</Code><Message>ordered</Message></Error>"]
            case "refuse":
                environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
                return []
            case "trickle":
                return _trickle(_s3(environ, start_response), fault["bytes_per_second"])
            case "corrupt":
                return _corrupted(_s3(environ, start_response))
            case "break":
                return _broken(_s3(environ, start_response), environ["werkzeug.socket"], fault["after_bytes"])
            case "mute" if fault["unless"] not in line:
                b"".join(_s3(environ, start_response))
                environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
                return []
            case "delay":
                time.sleep(fault["seconds"])
    return _s3(environ, start_response)


def _trickle(answer: Iterable[bytes], bytes_per_second: int) -> Iterator[bytes]:
    step = max(1, bytes_per_second // 10)
    for chunk in answer:
        for start in range(0, len(chunk), step):
            yield chunk[start : start + step]
            time.sleep(0.1)


def _corrupted(answer: Iterable[bytes]) -> Iterator[bytes]:
    content = bytearray(b"".join(answer))
    content[len(content) // 2] ^= 1
    yield bytes(content)


def _broken(answer: Iterable[bytes], connection: socket.socket, after_bytes: int) -> Iterator[bytes]:
    yield b"".join(answer)[:after_bytes]
    connection.shutdown(socket.SHUT_RDWR)


class _Handler(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_request(self, *_: Any, **__: Any) -> None:
        pass


def main() -> None:
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=_Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main()
