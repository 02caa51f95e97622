"""`benchmarks/grow.py`: the search for clips of classes that a corpus lacks."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import layouts
from dymn import create_model
from dymn.config import ModelCard
from dymn.data import Loader, PlainSampler, open_source
from dymn.models import pretrained
from dymn.runtime.opening import open_backend

CLASSES = tuple("abcdef")


@pytest.fixture(scope="module")
def grow():
    path = Path(__file__).parents[1] / "benchmarks" / "grow.py"
    spec = importlib.util.spec_from_file_location("benchmark_grow", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def corpora(tmp_path):
    """Eight clips, and a network of random weights as the teacher."""
    model = create_model("mn01", len(CLASSES), generator=torch.Generator().manual_seed(0)).eval()
    model.card = ModelCard(name="teacher", labels=CLASSES)
    pretrained.save(model, tmp_path / "teacher.safetensors")
    rng, members = np.random.default_rng(0), {}
    for i in range(8):
        soundfile.write(tmp_path / "clip.flac", 0.2 * rng.standard_normal(32_000 * (1 + i % 3)), 32_000)
        members |= {f"{i}.flac": (tmp_path / "clip.flac").read_bytes(), f"{i}.json": b"{}"}
    (tmp_path / "corpora").mkdir()
    layouts.write_shard(tmp_path / "corpora" / "a.tar", members)
    return tmp_path / "corpora"


def run(grow, corpora, monkeypatch, *options):
    folder = corpora.parent
    arguments = [str(corpora), "--output", str(folder / "grown"), "--teacher", str(folder / "teacher.safetensors")]
    monkeypatch.setattr(sys, "argv", ["grow.py", *arguments, "--below", "100", "--keep", "3", *options])
    grow.main()
    return folder / "grown"


def test_the_shards_contain_what_the_teacher_scored(grow, corpora, monkeypatch, capsys):
    folder = run(grow, corpora, monkeypatch, "--seconds", "2")
    source = open_source("shards", folder, "train")
    logits = np.load(folder / "teacher_logits_teacher.npy")
    assert 0 < len(source) == len(logits) <= 3 * len(CLASSES)
    assert f"{len(source)} clips written" in capsys.readouterr().out
    batch = next(iter(Loader(source, PlainSampler(len(source), shuffle=False), 32, seconds=5.0).epoch(0)))
    scores = open_backend(corpora.parent / "teacher.safetensors", threads=1).run_waveforms(batch.waveform.numpy())
    np.testing.assert_allclose(grow.to_logits(scores.probabilities), logits, atol=0.05)  # 16 bits, both times
    origins = json.loads(np.load(folder / "archives.npz")["origins"].item())
    assert {i for clip in origins for i in clip} <= set(range(8))


def test_a_search_continues(grow, corpora, monkeypatch):
    def best(folder):
        with np.load(folder / "archives.npz") as saved:
            return {
                c: max(row[c] for row in saved["logits"][saved["classes"] == c]) for c in np.unique(saved["classes"])
            }

    first = best(run(grow, corpora, monkeypatch, "--seconds", "1"))
    assert first
    second = best(run(grow, corpora, monkeypatch, "--seconds", "1", "--seed", "2"))
    assert all(second[c] >= score for c, score in first.items())


def test_ctrl_c_keeps_what_was_found(grow, corpora, monkeypatch):
    def interrupted(breeder, *others):
        samples = np.zeros(grow.N, np.float16)
        breeder.archives.add(np.zeros(len(CLASSES), np.float32), samples, (0,))
        raise KeyboardInterrupt

    monkeypatch.setattr(grow, "search", interrupted)
    assert len(open_source("shards", run(grow, corpora, monkeypatch), "train")) == 1


def test_archives_of_other_clips_are_refused(grow, corpora, monkeypatch):
    run(grow, corpora, monkeypatch, "--seconds", "1")
    (corpora / "a.tar").unlink()
    layouts.write_shard(corpora / "b.tar", {"9.flac": (corpora.parent / "clip.flac").read_bytes(), "9.json": b"{}"})
    with pytest.raises(SystemExit, match="other training clips"):
        run(grow, corpora, monkeypatch)


def test_clips_that_cannot_be_read_are_named(grow, corpora, monkeypatch):
    layouts.write_shard(corpora / "b.tar", {"broken.flac": b"fLaC", "broken.json": b"{}"})
    with pytest.raises(SystemExit, match=r"1 clips cannot be read .*broken.*exclude\.csv"):
        run(grow, corpora, monkeypatch)


def clip(grow, score, spread, origin):
    """A clip with this probability of class 0, whose other logits are `spread`."""
    logits = np.full(9, spread, np.float32)
    logits[0] = grow.to_logits(score)
    return logits, np.zeros(4, np.float16), (origin,)


def test_an_archive_keeps_the_best_that_differ(grow):
    archives = grow.Archives(np.array([0]), keep=4)
    assert archives.add(*clip(grow, 0.5, -5.0, origin=1))
    assert not archives.add(*clip(grow, 0.4, -5.1, origin=2))  # nearly the same logits, and a lower score
    assert archives.add(*clip(grow, 0.6, -5.1, origin=3))  # takes its place
    assert [round(c.score, 3) for c in archives.clips[0]] == [0.6]
    for i, score in enumerate((0.2, 0.3, 0.4)):
        assert archives.add(*clip(grow, score, -8.0 - 2 * i, origin=9))
    assert not archives.add(*clip(grow, 0.1, -20.0, origin=9))  # full
    assert archives.add(*clip(grow, 0.7, -20.0, origin=9))  # a fourth of this origin, in place of its lowest
    assert [round(c.score, 3) for c in archives.clips[0]] == [0.7, 0.6, 0.4, 0.3]
    assert archives.add(*clip(grow, 0.35, -30.0, origin=5))
    assert [round(c.score, 3) for c in archives.clips[0]] == [0.7, 0.6, 0.4, 0.35]


def test_every_shape_keeps_the_length(grow):
    rng = np.random.default_rng(0)
    wave = grow.noise(rng)
    for shape in (*grow.SHAPES, grow.crowd):
        for _ in range(20):
            shaped = shape(wave, rng)
            assert shaped.shape == wave.shape and shaped.dtype == np.float32 and np.isfinite(shaped).all()
    assert 0.05 <= np.abs(grow.levelled(wave * np.float32(1e-4))).max() <= 0.99
