"""ONNX files of strangers: what dymn refuses before ONNX Runtime sees it."""

import os

import numpy as np
import pytest

pytest.importorskip("onnx", reason="onnx is not installed")

import onnx
from onnx import TensorProto, helper, numpy_helper

from dymn.errors import WeightsError
from dymn.runtime.onnx_backend import OnnxBackend
from dymn.runtime.onnx_files import MAX_FIELDS, MAX_FILE, check_onnx
from dymn.weights.files import read_file


def external(name="w"):
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "../../etc/passwd"), ("offset", "0"), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def graph(nodes=(), initializers=(), sparse=()):
    wave = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])
    made = helper.make_graph(
        list(nodes) or [helper.make_node("Identity", ["x"], ["y"])], "g", [wave], [], list(initializers)
    )
    made.sparse_initializer.extend(sparse)
    return made


def constant(tensor):
    return helper.make_node("Constant", [], ["c"], value=tensor)


def branch(inner):
    node = helper.make_node("If", ["x"], ["y"])
    node.attribute.append(helper.make_attribute("then_branch", inner))
    return node


def function(node):
    return helper.make_function("own", "f", [], [], [node], [helper.make_opsetid("", 13)])


def model(whole, **more):
    return helper.make_model(whole, **more).SerializeToString()


HOLDERS = {
    "an initializer": lambda: model(graph(initializers=[external()])),
    "a constant": lambda: model(graph([constant(external())])),
    "a branch": lambda: model(graph([branch(graph(initializers=[external()]))])),
    "a branch of a branch": lambda: model(graph([branch(graph([branch(graph([constant(external())]))]))])),
    "a sparse tensor": lambda: model(
        graph(sparse=[onnx.SparseTensorProto(values=external(), indices=external("i"), dims=[4])])
    ),
    "a function": lambda: model(graph(), functions=[function(constant(external()))]),
    "a second graph, which protobuf adds to the first": lambda: (
        model(graph()) + model(graph(initializers=[external()]))
    ),
    "a place without the word for it": lambda: model(graph(initializers=[_unsaid()])),
}


def _unsaid():
    tensor = external()
    tensor.ClearField("data_location")
    return tensor


@pytest.mark.parametrize("where", HOLDERS)
def test_numbers_in_other_files_are_refused(where):
    with pytest.raises(WeightsError, match="its weights are in another file"):
        check_onnx(HOLDERS[where](), "x.onnx")


def test_onnxruntime_is_not_asked(tmp_path, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: pytest.fail("it was asked"))
    (tmp_path / "x.onnx").write_bytes(HOLDERS["an initializer"]())
    with pytest.raises(WeightsError, match="another file"):
        OnnxBackend(tmp_path / "x.onnx", 1)


def test_numbers_of_its_own_are_allowed():
    own = numpy_helper.from_array(np.ones(4, np.float32), "w")
    check_onnx(
        model(graph([constant(own), branch(graph([constant(own)]))], [own]), functions=[function(constant(own))]),
        "x.onnx",
    )


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "it has no graph"),
        (b"\x08\x08", "it has no graph"),
        (b"\x1c\0\0\0ORTM" + bytes(50), "own format"),
        (b"\x3a\x05\x0a\x7f", "ends within a field"),
        (b"\x3a" + b"\xff" * 11, "an incomplete number"),
        (b"\xff\xff\xff\xff\xff\xff\xff\x7f\0", "a field has an invalid number"),
        (b"\x3b", "a field has the unsupported type 3"),
        (b"\x08\0" * (MAX_FIELDS + 1), "more than"),
        (b"\x38\x01", "an unexpected type"),
        (model(graph()) + b"\x07", "a field has the unsupported type 7"),
    ],
)
def test_what_is_no_such_message_is_refused(content, says):
    with pytest.raises(WeightsError, match=says):
        check_onnx(content, "x.onnx")


def test_graphs_within_graphs_have_an_end():
    inner = graph()
    for _ in range(20):
        inner = graph([branch(inner)])
    with pytest.raises(WeightsError, match="nested too deeply"):
        check_onnx(model(inner), "x.onnx")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names here")
def test_what_never_ends_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.onnx")
    (tmp_path / "zero.onnx").symlink_to("/dev/zero")
    with (tmp_path / "vast.onnx").open("wb") as file:
        file.truncate(2**40)
    for name in ("pipe", "zero", "vast"):
        with pytest.raises(WeightsError, match=r"it is not a regular file|at most"):
            read_file(tmp_path / f"{name}.onnx", MAX_FILE)
