"""Signals at random moments, within the decoder too, leave no trace in what is trained, taught and packed."""

import hashlib
import os
import signal
import sys
import traceback

import numpy as np
import pytest
import soundfile
import torch

from dymn import create_model
from dymn.config import FrontEndConfig, ModelCard, from_dict
from dymn.data import PackSettings, open_source, pack
from dymn.system.files import open_regular
from dymn.training import train
from dymn.training.teach import teach
from test_training_continue import outcome, same
from tiny_runs import FRONT_END, NETWORK, RATE, run

ROUNDS = 25  # that are interrupted before one may end
DONE, INTERRUPTED = 0, 130


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """MP3s, which libsndfile reads through callbacks into Python."""
    folder = tmp_path_factory.mktemp("interrupted") / "clips"
    rng = np.random.default_rng(0)
    for i in range(10):
        path = folder / ("high", "low")[i % 2] / f"{i}.mp3"
        path.parent.mkdir(parents=True, exist_ok=True)
        tone = 0.3 * np.sin(2 * np.pi * (300 if i % 2 else 1800) * np.arange(RATE) / (2 * RATE))
        soundfile.write(path, tone + 0.03 * rng.standard_normal(len(tone)), 2 * RATE, format="MP3")
    return folder


def interrupted(work, longest):
    """Do the work in processes that a signal ends after a random time of up to `longest` seconds; then once without."""
    rng, met = np.random.default_rng(1), 0
    for seconds in rng.uniform(1e-3, longest, ROUNDS):
        if (child := os.fork()) == 0:
            os._exit(_ended(work, seconds))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (DONE, INTERRUPTED)
        met += code == INTERRUPTED
    assert met >= 3, "the work was done before it could be interrupted"
    return work()


def _ended(work, seconds):
    def end(*_):
        raise KeyboardInterrupt

    try:
        signal.signal(signal.SIGALRM, end)
        signal.setitimer(signal.ITIMER_REAL, float(seconds))
        work()
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BaseException:
        traceback.print_exc()
        return 1
    return DONE


def test_training(clips, tmp_path, monkeypatch):
    monkeypatch.setattr("dymn.training.loop.plot_curves", lambda *_: None)

    def made(name):
        return run(clips, tmp_path / name, schedule={"epochs": 3, "warm_up": 1}, run={"save_steps": 1})

    train(made("whole"))
    interrupted(lambda: train(made("parts")), 0.4)
    assert not (tmp_path / "parts" / "bad_clips.csv").exists()
    assert same(outcome(tmp_path / "parts"), outcome(tmp_path / "whole"))


def test_teaching(clips, tmp_path):
    network = create_model("mn04", 2, generator=torch.Generator().manual_seed(0), **NETWORK)
    network.card = ModelCard(name="teacher", labels=("high", "low"), front_end=from_dict(FrontEndConfig, FRONT_END))

    def taught(name):
        source = open_source("folder", clips, sample_rate=RATE)
        return teach(source, [network], tmp_path / f"{name}.safetensors", seconds=0.5, batch_size=1)

    whole, parts = taught("whole"), interrupted(lambda: taught("parts"), 0.1)
    assert parts.keys == whole.keys and parts.settings == whole.settings and (parts.logits == whole.logits).all()


def test_packing(clips, tmp_path):
    def packed(name):
        return pack(open_source("folder", clips), tmp_path / name, PackSettings(clips=2, encoding="flac"))

    assert packed("whole").bad == {}
    found = interrupted(lambda: packed("parts"), 0.02)
    assert found.bad == {} and content(tmp_path / "parts") == content(tmp_path / "whole")


def content(folder):
    files = (path for path in sorted(folder.iterdir()) if path.suffix in (".tar", ".npz"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_an_interruption_at_any_moment_of_opening_a_file_is_an_interruption(tmp_path):
    """Not an error of the file, for which a clip would count as bad: a descriptor was closed twice."""
    path = tmp_path / "clip"
    path.write_bytes(b"content")
    moment, countdown, file, here = 0, 0, None, sys._getframe()

    def interrupt(frame, event, argument):
        nonlocal countdown
        countdown -= frame is not here
        if countdown == 0 and frame is not here:
            raise KeyboardInterrupt

    while file is None:
        moment = countdown = moment + 1
        sys.setprofile(interrupt)
        try:
            file = open_regular(path)
        except KeyboardInterrupt:
            continue
        finally:
            sys.setprofile(None)
    with file:
        assert moment > 3 and file.read() == b"content"
