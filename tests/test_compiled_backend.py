"""Tagging, events and embeddings in compiled code.

PyTorch's numbers without PyTorch, for every published head and stride.
"""

import dataclasses
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch

from dymn import LogMel, Tagger, create_model
from dymn.architectures import Variant
from dymn.audio.mel import mel_basis
from dymn.config import FrontEndConfig, ModelCard
from dymn.errors import ConfigError, MissingExtraError, WeightsError
from dymn.models import pretrained
from dymn.models.mobilenet import MobileNet
from dymn.native import libraries
from dymn.native.log_mel import ArrayLogMel, CompiledLogMel
from dymn.native.network import CompiledNetwork, PackedNetwork, is_known
from dymn.runtime.accelerate import NativeNetwork
from dymn.runtime.compiled import pack
from dymn.runtime.compiled_backend import CompiledBackend, moving_average
from dymn.runtime.fold import fold
from dymn.runtime.onnx_backend import OnnxBackend
from dymn.runtime.opening import open_backend
from dymn.runtime.torch_backend import TorchBackend
from dymn.weights import REGISTRY, open_checkpoint
from dymn.weights.efficientat import read_efficientat
from test_benchmarks import load as load_benchmark

LIVELY = load_benchmark("lively")

pytestmark = pytest.mark.skipif(
    not libraries(), reason="no compiled code here: dymn was built without a C compiler, or DYMN_NATIVE is 0"
)

PUBLISHED = {
    (model.architecture, model.head, model.strides): model for model in REGISTRY.values() if model.dataset == "AudioSet"
}
NARROW = {key: model for key, model in PUBLISHED.items() if key[0] in ("dymn10", "dymn10_replace_se", "mn10")}


