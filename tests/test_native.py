"""Compiled code: the network's own numbers, for each set of instructions, any size, any number of threads, any
neighbour in the batch.
"""

import copy
import dataclasses
import os
import pickle
import platform
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dymn import create_model
from dymn.architectures import MODELS, model_config
from dymn.errors import ConfigError
from dymn.native import libraries
from dymn.native.network import is_known
from dymn.runtime.accelerate import NativeNetwork
from dymn.runtime.torch_backend import TorchBackend
from test_benchmarks import load as load_benchmark
from test_efficientat import FIXTURES, load

LIVELY = load_benchmark("lively")
clips = LIVELY.clips

pytestmark = pytest.mark.skipif(
    not libraries(), reason="no compiled code here: dymn was built without a C compiler, or DYMN_NATIVE is 0"
)


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def small(name="dymn10", **overrides):
    model = create_model(name, 9, generator=torch.Generator().manual_seed(0), **{"width": 0.1, **overrides})
    return LIVELY.lively(model, clips(6, 64, 50))


def assert_same(model, log_mel, build=None, n_threads=1):
    """The compiled code must not round worse than PyTorch.

    Both are held against float64, whose errors show what it amplifies.
    """
    with torch.no_grad():
        exact, expected = copy.deepcopy(model).double()(log_mel.double()), model(log_mel)
    torch.set_num_threads(n_threads)  # here only: PyTorch's threads wait for each other where other programs run
    for got, wanted, truth in zip(NativeNetwork(model, build)(log_mel), expected, exact, strict=True):
        assert got.shape == wanted.shape
        rounding = float((wanted - truth).abs().max()) + 1e-6 * float(truth.abs().max())
        assert float((got - truth).abs().max()) < 6 * rounding


@pytest.mark.skipif(
    not Path("/proc/cpuinfo").exists() or platform.machine() != "x86_64", reason="Linux on x86 lists its instructions"
)
def test_every_build_that_this_cpu_can_run_is_offered():
    flags = set(re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.M).group(1).split())
    v3 = {"avx2", "fma", "bmi2"}
    needed = {
        "_native_v4": v3 | {"avx512f", "avx512vl", "avx512bw", "avx512dq", "avx512cd"},
        "_native_v3": v3,
        "_native": set(),
    }
    assert list(libraries()) == [name for name, wanted in needed.items() if wanted <= flags]


@pytest.mark.parametrize("build", libraries())
@pytest.mark.parametrize("name", ["dymn04", "mn04"])
def test_each_build_gives_the_numbers_of_the_network(build, name):
    model = LIVELY.lively(create_model(name, 30, generator=torch.Generator().manual_seed(1)), clips(4, 128, 100))
    log_mel = clips(2, 128, 317, seed=3)
    assert_same(model, log_mel, build)
    with torch.no_grad():
        # so that a form which is blind to the clip would fail
        assert float(model(clips(4, 128, 100)).logits.std(dim=0).min()) > 0.1


@pytest.mark.parametrize("name", [name for name in MODELS if not name.startswith("fmn")])
def test_every_architecture(name):
    assert is_known(model_config(name))
    assert_same(
        small(name, **({"width": 0.1} if MODELS[name]["width"] != 0.4 else {"width": 0.4})), clips(2, 64, 50, seed=1)
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"attention": None},
        {"dynamic_relus": ()},
        {"dynamic_convs": ()},
        {"dynamic_convs": ("depthwise",), "attention": None},
        {"dynamic_blocks": "last5"},
        {"dynamic_blocks": "none"},
        {"dynamic_blocks": "none", "attention_blocks": "all"},
        {"attention": "se"},
        {"n_kernels": 1},
        {"n_kernels": 3},
        {"n_kernels": 8},
        {"strides": (2, 1, 2, 1)},
        {"temperature": 30.0},
        {"reduction": 2},
    ],
)
def test_variants(settings):
    assert_same(small(**settings), clips(3, 64, 50, seed=1))


@pytest.mark.parametrize("name", FIXTURES)
def test_published_numbers(shared, name):
    model = load(shared, name).eval()
    if not is_known(model.config):
        pytest.skip("a network with parts that the compiled code does not know")
    stored = np.load(shared / "fixtures" / name / "io.npz")
    output = NativeNetwork(model)(torch.from_numpy(stored["log_mel"]))
    assert np.abs(output.logits.numpy() - stored["logits"]).max() < 1e-5
    assert np.abs(output.embedding.numpy() - stored["embedding"]).max() < 1e-5


MODEL = small()


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 3), st.integers(1, 140), st.integers(1, 300), st.integers(1, 5))
def test_any_size_and_any_number_of_threads(n_clips, n_mels, n_frames, n_threads):
    log_mel = clips(n_clips, n_mels, max(n_frames, 2), seed=n_frames)[..., :n_frames]
    with torch.no_grad():
        # random weights amplify some inputs, and their round-off, beyond all measure
        assume(float(MODEL(log_mel).embedding.max()) < 1e3)
    assert_same(MODEL, log_mel, n_threads=n_threads)
    torch.set_num_threads(1)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 7), st.integers(1, 4))
