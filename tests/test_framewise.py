"""Frame-wise MobileNets (EfficientSED): numbers against fixtures of the public code, files, events, ONNX, refusals."""

import copy
import dataclasses
import json
import pickle

import numpy as np
import pytest
import torch
from scipy.ndimage import median_filter
from typer.testing import CliRunner

import dymn
from dymn.architectures import FRAMEWISE, TABLE_I, model_config
from dymn.audio.windows import cut
from dymn.cli import app
from dymn.config import FrontEndConfig, from_dict, to_dict
from dymn.errors import ConfigError, WeightsError
from dymn.export import build
from dymn.inference.events import EventSettings, event_files
from dymn.inference.frames import FrameSettings, frame_parts
from dymn.models.frontend import LogMel
from dymn.models.heads import FramewiseOutput
from dymn.models.layers.sequence import minimal_gru, resampled
from dymn.models.mobilenet import MobileNet
from dymn.models.pretrained import save
from dymn.native import libraries
from dymn.native.log_mel import ArrayLogMel, CompiledLogMel
from dymn.runtime import opening
from dymn.runtime.ensemble import EnsembleBackend
from dymn.runtime.framewise import resampled as resampled_array
from dymn.runtime.fused import fuse
from dymn.runtime.onnx_backend import OnnxBackend
from dymn.runtime.torch_backend import TorchBackend
from dymn.training.start import has_fresh_head, set_prior
from dymn.weights import import_efficientsed, open_checkpoint
from dymn.weights.format import readme
from dymn.weights.labels import strong_labels
from dymn.weights.registry import EFFICIENTSED_FRONT_END
from dymn.weights.torch_files import read_tensors

RATE = 16_000
KINDS = ("none", "tf", "gru", "hybrid")
FIXTURES = ("fmn04", "fmn06", "fmn_w01", "fmn_w01_tf128", "fmn_w01_gru128", "fmn_w01_hybrid128")


@pytest.fixture(scope="module")
def fixtures(shared):
    folder = shared / "fixtures_fmn"
    if not folder.is_dir():
        pytest.skip("the fixtures of EfficientSED are not here")
    return folder


def small(kind="none", **settings):
    """Return a network of width 0.1 with random weights and statistics that keep its logits apart."""
    config = model_config("fmn04", width=0.1, num_classes=5, sequence=kind, sequence_size=32, **settings)
    generator = torch.Generator().manual_seed(0)
    model = MobileNet(config).initialise(generator).eval()
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)
    model.card = dataclasses.replace(model.card, name=f"small_{kind}", front_end=EFFICIENTSED_FRONT_END)
    return model


def tensors(folder):
    return {key: torch.tensor(values) for key, values in read_tensors(folder / "state_dict.pt").items()}


def noise(seconds, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * RATE)).astype(np.float32)


def test_the_table_states_strides_alone():
    same = [(row.kernel_size, row.c_exp, row.c_out, row.activation) for row in TABLE_I]
    assert [(row.kernel_size, row.c_exp, row.c_out, row.activation) for row in FRAMEWISE] == same
    config = model_config("fmn10")
    assert config.time_stride == 4 and 2 * np.prod([block.stride for block in config.blocks]) == 128
    assert [i + 1 for i, block in enumerate(config.blocks) if block.has_residual] == [1, 5, 9, 10, 12, 14]
    residual = [i + 1 for i, block in enumerate(model_config("fmn04", width=0.1).blocks) if block.has_residual]
    assert residual == [1, 4, 5, 7, 9, 10, 12, 13, 14]
    assert from_dict(type(config), json.loads(json.dumps(to_dict(config)))) == config


def assert_near(found, wanted):
    """1e-5 with AVX-512; on other processors, 1e-5 of the largest value, or 1e-5 if that is larger.

    The public code's own frame logits, of up to 24, differ from those in double precision by up to 2e-4 (fmn06), and
    from ours by 5e-5 on a processor without AVX-512, where PyTorch rounds in another order.
    """
    has_avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
    assert np.abs(found - wanted).max() < 1e-5 * (1.0 if has_avx512 else max(1.0, np.abs(wanted).max()))


