"""NaN, infinities and values far beyond full scale are refused wherever sound comes in as numbers."""

import numpy as np
import pytest
import torch

import dymn
from dymn import Tagger, hear
from dymn.errors import AudioError

RATE = 32_000


@pytest.fixture(scope="module")
def model():
    return dymn.load_model("dymn04_open")


@pytest.fixture(scope="module")
def tagger(model):
    return Tagger(model, "cpu")


def transformed(recordings):
    transformers = pytest.importorskip("dymn.sklearn", reason="scikit-learn is not installed")
    return transformers.EmbeddingTransformer(window=1).fit_transform(recordings)


ENTRIES = {
    "tag": lambda tagger, model, x: tagger.tag(x[1], sample_rate=RATE),
    "timeline": lambda tagger, model, x: list(tagger.timeline(x[1], sample_rate=RATE)),
    "frames": lambda tagger, model, x: list(tagger.frames(x[1], sample_rate=RATE)),
    "events": lambda tagger, model, x: tagger.events(x[1], sample_rate=RATE),
    "embed": lambda tagger, model, x: tagger.embed(x[1], sample_rate=RATE),
    "probabilities": lambda tagger, model, x: tagger.probabilities(x),
    "stream": lambda tagger, model, x: tagger.stream(sample_rate=RATE, window=1).feed(x[1]),
    "vectors": lambda tagger, model, x: dymn.Embedder(model).vectors(x),
    "hear scenes": lambda tagger, model, x: hear.get_scene_embeddings(torch.from_numpy(x), hear.load_model()),
    "hear times": lambda tagger, model, x: hear.get_timestamp_embeddings(torch.from_numpy(x), hear.load_model()),
    "scikit-learn": lambda tagger, model, x: transformed(x),
    "scikit-learn, of many lengths": lambda tagger, model, x: transformed([x[0], x[1][:100]]),
    "pipeline": lambda tagger, model, x: dymn.pipeline("audio-classification", model, device="cpu")(
        {"raw": x[1], "sampling_rate": RATE}
    ),
}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("entry", ENTRIES)
def test_values_that_are_no_sound_are_refused(tagger, model, entry, value):
    samples = np.zeros((2, RATE // 4), np.float32)
    samples[1, 5] = value
    with pytest.raises((AudioError, ValueError)):
        ENTRIES[entry](tagger, model, samples)
