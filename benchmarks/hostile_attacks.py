"""What a hostile client sends, each with the words that must refuse it.

`python -m benchmarks.hostile_attacks URL KEY SECONDS [LEFT_OUT...]` is a process of its own, so that whoever measures
the server meanwhile is not measured with it. All attacks run at the same time, over and over for SECONDS, each at least
once; the last line is a JSON object: how often each was refused with its reason, and what was answered otherwise.
"""

import http.client
import json
import sys
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from safetensors.numpy import save_file

from tests.unit.chat_bases import write_base

_MIB = 1 << 20
_JOBS = "/v1/fine_tuning/jobs"
_GRADERS = "/v1/fine_tuning/alpha/graders/validate"
_PATIENCE_SECONDS = 300.0
_ROW = {"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "It is 4."}]}
_ROWS = (json.dumps(_ROW) + "\n").encode() * 12
_LIMITS = "limits of time and memory"
_DEADLINE = "could not be checked within"

# Chat templates of bases, and the words that a job on them fails with.
TEMPLATES = {
    "cpu": ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", (_LIMITS, _DEADLINE)),
    "power": ("{{ 10 ** (10 ** 8) }}", (_LIMITS, _DEADLINE)),
    "memory": ("{{ 'a' * 10 ** 10 }}", ("MemoryError", _LIMITS)),
    "doubling": (
        "{% set n = namespace(s='a' * 1024) %}{% for i in range(40) %}{% set n.s = n.s + n.s %}{% endfor %}",
        ("MemoryError", _LIMITS, _DEADLINE),
    ),
    "range": ("{{ range(10 ** 9) | list | length }}", ("Range too big",)),
    "class": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", ("unsafe",)),
    "globals": ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", ("unsafe",)),
    "format": ("{{ '{0.__class__.__mro__}'.format('') }}", ("unsafe",)),
    "include": ("{% include '/etc/passwd' %}", ("no loader", "TypeError")),
}
PLAIN_BASE = "plain"

Asked = tuple[int, str]


class Client:
    def __init__(self, url: str, key: str) -> None:
        parts = urlsplit(url)
        self._place = (str(parts.hostname), int(parts.port or 80))
        self._key = key

    def ask(self, method: str, path: str, body: object = None, kind: str = "application/json") -> Asked:
        """`body` is bytes, a list of bytes, or what becomes JSON."""
        connection = http.client.HTTPConnection(*self._place, timeout=120)
        is_json = body is not None and not isinstance(body, bytes | list)
        content = json.dumps(body).encode() if is_json else body
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": kind}
        if isinstance(content, list):
            headers["Content-Length"] = str(sum(map(len, content)))
        try:
            connection.request(method, path, body=content, headers=headers)  # pyright: ignore[reportArgumentType]
            answer = connection.getresponse()
            return answer.status, answer.read().decode("utf-8", "replace")
        finally:
            connection.close()

    def upload(self, *lines: bytes) -> Asked:
        head = b'--B\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
        head += b'--B\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
        return self.ask("POST", "/v1/files", [head, *lines, b"\r\n--B--\r\n"], kind="multipart/form-data; boundary=B")

    def end_of_job(self, model: str, content: bytes) -> Asked:
        """The error of a job on this base with this file."""
        status, text = self.upload(content)
        if status != 200:
            return status, text
        status, text = self.ask("POST", _JOBS, {"model": model, "training_file": json.loads(text)["id"]})
        if status != 200:
            return status, text
        job, deadline = json.loads(text)["id"], time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < deadline:
            status, text = self.ask("GET", f"{_JOBS}/{job}")
            found = json.loads(text)
            if found["status"] == "failed":
                return 400, json.dumps(found["error"])
            if found["status"] not in ("validating_files", "running"):
                break
            time.sleep(0.2)
        return status, text


def attacks(client: Client) -> dict[str, tuple[Callable[[], Asked], tuple[str, ...]]]:
    """By name: what does it, and of the words any of which refuse it."""
    deep = b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"
    formula = {"type": "multi", "name": "m", "graders": {"a": _check("{{ item.x }}")}}
    found: dict[str, tuple[Callable[[], Asked], tuple[str, ...]]] = {
        "line of 100 MB": (lambda: client.upload(*[b"x" * _MIB] * 100), ("longer than",)),
        "lists of 8 MiB": (
            lambda: client.upload(*[b"[" + b"1," * (4 * _MIB - 9) + b"1]\n"] * 4),
            ("not a dictionary",),
        ),
        "objects of 8 MiB": (lambda: client.upload(_wide(), b"[]\n"), ("not a dictionary",)),
        "depth 100,000": (lambda: client.upload(deep), ("levels deep",)),
        "brackets of 8 MiB": (lambda: client.upload(b'{"a":' * (_MIB * 3 // 2)), ("levels deep",)),
        "NaN": (lambda: client.upload(_ROWS, b'{"messages": NaN}\n'), ("NaN",)),
        "boundaries": (lambda: client.upload(*[b"\r\n--" * (_MIB // 4)] * 16), ("is not a dictionary",)),
        "line feeds of 64 MiB": (lambda: client.upload(*[b"\n" * _MIB] * 64), ("file is empty",)),
        "job of depth 100,000": (lambda: client.ask("POST", _JOBS, b"[" * 100_000), ("parse",)),
        "metadata of 70,000 keys": (lambda: client.ask("POST", _JOBS, _metadata()), ("metadata",)),
        "formula of depth 10,000": (
            lambda: client.ask("POST", _GRADERS, {"grader": formula | {"calculate_output": "(" * 10_000}}),
            ("nested", "calculate_output"),
        ),
        "placeholders": (
            lambda: client.ask("POST", _GRADERS, {"grader": _check("{{ item.x }}" * 40_000)}),
            ("more than", "at most"),
        ),
        "keys twice": (
            lambda: client.end_of_job(PLAIN_BASE, _ROWS + b'{"messages": [], "messages": []}\n'),
            ("twice",),
        ),
    }
    for name, (_, words) in TEMPLATES.items():
        found[f"template {name}"] = (lambda name=name: client.end_of_job(name, _ROWS), words)
    return found


def bases(directory: Path) -> Iterator[tuple[str, Path]]:
    """Directories that can be registered, each with a hostile template, and one with an honest one."""
    for name in (PLAIN_BASE, *TEMPLATES):
        base = write_base(directory / name, "chatml")
        save_file({"model.layers.0.mlp.up_proj.weight": np.zeros((8, 8), np.float32)}, str(base / "model.safetensors"))
        (base / "config.json").write_text(json.dumps({"max_position_embeddings": 512}))
        if name in TEMPLATES:
            (base / "chat_template.jinja").write_text(TEMPLATES[name][0])
        yield name, base


def run(url: str, key: str, seconds: float, left_out: Collection[str]) -> dict[str, dict[str, object]]:
    """By attack: how often it was refused with its reason, and the first answer that was another."""
    deadline = time.monotonic() + seconds

    def again_and_again(act: Callable[[], Asked], words: tuple[str, ...]) -> dict[str, object]:
        refused, other = 0, None
        while True:
            status, text = act()
            if 400 <= status < 500 and any(word in text for word in words):
                refused += 1
            else:
                other = f"{status} {text[:300]}"
            if other or time.monotonic() > deadline:
                return {"refused": refused, "other": other}

    every = {name: attack for name, attack in attacks(Client(url, key)).items() if name not in left_out}
    with ThreadPoolExecutor(len(every)) as threads:
        running = {name: threads.submit(again_and_again, act, words) for name, (act, words) in every.items()}
        return {name: done.result() for name, done in running.items()}


def _check(template: str) -> dict[str, object]:
    return {"type": "string_check", "name": "a", "operation": "eq", "input": template, "reference": "x"}


def _wide() -> bytes:
    return b'{"messages": [' + b"{}," * (2 * _MIB) + b"{}]}\n"


def _metadata() -> dict[str, object]:
    return {"model": "x", "training_file": "x", "metadata": {str(i): "" for i in range(70_000)}}


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4:])))
