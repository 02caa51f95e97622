"""The HEAR API: the checks of the public validator (hearvalidator), which imports TensorFlow and so does not run here,
and our own.
"""

import pytest
import torch

from dymn import create_model, hear
from dymn.config import FrontEndConfig, ModelCard
from dymn.errors import ConfigError, WeightsError
from dymn.models import pretrained
from dymn.runtime.layer_averages import LayerAverages


@pytest.fixture(scope="module", params=[32_000, 22_050])
def model(request, tmp_path_factory):
    network = create_model("mn01", num_classes=2, generator=torch.Generator().manual_seed(0))
    front_end = FrontEndConfig(sample_rate=request.param, f_max=10_000.0, f_max_range=1)
    network.card = ModelCard(labels=("a", "b"), front_end=front_end)
    path = tmp_path_factory.mktemp("hear") / "model.safetensors"
    pretrained.save(network, path)
    return hear.load_model(str(path))


def noise(model, n_sounds, seconds):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n_sounds, int(seconds * model.sample_rate), generator=generator) * 2 - 1


def test_attributes(model):
    assert isinstance(model, torch.nn.Module)
    assert type(model.sample_rate) is type(model.scene_embedding_size) is type(model.timestamp_embedding_size) is int
    assert (
        model.scene_embedding_size
        == model.timestamp_embedding_size
        == 128 + sum(parameter.c_out for i, parameter in enumerate(model_config()) if i in (4, 10, 12, 14))
    )


def model_config():
    return create_model("mn01", num_classes=2).config.blocks


@pytest.mark.parametrize(("n_sounds", "seconds"), [(3, 2.0), (2, 1.07), (2, 1.98), (1, 0.3), (1, 0.001)])
def test_timestamp_embeddings(model, n_sounds, seconds):
    embeddings, timestamps = hear.get_timestamp_embeddings(noise(model, n_sounds, seconds), model)
    assert embeddings.dtype == timestamps.dtype == torch.float32
    assert embeddings.shape == (*timestamps.shape, model.timestamp_embedding_size)
    assert timestamps.shape[0] == n_sounds
    assert not embeddings.requires_grad
    assert (timestamps[:, 0] == 0).all()
    assert (torch.diff(timestamps) == 50).all()
    assert (timestamps[:, -1] <= 1000 * seconds).all()
    assert (timestamps[:, -1] > 1000 * seconds - 50.1).all()