def test_a_clip_gives_the_same_bits_in_any_batch(n_clips, n_threads):
    """Vectors that run over the end of a map must never be seen: neither by the next clip nor by another thread."""
    network = NativeNetwork(MODEL)
    log_mel = clips(n_clips, 40, 77)
    torch.set_num_threads(1)
    alone = [torch.cat(parts) for parts in zip(*(network(clip[None]) for clip in log_mel), strict=True)]
    torch.set_num_threads(n_threads)
    for together, one_by_one in zip(network(log_mel), alone, strict=True):
        assert torch.equal(together, one_by_one)


def test_memory_of_an_earlier_call_does_not_show():
    network = NativeNetwork(MODEL)
    small_input, large = clips(1, 33, 41), clips(2, 128, 500) * 100
    first = network(small_input).logits
    network(large)
    assert torch.equal(network(small_input).logits, first)


def test_calls_from_several_threads_at_once():
    network = NativeNetwork(MODEL)
    inputs = [clips(1, 40, 50 + i, seed=i) for i in range(24)]
    expected = [network(x).logits for x in inputs]
    with ThreadPoolExecutor(6) as pool:
        assert all(
            torch.equal(one, other)
            for one, other in zip(pool.map(lambda x: network(x).logits, inputs), expected, strict=True)
        )


def test_weights_are_those_of_the_moment():
    model = small()
    network, log_mel = NativeNetwork(model), clips(1, 32, 40)
    before = network(log_mel).logits
    with torch.no_grad():
        model.stem.conv.weight.mul_(2)
    assert torch.equal(network(log_mel).logits, before) and not torch.allclose(
        NativeNetwork(model)(log_mel).logits, before
    )


@pytest.mark.parametrize(
    "settings",
    [{"attention": "ta"}, {"context": "own"}, {"n_maps": 3}, {"dynamic_relus": ("expand",)}],
)
def test_says_which_networks_it_does_not_know(settings):
    model = small(**settings)
    assert not is_known(model.config)
    with pytest.raises(ConfigError, match="does not support"):
        NativeNetwork(model)


@pytest.mark.parametrize(
    "change", [{"c_exp": 20}, {"attention": "ca", "context_size": 12}, {"attention": "ca", "context_size": 0}]
)
def test_a_file_that_names_odd_sizes_gets_no_compiled_code(change):
    """Compiled code takes eight channels at a time.

    A config comes from a file, which nobody need have made with this package.
    """
    config = model_config("mn10", width=0.1)
    block = dataclasses.replace(config.blocks[5], attention=None)
    config = dataclasses.replace(
        config, blocks=(*config.blocks[:5], dataclasses.replace(block, **change), *config.blocks[6:])
    )
    assert not is_known(config)
    assert is_known(dataclasses.replace(config, blocks=(*config.blocks[:5], block, *config.blocks[6:])))
    assert not is_known(dataclasses.replace(model_config("mn10"), c_last=100))


def test_inputs_that_cannot_be_computed():
    network = NativeNetwork(MODEL)
    for shape in ((1, 1, 64, 0), (1, 1, 0, 64), (1, 2, 64, 64), (1, 64, 64)):
        with pytest.raises(ConfigError, match="must be"):
            network(torch.zeros(shape))
    with pytest.raises(ConfigError, match="too long"):
        network(torch.zeros(()).expand(1, 1, 128, 2**23))
    assert network(torch.zeros(0, 1, 64, 64)).logits.shape == (0, 9)


def test_defaults_of_pytorch_do_not_reach_the_compiled_code():
    network, log_mel = NativeNetwork(MODEL), clips(2, 40, 50)
    expected = network(log_mel).logits
    try:
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        got = network(log_mel).logits
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("poison", [np.nan, 3e38])
def test_nothing_is_read_that_was_not_written(poison):
    for model in (MODEL, small("mn10"), small(attention="se", n_kernels=3)):
        network = NativeNetwork(model)
        for n_bands, n_frames, n_threads in ((64, 50, 1), (33, 41, 3), (1, 1, 2), (7, 96, 4)):
            torch.set_num_threads(n_threads)
            log_mel = clips(1, 64, 100)[..., :n_bands, :n_frames]
            expected = network(log_mel).embedding
            for memory in network.compiled._memory:
                memory.fill(poison)
            assert torch.equal(network(log_mel).embedding, expected)


def test_a_backend_can_be_copied_after_use():
    backend = TorchBackend(small())
    log_mel = clips(1, 64, 50).numpy()
    expected = backend.run(log_mel).probabilities
    for copied in (copy.deepcopy(backend), pickle.loads(pickle.dumps(backend))):
        assert np.array_equal(copied.run(log_mel).probabilities, expected)


def test_can_be_switched_off():
    code = "from dymn.native import libraries; assert not libraries()"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "DYMN_NATIVE": "0"})
