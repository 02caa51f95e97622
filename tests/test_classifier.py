"""`dymn.pipeline`: every kind of input that programs written for transformers give."""

import io
import types

import numpy as np
import pytest
import soundfile
import torch

import dymn
from dymn import create_model
from dymn.config import ModelCard
from dymn.errors import AudioError, ConfigError, WeightsError

RATE = 32_000
LABELS = ("Dog", "Cat", "Music")


@pytest.fixture(scope="module")
def network():
    generator = torch.Generator().manual_seed(0)
    network = create_model("mn01", num_classes=len(LABELS), generator=generator)
    for layer in (network.head.hidden, network.head.classifier):  # far from 0.5 for each class
        torch.nn.init.normal_(layer.weight, std=100.0, generator=generator)
    network.card = ModelCard(name="tiny", labels=LABELS)
    return network


@pytest.fixture(scope="module")
def classifier(network):
    return dymn.pipeline("audio-classification", model=network, device=-1)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.wav"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32), RATE, subtype="FLOAT")
    return path


def test_every_kind_of_input_gives_the_same(classifier, clip):
    samples = soundfile.read(clip, dtype="float32")[0]
    expected = [{"score": tag.score, "label": tag.label} for tag in classifier.tagger.tag(clip, top_k=5)]
    assert len(expected) == 3 and expected[0]["score"] >= expected[1]["score"]
    inputs = [
        clip,
        str(clip),
        clip.read_bytes(),
        samples,
        torch.from_numpy(samples),
        {"raw": samples, "sampling_rate": RATE},
        {"path": None, "array": samples, "sampling_rate": RATE},
        {"array": samples.tolist(), "sampling_rate": RATE},
    ]
    for given in inputs:
        found = classifier(given)
        assert [answer["label"] for answer in found] == [answer["label"] for answer in expected]
        assert [answer["score"] for answer in found] == pytest.approx(
            [answer["score"] for answer in expected], abs=1e-4
        )
    together = classifier(inputs, top_k=1)
    assert [[answer["label"] for answer in found] for found in together] == [[expected[0]["label"]]] * len(inputs)


def test_rates_of_dictionaries_count(classifier, clip):
    samples = soundfile.read(clip, dtype="float32")[0]
    slow = classifier({"raw": samples, "sampling_rate": RATE // 2})
    assert [answer["score"] for answer in slow] != pytest.approx(
        [answer["score"] for answer in classifier(clip)], abs=1e-3
    )


def test_top_k(network, clip):
    assert len(dymn.pipeline(model=network, top_k=2)(clip)) == 2
    assert len(dymn.pipeline(model=network, top_k=None)(clip)) == 3
    (answer,) = dymn.pipeline("audio-classification", model=network, top_k=2, device="cpu")(clip, top_k=1)
    assert answer.keys() == {"score", "label"}


def test_the_default_model_is_that_of_tag(network, monkeypatch, clip, tmp_path):
    from dymn.weights import default, open_checkpoint

    network.save_pretrained(tmp_path)
    stored = open_checkpoint(str(tmp_path))
    monkeypatch.setattr("dymn.classifier.open_default", lambda: default.Default(stored, "because"))
    assert len(dymn.pipeline()(clip)) == 3


def test_what_it_is_not(classifier, network, tmp_path):
    with pytest.raises(ConfigError, match="audio-classification"):
        dymn.pipeline("text-generation")
    with pytest.raises(WeightsError, match="nothing"):
        dymn.pipeline(model=tmp_path / "nothing")
    with pytest.raises(ConfigError, match="device"):
        dymn.pipeline(model=network, device=99)
    for wrong in (7, {"raw": np.zeros(10)}, {"sampling_rate": RATE}, "https://example.org/dog.wav"):
        with pytest.raises(ConfigError):
            classifier(wrong)
    with pytest.raises(AudioError, match=r"nothing\.wav"):
        classifier([np.zeros(1000, np.float32), str(tmp_path / "nothing.wav")])


class Decoder:
    """Stands in for torchcodec's AudioDecoder."""

    def get_all_samples(self):
        return types.SimpleNamespace(data=torch.full((2, 16_000), 0.1), sample_rate=16_000)


def test_open_files_decoders_and_iterators(classifier, clip):
    expected = classifier(str(clip))
    assert classifier(io.BytesIO(clip.read_bytes())) == expected
    answers = classifier(iter([str(clip), Decoder()]))
    assert next(answers) == expected
    assert next(answers) == classifier({"raw": np.full(16_000, 0.1, np.float32), "sampling_rate": 16_000})
    assert len(classifier(str(clip), top_k=1)) == 1
    assert len(classifier(str(clip), top_k=None)) == len(classifier.tagger.labels)
