"""What runs inside the sandbox: its text is handed to an interpreter that sees nothing else of Hone.

Reads one JSON object from stdin (source, sample, item, paths, uid, limits) and writes to what was stdout: the line
`ready` once it has bound itself to its limits, and one JSON object with `reward` or `error`.
"""

import ctypes
import json
import linecache
import math
import numbers
import os
import resource
import struct
import sys
import traceback

NAME = "<grader>"
DETAIL_CHARACTERS = 2000

# System calls that no grader needs, by machine: after AUDIT_ARCH, memory outside of the limits (shmget, msgget,
# semget, mq_open, memfd_create, memfd_secret), other name spaces (unshare, setns, mount, umount2, pivot_root, chroot),
# doors into the kernel (ptrace, process_vm_readv, process_vm_writev, keyctl, add_key, request_key, bpf, userfaultfd,
# perf_event_open, open_by_handle_at, kexec_load, init_module, finit_module, io_uring's three), and sockets of any kind
# (socket; the pairs of socketpair lead nowhere).
IO_URING = (425, 426, 427)
DENIED = {
    "x86_64": (
        *(0xC000003E, 29, 68, 64, 240, 319, 447, 272, 308, 165, 166, 155, 161, 101, 310, 311, 250, 248, 249, 321, 323),
        *(41, 298, 304, 246, 175, 313, *IO_URING),
    ),
    "aarch64": (
        *(0xC00000B7, 194, 186, 190, 180, 279, 447, 97, 268, 40, 39, 41, 51, 117, 270, 271, 219, 217, 218, 280, 282),
        *(198, 241, 265, 104, 105, 273, *IO_URING),
    ),
}


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
    if machine := DENIED.get(os.uname().machine):
        deny(*machine)


class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.c_char_p)]


def deny(architecture: int, *calls: int) -> None:
    """A seccomp filter: these calls fail with EPERM, and those of another architecture end the process."""
    load, equal, at_least, answer = 0x20, 0x15, 0x35, 0x06
    allowed, refused, killed = 0x7FFF0000, 0x00050001, 0x80000000

    def step(code: int, value: int, skip_if: int = 0, skip_else: int = 0) -> bytes:
        return struct.pack("=HBBI", code, skip_if, skip_else, value)

    steps = [step(load, 4), step(equal, architecture, 1), step(answer, killed), step(load, 0)]
    steps += [step(at_least, 0x40000000, 0, 1), step(answer, refused)]  # x86's second set of numbers
    for call in calls:
        steps += [step(equal, call, 0, 1), step(answer, refused)]
    steps.append(step(answer, allowed))
    program = Program(len(steps), b"".join(steps))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(22, ctypes.c_ulong(2), ctypes.byref(program), ctypes.c_ulong(0), ctypes.c_ulong(0)):
        raise OSError(ctypes.get_errno(), "seccomp")


def grade(request: dict) -> dict:
    source = request["source"]
    linecache.cache[NAME] = (len(source), None, source.splitlines(keepends=True), NAME)
    try:
        module = {"__name__": "grader", "__builtins__": __builtins__}
        exec(compile(source, NAME, "exec"), module)  # noqa: S102 - what all of this is for
        if "grade" not in module:
            return {"error": "The source must define a function grade(sample, item)."}
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
