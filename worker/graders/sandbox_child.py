"""What runs inside the sandbox: its text is handed to an interpreter that sees nothing else of Hone.

Reads one JSON object from stdin (source, sample, item, paths, uid, limits) and writes to what was stdout: the line
`ready` once it has bound itself to its limits, and one JSON object with `reward` or `error`.
"""

import json
import linecache
import math
import numbers
import os
import resource
import sys
import traceback

NAME = "<grader>"
DETAIL_CHARACTERS = 2000


def main() -> None:
    request = json.loads(sys.stdin.buffer.read())
    answer = os.dup(1)
    null = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):  # what a grader prints is nobody's
        os.dup2(null, descriptor)
    bind(request)
    sys.path += request["paths"]
    os.environ.clear()
    os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")  # for libraries that would start threads
    os.write(answer, b"ready\n")
    os.write(answer, json.dumps(grade(request)).encode()[:65536])
    os._exit(0)  # no handler of the grader's delays the end


def bind(request: dict) -> None:
    """For good: another user where we are root, and the limits. One process, one thread, no file that grows."""
    if request["uid"] is not None:
        os.setgroups([])
        os.setgid(request["uid"])
        os.setuid(request["uid"])
    for kind, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_NPROC, 1),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_CPU, request["cpu_seconds"]),
        (resource.RLIMIT_AS, request["memory_bytes"]),
    ):
        resource.setrlimit(kind, (most, most))


def grade(request: dict) -> dict:
    source = request["source"]
    linecache.cache[NAME] = (len(source), None, source.splitlines(keepends=True), NAME)
    try:
        module = {"__name__": "grader", "__builtins__": __builtins__}
        exec(compile(source, NAME, "exec"), module)  # noqa: S102 - what all of this is for
        reward = module["grade"](request["sample"], request["item"])
        if not isinstance(reward, numbers.Real) or not math.isfinite(reward):
            return {"error": f"grade returned {ascii(reward)[:100]}, which is not a finite number"}
        return {"reward": float(reward)}
    except BaseException as error:  # SystemExit as well: it is the grader's end, not ours
        return {"error": describe(error)}


def describe(error: BaseException) -> str:
    try:
        lines = traceback.TracebackException.from_exception(error).format()
        text = "".join(line for line in lines if "<string>" not in line)
    except Exception:  # its own __str__ may fail
        text = type(error).__name__
    return text.strip()[-DETAIL_CHARACTERS:] or type(error).__name__


if __name__ == "__main__":
    main()
