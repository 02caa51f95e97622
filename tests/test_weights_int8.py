"""Weights in 8 bits: how near they come, how small the file is, and files that lie about it."""

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from typer.testing import CliRunner

from dymn import Tagger
from dymn.cli import app
from dymn.errors import ConfigError, WeightsError
from dymn.system.arrays import LEAST_IN_8_BITS
from dymn.weights import convert, open_checkpoint
from dymn.weights.format import LARGEST, SCALE, _in_8_bits, read, serialise


@given(arrays(np.float32, array_shapes(min_dims=2, max_dims=5, max_side=6), elements=st.floats(-100, 100, width=32)))
@settings(max_examples=60, deadline=None)
def test_every_weight_is_within_half_a_step_of_its_channel(values):
    (_, whole), (_, scale) = _in_8_bits(values)
    axes = tuple(range(max(1, values.ndim - 3), values.ndim))
    step = np.abs(values).max(axis=axes, keepdims=True) / LARGEST
    assert whole.shape == values.shape and np.abs(whole.astype(int)).max(initial=0) <= LARGEST
    assert (np.abs(whole * scale - values) <= 0.5001 * step + 1e-30).all()


def test_the_shipped_model_in_8_bits_tags_alike(tmp_path, monkeypatch):
    path = tmp_path / "small.safetensors"
    done = CliRunner().invoke(app, ["convert", "dymn04_open", str(path), "--int8"])
    assert done.exit_code == 0 and "sha256" in done.stdout
    assert path.stat().st_size < 2.4e6
    whole, small = open_checkpoint("dymn04_open"), open_checkpoint(path)
    assert small.config == whole.config and small.card.labels == whole.card.labels
    assert set(small.state) == set(whole.state)
    for name, values in whole.state.items():
        assert small.state[name].dtype == values.dtype and small.state[name].shape == values.shape
        if values.ndim < 2 or values.size < LEAST_IN_8_BITS:
            np.testing.assert_allclose(small.state[name], values, rtol=1e-3, atol=1e-7, err_msg=name)
    everything = tmp_path / "everything.safetensors"
    monkeypatch.setattr("dymn.weights.format.LEAST_IN_8_BITS", 0)
    convert("dymn04_open", everything, int8=True)
    rng = np.random.default_rng(0)
    t = np.arange(320_000) / 32_000
    sounds = [rng.normal(size=t.size) * 0.1, np.sin(2 * np.pi * 440 * t) * (t % 1 < 0.5), np.sin(900 * t**2) * 0.3]
    waveforms = np.stack(sounds).astype(np.float32)
    exact, near, far = (
        Tagger.from_pretrained(source).probabilities(waveforms).astype(np.float64)
        for source in ("dymn04_open", path, everything)
    )
    assert np.abs(near - exact).max() < 0.02 and np.array_equal(near.argmax(axis=1), exact.argmax(axis=1))
    errors = [np.sqrt(np.mean((log_odds(found) - log_odds(exact)) ** 2)) for found in (near, far)]
    # 0.042 and 0.216: small arrays in half precision are worth their size.
    assert errors[0] < 0.05 and errors[0] < errors[1] / 4


def log_odds(p):
    return np.log(p) - np.log1p(-p)


def test_one_precision_at_a_time(tmp_path):
    with pytest.raises(ConfigError, match="one precision"):
        convert("dymn04_open", tmp_path / "x.safetensors", half=True, int8=True)


@pytest.mark.parametrize("scale", [None, (3, 1, 1, 1), (1, 1)])
def test_a_file_whose_scales_do_not_fit_is_damaged(tmp_path, scale):
    path = tmp_path / "x.safetensors"
    convert("dymn04_open", path, int8=True)
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    metadata = header.pop("__metadata__")
    types = {"I8": np.int8, "F32": np.float32, "F16": np.float16, "I64": np.int64}
    entries = {
        name: (
            e["dtype"],
            np.frombuffer(content[8 + size :][slice(*e["data_offsets"])], types[e["dtype"]]).reshape(e["shape"]),
        )
        for name, e in header.items()
    }
    name = "blocks.14.project.conv.weight" + SCALE
    entries.pop(name)
    if scale is not None:
        entries[name] = "F32", np.ones(scale, np.float32)
    path.write_bytes(serialise(entries, metadata))
    with pytest.raises(WeightsError, match=re.escape("is damaged")):
        read(path)