@pytest.mark.parametrize("name", FIXTURES)
def test_numbers_are_those_of_the_public_code(fixtures, name):
    model = import_efficientsed(fixtures / name / "state_dict.pt")
    wanted = json.loads((fixtures / name / "config.json").read_text())
    assert model.config.width == wanted["width_mult"] and model.config.c_last == wanted["embed_dim"]
    assert model.config.sequence.kind == (wanted["seq_model_type"] or "none")
    io = np.load(fixtures / name / "io.npz")
    for part in ("", "_short", "_long"):
        if f"log_mel{part}" not in io:
            continue
        with torch.inference_mode():
            found = model(torch.from_numpy(io[f"log_mel{part}"].astype(np.float32)))
        assert_near(found.frame_logits.numpy(), io[f"strong_logits{part}"].transpose(0, 2, 1))
        assert_near(found.logits.numpy(), io[f"weak_logits{part}"])
        assert_near(found.embedding.numpy(), io[f"features{part}"].mean(axis=1))


def test_older_names_of_tensors(fixtures):
    state = tensors(fixtures / "fmn_w01_tf128")
    x = torch.randn(1, 1, 128, 200)
    expected = import_efficientsed(state)(x).frame_logits
    for prefix in ("net.", "model."):
        old = {prefix + key.replace("model.fmn.", "model."): values for key, values in state.items()}
        assert torch.equal(import_efficientsed(old)(x).frame_logits, expected)
    twice = state | {"net.strong_head.bias": state["strong_head.bias"]}
    with pytest.raises(WeightsError, match="the same name"):
        import_efficientsed(twice)


