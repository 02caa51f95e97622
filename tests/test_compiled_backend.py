"""Tagging and embedding in compiled code alone: PyTorch's numbers without PyTorch, and packed files that need not be trusted."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch

from dymn import LogMel, Tagger
from dymn.commands import recordings
from dymn.config import FrontEndConfig, ModelCard
from dymn.errors import ConfigError
from dymn.native import libraries
from dymn.native.log_mel import CompiledLogMel, Constants
from dymn.native.network import CompiledNetwork, Packed
from dymn.runtime.compiled import pack
from dymn.runtime.compiled_backend import CompiledBackend, keep_packed, open_packed, packed_path
from dymn.weights import load_model
from dymn.weights.find import find_weights
from test_benchmarks import load as load_benchmark

LIVELY = load_benchmark("lively")

pytestmark = pytest.mark.skipif(not libraries(), reason="no compiled code here: dymn was built without a C compiler, or DYMN_NATIVE is 0")


def sounds(n, seed=0):
    random = np.random.default_rng(seed)
    return (np.repeat(10.0 ** random.integers(-3, 0, n // 100 + 1), 100)[:n] * random.normal(size=n)).astype(np.float32)


@pytest.fixture(scope="module", params=["dymn04", "mn04"])
def saved(request, tmp_path_factory):
    """A file of weights, and the network in it."""
    from dymn import create_model

    model = LIVELY.lively(create_model(request.param, 9, width=0.1, generator=torch.Generator().manual_seed(0)), LIVELY.clips(6, 128, 50))
    model.card = ModelCard(labels=tuple(f"sound {i}" for i in range(9)), exclusive=request.param == "mn04")
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    from dymn.models import pretrained

    pretrained.save(model, path)
    return path


@pytest.fixture
def packed(saved, tmp_path, monkeypatch):
    """The weights, packed in a cache of their own."""
    monkeypatch.setenv("DYMN_CACHE", str(tmp_path / "cache"))
    weights = find_weights(saved)
    keep_packed(load_model(saved), weights)
    return weights


def test_the_numbers_are_those_of_pytorch(packed):
    compiled, usual = Tagger(open_packed(packed, 2)), Tagger(load_model(packed.path), "cpu")
    assert compiled.card == usual.card and isinstance(compiled.backend, CompiledBackend)
    waveforms = np.stack([sounds(32_000 * 3, i) for i in range(3)])
    assert np.abs(compiled.probabilities(waveforms) - usual.probabilities(waveforms)).max() < 2e-6
    for sound, settings in ((sounds(50), {}), (sounds(32_000 * 7), {"window": 2.0, "hop": 0.5})):
        found, expected = (tagger.timeline(sound, 32_000, 0, **settings) for tagger in (compiled, usual))
        assert [(tag.start, tag.end) for tag in found] == [(tag.start, tag.end) for tag in expected]
        scores = [{(tag.start, tag.label): tag.score for tag in tags} for tags in (found, expected)]
        assert max(abs(scores[0][key] - scores[1][key]) for key in scores[1]) < 2e-6
    one, other = (tagger.embed(sounds(90_000), 32_000, window=1.0).windows for tagger in (compiled, usual))
    assert np.abs(one - other).max() < 1e-5 * np.abs(other).max()


def test_other_layers_and_frames_are_refused(packed):
    tagger = Tagger(open_packed(packed))
    with pytest.raises(ConfigError, match="no PyTorch network, which layers other than last need"):
        tagger.embedder("mels")
    with pytest.raises(ConfigError, match="whole windows only"):
        tagger.frames(sounds(9000), 32_000, method="activation")
    with pytest.raises(ConfigError, match="threads is 0"):
        open_packed(packed, 0)


@pytest.mark.parametrize("n_samples", [1, 511, 514, 32_000, 40_123])
def test_the_front_end_alone(n_samples):
    front_end = LogMel(FrontEndConfig(n_mels=40))
    compiled, samples = CompiledLogMel(front_end.config, front_end.constants()), sounds(n_samples)
    expected = front_end(torch.from_numpy(samples)[None])[0].numpy()
    assert compiled(samples).shape == expected.shape
    assert np.abs(compiled(samples, 3) - expected).max() < 1e-5
    assert LogMel(FrontEndConfig(n_fft=1000)).constants() is None


@pytest.mark.parametrize("command", ["tag", "embed", "listen"])
def test_the_second_run_imports_no_torch(packed, tmp_path, command):
    soundfile.write(tmp_path / "noise.wav", sounds(32_000), 32_000)
    given = ["-", "--rate", "32000"] if command == "listen" else ["noise.wav"]
    code = (
        "import sys\nsys.modules['torch'] = None\nfrom dymn.cli import main\n"
        f"sys.argv = ['dymn', {command!r}, '--model', {str(packed.path)!r}, '--device', 'cpu', *{given!r}]\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=tmp_path, input=bytes(640_000))
    assert done.returncode == 0, done.stderr


def damage(path, content):
    path.write_bytes(content[: len(content) // 2])


def change_a_number(path, content):
    path.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])


def of_another_version(path, content):
    path.write_bytes(content.replace(b'\\"version\\": \\"', b'\\"version\\": \\"9', 1))


def of_other_weights(path, content):
    path.write_bytes(content.replace(b'\\"weights\\": \\"', b'\\"weights\\": \\"0', 1))


def of_another_label(path, content):
    path.write_bytes(content.replace(b"sound 3", b"sound 4", 1))


def with_a_list_for_a_description(path, content):
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"]["dymn"] = "[]"
    changed = json.dumps(header).encode()
    path.write_bytes(len(changed).to_bytes(8, "little") + changed + content[8 + size :])


CHANGES = [damage, change_a_number, of_another_version, of_other_weights, of_another_label, with_a_list_for_a_description]


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_is_not_sound_is_made_again(packed, change, monkeypatch):
    path = packed_path(packed)
    content = path.read_bytes()
    change(path, content)
    assert path.read_bytes() != content and open_packed(packed) is None
    tagger = recordings.load_tagger(str(packed.path), "cpu", None, True, "auto")
    assert not isinstance(tagger.backend, CompiledBackend) and open_packed(packed).card == load_model(packed.path).card
    assert isinstance(recordings.load_tagger(str(packed.path), "cpu", None, True, "auto").backend, CompiledBackend)
    assert not isinstance(recordings.load_tagger(str(packed.path), "cpu", None, True, "auto", looks_inside=True).backend, CompiledBackend)


def test_arrays_of_other_sizes_never_reach_the_compiled_code(saved):
    whole = pack(load_model(saved))
    CompiledNetwork(whole)
    for name in whole.arrays:
        for arrays in ({**whole.arrays, name: whole.arrays[name].ravel()[:-1]}, {k: v for k, v in whole.arrays.items() if k != name}):
            with pytest.raises(ConfigError, match=r"do not fit|channels"):
                CompiledNetwork(Packed(whole.config, arrays))
    with pytest.raises(ConfigError, match="do not fit"):
        CompiledNetwork(Packed(dataclasses.replace(whole.config, num_classes=10), whole.arrays))
    front_end = LogMel()
    for beyond in (-1, 600):
        constants = front_end.constants()
        constants.ranges[3, 0] = beyond
        with pytest.raises(ConfigError, match="do not fit"):
            CompiledLogMel(front_end.config, constants)
        constants.ranges[3, 0] = 0


def refuse(*_):
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.parametrize("cache", ["a file", "no home"])
def test_a_cache_that_cannot_be_used_costs_nothing_but_time(saved, tmp_path, monkeypatch, cache):
    long = tmp_path / f"{'w' * 235}.safetensors"
    long.write_bytes(saved.read_bytes())
    if cache == "a file":
        (tmp_path / "file").touch()
        monkeypatch.setenv("DYMN_CACHE", str(tmp_path / "file"))
    else:
        monkeypatch.setattr("dymn.runtime.compiled_backend.cache_folder", refuse)
    for path in (saved, saved, long):
        assert recordings.load_tagger(str(path), "cpu", None, True, "auto").labels[0] == "sound 0"


def test_a_name_as_long_as_names_can_be_is_packed_too(saved, tmp_path, monkeypatch):
    monkeypatch.setenv("DYMN_CACHE", str(tmp_path / "cache"))
    long = tmp_path / f"{'w' * 235}.safetensors"
    long.write_bytes(saved.read_bytes())
    recordings.load_tagger(str(long), "cpu", None, True, "auto")
    assert isinstance(recordings.load_tagger(str(long), "cpu", None, True, "auto").backend, CompiledBackend)


def test_numbers_that_the_compiled_code_would_misread(saved, packed):
    backend, log_mel = open_packed(packed, 2), np.zeros((1, 1, 128, 40), np.float32)
    network = CompiledNetwork(pack(load_model(saved)))
    assert np.array_equal(network.embed(log_mel, 2**32), network.embed(log_mel, -1))
    with pytest.raises(ConfigError, match=r"must be \[B, "):
        network.logits(np.zeros((1, 5_000_000), np.float32))
    with pytest.raises(ConfigError, match="threads is 4294967296; it must be at least 1, and at most"):
        open_packed(packed, 2**32)
    small = FrontEndConfig(sample_rate=8000, n_fft=16, win_length=16, hop_length=8, n_mels=4, f_max=4000.0)
    zeros = Constants(np.zeros(16), np.zeros((16, 2)), np.zeros((4, 9)), np.zeros((4, 2), np.int32))
    with pytest.raises(ConfigError, match="do not fit"):
        CompiledLogMel(small, zeros)
    with pytest.raises(ConfigError, match="A backend computes as it was made"):
        Tagger(backend, precision="float16")


def test_another_device_is_left_to_pytorch(packed, monkeypatch):
    monkeypatch.setattr("dymn.system.cpus.may_have_gpu", lambda: True)
    assert not isinstance(recordings.load_tagger(str(packed.path), None, None, True, "auto").backend, CompiledBackend)
    monkeypatch.setattr("dymn.system.cpus.may_have_gpu", lambda: False)
    assert isinstance(recordings.load_tagger(str(packed.path), None, None, True, "auto").backend, CompiledBackend)


def test_networks_without_compiled_code_have_no_packed_form(tmp_path, monkeypatch):
    from dymn import create_model
    from dymn.models import pretrained

    monkeypatch.setenv("DYMN_CACHE", str(tmp_path / "cache"))
    pretrained.save(create_model("dymn04", 3, width=0.1, attention="ta"), tmp_path / "other.safetensors")
    weights = find_weights(tmp_path / "other.safetensors")
    keep_packed(load_model(weights.path), weights)
    assert not packed_path(weights).exists() and open_packed(weights) is None
    assert json.dumps(find_weights("nowhere.safetensors")) == "null"