def sounds(n, seed=0):
    random = np.random.default_rng(seed)
    return (np.repeat(10.0 ** random.integers(-3, 0, n // 100 + 1), 100)[:n] * random.normal(size=n)).astype(np.float32)


def small(architecture, width=0.1, **settings):
    """A narrow network whose decisions differ from input to input."""
    model = create_model(architecture, 9, width=width, generator=torch.Generator().manual_seed(0), **settings)
    model = LIVELY.lively(model, LIVELY.clips(6, 128, 50))
    model.card = ModelCard(labels=tuple(f"sound {i}" for i in range(9)), exclusive=architecture.startswith("mn"))
    return model


@pytest.fixture(scope="module", params=NARROW, ids=lambda key: "-".join(map(str, (*key[:2], *key[2]))))
def saved(request, tmp_path_factory):
    """A narrow network of a published kind with its head and strides, in a file."""
    published = NARROW[request.param]
    model = small(published.architecture, head=published.head, strides=published.strides)
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    pretrained.save(model, path)
    return path


def test_every_published_network_is_known():
    for model in REGISTRY.values():
        config = dataclasses.replace(create_config(model), num_classes=model.num_classes)
        assert is_known(config), model.name


def create_config(published):
    from dymn.architectures import model_config

    return model_config(published.architecture, **published.settings)


@pytest.mark.parametrize("build", libraries())
def test_the_numbers_are_those_of_pytorch(saved, build):
    stored = open_checkpoint(saved)
    compiled, usual = CompiledBackend(stored, 2, build=build), TorchBackend(MobileNet.from_stored(stored), "cpu")
    usual.__dict__["_network"] = usual.model  # the plain network, not its fast form
    waveforms = np.stack([sounds(32_000 * 3, i) for i in range(3)])
    features = compiled.waveform_features(waveforms)
    assert np.abs(features - usual.waveform_features(waveforms)).max() < 1e-5
    one, other = compiled.run(features), usual.run(features)
    assert np.abs(one.probabilities - other.probabilities).max() < 2e-6
    assert np.abs(one.embedding - other.embedding).max() < 1e-5 * np.abs(other.embedding).max()
    for smoothing in (1, 3, 7):
        mine, theirs = compiled.frame_run(features, smoothing), usual.frame_run(features, smoothing)
        assert mine.frames.shape == theirs.frames.shape
        assert np.abs(mine.frames - theirs.frames).max() < 2e-6
        assert np.array_equal(mine.probabilities, one.probabilities) and np.array_equal(mine.embedding, one.embedding)
    assert compiled.frame_samples == usual.frame_samples


def test_timelines_and_embeddings_are_those_of_pytorch(saved):
    compiled, usual = (
        Tagger(open_backend(saved, device="cpu")),
        Tagger(open_backend(saved, backend="torch", device="cpu")),
    )
    assert (
        compiled.card == usual.card
        and isinstance(compiled.backend, CompiledBackend)
        and isinstance(usual.backend, TorchBackend)
    )
    for sound, settings in ((sounds(50), {}), (sounds(32_000 * 7), {"window": 2.0, "hop": 0.5})):
        found, expected = (tagger.timeline(sound, 32_000, 0, **settings) for tagger in (compiled, usual))
        assert [(tag.start, tag.end) for tag in found] == [(tag.start, tag.end) for tag in expected]
        scores = [{(tag.start, tag.label): tag.score for tag in tags} for tags in (found, expected)]
        assert max(abs(scores[0][key] - scores[1][key]) for key in scores[1]) < 2e-6
    one, other = (tagger.embed(sounds(90_000), 32_000, window=1.0).windows for tagger in (compiled, usual))
    assert np.abs(one - other).max() < 1e-5 * np.abs(other).max()
    one, other = (tagger.embed(sounds(90_000), 32_000, layers="mels,block3").vector for tagger in (compiled, usual))
    assert np.abs(one - other).max() < 1e-5 * np.abs(other).max()


def test_a_mean_over_frames_that_are_there():
    maps = np.arange(10, dtype=np.float32).reshape(1, 2, 5)
    assert moving_average(maps, 3).tolist() == [[[0.5, 1, 2, 3, 3.5], [5.5, 6, 7, 8, 8.5]]]
    assert moving_average(maps, 99).tolist() == [[[2] * 5, [7] * 5]]


@pytest.mark.parametrize("n_samples", [1, 511, 514, 32_000, 40_123])
@pytest.mark.parametrize("kind", [CompiledLogMel, ArrayLogMel])
@pytest.mark.parametrize(
    "settings",
    [{"n_mels": 40}, {"hop_length": 160}, {"sample_rate": 16_000, "n_fft": 512, "win_length": 400, "f_max": 8000.0}],
)
def test_the_front_end_alone(n_samples, kind, settings):
    front_end = LogMel(**settings)
    mine, samples = kind(front_end.config), sounds(n_samples)
    expected = front_end(torch.from_numpy(samples)[None])[0].numpy()
    assert mine(samples).shape == expected.shape
    assert np.abs(mine(samples, 3) - expected).max() < (1e-5 if kind is CompiledLogMel else 5e-5)  # where it is quiet


def test_a_transform_of_another_length():
    config = FrontEndConfig(n_fft=1000)
    with pytest.raises(ConfigError, match="n_fft is 1000; compiled code supports powers of two"):
        CompiledLogMel(config)
    stored = small("mn04").stored()
    stored = stored._replace(card=dataclasses.replace(stored.card, front_end=config))
    waveforms = np.stack([sounds(40_000)])
    one, other = (
        open_backend(stored, backend=kind, device="cpu").run_waveforms(waveforms) for kind in ("compiled", "torch")
    )
    assert np.abs(one.probabilities - other.probabilities).max() < 2e-6


def test_mel_filters_are_computed_in_float32():
    """Against the same arithmetic by PyTorch, whose logarithm is another one in the last bit."""
    c = FrontEndConfig()
    bins = 1127 * torch.log(1 + torch.arange(512) * (c.sample_rate / c.n_fft) / 700)
    low, high = (1127 * np.log(1 + f / 700) for f in (c.f_min, c.f_max))
    centres = low + (torch.arange(c.n_mels)[:, None] + 1.0) * ((high - low) / (c.n_mels + 1))
    spacing = (high - low) / (c.n_mels + 1)
    expected = (1 - (bins - centres).abs() / spacing).clamp(min=0)
    assert np.abs(mel_basis(c, c.f_min, c.f_max)[:, :512] - expected.numpy()).max() < 1e-4


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """The same network as dymn's own file, as a folder and as a published state dict, and another one in half
    precision.
    """
    folder = tmp_path_factory.mktemp("checkpoints")
    model = small("dymn04")
    pretrained.save(model, folder / "own.safetensors")
    model.save_pretrained(folder / "folder")
    pretrained.save(small("mn04"), folder / "half.safetensors", dtype=torch.bfloat16)
    return folder


WITHOUT_TORCH = (
    "import sys\nsys.modules['torch'] = None\nfrom dymn.cli import main\nsys.argv = ['dymn', *{words!r}]\nmain()"
)


def without_torch(words, folder, **options):
    """Run a command where PyTorch cannot be imported."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH.format(words=words)], capture_output=True, cwd=folder, **options
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.mark.parametrize("model", ["own.safetensors", "folder", "half.safetensors"])
@pytest.mark.parametrize(
    "words",
    [
        ["tag"],
        ["tag", "--window", "1"],
        ["embed"],
        ["events", "--threshold", "0.01"],
        ["events", "--method", "windows"],
        ["listen"],
    ],
)
def test_commands_need_no_pytorch(checkpoints, tmp_path, monkeypatch, model, words):
    monkeypatch.setenv("DYMN_CACHE", str(tmp_path / "cache"))
    soundfile.write(tmp_path / "noise.wav", sounds(70_000), 32_000)
    given = ["-", "--rate", "32000"] if words[0] == "listen" else ["noise.wav"]
    code, out, err = without_torch(
        [*words, "--model", str(checkpoints / model), *given], tmp_path, input=bytes(640_000)
    )
    assert code == 0, err
    assert "sound" in out or words[0] in ("events", "embed")
    assert not (tmp_path / "cache" / "compiled").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["models"],
        ["models", "mn*", "--format", "json"],
        ["profile", "dymn04_as", "--runs", "0"],
        ["profile", "dymn04"],
        ["profile", "own.safetensors", "--format", "json"],
        ["profile", "--table", "all", "--format", "json"],
        ["convert", "own.safetensors", "converted", "--half"],
        ["tag", "--help"],
    ],
    ids=" ".join,
)
def test_commands_without_recordings_need_no_pytorch(checkpoints, tmp_path, words):
    shutil.copy(checkpoints / "own.safetensors", tmp_path)
    code, out, err = without_torch(words, tmp_path)
    assert code == 0, err
    if "json" in words:
        json.loads(out)


def test_a_published_file_needs_no_pytorch(shared, tmp_path):
    soundfile.write(tmp_path / "noise.wav", sounds(70_000), 32_000)
    path = str(shared / "weights/mn04_as_mAP_432.pt")
    code, out, err = without_torch(["tag", "--model", path, "--format", "json", "--top-k", "0", "noise.wav"], tmp_path)
    assert code == 0, err
    code, _, err = without_torch(["convert", path, "mn04.safetensors"], tmp_path)
    assert code == 0, err
    found = json.loads(out)
    tags = found["recordings"][0]["tags"] if isinstance(found, dict) else found[0]["tags"]
    expected = {
        tag.label: tag.score for tag in Tagger.from_pretrained(path, "cpu").tag(sounds(70_000), 32_000, top_k=0)
    }
    assert max(abs(tag["score"] - expected[tag["label"]]) for tag in tags) < 1e-4  # the file holds 16 bits a sample


@pytest.mark.parametrize("plot", ["noise.png", "noise.html"])
def test_plots_of_recordings_need_no_pytorch(checkpoints, tmp_path, plot):
    soundfile.write(tmp_path / "noise.wav", sounds(400_000), 32_000)
    code, _, err = without_torch(
        ["tag", "--model", str(checkpoints / "own.safetensors"), "noise.wav", "--plot", plot], tmp_path
    )
    assert code == 0, err
    assert (tmp_path / plot).stat().st_size > 10_000


@pytest.mark.parametrize(
    "words", [["train", "--help"], ["tag", "--backend", "torch", "x.wav"], ["embed", "--layer", "blocks", "x.wav"]]
)
def test_what_needs_pytorch_says_so(checkpoints, tmp_path, words):
    soundfile.write(tmp_path / "x.wav", sounds(9000), 32_000)
    code, _, err = without_torch(
        words if "--help" in words else [*words, "--model", str(checkpoints / "own.safetensors")], tmp_path
    )
    if "--help" in words:
        assert code == 0, err
    else:
        assert code != 0 and "pip install 'dymn[torch]'" in err and "Traceback" not in err


def test_names_of_the_library_say_what_to_install(tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None\nimport dymn\nfrom dymn.errors import MissingExtraError\n"
        "tagger = dymn.Tagger.from_pretrained('dymn04_open')\n"
        "for name in ('create_model', 'LogMel', 'load_model', 'MobileNet'):\n"
        "    try: getattr(dymn, name)\n"
        "    except MissingExtraError as error: assert name in str(error) and 'dymn[torch]' in str(error), error\n"
        "    else: raise AssertionError(name)\n"
        "try: dymn.weights.import_efficientat\nexcept MissingExtraError: pass\nelse: raise AssertionError\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_which_backend_opens_what(tmp_path, monkeypatch):
    exotic, plain = small("dymn04", attention="ta").stored(), small("dymn04").stored()
    assert isinstance(open_backend(plain, device="cpu"), CompiledBackend)
    assert isinstance(open_backend(exotic, device="cpu"), TorchBackend)
    assert isinstance(open_backend(plain, device="cpu", backend="torch"), TorchBackend)
    with pytest.raises(
        ConfigError, match=r"has parts that the compiled code does not support\. Install PyTorch with: pip install"
    ):
        open_backend(exotic, backend="compiled")
    for wrong in (
        {"backend": "abacus"},
        {"device": "cuda:7"},
        {"threads": 0},
        {"backend": "onnx", "precision": "float16"},
    ):
        with pytest.raises(ConfigError):
            open_backend(plain, **wrong)
    for wrong in ({"backend": "onnx"}, {"backend": "compiled"}):
        with pytest.raises(ConfigError, match=r"torch\.compile .* Leave compile out"):
            open_backend(plain, compile=True, **wrong)
    with pytest.raises(ConfigError, match=r"float32\. Use the backend torch"):
        open_backend(plain, backend="compiled", precision="bfloat16")
    monkeypatch.setattr("dymn.runtime.opening.has_torch", lambda: False)
    monkeypatch.setattr("dymn.system.extras.has_torch", lambda: False)
    monkeypatch.setenv("DYMN_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=r"pip install 'dymn\[torch\]'; or export it to ONNX"):
        open_backend(exotic, device="cpu")
    with pytest.raises(MissingExtraError, match=r"dymn\[torch\]"):
        open_backend(plain, backend="torch")
    with pytest.raises(MissingExtraError, match=r"Looking inside a network needs .*dymn\[torch\]"):
        open_backend(plain).network()


def test_an_exported_file_takes_over_without_pytorch(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    from dymn.export import build
    from dymn.runtime.onnx_backend import cached_path

    monkeypatch.setenv("DYMN_CACHE", str(tmp_path))
    model = small("dymn04", attention="ta")
    model.card = dataclasses.replace(model.card, name="exotic")
    checkpoint, path = tmp_path / "exotic.safetensors", cached_path("exotic")
    pretrained.save(model, checkpoint)
    path.parent.mkdir(parents=True)
    path.write_bytes(build(MobileNet.from_pretrained(checkpoint)))
    monkeypatch.setattr("dymn.runtime.opening.has_torch", lambda: False)
    assert isinstance(open_backend(checkpoint, device="cpu"), OnnxBackend)
    assert isinstance(open_backend(path), OnnxBackend)
    with torch.no_grad():  # another checkpoint of the same name
        model.head.classifier.bias += 1
    pretrained.save(model, checkpoint)
    with pytest.raises(ConfigError, match="export it to ONNX"):
        open_backend(checkpoint, device="cpu")


def test_an_onnx_file_of_other_weights_is_not_used_for_a_name(tmp_path, monkeypatch):
    """Exported files remain in the cache when the weights of a name change."""
    pytest.importorskip("onnxruntime")
    from dymn.export import build
    from dymn.runtime.onnx_backend import cached_path

    monkeypatch.setenv("DYMN_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    path = cached_path("birds")
    path.parent.mkdir(parents=True)
    model = small("dymn04")
    model.card = dataclasses.replace(model.card, name="birds")
    model.save_pretrained(tmp_path / "birds")
    content = build(MobileNet.from_pretrained(tmp_path / "birds"))
    for name in ("birds", "dymn04_open", "dymn04_open+dymn02_open"):
        cached_path(name).write_bytes(content)
    assert isinstance(open_backend("birds", backend="onnx"), OnnxBackend)
    for name in ("dymn04_open", "dymn04_open+dymn02_open"):
        with pytest.raises(WeightsError, match=f"exported from other weights.*dymn export {re.escape(name)}"):
            open_backend(name, backend="onnx")
        assert isinstance(open_backend(cached_path(name), backend="onnx"), OnnxBackend)  # a path names the file itself
    with torch.no_grad():
        model.head.classifier.bias += 1
    model.save_pretrained(tmp_path / "birds")
    with pytest.raises(WeightsError, match="exported from other weights"):
        open_backend("birds", backend="onnx")
    shutil.rmtree(tmp_path / "birds")  # only the ONNX file is here
    assert isinstance(open_backend("birds", backend="onnx"), OnnxBackend)


def test_a_gpu_is_left_to_pytorch(monkeypatch):
    stored = small("dymn04").stored()
    monkeypatch.setattr("dymn.runtime.opening.may_have_gpu", lambda: True)
    assert isinstance(open_backend(stored), TorchBackend)
    monkeypatch.setattr("dymn.runtime.opening.may_have_gpu", lambda: False)
    assert isinstance(open_backend(stored), CompiledBackend)


def test_arrays_of_other_sizes_never_reach_the_compiled_code(saved):
    stored = open_checkpoint(saved)
    whole = pack(fold(stored.config, stored.state))
    CompiledNetwork(whole)
    for name in whole.arrays:
        for arrays in (
            {**whole.arrays, name: whole.arrays[name].ravel()[:-1]},
            {k: v for k, v in whole.arrays.items() if k != name},
        ):
            with pytest.raises(ConfigError, match=r"do not fit|channels"):
                CompiledNetwork(PackedNetwork(whole.config, arrays))
    with pytest.raises(ConfigError, match="do not fit"):
        CompiledNetwork(PackedNetwork(dataclasses.replace(whole.config, num_classes=10), whole.arrays))


def test_numbers_that_the_compiled_code_would_misread(saved):
    stored, log_mel = open_checkpoint(saved), np.zeros((1, 1, 128, 40), np.float32)
    network = CompiledNetwork(pack(fold(stored.config, stored.state)))
    assert np.array_equal(network.embed(log_mel, 2**32), network.embed(log_mel, -1))
    with pytest.raises(ConfigError, match=r"must be \[B, "):
        network.logits(np.zeros((1, 5_000_000), np.float32))
    with pytest.raises(ConfigError, match="threads is 4294967296; it must be at least 1, and at most"):
        CompiledBackend(stored, 2**32)
    with pytest.raises(ConfigError, match="The precision of a backend is fixed"):
        Tagger(CompiledBackend(stored, 1), precision="float16")


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (40, 33), (128, 101)])
@pytest.mark.parametrize("threads", [1, 3])
def test_frames_of_any_size(shape, threads):
    model = small("dymn04", strides=(2, 1, 2, 2)).eval()
    network = CompiledNetwork(pack(fold(model.config, model.stored().state)))
    log_mel = torch.randn(2, 1, *shape, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        maps = model.features(log_mel)
    embedding, frames = network.embed_frames(log_mel.numpy(), threads)
    assert np.abs(frames - maps.mean(dim=2).numpy()).max() < 1e-5 * maps.abs().max()
    assert np.array_equal(embedding, network.embed(log_mel.numpy(), threads))


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (40, 33), (128, 101)])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", ["dymn04", "mn04", "fmn04"])  # fmn04 has other strides in time
@pytest.mark.parametrize("clips", [1, 2, 4])  # if there are fewer than threads, these share each clip
def test_outputs_of_blocks_of_any_size(shape, threads, name, clips):
    model = small(name).eval() if name == "fmn04" else small(name, strides=(2, 1, 2, 2)).eval()
    log_mel = torch.randn(clips, 1, *shape, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        *maps, features = model.feature_maps(log_mel)[1:]
    network = NativeNetwork(model).compiled
    output, found = network.embed_blocks(log_mel.numpy(), threads)
    assert {i: own.shape for i, own in found.items()} == {i: tuple(each.shape) for i, each in enumerate(maps, 1)}
    for own, each in zip(found.values(), maps, strict=True):
        assert np.abs(own - each.numpy()).max() <= 2e-5 * max(1.0, float(each.abs().max()))
    expected = features.mean(dim=(2, 3)).numpy()
    np.testing.assert_allclose(output, expected, atol=2e-5 * float(np.abs(expected).max()))
    again, some = network.embed_blocks(log_mel.numpy(), threads, (6, 15))
    assert np.array_equal(again, output) and list(some) == [6, 15]
    assert all(np.array_equal(some[i], found[i]) for i in some)


def test_outputs_of_blocks_of_what_is_no_spectrogram():
    network = NativeNetwork(small("dymn04").eval()).compiled
    with pytest.raises(ConfigError, match=r"must be \[B, 1, n_mels, frames\]"):
        network.embed_blocks(np.zeros(5, np.float32), 1)
    with pytest.raises(ConfigError, match="too long for one pass"):
        network.embed_blocks(np.broadcast_to(np.float32(0), (1, 1, 128, 2**22)), 1)


def test_folding_divides_the_temperature_in_and_drops_single_kernels():
    for settings in (
        {"temperature": 10.0},
        {"n_kernels": 1},
        {"dynamic_convs": ("depthwise",)},
        {"dynamic_relus": ()},
        {"attention": None},
    ):
        model = small("dymn04", **settings).eval()
        folded = fold(model.config, model.stored().state)
        log_mel = torch.randn(2, 1, 64, 60, generator=torch.Generator().manual_seed(3))
        network = CompiledNetwork(pack(folded))
        with torch.no_grad():
            expected = model(log_mel)
        assert (
            np.abs(network.logits(network.embed(log_mel.numpy(), 1)) - expected.logits.numpy()).max()
            < 2e-5 * expected.logits.abs().max()
        )
    assert Variant(width=0.1, n_kernels=1).config().blocks[3].n_kernels == 1


FIXTURES = ("dymn_w01", "dymn_w01_50cls_s2221", "mn_w01", "mn_w01_fully_convolutional")


@pytest.mark.parametrize("build", libraries())
@pytest.mark.parametrize("name", FIXTURES)
def test_numbers_of_published_files(shared, name, build):
    """A state dict in the published layout gives the logits of its authors' code, in NumPy and compiled code."""
    folder = shared / "fixtures" / name
    built = json.loads((folder / "config.json").read_text())
    strides = tuple(built.get("strides", (2, 2, 2, 2)))
    imported = read_efficientat(folder / "state_dict.pt", strides=strides)
    network = CompiledNetwork(pack(fold(*imported)), build)
    stored = np.load(folder / "io.npz")
    embedding = network.embed(stored["log_mel"], 1)
    assert np.abs(network.logits(embedding) - stored["logits"]).max() < 1e-5
    assert np.abs(embedding - stored["embedding"]).max() < 1e-5


def test_the_server_needs_no_pytorch(checkpoints, tmp_path):
    pytest.importorskip("fastapi")
    pytest.importorskip("httpx")
    soundfile.write(tmp_path / "noise.wav", sounds(70_000), 32_000)
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from starlette.testclient import TestClient\n"
        "from dymn.commands.serve import load_taggers\nfrom dymn.serve.app import create_app\n"
        f"model = {str(checkpoints / 'own.safetensors')!r}\n"
        "app = create_app(load_taggers([model], None, None, True, 'auto', 'float32'))\n"
        "with TestClient(app) as client:\n"
        "    content = open('noise.wav', 'rb').read()\n"
        "    answer = client.post('/v1/tag?embedding=true', content=content)\n"
        "    assert answer.status_code == 200, answer.text\n"
        "    assert len(answer.json()['embedding']['vector']) == 96, answer.text\n"
        "    deeper = client.post('/v1/tag?embedding=true&layers=mels', content=content)\n"
        "    assert deeper.status_code in (400, 501), (deeper.status_code, deeper.text)\n"
        "    assert 'dymn[torch]' in deeper.text, (deeper.status_code, deeper.text)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
