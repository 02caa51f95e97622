"""Files with weights: safetensors, PyTorch's own, ONNX; and networks described in TOML or JSON."""

from __future__ import annotations

import functools
import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from dymn import Tagger
from dymn.config import BlockConfig, FrontEndConfig, ModelCard, ModelConfig
from dymn.models import pretrained
from dymn.models.mobilenet import MobileNet
from dymn.profiling.networks import resolve
from dymn.training.recipe import load_recipe
from dymn.training.settings import TrainConfig
from dymn.weights import import_efficientat, load_model
from dymn.weights.torch_files import read_tensors
from fuzz import inputs

SECOND = np.zeros(8000, np.float32)
PUBLISHED = Path(__file__).parents[3] / "shared" / "fixtures" / "mn_w01" / "state_dict.pt"


def tiny() -> MobileNet:
    """Return a network of one dynamic block, whose file takes 20 kB."""
    block = BlockConfig(8, 16, 8, 3, 1, "hardswish", BlockConfig.POSITIONS, ("depthwise",), "ca", context_size=8)
    model = MobileNet(ModelConfig(0.1, (block,), c_last=16, c_hidden=8, num_classes=3)).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.3, generator)
    front_end = FrontEndConfig(sample_rate=8000, n_fft=256, win_length=200, hop_length=80, n_mels=16, f_max=4000.0)
    model.card = ModelCard("tiny", front_end, ("Dog", "Rain", "Siren"), "MIT", {"mAP": 0.5}, {"from": "a test"})
    return model


@functools.cache
def safetensors() -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.safetensors"
        pretrained.save(tiny(), path)
        return path.read_bytes()


def packed(header: Any, data: bytes) -> bytes:
    text = inputs.dumped(header)
    return struct.pack("<Q", len(text)) + text + data


def safetensors_cases() -> st.SearchStrategy[bytes]:
    """Return edited files: any byte, the header, or what its metadata says of the network."""
    content = safetensors()
    size = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    description = json.loads(header["__metadata__"]["dymn"])

    def described(value: Any) -> bytes:
        text = value if isinstance(value, str) else json.dumps(value)
        return packed({**header, "__metadata__": {"dymn": text}}, data)

    by_byte = inputs.variants({"model": content}).map(lambda case: case[1])
    return st.one_of(
        by_byte,
        inputs.changed(header).map(lambda value: packed(value, data)),
        inputs.changed(description).map(described),
        st.sampled_from((inputs.deep(100_000), inputs.deep(900), '{"format": 1e999}', '{"format": NaN}')).map(
            described
        ),
    )


def load(content: bytes, folder: Path) -> bool:
    path = folder / "case.safetensors"
    path.write_bytes(content)
    model = load_model(path)
    if model.card.front_end.hop_length >= 40:  # else a second is a picture of any size
        Tagger(model, "cpu").tag(SECOND, sample_rate=8000)
    return True


@functools.cache
def state_dict() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = {f"layers.{i}.weight": torch.randn(3, 4, generator=generator) for i in range(3)}
    return tensors | {
        "half": torch.ones(2, dtype=torch.float16),
        "counter": torch.tensor(5),
        "part": torch.arange(9.0)[::2],
    }


@functools.cache
def torch_files() -> dict[str, bytes]:
    """Return files by PyTorch: as now, with deflated members, and as before version 1.6."""
    files = {}
    for name, settings in {"zip": {}, "old": {"_use_new_zipfile_serialization": False}}.items():
        file = io.BytesIO()
        torch.save(state_dict(), file, **settings)
        files[name] = file.getvalue()
    return files


def torch_cases() -> st.SearchStrategy[bytes]:
    """Return edited files: any byte, or those of one member of the archive, or its pickle made of instructions as they
    come.
    """
    with zipfile.ZipFile(io.BytesIO(torch_files()["zip"])) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    name = next(name for name in members if name.endswith("data.pkl"))

    def zipped(change: tuple[str, bytes] | bytes, deflate: bool) -> bytes:
        changes = {name: change} if isinstance(change, bytes) else dict([change])
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED) as archive:
            for member, content in (members | changes).items():
                archive.writestr(member, content)
        return file.getvalue()

    pickle = st.one_of(inputs.pickles(), inputs.variants({name: members[name]}), inputs.variants(members))
    return st.one_of(
        inputs.variants(torch_files()).map(lambda case: case[1]),
        st.builds(zipped, pickle, st.integers(0, 3).map(lambda n: n == 0)),
    )


def load_torch(content: bytes, folder: Path) -> bool:
    path = folder / "case.pt"
    path.write_bytes(content)
    read_tensors(path)
    return True


def published_cases() -> st.SearchStrategy[dict[str, Tensor]]:
    """Return a published state dict in which some tensors have another shape, or are missing or new."""
    state = {name: torch.tensor(values) for name, values in read_tensors(PUBLISHED).items()}
    shape = st.lists(st.sampled_from((0, 1, 2, 3, 5, 16)), max_size=5)
    change = st.tuples(
        st.sampled_from(sorted(state)), st.sampled_from(("shape", "shape", "drop", "rename")), shape, inputs.texts
    )

    def make(changes: list[Any]) -> dict[str, Tensor]:
        case = dict(state)
        for name, kind, sizes, text in changes:
            value = case.pop(name, None)
            if kind == "shape":
                case[name] = torch.ones(sizes)
            elif kind == "rename" and value is not None:
                case[text] = value
        return case

    return st.lists(change, min_size=1, max_size=3).map(make)


