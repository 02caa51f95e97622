"""Frame-wise MobileNets without PyTorch and ONNX Runtime: PyTorch's numbers, for each build, kind, size and batch."""

import copy
import dataclasses
import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dymn
from dymn import create_model
from dymn.architectures import model_config
from dymn.errors import ConfigError
from dymn.inference.frames import frame_parts
from dymn.models.mobilenet import MobileNet
from dymn.models.pretrained import save
from dymn.native import libraries
from dymn.native.network import SEQUENCES, is_known
from dymn.runtime import framewise, opening
from dymn.runtime.accelerate import NativeNetwork
from dymn.runtime.compiled_backend import CompiledBackend
from dymn.runtime.opening import open_backend
from dymn.runtime.torch_backend import TorchBackend
from dymn.weights import import_efficientsed, open_checkpoint
from dymn.weights.registry import EFFICIENTSED_FRONT_END
from test_benchmarks import load as load_benchmark
from test_framewise import FIXTURES, KINDS, RATE, fixtures, noise  # noqa: F401

LIVELY = load_benchmark("lively")
clips = LIVELY.clips

pytestmark = pytest.mark.skipif(
    not libraries(), reason="no compiled code here: dymn was built without a C compiler, or DYMN_NATIVE is 0"
)


def lively(kind="none", **overrides):
    """Return a narrow network whose scores differ from clip to clip and from frame to frame."""
    torch.manual_seed(0)  # of the weights of a GRU
    model = create_model(
        "fmn04", 7, generator=torch.Generator().manual_seed(0),
        **{"width": 0.1, "sequence": kind, "sequence_size": 32, **overrides},
    )  # fmt: skip
    model = LIVELY.lively(model, clips(6, 128, 200))
    labels = tuple(f"sound {i}" for i in range(7))
    model.card = dataclasses.replace(model.card, name=f"lively_{kind}", front_end=EFFICIENTSED_FRONT_END, labels=labels)
    return model


MODELS = {kind: lively(kind) for kind in KINDS}


def assert_same(model, log_mel, n_threads=1):
    """The compiled code must not round worse than PyTorch; both are held against float64."""
    with torch.no_grad():
        exact, expected = copy.deepcopy(model).double()(log_mel.double()), model(log_mel)
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    found = {build: NativeNetwork(model, build)(log_mel) for build in libraries()}
    torch.set_num_threads(before)
    for (build, output), part in itertools.product(found.items(), ("logits", "embedding", "frame_logits")):
        got, wanted, truth = (getattr(each, part) for each in (output, expected, exact))
        assert got.shape == wanted.shape
        rounding = float((wanted - truth).abs().max()) + 1e-6 * float(truth.abs().max())
        assert float((got - truth).abs().max()) < 6 * rounding, (build, part)


