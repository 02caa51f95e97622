"""Odd signals and odd company.

What a recording is told must not depend on neighbours, threads or chunks, and be finite in any case.
"""

import numpy as np
import pytest
import soundfile
import torch

from dymn import Tagger
from dymn.inference.selection import TagSettings
from dymn.models.frontend import LogMel

TOLERANCE = 1e-5
RATE = 32000


@pytest.fixture(scope="module")
def tagger():
    return Tagger.from_pretrained("dymn04_open", device="cpu")


def noise(seconds, seed=0, rate=RATE):
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * rate)).astype(np.float32)


SIGNALS = {
    "silence": np.zeros(RATE, np.float32),
    "one sample": np.ones(1, np.float32),
    "two samples": np.array([0.5, -0.5], np.float32),
    "DC": np.full(RATE, 0.7, np.float32),
    "square at full scale": np.sign(np.sin(np.arange(RATE) * 0.05)).astype(np.float32),
    "far above full scale": noise(1) * 1e4,
    "denormal": np.full(RATE, 1e-42, np.float32),
    "a click in silence": np.eye(1, RATE, RATE // 2, dtype=np.float32)[0],
    "the band's edge": np.cos(np.pi * np.arange(RATE)).astype(np.float32),
}


@pytest.mark.parametrize("name", SIGNALS)
def test_any_signal_has_finite_scores(tagger, name):
    scores = tagger.tag(SIGNALS[name], sample_rate=RATE, top_k=0)
    values = np.array([tag.score for tag in scores])
    assert len(values) == 527 and np.isfinite(values).all() and (values >= 0).all() and (values <= 1).all()


@pytest.mark.parametrize("rate", [8000, 11025, 44100, 48000, 96000, 192000])
def test_the_sample_rate_of_a_file_hardly_affects_scores(tagger, tmp_path, rate):
    """A tone sounds the same whatever the rate it was recorded at."""

    def chirp(at):
        time = np.arange(4 * at) / at
        return (0.3 * np.sin(2 * np.pi * (300 + 200 * np.sin(2 * np.pi * time)) * time)).astype(np.float32)

    path = tmp_path / f"{rate}.wav"
    soundfile.write(path, chirp(rate), rate)
    here = {tag.label: tag.score for tag in tagger.tag(path, top_k=0)}
    there = {tag.label: tag.score for tag in tagger.tag(chirp(RATE), sample_rate=RATE, top_k=0)}
    assert max(abs(here[label] - there[label]) for label in there) < 0.25
    assert max(here, key=here.get) in sorted(there, key=there.get)[-5:]


def test_neither_batch_nor_neighbours_nor_threads_matter(tagger):
    clips = np.stack([noise(2, seed) * 10 ** (-seed / 2) for seed in range(7)])
    alone = np.concatenate([tagger.probabilities(clip[None]) for clip in clips])
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert np.abs(tagger.probabilities(clips) - alone).max() < TOLERANCE
            assert np.abs(tagger.probabilities(clips[::-1].copy())[::-1] - alone).max() < TOLERANCE
            assert (
                np.abs(np.concatenate([tagger.probabilities(clips[i : i + 3]) for i in (0, 3, 6)]) - alone).max()
                < TOLERANCE
            )
    finally:
        torch.set_num_threads(before)


def test_batches_of_files_give_what_each_file_gives(tagger, tmp_path):
    paths = []
    for i, seconds in enumerate((0.01, 3, 10, 10.5, 23)):
        paths.append(tmp_path / f"{i}.wav")
        soundfile.write(paths[-1], noise(seconds, i), RATE)
    for batch_size in (1, 3, 8):
        for path, recording in zip(paths, tagger.tag_files(paths, batch_size=batch_size), strict=True):
            alone = next(tagger.tag_files([path], batch_size=1))
            assert np.abs(recording.scores - alone.scores).max() < TOLERANCE
            assert len(recording.timeline) == len(alone.timeline)


def test_a_place_in_a_recording_does_not_matter(tagger):
    """The same ten seconds three times over are three windows of one answer."""
    samples = noise(10, 5)
    window = [tag.score for tag in tagger.tag(samples, sample_rate=RATE, top_k=0)]
    recording = next(tagger.tag_files([np.tile(samples, 3)], TagSettings(top_k=0), sample_rate=RATE, batch_size=2))
    for found in recording.timeline:
        assert [tag.score for tag in found.tags] == pytest.approx(window, abs=TOLERANCE)


@pytest.mark.parametrize("name", SIGNALS)
def test_the_compiled_front_end_agrees_with_pytorch_on_unusual_signals(name, monkeypatch):
    """They round differently, which a logarithm of next to nothing shows most."""
    waveform = torch.from_numpy(SIGNALS[name])[None]
    compiled = LogMel()(waveform)
    monkeypatch.setattr("dymn.models.frontend.is_compiled", lambda *tensors: False)
    plain = LogMel()(waveform)
    assert compiled.isfinite().all()
    assert (compiled - plain).abs().max() < 1e-3