def import_published(case: dict[str, Tensor], folder: Path) -> bool:
    import_efficientat(case)
    return True


DESCRIPTION = {"card": {"name": "loudness", "labels": ["loud", "quiet"]}, "input": "waveform", "seconds": None}


@functools.cache
def onnx_model(outputs: tuple[str, ...] = ("probabilities", "logits", "embedding")) -> Any:
    import onnx
    from onnx import TensorProto, helper

    wave = helper.make_tensor_value_info("waveform", TensorProto.FLOAT, ["batch", "samples"])
    nodes = [
        helper.make_node("Abs", ["waveform"], ["size"]),
        helper.make_node("ReduceMean", ["size"], ["loud"], axes=[1], keepdims=1),
    ]
    nodes += [helper.make_node("Neg", ["loud"], ["quiet"])]
    nodes += [helper.make_node("Concat", ["loud", "quiet"], [name], axis=1) for name in outputs]
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in outputs]
    graph = helper.make_graph(nodes, "tiny", [wave], infos)
    return onnx.helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def with_metadata(
    text: str, external: bool = False, outputs: tuple[str, ...] = ("probabilities", "logits", "embedding")
) -> bytes:
    """Return a model with a description, and, if that is wanted, a tensor whose numbers lie in another file."""
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(onnx_model(outputs))
    if external:
        tensor = model.graph.initializer.add(name="w", data_type=1, dims=[4], data_location=onnx.TensorProto.EXTERNAL)
        for key, value in (("location", "/etc/passwd"), ("offset", "0"), ("length", "16")):
            tensor.external_data.add(key=key, value=value)
    onnx.helper.set_model_props(model, {"dymn": text})
    content: bytes = model.SerializeToString()
    return content


def onnx_cases() -> st.SearchStrategy[bytes]:
    texts = st.one_of(
        inputs.changed(DESCRIPTION).map(json.dumps), st.sampled_from((inputs.deep(100_000), "", "null", "[" * 50))
    )
    by_byte = inputs.variants({"onnx": with_metadata(json.dumps(DESCRIPTION))}).map(lambda case: case[1])
    elsewhere = inputs.variants({"external": with_metadata(json.dumps(DESCRIPTION), external=True)}).map(
        lambda case: case[1]
    )
    right = st.sampled_from((("probabilities", "logits", "embedding"), ("probabilities", "embedding"))).map(
        lambda outputs: with_metadata(json.dumps(DESCRIPTION), outputs=outputs)
    )
    return st.one_of(by_byte, texts.map(with_metadata), elsewhere, right)


def load_onnx(content: bytes, folder: Path) -> bool:
    path = folder / "case.onnx"
    path.write_bytes(content)
    Tagger.from_onnx(path, threads=1).tag(np.zeros(32_000, np.float32), sample_rate=32_000)
    return True


def recipe_cases() -> st.SearchStrategy[tuple[str, bytes, list[str]]]:
    recipes = Path(__file__).parents[2] / "src" / "dymn" / "recipes"
    files = {path.name: path.read_bytes() for path in recipes.glob("*.toml")}
    files |= {"network.json": json.dumps({"model": {"name": "dymn10", "width": 0.5, "strides": [2, 2, 2, 1]}}).encode()}
    value = st.one_of(
        inputs.scalars.map(json.dumps),
        st.sampled_from(("1e400", "1e300", "0x" + "f" * 5000, "2026-01-01", "[[]]", "{a={b=1}}", "inf", "nan")),
    )
    settings = [f"{section}.{name}" for section, kind in TrainConfig.NESTED.items() for name in vars(kind())]
    keys = st.sampled_from(
        (*settings, "model.settings.width", "model.settings.h_max", "data.options.labels", "x", "a.b.c")
    )
    assignment = st.builds(lambda key, text: f"{key}={text}", keys, value)
    config = inputs.changed(
        {"model": {"width": 1.0, "strides": [2, 2, 2, 2], "dynamic_blocks": [1, 2], "attention": "ca", "n_kernels": 4}}
    )
    return st.one_of(
        st.tuples(inputs.variants(files), st.lists(assignment, max_size=2)).map(lambda case: (*case[0], case[1])),
        st.tuples(st.sampled_from(sorted(files.items())), st.lists(assignment, min_size=1, max_size=2)).map(
            lambda case: (*case[0], case[1])
        ),
        config.map(lambda value: ("network.json", inputs.dumped(value), [])),
        st.just(("network.json", inputs.deep(100_000).encode(), [])),
        st.just(("fine_tune.toml", b"a = " + inputs.deep(100_000).encode(), [])),
    )


def read_recipe(case: tuple[str, bytes, list[str]], folder: Path) -> bool:
    name, content, assignments = case
    path = folder / name
    path.write_bytes(content)
    if path.suffix == ".json":
        resolve(path)
        return True
    config = load_recipe(f"{path}:dymn10" if b"[variants." in content else path, assignments)
    assert config is not None
    return True


WAYS: dict[str, tuple[Callable[[], st.SearchStrategy[Any]], Callable[[Any, Path], bool]]] = {
    "safetensors": (safetensors_cases, load),
    "torch": (torch_cases, load_torch),
    "state-dict": (published_cases, import_published),
    "onnx": (onnx_cases, load_onnx),
    "recipes": (recipe_cases, read_recipe),
}
"""What draws cases, and what takes them, by the name of the way in."""