@pytest.mark.parametrize("scores", ["frames", "clip"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_numbers_are_those_of_pytorch(kind, scores, tmp_path):
    model = lively(kind, scores=scores)
    save(model, tmp_path / "model.safetensors")
    stored = open_checkpoint(tmp_path / "model.safetensors")
    seconds = 10 if scores == "frames" else 3
    waveforms = np.stack([noise(seconds, seed) * 4.0**-seed for seed in range(2)])
    for usual in (TorchBackend(model, "cpu", 1), TorchBackend(MobileNet.from_stored(stored), "cpu", 1)):
        features = usual.waveform_features(waveforms)
        whole, by_smoothing = usual.run(features), {n: usual.frame_run(features, n) for n in (1, 5)}
        for build in libraries():
            compiled = CompiledBackend(stored, 2, build=build)
            found = compiled.run(features)
            assert np.abs(found.probabilities - whole.probabilities).max() < 2e-6
            assert np.abs(found.embedding - whole.embedding).max() < 1e-5 * np.abs(whole.embedding).max()
            for smoothing, theirs in by_smoothing.items():
                mine = compiled.frame_run(features, smoothing)
                assert mine.frames.shape == theirs.frames.shape == (2, 250, 7)
                assert np.abs(mine.frames - theirs.frames).max() < 2e-6
                assert np.abs(mine.probabilities - theirs.probabilities).max() < 2e-6
            assert mine.frames.std(axis=1).min() > 1e-3  # a form that is blind to time would fail
    for name in ("frame_seconds", "frame_samples", "embedding_size", "card"):
        assert getattr(compiled, name) == getattr(usual, name)


def test_classes_that_exclude_each_other():
    model = MODELS["none"]
    stored = model.stored()
    stored = stored._replace(card=dataclasses.replace(stored.card, exclusive=True))
    found = CompiledBackend(stored, 1).frame_run(clips(2).numpy())
    assert np.abs(found.frames.sum(axis=2) - 1).max() < 1e-5
    expected = TorchBackend(MobileNet.from_stored(stored), "cpu", 1).frame_run(clips(2).numpy())
    assert np.abs(found.frames - expected.frames).max() < 2e-6


@pytest.mark.parametrize("name", FIXTURES)
def test_numbers_of_the_public_code(fixtures, name):  # noqa: F811
    """Frames of these random weights amplify round-off, PyTorch's too: up to 5e-5 of logits, 2e-4 of fmn06's."""
    model = import_efficientsed(fixtures / name / "state_dict.pt")
    io = np.load(fixtures / name / "io.npz")
    for part in ("", "_short", "_long"):
        if f"log_mel{part}" not in io:
            continue
        log_mel = torch.from_numpy(io[f"log_mel{part}"].astype(np.float32))
        for build in libraries():
            found = NativeNetwork(model, build)(log_mel)
            assert np.abs(found.logits.numpy() - io[f"weak_logits{part}"]).max() < 1e-5
            assert np.abs(found.embedding.numpy() - io[f"features{part}"].mean(axis=1)).max() < 1e-5
            frames = np.abs(found.frame_logits.numpy() - io[f"strong_logits{part}"].transpose(0, 2, 1))
            assert frames.mean() < 1e-5 and frames.max() < (4e-4 if name == "fmn06" else 1e-4)
        assert_same(model, log_mel)


@settings(deadline=None, max_examples=12)
@given(st.sampled_from(KINDS), st.integers(1, 2), st.integers(1, 128), st.integers(1, 400), st.integers(1, 4))
def test_any_size_and_any_number_of_threads(kind, n_clips, n_mels, n_frames, n_threads):
    assert_same(MODELS[kind], clips(n_clips, n_mels, max(n_frames, 2), seed=n_frames)[..., :n_frames], n_threads)


@pytest.mark.parametrize("kind", ["none", "gru"])
def test_a_clip_gives_the_same_bits_in_any_batch(kind):
    log_mel, stored = clips(5, 128, 133).numpy(), MODELS[kind].stored()
    alone = [CompiledBackend(stored, 1).frame_run(clip[None]) for clip in log_mel]
    for n_threads in (1, 4):
        together = CompiledBackend(stored, n_threads).frame_run(log_mel)
        for i, parts in enumerate(zip(*alone, strict=True)):
            np.testing.assert_array_equal(together[i], np.concatenate(parts))


def test_pieces():
    assert set(framewise.SEQUENCE_MODELS) == set(SEQUENCES) == set(KINDS)
    x = torch.linspace(-15, 15, 40_001, dtype=torch.float64)
    exact = torch.nn.functional.gelu(x)
    assert np.abs(framewise.gelu(x.float().numpy()) - exact.numpy()).max() < 2e-6  # the spacing of float32 at 15
    small = x.abs() < 4
    assert np.abs(framewise.gelu(x[small].float().numpy()) - exact[small].numpy()).max() < 5e-7
    gates = framewise.sigmoid(np.array([-1e4, 0, 1e4], np.float32))
    assert gates.tolist() == [0, 0.5, 1]


def test_strides_along_frequency_and_time_in_any_network():
    """A checkpoint may describe blocks that no table has."""
    config = model_config("mn04", width=0.1, num_classes=7)
    strides = {1: (1, 2), 3: (2, 1), 6: (2, 2), 12: (1, 2)}
    blocks = tuple(
        dataclasses.replace(block, stride=strides[i][0], time_stride=strides[i][1]) if i in strides else block
        for i, block in enumerate(config.blocks)
    )
    model = MobileNet(dataclasses.replace(config, blocks=blocks)).initialise(torch.Generator().manual_seed(0))
    model, log_mel = LIVELY.lively(model, clips(6, 64, 90)), clips(3, 64, 91, seed=2)
    with torch.no_grad():
        expected = model(log_mel)
        maps = model.features(log_mel).mean(dim=2)
    for build in libraries():
        network = NativeNetwork(model, build)
        assert (network(log_mel).logits - expected.logits).abs().max() < 1e-5
        assert np.abs(network.compiled.embed_frames(log_mel.numpy(), 2)[1] - maps.numpy()).max() < 1e-5 * maps.max()


@pytest.mark.parametrize("kind", ["none", "tf"])
def test_long_recordings(kind):
    """The same frames and events as PyTorch's, windows joined end to end."""
    stored = lively(kind, scores="frames").stored()
    loudness = np.repeat(10.0 ** np.random.default_rng(1).integers(-3, 1, 24), RATE)
    samples = noise(23.21)
    samples = (samples * loudness[: len(samples)]).astype(np.float32)
    backends = [CompiledBackend(stored, 2), TorchBackend(MobileNet.from_stored(stored), "cpu", 1)]
    mine, theirs = (
        np.concatenate([part.scores for part in frame_parts(backend, [samples], sample_rate=RATE)])
        for backend in backends
    )
    assert mine.shape == theirs.shape == (750, 7)
    assert np.abs(mine - theirs).max() < 2e-6
    threshold = apart(mine)
    found, expected = (dymn.Tagger(backend).events(samples, RATE, threshold=threshold) for backend in backends)
    assert found and [event._replace(score=0) for event in found] == [event._replace(score=0) for event in expected]


def apart(scores):
    """Return a threshold from which all scores are farther than round-off."""
    middle = np.sort(scores, axis=None)[scores.size // 4 : -scores.size // 4]
    i = int(np.argmax(np.diff(middle)))
    assert middle[i + 1] - middle[i] > 1e-5
    return float(middle[i] + middle[i + 1]) / 2


WITHOUT = (
    "import sys\nsys.modules['torch'] = sys.modules['onnxruntime'] = None\nfrom dymn.cli import main\n"
    "sys.argv = ['dymn', *{words!r}]\nmain()"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("framewise")
    for kind in KINDS:
        save(lively(kind, scores="frames"), folder / f"{kind}.safetensors")
    config = MODELS["none"].config
    wider = dataclasses.replace(config.blocks[2], kernel_size=7)
    exotic = MobileNet(dataclasses.replace(config, blocks=(*config.blocks[:2], wider, *config.blocks[3:])))
    exotic.card = MODELS["none"].card
    save(exotic, folder / "exotic.safetensors")
    soundfile.write(folder / "noise.wav", noise(12), RATE)
    return folder


def without(folder, *words, **options):
    """Run a command where neither PyTorch nor ONNX Runtime can be imported."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(words=words)], capture_output=True, cwd=folder, **options
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.mark.parametrize("kind", KINDS)
def test_events_need_neither_pytorch_nor_onnx_runtime(folder, kind):
    backend = open_backend(folder / f"{kind}.safetensors", backend="torch", device="cpu")
    samples = soundfile.read(folder / "noise.wav", dtype="float32")[0]
    parts = frame_parts(backend, [samples], sample_rate=RATE)
    threshold = apart(np.concatenate([part.scores for part in parts]))
    expected = dymn.Tagger(backend).events(samples, RATE, threshold=threshold)
    words = ("events", "noise.wav", "--format", "json", "--threshold", str(threshold), "--model", f"{kind}.safetensors")
    code, out, err = without(folder, *words)
    assert code == 0, err
    found = json.loads(out)
    assert found["parameters"]["method"] == "frames" and found["parameters"]["median"] == 0.36
    mine = found["recordings"][0]["events"]
    assert mine and [event["label"] for event in mine] == [event.label for event in expected]
    for event, other in zip(mine, expected, strict=True):
        assert (event["start"], event["end"]) == pytest.approx((other.start, other.end), abs=1e-6)
        assert event["score"] == pytest.approx(other.score, abs=1e-4)


@pytest.mark.parametrize("words", [("tag",), ("tag", "--window", "3"), ("embed",), ("listen",)], ids=" ".join)
def test_other_commands_need_neither(folder, words):
    given = ("-", "--rate", "16000") if words[0] == "listen" else ("noise.wav",)
    code, out, err = without(folder, *words, *given, "--model", "tf.safetensors", input=bytes(700_000))
    assert code == 0, err
    assert "sound" in out or words[0] == "embed"


def test_parts_that_the_compiled_code_lacks(folder, monkeypatch):
    code, _, err = without(folder, "events", "noise.wav", "--model", "exotic.safetensors")
    message = " ".join(err.split())
    assert code == 2 and "Traceback" not in err
    assert "does not support" in message and "dymn[torch]" in message and "ONNX" in message
    config = model_config("fmn04")
    assert is_known(config)
    assert not is_known(dataclasses.replace(config, sequence=dataclasses.replace(config.sequence, kind="own")))
    monkeypatch.setattr(opening, "libraries", dict)
    monkeypatch.setattr("dymn.runtime.compiled_backend.libraries", dict)
    monkeypatch.setattr(opening, "has_torch", lambda: False)
    with pytest.raises(ConfigError, match=r"needs compiled code, and there is none.*dymn\[torch\].*ONNX"):
        open_backend(MODELS["none"].stored(), device="cpu")


def test_inputs_that_do_not_fit():
    backend = CompiledBackend(MODELS["none"].stored(), 1)
    with pytest.raises(ConfigError, match="has 129 bands; a frame-wise network takes at most 128"):
        backend.run(np.zeros((1, 1, 129, 100), np.float32))
    assert backend.run(np.zeros((0, 1, 128, 100), np.float32)).probabilities.shape == (0, 7)
    assert opening.open_backend(MODELS["gru"].stored(), device="cpu", threads=1).scores_frames
