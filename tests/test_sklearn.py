"""The scikit-learn transformer: scikit-learn's own checks, pipelines, pickles, recordings of every kind."""

import pickle
import warnings

import numpy as np
import pytest
import soundfile
import torch

from dymn import Embedder, create_model
from dymn.config import FrontEndConfig, ModelCard
from dymn.errors import AudioError, ConfigError, WeightsError
from dymn.models import pretrained
from tiny_runs import write_clips

pytest.importorskip("sklearn")
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator

from dymn.sklearn import EmbeddingTransformer

RATE = 8_000


@pytest.fixture(scope="module")
def network():
    network = create_model("mn01", num_classes=2, generator=torch.Generator().manual_seed(0))
    front_end = FrontEndConfig(
        sample_rate=RATE, n_fft=64, win_length=64, hop_length=32, n_mels=16, f_max=3500.0, f_max_range=1
    )
    network.card = ModelCard(labels=("a", "b"), front_end=front_end)
    return network


@pytest.fixture(scope="module")
def model(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    pretrained.save(network, path)
    return str(path)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return sorted(write_clips(tmp_path_factory.mktemp("clips"), 12).rglob("*.wav"))


def test_scikit_learn_finds_nothing_wrong(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(EmbeddingTransformer(model=model, layers="mels"), on_fail=None)
    assert len(results) > 30
    assert {result["check_name"]: result["exception"] for result in results if result["status"] == "failed"} == {}


def test_a_pipeline_learns_from_paths(model, clips):
    classes = [path.parent.name for path in clips]
    pipeline = make_pipeline(EmbeddingTransformer(model, layers="mels"), LogisticRegression())
    assert pipeline.fit(clips, classes).score(clips, classes) == 1.0
    again = pickle.loads(pickle.dumps(pipeline))
    assert list(again.predict(list(map(str, clips)))) == classes
    assert list(pipeline[:-1].get_feature_names_out()) == [f"mels_{i}" for i in range(16)]


def test_a_pickle_names_the_model_and_holds_no_weights(model, clips):
    transformer = EmbeddingTransformer(model).fit(clips)
    stored = pickle.dumps(transformer)
    assert len(stored) < 20_000
    np.testing.assert_array_equal(pickle.loads(stored).transform(clips[:2]), transformer.transform(clips[:2]))


def test_recordings_of_every_kind_are_the_same(network, model, clips, tmp_path):
    random = np.random.default_rng(0)
    waveforms = [random.normal(0, 0.1, 800).astype(np.float32), random.normal(0, 0.1, 900).astype(np.float32)]
    paths = [tmp_path / f"{i}.wav" for i in range(2)]
    for path, waveform in zip(paths, waveforms, strict=True):
        soundfile.write(path, waveform, RATE, subtype="FLOAT")
    expected = np.concatenate([Embedder(network, "last").vectors(waveform[None]) for waveform in waveforms])
    for kind in (str, None):
        transformer = EmbeddingTransformer(network if kind is None else model)
        for given in (
            waveforms,
            paths,
            [str(path) for path in paths],
            np.array(list(map(str, paths))),
            [waveforms[0], paths[1]],
        ):
            np.testing.assert_allclose(transformer.fit_transform(given), expected, atol=1e-5)
    whole = np.stack([waveform[:800] for waveform in waveforms])
    assert EmbeddingTransformer(model).fit_transform(whole).dtype == np.float32
    np.testing.assert_array_equal(
        EmbeddingTransformer(model).fit_transform(whole), EmbeddingTransformer(model).fit_transform(list(whole))
    )


@pytest.mark.parametrize("kind", ["int8", "int16", "int32", "uint8"])
def test_integer_samples_are_scaled_whatever_their_lengths(model, kind):
    """As an array, as a list of equal lengths, and as one of unequal lengths."""
    bits = 8 * np.dtype(kind).itemsize
    floats = np.random.default_rng(0).uniform(-0.9, 0.9, (2, 800)).astype(np.float32)
    integers = (np.round(floats * 2 ** (bits - 1)) + (128 if kind == "uint8" else 0)).astype(kind)
    expected = EmbeddingTransformer(model, "mels").fit_transform([floats[0], floats[1]])
    for given in (integers, list(integers), [integers[0], integers[1][:-1]], [integers[0], floats[1]]):
        found = EmbeddingTransformer(model, "mels").fit_transform(given)
        np.testing.assert_allclose(found[0], expected[0], atol=0.05 if bits == 8 else 1e-3)


def test_waveforms_of_another_rate_are_resampled(model):
    clip = np.random.default_rng(0).normal(0, 0.1, 4000)
    slow, fast = (EmbeddingTransformer(model, sample_rate=rate).fit_transform([clip]) for rate in (RATE, 2 * RATE))
    assert not np.allclose(slow, fast)


def test_settings_are_checked_when_fitted(model, clips):
    for settings in ({"layers": "first"}, {"window": 0}, {"fill": "mirror"}, {"device": "moon"}):
        with pytest.raises(ConfigError):
            EmbeddingTransformer(model, **settings).fit(clips)
    with pytest.raises(WeightsError, match="missing"):
        EmbeddingTransformer("missing.safetensors").fit(clips)
    with pytest.raises(ConfigError, match="list of paths"):
        EmbeddingTransformer(model).fit(str(clips[0]))
    with pytest.raises(AudioError, match=r"nothing\.wav"):
        EmbeddingTransformer(model).fit(clips).transform(["nothing.wav"])


def test_a_series_is_taken_like_a_list(tmp_path):
    pandas = pytest.importorskip("pandas")
    paths = [tmp_path / f"{i}.wav" for i in range(2)]
    for i, path in enumerate(paths):
        soundfile.write(path, 0.1 * np.random.default_rng(i).standard_normal(8_000), 8_000)
    transformer = EmbeddingTransformer().fit(paths)
    expected = transformer.transform(paths)
    np.testing.assert_array_equal(transformer.transform(pandas.Series(map(str, paths), index=[7, 3])), expected)
    waveforms = [0.1 * np.random.default_rng(i).standard_normal(8_000 + i) for i in range(2)]
    found = transformer.transform(pandas.Series(waveforms))
    np.testing.assert_array_equal(found, transformer.transform(waveforms))
