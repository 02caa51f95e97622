"""Signals at random moments.

No healthy recording looks damaged, and what is resumed equals what was never interrupted.
"""

import gc
import io
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile

from dymn.audio import reading
from dymn.config import ModelCard
from dymn.inference.journal import journal_path
from dymn.inference.selection import TagSettings
from dymn.inference.tagger import Tagger
from stubs import StubBackend

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="sends signals")
RATE = 32_000


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Recordings for each decoder: libsndfile, FFmpeg, our own."""
    folder = tmp_path_factory.mktemp("clips")
    t = np.arange(20 * RATE) / RATE
    for i in range(2):
        samples = (
            0.3 * np.sin(2 * np.pi * (300 + 100 * i) * t) + np.random.default_rng(i).normal(0, 0.05, len(t))
        ).astype(np.float32)
        for ending, options in {
            "wav": {},
            "flac": {},
            "mp3": {"format": "MP3", "subtype": "MPEG_LAYER_III"},
            "ogg": {"format": "OGG", "subtype": "OPUS"},
        }.items():
            with soundfile.SoundFile(
                folder / f"{i}.{ending}", "w", 48_000 if ending == "ogg" else RATE, 1, **options
            ) as file:
                for start in range(0, len(samples), 4096):
                    file.write(samples[start : start + 4096])
    return folder


class Loudness(StubBackend):
    """A label that is as probable as the loudest sample of a window."""

    card = ModelCard(name="loudness", labels=("loud",))

    def scores(self, waveforms):
        return np.abs(waveforms).max(axis=1, keepdims=True).astype(np.float32)


class Interrupted(BaseException):
    """Raised by the signal of the timer."""


@pytest.fixture
def timer():
    """A function that has `Interrupted` raised in so many seconds."""

    def interrupt(number, frame):
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    callbacks = gc.callbacks[:]  # Python drops what is raised in those of other libraries
    gc.callbacks.clear()
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6))
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
    gc.callbacks.extend(callbacks)


@pytest.mark.parametrize("ending", ["wav", "flac", "mp3", "ogg"])
@pytest.mark.parametrize("as_object", [False, True], ids=["path", "object"])
def test_a_read_ends_with_the_signal_or_as_if_there_was_none(clips, timer, capfd, ending, as_object):
    path = clips / f"0.{ending}"
    data = path.read_bytes()
    expected = reading.read(path)
    begin = time.perf_counter()
    reading.read(path)
    longest = time.perf_counter() - begin
    chance = random.Random(1)
    interrupted = 0
    for _ in range(60):
        source = io.BytesIO(data) if as_object else path
        try:
            timer(chance.uniform(0, longest))
            samples = reading.read(source)
            signal.setitimer(signal.ITIMER_REAL, 0)
        except Interrupted:
            interrupted += 1
            continue
        np.testing.assert_array_equal(samples, expected)
    assert interrupted >= 5
    assert capfd.readouterr().err == ""  # cffi writes what it drops


def test_a_tagger_without_workers_is_interrupted_by_nothing_but_the_signal(clips, timer):
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


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    import torch

    from dymn import create_model
    from dymn.models import pretrained

    network = create_model("mn01", num_classes=2, generator=torch.Generator().manual_seed(0))
    network.card = ModelCard(name="tiny", labels=("a", "b"))
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    pretrained.save(network, path)
    return path


@pytest.fixture(scope="module")
def many(clips, tmp_path_factory):
    """Links to the same recordings under many names: most of the time goes into decoding."""
    folder = tmp_path_factory.mktemp("many")
    for i in range(25):
        for path in clips.iterdir():
            (folder / f"{i}-{path.name}").symlink_to(path)
    return folder


def started(*arguments):
    command = [sys.executable, "-m", "dymn", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("command", ["tag", "embed"])
def test_an_interrupted_command_leaves_no_false_errors(command, model, many, tmp_path):
    ending = "csv" if command == "tag" else "npy"
    straight, broken = tmp_path / f"straight.{ending}", tmp_path / f"broken.{ending}"
    asked = [command, many, "-m", model, "--workers", "0", "--window", "10", "-o"]
    whole = started(*asked, straight)
    assert whole.wait(120) == 0, whole.stderr.read()
    chance = random.Random(3)
    for _ in range(3):
        running = started(*asked, broken)
        while not journal_path(broken).exists() and running.poll() is None:
            time.sleep(0.01)
        time.sleep(chance.uniform(0.05, 0.8))
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=60)
        assert running.returncode in (0, 130), errors
        assert "Traceback" not in errors and "damaged" not in errors and "cffi" not in errors
        if running.returncode == 0:
            break
    last = started(*asked, broken)
    _, errors = last.communicate(timeout=120)
    assert last.returncode == 0, errors
    assert broken.read_bytes() == straight.read_bytes()


def test_interrupted_events_end_without_a_traceback(model, many, tmp_path):
    output = tmp_path / "events.csv"
    chance = random.Random(4)
    for _ in range(2):
        running = started("events", many, "-m", model, "-o", output)
        time.sleep(chance.uniform(3.0, 5.0))
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=60)
        assert running.returncode in (0, 130), errors
        assert "Traceback" not in errors and "damaged" not in errors and "cffi" not in errors