def test_a_timestamp_hears_what_is_around_it(model):
    audio = noise(model, 1, 1.5)
    embeddings, timestamps = hear.get_timestamp_embeddings(audio, model)
    window, centre = round(0.16 * model.sample_rate), round(0.75 * model.sample_rate)
    around = audio[:, centre - window // 2 : centre - window // 2 + window]
    with torch.no_grad():
        torch.testing.assert_close(
            embeddings[:, timestamps[0].tolist().index(750.0)], model(around), atol=1e-5, rtol=1e-5
        )
    changed = audio.clone()
    changed[:, int(1.2 * model.sample_rate) :] = 0
    unlike = (hear.get_timestamp_embeddings(changed, model)[0] - embeddings).abs().amax(dim=(0, 2)) > 1e-4
    assert not unlike[timestamps[0] < 1100].any()
    assert unlike[timestamps[0] > 1250].all()


def test_scene_embeddings(model):
    audio = noise(model, 3, 3.74)
    embeddings = hear.get_scene_embeddings(audio, model)
    assert embeddings.dtype == torch.float32
    assert embeddings.shape == (3, model.scene_embedding_size)
    with torch.no_grad():
        torch.testing.assert_close(embeddings, model(audio))


def test_a_long_scene_is_the_mean_over_its_time(model):
    audio = noise(model, 1, 15)
    cut = 10 * model.sample_rate
    with torch.no_grad():
        expected = model(audio[:, :cut]) * 2 / 3 + model(audio[:, cut:]) / 3
    torch.testing.assert_close(hear.get_scene_embeddings(audio, model), expected)


@pytest.fixture
def authors(model):
    """The same network with the authors' windows."""
    return hear.HearModel(model.embedder, "authors").eval()


def reflected(audio, pad):
    return torch.nn.functional.pad(audio[:, None], (pad, pad), mode="reflect")[:, 0]


def test_the_authors_hear_long_scenes_every_two_and_a_half_seconds(model, authors):
    audio = noise(model, 2, 11.2)
    length, hop = 10 * model.sample_rate, int(2.5 * model.sample_rate)
    padded = reflected(audio, length // 2)
    with torch.no_grad():
        windows = [model(padded[:, start : start + length]) for start in range(0, padded.shape[1] - length + 1, hop)]
    assert len(windows) == 5  # centred on 0, 2.5, 5, 7.5 and 10 s
    torch.testing.assert_close(hear.get_scene_embeddings(audio, authors), torch.stack(windows).mean(dim=0))
    short = audio[:, :length]
    torch.testing.assert_close(hear.get_scene_embeddings(short, authors), hear.get_scene_embeddings(short, model))


@pytest.mark.parametrize("seconds", [0.5, 0.51])
def test_the_authors_reflect_at_the_edges(model, authors, seconds):
    audio = noise(model, 2, seconds)
    window = round(0.16 * model.sample_rate)
    padded = reflected(audio, window // 2)
    found, times = hear.get_timestamp_embeddings(audio, authors)
    plain, plain_times = hear.get_timestamp_embeddings(audio, model)
    torch.testing.assert_close(times, plain_times)
    with torch.no_grad():
        for i, time in enumerate(times[0].tolist()):
            start = round(time * model.sample_rate / 1000)
            expected = model(padded[:, start : start + window])
            torch.testing.assert_close(found[:, i], expected, atol=1e-5, rtol=1e-5)
    inner = (times[0] >= 80) & (times[0] <= 1000 * seconds - 80)
    torch.testing.assert_close(found[:, inner], plain[:, inner], atol=1e-5, rtol=1e-5)
    assert ((found - plain).abs().amax(dim=(0, 2)) > 1e-4).equal(~inner)


@pytest.mark.parametrize("n_samples", [1, 7, 900])
def test_the_authors_windows_of_clips_shorter_than_the_padding(model, authors, n_samples):
    embeddings, _ = hear.get_timestamp_embeddings(noise(model, 1, 0.1)[:, :n_samples], authors)
    assert torch.isfinite(embeddings).all()


def test_other_windows_are_refused(model):
    with pytest.raises(ConfigError, match=r"windows is 'mine'; allowed: consecutive, authors"):
        hear.HearModel(model.embedder, "mine")


def test_more_sounds_than_a_batch_are_those_of_each(model, monkeypatch):
    audio = noise(model, 3, 0.5)
    whole = hear.get_scene_embeddings(audio, model), hear.get_timestamp_embeddings(audio, model)[0]
    monkeypatch.setattr(hear, "BATCH_SIZE", 2)
    torch.testing.assert_close(hear.get_scene_embeddings(audio, model), whole[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(hear.get_timestamp_embeddings(audio, model)[0], whole[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("audio", [torch.zeros(100), torch.zeros(1, 0), torch.zeros(0, 5), torch.zeros(1, 2, 3)])
def test_audio_of_another_shape(model, audio):
    for function in (hear.get_scene_embeddings, hear.get_timestamp_embeddings):
        with pytest.raises(ConfigError, match=r"n_sounds, n_samples"):
            function(audio, model)


def test_without_a_file_it_is_the_model_that_comes_with_dymn(monkeypatch):
    asked = []

    def load(name):
        asked.append(name)
        return create_model("mn01", num_classes=2)

    monkeypatch.setattr("dymn.weights.load_model", load, raising=False)
    assert isinstance(hear.load_model(layers="last").embedder, LayerAverages)
    assert asked == ["dymn04_open"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"missing\.safetensors"):
        hear.load_model(str(tmp_path / "missing.safetensors"))
