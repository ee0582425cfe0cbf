"""The headers of safetensors files: names, types and shapes of their tensors, without reading any of these."""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path

_MAX_HEADER_BYTES = 100 * 1024**2
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1} | {
    **{f"{sign}{8 * size}": size for sign in "IU" for size in (1, 2, 4, 8)},
    "BOOL": 1,
}


class NotSafetensors(ValueError):
    """The file is not what its name says."""


@dataclass(frozen=True)
class TensorHeader:
    """`start` is the place of the first of `bytes` bytes in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    bytes: int


def read(path: Path) -> dict[str, TensorHeader]:
    """All tensors of a file by name. OSError, or NotSafetensors: an 8-byte length, then a JSON header."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            raw = file.read(length) if length <= min(size, _MAX_HEADER_BYTES) else b""
        header = json.loads(raw, object_pairs_hook=_each_once)
        found = {name: _tensor(entry, 8 + length) for name, entry in header.items() if name != "__metadata__"}
    except (struct.error, ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise NotSafetensors(f"{path} is not a safetensors file") from error
    for name, tensor in found.items():
        expected = math.prod(tensor.shape) * _BYTES.get(tensor.dtype, 0)
        if tensor.start + tensor.bytes > size or (expected and expected != tensor.bytes):
            raise NotSafetensors(f"{path} is damaged: it does not hold all of {name[:200]!r}")
    return found


def _each_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Of two tensors under one name readers take different ones."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands there twice")
    return found


def _tensor(entry: dict[str, object], data_start: int) -> TensorHeader:
    shape, offsets, dtype = entry["shape"], entry["data_offsets"], entry["dtype"]
    if not isinstance(shape, list) or not isinstance(offsets, list) or not isinstance(dtype, str):
        raise TypeError
    if not all(type(number) is int and number >= 0 for number in [*shape, *offsets]):
        raise TypeError
    start, end = offsets
    if end < start:
        raise ValueError
    return TensorHeader(dtype, tuple(shape), data_start + start, end - start)