@pytest.mark.parametrize("name", ["fmn_w01_tf128", "fmn_w01_gru128", "fmn_w01_hybrid128"])
def test_no_file_is_loaded_in_part(fixtures, name):
    state = tensors(fixtures / name)
    keys = [key for key in state if not key.endswith("num_batches_tracked")]
    for key in [*keys[:: len(keys) // 12], *(k for k in keys if "seq_model" in k or "head" in k)]:
        without = {other: values for other, values in state.items() if other != key}
        with pytest.raises(WeightsError, match="does not fit an EfficientSED network"):
            import_efficientsed(without)
    for key in ("seq_model.1.layers.7.surprise", "attention_head.weight", "model.fmn.features.17.0.weight"):
        with pytest.raises(WeightsError, match=r"extra|missing"):
            import_efficientsed(state | {key: torch.zeros(2)})
    matrix = next(key for key in keys if state[key].ndim == 2 and state[key].shape[0] != state[key].shape[1])
    with pytest.raises(WeightsError):
        import_efficientsed(state | {matrix: state[matrix].T.contiguous()})
    with pytest.raises(WeightsError, match="strong_head"):
        import_efficientsed({key: values for key, values in state.items() if "_head" not in key})
    renamed = {key.replace("seq_model.", "seq_model.mamba."): values for key, values in state.items()}
    with pytest.raises(WeightsError, match="seq_model is unknown"):
        import_efficientsed(renamed)
    with pytest.raises(ConfigError, match="length is 0"):
        import_efficientsed(state, seq_len=0)


@pytest.mark.parametrize("length", [1, 17, 250, 251])
def test_any_number_of_frames(fixtures, length):
    model = import_efficientsed(fixtures / "fmn_w01_gru128" / "state_dict.pt", seq_len=length)
    assert model(torch.zeros(2, 1, 128, 399)).frame_logits.shape == (2, length, 100)


def test_an_output_can_be_copied_and_pickled():
    output = FramewiseOutput(torch.zeros(1, 3), torch.ones(1, 4), torch.rand(1, 5, 3))
    for found in (copy.copy(output), pickle.loads(pickle.dumps(output))):
        logits, embedding = found
        assert isinstance(found, FramewiseOutput) and torch.equal(found.frame_logits, output.frame_logits)
        assert torch.equal(logits, output.logits) and torch.equal(embedding, output.embedding)


def test_a_file_of_one_head_gives_both_with_it(fixtures, tmp_path):
    state = tensors(fixtures / "fmn06")
    x = torch.randn(1, 1, 128, 1000)
    weak = {key: values for key, values in state.items() if "strong" not in key}
    torch.save(weak, tmp_path / "weak.pt")
    stored = open_checkpoint(tmp_path / "weak.pt")
    assert stored.config.sequence.scores == "clip" and stored.config.num_classes == 60
    found = import_efficientsed(weak)(x)
    assert torch.allclose(found.frame_logits.mean(dim=1), found.logits, atol=1e-4)
    backend = TorchBackend(MobileNet.from_stored(stored), "cpu", 1)
    frames = backend.frame_run(x.numpy())
    np.testing.assert_allclose(frames.probabilities, torch.sigmoid(found.logits).detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(frames.frames, torch.sigmoid(found.frame_logits).detach().numpy(), atol=1e-6)
    strong = import_efficientsed({key: values for key, values in state.items() if "weak" not in key})
    assert strong(x).logits.shape == (1, 80)


def test_a_published_file_from_the_cache(fixtures, tmp_path, monkeypatch):
    monkeypatch.setenv("DYMN_CACHE", str(tmp_path))
    (tmp_path / "fmn04_strong.pt").write_bytes((fixtures / "fmn04" / "state_dict.pt").read_bytes())
    stored = open_checkpoint("fmn04_strong")
    assert stored.card.labels == strong_labels() and stored.card.front_end == EFFICIENTSED_FRONT_END
    assert stored.card.metrics == {"PSDS1": 0.3952} and stored.config.sequence.scores == "frames"
    assert open_checkpoint(tmp_path / "fmn04_strong.pt").card.name == "fmn04_strong"
    (tmp_path / "fmn06_strong.pt").write_bytes((fixtures / "fmn06" / "state_dict.pt").read_bytes())
    with pytest.raises(WeightsError, match="is not fmn06_strong"):  # it has other classes
        open_checkpoint("fmn06_strong")
    (tmp_path / "fmn06_weak.pt").write_bytes((fixtures / "fmn06" / "state_dict.pt").read_bytes())
    weak = open_checkpoint("fmn06_weak")  # of which the number of classes is not published
    assert weak.config.num_classes == 60 and weak.config.sequence.scores == "clip"


def test_strong_labels():
    labels = strong_labels()
    assert len(labels) == 447 and list(labels) == sorted(labels) and "Background noise" in labels


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints_and_the_fused_form(kind, tmp_path):
    model = small(kind)
    save(model, tmp_path / "model.safetensors")
    again = dymn.load_model(tmp_path / "model.safetensors")
    n_parameters = sum(parameter.numel() for parameter in model.parameters())  # without rotary frequencies
    assert f"{n_parameters:,} parameters" in readme(model.stored(), "")
    x = torch.randn(2, 1, 128, 300)
    with torch.inference_mode():
        expected = model(x)
        assert torch.equal(again(x).frame_logits, expected.frame_logits)
        assert (fuse(model)(x).frame_logits - expected.frame_logits).abs().max() < 1e-4
    wrong = dataclasses.replace(model.config, sequence=dataclasses.replace(model.config.sequence, n_layers=3))
    if kind != "none":
        with pytest.raises(WeightsError):
            MobileNet.from_stored(model.stored()._replace(config=wrong))


def test_a_minimal_gru_is_its_recurrence():
    x = torch.randn(2, 40, 6, dtype=torch.float64, requires_grad=True)
    candidate, gate = x.chunk(2, dim=2)
    share, state, states = gate.sigmoid(), torch.zeros(2, 3, dtype=torch.float64), []
    for t in range(40):
        value = torch.where(candidate[:, t] >= 0, candidate[:, t] + 0.5, candidate[:, t].sigmoid())
        state = (1 - share[:, t]) * state + share[:, t] * value
        states.append(state)
    torch.testing.assert_close(minimal_gru(x), torch.stack(states, dim=1))


@pytest.mark.parametrize("n", [1, 3, 101, 249, 250, 251, 334, 900])
def test_resampling_in_numpy_and_by_one_matrix(n):
    x = torch.randn(2, 3, n, dtype=torch.float64)
    torch.testing.assert_close(resampled(x, 250), torch.from_numpy(resampled_array(x.numpy(), 250)))
    torch.testing.assert_close(resampled(x, 250), x @ torch.from_numpy(resampled_array(np.eye(n), 250)))


def test_the_front_end_is_the_published_one(fixtures):
    mel = np.load(fixtures / "mel.npz")
    samples = mel["waveform_int16"].astype(np.float32) / 32768
    found = [LogMel(EFFICIENTSED_FRONT_END)(torch.from_numpy(samples)[None]).numpy()]
    found.append(ArrayLogMel(EFFICIENTSED_FRONT_END)(samples)[None])
    if libraries():
        found.append(CompiledLogMel(EFFICIENTSED_FRONT_END)(samples)[None])
    for log_mel in found:
        assert np.abs(log_mel - mel["log_mel"]).max() < 1e-3
        assert np.median(np.abs(log_mel - mel["log_mel"])) < 1e-6
        assert log_mel.min() == pytest.approx(-2.3236, abs=1e-4)


def test_a_floor_is_the_logarithm_of_a_maximum():
    samples = noise(0.5) * np.linspace(0, 1, RATE // 2, dtype=np.float32) ** 8
    plain, floor = FrontEndConfig(log_offset=1e-5), FrontEndConfig(log_offset=1e-5, log_floor=1e-3)
    lowest = np.float32((np.log(1e-3) + 4.5) / 5)
    for kind in (ArrayLogMel, CompiledLogMel) if libraries() else (ArrayLogMel,):
        np.testing.assert_array_equal(kind(floor)(samples), np.maximum(kind(plain)(samples), lowest))
    with pytest.raises(ConfigError, match="silence has no logarithm"):
        FrontEndConfig(log_offset=0.0)


@pytest.fixture(scope="module")
def end_to_end(fixtures):
    found = np.load(fixtures / "fmn_w01" / "end_to_end.npz")
    return found["waveform_int16"].astype(np.float32) / 32768, found


@pytest.mark.parametrize("threshold", [0.1, 0.2, 0.5])
def test_events_are_the_published_ones(fixtures, end_to_end, threshold):
    samples, expected = end_to_end
    backend = opening.open_backend(fixtures / "fmn_w01" / "state_dict.pt", device="cpu", threads=1)
    labels = backend.labels[:16]
    parts = list(frame_parts(backend, [samples], FrameSettings(labels=labels), sample_rate=RATE))
    assert np.abs(np.concatenate([part.scores for part in parts]) - expected["probabilities"]).max() < 5e-4
    (found,) = event_files(backend, [samples], EventSettings(threshold=threshold, labels=labels), sample_rate=RATE)
    mine = sorted((labels.index(event.label), round(event.start, 3), round(event.end, 3)) for event in found.events)
    rows = expected["events"]
    chosen = rows[(np.abs(rows[:, 0] - threshold) < 1e-6) & (rows[:, 3] > rows[:, 2])]
    assert mine == sorted((int(column), round(start, 3), round(end, 3)) for _, column, start, end in chosen)


@pytest.mark.parametrize("kind", ["none", "gru"])
def test_long_recordings_are_joined_end_to_end(kind):
    tagger = dymn.Tagger(small(kind, scores="frames"), "cpu", 1)
    samples = noise(20.5)  # the remainder, shorter than a tenth of a window, is a window of its own
    parts = list(frame_parts(tagger.backend, [samples], sample_rate=RATE))
    scores = np.concatenate([part.scores for part in parts])
    assert scores.shape == (750, 5) and len(tagger.frames(samples, RATE).times) in (512, 513)
    for i in range(3):
        window = np.pad(samples[i * 10 * RATE : (i + 1) * 10 * RATE], (0, max(0, 10 * RATE * (i + 1) - len(samples))))
        alone = tagger.backend.frame_run(tagger.backend.waveform_features(window[None])).frames[0]
        np.testing.assert_allclose(scores[250 * i : 250 * i + 250], alone, atol=1e-6)
    smooth = median_filter(scores, size=(9, 1)) >= np.float32(0.5)
    events = tagger.events(samples, RATE, threshold=0.5)
    found = np.zeros_like(smooth)
    for event in events:
        column = tagger.labels.index(event.label)
        found[round(event.start / 0.04) : round(min(event.end, 20.48) / 0.04), column] = True
    np.testing.assert_array_equal(found[:512], smooth[:512])
    assert all(event.end <= 20.5 for event in events)


def test_windows_that_join_nothing():
    def lengths(n, joins):
        return [len(window.samples) for window in cut([np.zeros(n, np.float32)], 100, 100, joins)]

    assert lengths(205, True) == [100, 105] and lengths(205, False) == [100, 100, 5]
    assert lengths(200, False) == [100, 100] and lengths(5, False) == [5]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seconds", [10.0, 4.0])
def test_onnx_files_give_the_same_frames(kind, seconds):
    pytest.importorskip("onnxruntime")
    model = small(kind, scores="frames" if seconds == 10 else "clip")
    file = OnnxBackend(build(model, input="log-mel", dynamic_batch=True, seconds=seconds), 1)
    assert (file.frame_seconds, file.frame_samples) == (seconds, round(seconds * 64))
    x = LogMel(EFFICIENTSED_FRONT_END)(torch.from_numpy(np.stack([noise(seconds, seed) for seed in (0, 1)])))
    probabilities, _, embedding, frames = file.outputs(x.numpy())
    expected = TorchBackend(model, "cpu", 1).frame_run(x.numpy())
    assert np.abs(frames - expected.frames).max() < 1e-5
    assert np.abs(probabilities - expected.probabilities).max() < 1e-5
    np.testing.assert_allclose(embedding, expected.embedding, atol=1e-4)


def test_the_command_with_files(tmp_path):
    pytest.importorskip("onnxruntime")
    soundfile = pytest.importorskip("soundfile")
    model = small("tf", scores="frames")
    save(model, tmp_path / "model.safetensors")
    soundfile.write(tmp_path / "noise.wav", noise(12), RATE)

    def run(*arguments, code=0):
        result = CliRunner().invoke(app, [*map(str, arguments), "--quiet"])
        assert result.exit_code == code, result.output
        return result.output

    def events(name):
        options = ("--model", tmp_path / name, "--format", "json", "--threads", 1)
        return json.loads(run("events", tmp_path / "noise.wav", *options))

    found = events("model.safetensors")
    assert found["parameters"]["method"] == "frames" and found["parameters"]["median"] == 0.36
    assert found["parameters"]["threshold"] == 0.2 and found["parameters"]["min_gap"] == 0
    assert found["recordings"][0]["events"]
    run("export", tmp_path / "model.safetensors", "--output", tmp_path / "model.onnx")
    places = [
        [(event["label"], event["start"], event["end"]) for event in events(name)["recordings"][0]["events"]]
        for name in ("model.safetensors", "model.onnx")
    ]
    assert places[0] == places[1]
    tags = run("tag", tmp_path / "noise.wav", "--model", tmp_path / "model.safetensors", "--format", "json")
    best = max(event["score"] for event in found["recordings"][0]["events"])
    assert json.loads(tags)["recordings"][0]["tags"][0]["score"] >= best - 1e-6
    run("embed", tmp_path / "noise.wav", "--model", tmp_path / "model.safetensors", "--output", tmp_path / "e.npy")
    assert np.load(tmp_path / "e.npy")["embedding"].shape == (1, 96)


def test_other_labels_and_ensembles_keep_the_method(tmp_path):
    """Frames are those of the network: the method, its defaults and its windows do not depend on the labels."""
    pytest.importorskip("onnxruntime")
    (tmp_path / "groups.toml").write_text("one = ['*']\n")
    pytest.importorskip("soundfile").write(tmp_path / "noise.wav", noise(12), RATE)
    names = []
    for kind in ("none", "gru"):
        names.append(str(tmp_path / f"{kind}.safetensors"))
        save(small(kind, scores="frames"), names[-1])
    for words in (("--model", names[0], "--groups", tmp_path / "groups.toml"), ("--model", *names)):
        result = CliRunner().invoke(app, ["events", *map(str, (tmp_path / "noise.wav", "-f", "json", *words, "-q"))])
        assert result.exit_code == 0, result.output
        found = json.loads(result.stdout)
        used = found["parameters"]
        assert (used["method"], used["window"], used["threshold"], used["median"]) == ("frames", 10, 0.2, 0.36)
    both = EnsembleBackend([opening.open_backend(name) for name in names])
    assert (both.frame_seconds, both.frame_samples) == (10.0, 640)
    frames = [opening.open_backend(name).frame_run(both.waveform_features(noise(10)[None])).frames for name in names]
    logits = np.mean([np.log(scores) - np.log1p(-scores) for scores in frames], axis=0)
    joined = dymn.Tagger(both).frames(noise(10), RATE)
    np.testing.assert_allclose(joined.scores, 1 / (1 + np.exp(-logits[0])), atol=1e-5)
    short = OnnxBackend(build(small("gru", scores="frames"), dynamic_batch=True, seconds=4.0), 1)
    with pytest.raises(ConfigError, match=r"small_none scores windows of 10 s and small_gru scores windows of 4 s"):
        EnsembleBackend([both.members[0], short])


def test_what_does_not_fit_is_refused():
    model = small("none", scores="frames")
    tagger = dymn.Tagger(model, "cpu", 1)
    for wrong in ({"method": "windows"}, {"method": "activation"}, {"window": 5.0}, {"hop": 5.0}):
        with pytest.raises(ConfigError, match=r"is a frame-wise network|windows of 10.0 s"):
            tagger.events(noise(1), RATE, **wrong)
    plain = dymn.Tagger(dymn.create_model("mn01", num_classes=2), "cpu", 1)
    with pytest.raises(ConfigError, match="not a frame-wise network"):
        plain.events(noise(1), RATE, method="frames")
    with pytest.raises(ConfigError, match="has not been trained"):
        model.check_clips()
    with pytest.raises(ConfigError, match="keeps its classes"):
        model.reset_classifier(3)
    with pytest.raises(ConfigError, match="128 bands"):
        model(torch.zeros(1, 1, 256, 100))
    with pytest.raises(ConfigError, match="Leave compile out"):
        TorchBackend(model, "cpu", compile=True)
    with pytest.raises(ConfigError, match="exported as onnx"):
        build(model, format="torch")
    with pytest.raises(ConfigError, match="dynamic-time"):
        build(model, dynamic_time=True)
    with pytest.raises(ConfigError, match="must be used together"):
        model_config("dymn10", head="frames")
    with pytest.raises(ConfigError, match="sequence model"):
        model_config("dymn10", sequence="tf")


@pytest.mark.parametrize("command", [("fit", "clips", "--model"), ("calibrate", "--data", "clips")], ids=lambda w: w[0])
def test_nothing_is_fitted_to_a_frame_wise_network(command, tmp_path, monkeypatch):
    soundfile = pytest.importorskip("soundfile")
    monkeypatch.chdir(tmp_path)
    for name in ("dog/0.wav", "dog/1.wav", "background/0.wav", "background/1.wav"):
        (tmp_path / "clips" / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / "clips" / name, noise(1, seed=len(name)), RATE)
    save(small(), tmp_path / "fmn.safetensors")
    done = CliRunner().invoke(app, [command[0], "--output", "m.safetensors", *command[1:], "fmn.safetensors"])
    assert done.exit_code == 2 and "is a frame-wise network" in done.stderr and "dymn04_open" in done.stderr


def test_a_new_network_starts_from_a_prior():
    model = MobileNet(model_config("fmn04", width=0.1, num_classes=3, sequence="gru", sequence_size=32)).initialise()
    assert has_fresh_head(model)
    x = torch.randn(2, 1, 128, 200)
    with torch.no_grad():
        before = model.eval()(x).logits
        set_prior(model, torch.tensor([-1.0, 0.5, 2.0]))
        torch.testing.assert_close(model(x).logits - before, torch.tensor([-1.0, 0.5, 2.0]).expand(2, 3))
    assert not has_fresh_head(model)
