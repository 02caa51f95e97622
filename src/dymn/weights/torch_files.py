"""Files of `torch.save`, read without executing the pickle inside, and without PyTorch's own unpickler.

Such a file is a zip archive: `NAME/data.pkl` says which tensors there are, of what shape, and where in `NAME/data/KEY` their
numbers lie. PyTorch reads it, too (`torch.load(..., weights_only=True)`), but in several of its versions a file could make that
run code or overwrite memory. Here a pickle can name nothing but tensors, and no tensor reaches beyond the bytes that are there.
"""

from __future__ import annotations

import math
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from dymn.errors import WeightsError
from dymn.system.unpickling import ARCHIVE_FAILURES, FAILURES, Plain

MAX_FILE = 2**31
MAX_PICKLE = 2**26
TYPES = {
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
}


class _Type(NamedTuple):
    dtype: torch.dtype


class _Storage(NamedTuple):
    """Where numbers lie: the name of a member of the archive, and how many of them there are."""

    dtype: torch.dtype
    member: str
    numel: int


class _Strided(NamedTuple):
    """A tensor: its place in a storage, not yet read."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Mapping(dict[str, Any]):
    """Stands in for an OrderedDict; attributes, in which modules keep their versions, are left out."""

    def __setstate__(self, state: object) -> None:
        pass


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a state dict by name, as they are stored.

    Raises:
        WeightsError: if the file is missing, is no such file, is larger than `MAX_FILE`, or holds anything else than tensors by name.
    """
    if not path.is_file():
        raise WeightsError(f"There is no file {path}. Give the path of a checkpoint.")
    try:
        with path.open("rb") as file:
            return dict(_tensors(file))
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (*FAILURES, *ARCHIVE_FAILURES) as error:
        raise WeightsError(
            f"{path} is not a plain state dict saved by torch.save, or is damaged: {error}. It was not executed; ask for a file with "
            "nothing but tensors by name, written by PyTorch 1.6 or newer."
        ) from error


def _tensors(file: BinaryIO) -> Iterator[tuple[str, Tensor]]:
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: info for info in archive.infolist()}
        size = file.seek(0, 2)
        if size > MAX_FILE or sum(info.file_size for info in members.values()) > size:
            raise ValueError(f"it unpacks to more than it is, or than {MAX_FILE:,} bytes")
        index = next((name for name in members if name.endswith("/data.pkl")), "data.pkl")
        folder = index.removesuffix("data.pkl")
        if members[index].file_size > MAX_PICKLE:
            raise ValueError(f"{index} has more than {MAX_PICKLE:,} bytes")
        order = f"{folder}byteorder"
        if order in members and archive.read(order) != b"little":
            raise ValueError("its byte order is not little")
        with archive.open(index) as content:
            state = _Index(content, folder).load()
        if not isinstance(state, dict):
            raise ValueError("it is no state dict")
        storages: dict[str, bytearray] = {}
        left = 2 * size  # tensors may share numbers, but not without end
        for name, tensor in state.items():
            if not isinstance(name, str) or not isinstance(tensor, _Strided):
                raise ValueError(f"{name!s:.200} is no tensor")
            left -= math.prod(tensor.shape) * tensor.storage.dtype.itemsize
            if left < 0:
                raise ValueError("its tensors hold more than twice what is there")
            member = tensor.storage.member
            if member not in storages:
                storages[member] = bytearray(archive.read(member))
            yield name, _tensor(storages[member], tensor)


def _tensor(content: bytearray, tensor: _Strided) -> Tensor:
    (dtype, member, numel), offset, shape, stride = tensor
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    count = math.prod(shape)
    if len(content) != numel * dtype.itemsize or count > numel or (count and last >= numel):
        raise ValueError(f"a tensor of {list(shape)} does not lie in {member}")
    if not count:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(content, dtype=dtype).as_strided(shape, stride, offset)


class _Index(Plain):
    """Builds tensors as `_Strided`, of which nothing has been read."""

    def __init__(self, file: Any, folder: str) -> None:
        super().__init__(file)
        self._folder = folder

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in TYPES:
            return _Type(TYPES[name])
        if (module, name) not in _CALLS:
            return super().find_class(module, name)
        return _CALLS[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, numbers, key, _, numel = pid
        if kind != "storage" or not isinstance(numbers, _Type) or not isinstance(key, str) or not _whole(numel):
            raise pickle.UnpicklingError("it names a storage as PyTorch does not")
        return _Storage(numbers.dtype, f"{self._folder}data/{key}", numel)


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, requires_grad: Any, hooks: Any, metadata: Any = None) -> _Strided:
    whole = isinstance(shape, tuple) and isinstance(stride, tuple) and len(shape) == len(stride) <= 8
    if not isinstance(storage, _Storage) or not whole or not all(map(_whole, (offset, *shape, *stride))):
        raise pickle.UnpicklingError("it describes a tensor as PyTorch does not")
    return _Strided(storage, offset, shape, stride)


def _rebuild_parameter(tensor: Any, requires_grad: Any, hooks: Any) -> Any:
    return tensor


def _new_mapping() -> _Mapping:
    return _Mapping()


def _whole(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**62


_CALLS = {
    ("collections", "OrderedDict"): _new_mapping,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
}
