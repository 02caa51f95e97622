"""Reading of `torch.save` files without PyTorch and without executing the pickle inside.

Such a file is a zip archive: `NAME/data.pkl` lists the tensors with their shapes and places in `NAME/data/KEY`. dymn
has this one reader for them, whether PyTorch is installed or not: weights load without it, and the safety of loading
does not depend on its version (`torch.load(..., weights_only=True)` could be made to run code before PyTorch 2.6). A
pickle can name nothing but tensors here, and no tensor reaches beyond the bytes of the file.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dymn.errors import WeightsError
from dymn.system.arrays import Array
from dymn.system.unpickling import ARCHIVE_FAILURES, FAILURES, Call, Stateful, load
from dymn.weights.files import WeightsFile, read_file
from dymn.weights.format import from_bfloat16

MAX_PICKLE = 2**26
MAX_DIMENSIONS = 8
TYPES: dict[str, np.dtype[Any]] = {
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(np.uint16),  # the upper half of a float32
    "FloatStorage": np.dtype(np.float32),
    "DoubleStorage": np.dtype(np.float64),
    "LongStorage": np.dtype(np.int64),
}


class _Storage(NamedTuple):
    """The place of numbers: the name of a member of the archive, how many of them there are, and of what type."""

    kind: str  # a key of TYPES
    member: str
    numel: int


class _Strided(NamedTuple):
    """A tensor: its place in a storage, not yet read."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Mapping(dict[str, Any], Stateful):
    """Stands for an OrderedDict; its attributes, in which modules keep their versions, are ignored."""


class _Kind(NamedTuple):
    """Stands for a type of storage."""

    name: str


def read_tensors(source: Path | WeightsFile) -> dict[str, Array]:
    """Return the tensors of a state dict by name, as they are stored; those in bfloat16 come in float32.

    Raises:
        WeightsError: if the file cannot be read, was not written by `torch.save`, or holds anything but tensors by
            name.
    """
    path, _, _, content = source if isinstance(source, WeightsFile) else read_file(source)
    try:
        return dict(_tensors(content))
    except (*FAILURES, *ARCHIVE_FAILURES) as error:
        raise WeightsError(
            f"{path} is not a plain state dict saved by torch.save, or is damaged: {error}. It was not executed. The "
            "file must contain only named tensors and be written by PyTorch 1.6 or newer."
        ) from error


def _tensors(content: bytes) -> Iterator[tuple[str, Array]]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {info.filename: info for info in archive.infolist()}
        if sum(info.file_size for info in members.values()) > len(content):
            raise ValueError("it decompresses to more than its size")
        index = next((name for name in members if name.endswith("/data.pkl")), "data.pkl")
        folder = index.removesuffix("data.pkl")
        if members[index].file_size > MAX_PICKLE:
            raise ValueError(f"{index} has more than {MAX_PICKLE:,} bytes")
        order = f"{folder}byteorder"
        if order in members and archive.read(order) != b"little":
            raise ValueError("its byte order is not little-endian")
        state = load(archive.read(index), _GLOBALS, lambda pid: _storage(pid, folder))
        if not isinstance(state, dict):
            raise ValueError("it is not a state dict")
        storages: dict[str, bytes] = {}
        left = 2 * len(content)  # tensors may share numbers, but not without end
        for name, tensor in state.items():
            if not isinstance(tensor, _Strided):
                raise ValueError(f"{name:.200} is not a tensor")
            left -= math.prod(tensor.shape) * TYPES[tensor.storage.kind].itemsize
            if left < 0:
                raise ValueError("its tensors contain more than twice the bytes of the file")
            member = tensor.storage.member
            if member not in storages:
                storages[member] = archive.read(member)
            yield name, _array(storages[member], tensor)


def _array(content: bytes, tensor: _Strided) -> Array:
    """Return a tensor as a contiguous array."""
    (kind, member, numel), offset, shape, stride = tensor
    dtype = TYPES[kind]
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    count = math.prod(shape)
    if len(content) != numel * dtype.itemsize or count > numel or (count and last >= numel):
        raise ValueError(f"a tensor of {list(shape)} does not fit {member}")
    if count:
        flat = np.frombuffer(content, dtype)[offset:]
        steps = [step * dtype.itemsize for step in stride]
        values = np.ascontiguousarray(np.lib.stride_tricks.as_strided(flat, shape, steps, writeable=False)).reshape(
            shape
        )
    else:
        values = np.empty(shape, dtype)
    return from_bfloat16(values) if kind == "BFloat16Storage" else values


def _storage(pid: Any, folder: str) -> _Storage:
    kind, numbers, key, _, numel = pid
    if kind != "storage" or not isinstance(numbers, _Kind) or type(key) is not str or not _is_size(numel):
        raise ValueError("it refers to a storage in an unknown way")
    return _Storage(numbers.name, f"{folder}data/{key}", numel)


def _rebuild_tensor(
    storage: Any, offset: Any, shape: Any, stride: Any, requires_grad: Any, hooks: Any, metadata: Any = None
) -> _Strided:
    fits = type(shape) is type(stride) is tuple and len(shape) == len(stride) <= MAX_DIMENSIONS
    if not isinstance(storage, _Storage) or not fits or not all(map(_is_size, (offset, *shape, *stride))):
        raise ValueError("it describes a tensor in an unknown way")
    return _Strided(storage, offset, shape, stride)


def _rebuild_parameter(tensor: Any, requires_grad: Any, hooks: Any) -> Any:
    return tensor


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**62


_GLOBALS: dict[tuple[str, str], Any] = {
    **{("torch", name): _Kind(name) for name in TYPES},
    ("collections", "OrderedDict"): Call(lambda: _Mapping()),
    ("torch._utils", "_rebuild_tensor_v2"): Call(_rebuild_tensor),
    ("torch._utils", "_rebuild_parameter"): Call(_rebuild_parameter),
}
