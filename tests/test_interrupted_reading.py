"""Signals at random moments: no healthy recording looks damaged, and what is resumed equals what was never interrupted."""

import io
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile

from dymn.audio import reading

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="sends signals")
RATE = 32_000


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Recordings for each decoder: libsndfile, FFmpeg, our own."""
    folder = tmp_path_factory.mktemp("clips")
    t = np.arange(20 * RATE) / RATE
    for i in range(2):
        samples = (0.3 * np.sin(2 * np.pi * (300 + 100 * i) * t) + np.random.default_rng(i).normal(0, 0.05, len(t))).astype(np.float32)
        for ending, options in {
            "wav": {},
            "flac": {},
            "mp3": {"format": "MP3", "subtype": "MPEG_LAYER_III"},
            "ogg": {"format": "OGG", "subtype": "OPUS"},
        }.items():
            with soundfile.SoundFile(folder / f"{i}.{ending}", "w", 48_000 if ending == "ogg" else RATE, 1, **options) as file:
                for start in range(0, len(samples), 4096):
                    file.write(samples[start : start + 4096])
    return folder


class Interrupted(BaseException):
    """Raised by the signal of the timer."""


@pytest.fixture
def timer():
    """A function that has `Interrupted` raised in so many seconds."""

    def interrupt(number, frame):
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6))
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("ending", ["wav", "flac", "mp3", "ogg"])
@pytest.mark.parametrize("as_object", [False, True], ids=["path", "object"])
def test_a_read_ends_with_the_signal_or_as_if_there_was_none(clips, timer, capfd, ending, as_object):
    path = clips / f"0.{ending}"
    data = path.read_bytes()
    begin = time.perf_counter()
    expected = reading.read(path)
    longest = 1.2 * (time.perf_counter() - begin)
    chance = random.Random(1)
    ends = {"whole": 0, "interrupted": 0}
    for _ in range(60):
        source = io.BytesIO(data) if as_object else path
        try:
            timer(chance.uniform(0, longest))
            samples = reading.read(source)
        except Interrupted:
            ends["interrupted"] += 1
            continue
        try:
            timer(0.2)
            time.sleep(9)
        except Interrupted:
            pass
        ends["whole"] += 1
        np.testing.assert_array_equal(samples, expected)
    assert ends["interrupted"] >= 10
    assert capfd.readouterr().err == ""  # cffi writes what it drops


def test_a_tagger_without_workers_is_interrupted_by_nothing_but_the_signal(clips, timer):
    from dymn.inference.tagger import Tagger
    from dymn.inference.selection import TagSettings
    from tiny_backend import Loudness

    tagger = Tagger(Loudness())
    paths = sorted(clips.iterdir())
    settings = TagSettings(window=1.0)
    expected = [(found.seconds, found.tags) for found in tagger.tag_files(paths, settings, workers=0)]
    begin = time.perf_counter()
    list(tagger.tag_files(paths, settings, workers=0))
    longest = time.perf_counter() - begin
    chance = random.Random(2)
    interrupted = 0
    for _ in range(25):
        done = []
        try:
            timer(chance.uniform(0, longest))
            for found in tagger.tag_files(paths, settings, workers=0):
                done.append(found)
            signal.setitimer(signal.ITIMER_REAL, 0)
        except Interrupted:
            interrupted += 1
        assert [found.error for found in done] == [None] * len(done)
        assert [(found.seconds, found.tags) for found in done] == expected[: len(done)]
    assert interrupted > 5
