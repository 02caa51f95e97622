"""Pickles of untrusted files: what data need is read as Python reads it.

All else is refused at once, whatever it would do.
"""

import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch

from dymn.data.pickles import read_index, read_npz
from dymn.errors import DataError, WeightsError
from dymn.system.unpickling import FAILURES, MAX_CONTAINERS, Call, Stateful, load
from dymn.weights.torch_files import read_tensors

DATA = {
    "a": [1, -1, 2**31, -(2**40), 1.5, None, True, False],
    "é": (b"x" * 300, "y" * 300, ()),
    "z": {"deep": [[(1,), (1, 2), (1, 2, 3, 4)]]},
}


@pytest.mark.parametrize("protocol", range(3, 6))
def test_data_are_read_as_python_reads_them(protocol):
    assert load(pickle.dumps(DATA, protocol)) == DATA


@pytest.mark.parametrize("protocol", range(3))
def test_old_protocols(protocol):
    data = {"rows": [1, 2.5, 10**20, True, None], "text": "é\n\\u0041", "pair": (1, "x"), "nothing": {}}
    assert load(pickle.dumps(data, protocol)) == data


HOSTILE = {
    "a huge bytearray": b"\x80\x05\x96" + struct.pack("<Q", 2**32) + b".",
    "a huge text": b"X\xff\xff\xff\x7fabc.",
    "huge bytes": b"\x8e" + b"\xff" * 8 + b".",
    "a huge number": b"\x8b\x00\x00\x00\x40" + b"\x01" * 100 + b".",
    "many digits": b"L" + b"9" * 900 + b"L\n.",
    "a line without end": b"L" + b"9" * 5000,
    "a number as a key": b"}K\x01K\x02s.",
    "a set": b"\x8f.",
    "a class": b"cbuiltins\neval\n.",
    "a far place in the memo": b"Nr\xff\xff\xff\x7f.",
    "a place before the memo": b"Np-1\n.",
    "a place that was never written": b"h\x07.",
    "more than there is": b"NR.",
    "a call of data": b"N)R.",
    "a state of data": b"}}b.",
    "a mark as a value": b"(.",
    "a dict for a list": b"}Na.",
    "a value without a key": b"}(Nu.",
    "a later protocol": b"\x80\x09N.",
    "an object": b"c__main__\nX\n)\x81.",
    "nothing": b"",
    "an extension": b"\x82\x01.",
    "a persistent id": b"NQ.",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_all_else_is_refused(content):
    tracemalloc.start()
    with pytest.raises(FAILURES):
        load(content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_containers_are_counted():
    assert load(b"(" + b"]" * 10 + b"t.", max_containers=11) == ([],) * 10
    with pytest.raises(ValueError, match="too many"):
        load(b"(" + b"]" * (MAX_CONTAINERS + 1) + b"t.")


def test_only_functions_are_called_and_only_objects_take_a_state():
    function = Call(list)
    names = {("m", "f"): function, ("m", "v"): 5, ("m", "o"): Call(Stateful)}
    assert load(b"cm\nf\n)R.", names) == []
    assert isinstance(load(b"cm\no\n)R}b.", names), Stateful)
    for content in (b"cm\nv\n)R.", b"cm\nf\n}b.", b"cm\nf\n(NtR.", b"cm\nf\n]R."):
        with pytest.raises(FAILURES):
            load(content, names)
    assert function.make() == []


def torch_file(path, index, storage=bytes(16)):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", index)
        archive.writestr("a/data/0", storage)
    return path


def test_functions_cannot_be_changed_by_a_file(tmp_path):
    path = torch_file(tmp_path / "a.pt", b"ctorch._utils\n_rebuild_tensor_v2\n}U\x04makeNsb.")
    with pytest.raises(WeightsError, match="It was not executed"):
        read_tensors(path)
    torch.save({"a": torch.ones(2, 3)}, tmp_path / "b.pt")
    assert read_tensors(tmp_path / "b.pt")["a"].tolist() == [[1, 1, 1], [1, 1, 1]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64])
def test_tensors_of_each_type_and_layout(tmp_path, dtype):
    whole = (torch.arange(-60, 60).reshape(4, 5, 6) / 7).to(dtype)
    tensors = {
        "whole": whole,
        "turned": whole.transpose(0, 2),
        "part": whole[1:, ::2],
        "one": whole.sum(),
        "none": whole[:0],
    }
    torch.save(tensors, tmp_path / "a.pt")
    found = read_tensors(tmp_path / "a.pt")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].shape == tuple(tensor.shape)
        assert np.array_equal(found[name], (tensor.float() if dtype == torch.bfloat16 else tensor).numpy())


def test_an_index_of_another_kind(tmp_path):
    path = tmp_path / "index.pkl"
    path.write_bytes(b"}(" + b"".join(b"J" + struct.pack("<i", i * 7) + b"K\x01" for i in range(5)) + b"u.")
    with pytest.raises(DataError, match="a dict with a int as a key"):
        read_index(path)


def npz(path, **members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def npy(descr, shape, content=b""):
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


@pytest.mark.parametrize(
    "content",
    [
        npy("<U0", (2**40,)),
        npy("<f4", (2**40,)),
        npy("<f4", (2,), bytes(4)),
        npy("|O", (1,), b"\x80\x05\x96" + struct.pack("<Q", 2**32) + b"."),
        npy(
            "|O",
            (10_000,),
            b"cnumpy.core.multiarray\n_reconstruct\n)R(K\x01NNN]X\x00\x10\x00\x00"
            + b"a" * 4096
            + b"q\x00a"
            + b"h\x00a" * 9999
            + b"tb.",
        ),
    ],
    ids=[
        "letters of no size",
        "more than there is",
        "less than there is",
        "a huge bytearray",
        "one long text many times",
    ],
)
def test_arrays_that_claim_more_than_they_are(tmp_path, content):
    path = npz(tmp_path / "a.npz", x=content)
    tracemalloc.start()
    with pytest.raises(DataError):
        read_npz(path, ("x",))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_arrays_of_text(tmp_path):
    texts = np.array([["a", "bc"], ["d", "é"]], object)
    np.savez(tmp_path / "a.npz", x=texts, y=np.arange(3))
    found = read_npz(tmp_path / "a.npz", ("x", "y"))
    assert found["x"].tolist() == texts.tolist() and found["y"].tolist() == [0, 1, 2]
