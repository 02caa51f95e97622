"""`benchmarks/grow.py`: the search for clips of classes that a corpus lacks."""

import json
import sys

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
from test_benchmarks import load as load_benchmark

CLASSES = tuple("abcdef")


LIVELY = load_benchmark("lively")


@pytest.fixture(scope="module")
def grow():
    return load_benchmark("grow")


@pytest.fixture
def corpora(tmp_path):
    """Eight clips, one of them for validation, and a teacher that reacts to what it hears."""
    model = create_model("mn01", len(CLASSES), generator=torch.Generator().manual_seed(0)).eval()
    LIVELY.lively(model, LIVELY.clips(6, 128, 50))
    with torch.no_grad():  # it is certain of what it hears
        model.head.classifier.weight *= 15
        model.head.classifier.bias *= 15
    model.card = ModelCard(name="teacher", labels=CLASSES)
    pretrained.save(model, tmp_path / "teacher.safetensors")
    rng, members, rows = np.random.default_rng(0), {}, [["key", "shard", "split"]]
    for i in range(8):
        noise = rng.standard_normal(32_000 * (1 + i % 3)).cumsum() * 0.002 if i % 2 else rng.standard_normal(32_000)
        soundfile.write(tmp_path / "clip.flac", (0.2 * noise).clip(-0.9, 0.9), 32_000)
        members |= {f"{i}.flac": (tmp_path / "clip.flac").read_bytes(), f"{i}.json": b'{"labels": ["a"]}'}
        rows.append([str(i), "a.tar", "val" if i == 7 else "train"])
    layouts.write_shard(tmp_path / "corpora" / "a.tar", members)
    layouts.write_table(tmp_path / "corpora" / "index.csv", rows)
    return tmp_path / "corpora"


def run(grow, corpora, monkeypatch, *options, output="grown"):
    folder = corpora.parent
    arguments = [str(corpora), "--output", str(folder / output), "--teacher", str(folder / "teacher.safetensors")]
    monkeypatch.setattr(sys, "argv", ["grow.py", *arguments, "--below", "100", "--keep", "5", *options])
    grow.main()
    return folder / output


def archives(folder):
    with np.load(folder / "archives.npz") as saved:
        return {name: saved[name] for name in saved.files}


def test_the_shards_contain_what_the_teacher_scored(grow, corpora, monkeypatch, capsys):
    folder = run(grow, corpora, monkeypatch, "--candidates", "160")
    source = open_source("shards", folder, "train")
    logits = np.load(folder / "teacher_logits_teacher.npy")
    assert 5 < len(source) == len(logits) <= 5 * len(CLASSES)
    assert np.ptp(logits, axis=0).max() > 1
    assert f"{len(source)} clips written" in capsys.readouterr().out
    batch = next(iter(Loader(source, PlainSampler(len(source), shuffle=False), 32, seconds=5.0).epoch(0)))
    scores = open_backend(corpora.parent / "teacher.safetensors", threads=1).run_waveforms(batch.waveform.numpy())
    np.testing.assert_allclose(grow.to_logits(scores.probabilities), logits, atol=0.2)  # 16 bits, both times
    origins = {key for clip in json.loads(archives(folder)["origins"].item()) for key in clip}
    assert origins and origins <= set("0123456")  # 7 is for validation


def test_an_interrupted_search_continues_as_if_nothing_happened(grow, corpora, monkeypatch):
    whole = archives(run(grow, corpora, monkeypatch, "--candidates", "96", output="whole"))
    run(grow, corpora, monkeypatch, "--candidates", "48")
    calls, add = iter(range(10**6)), grow.Archives.add

    def interrupted(self, *clip):
        if next(calls) == 20:
            raise KeyboardInterrupt
        return add(self, *clip)

    with monkeypatch.context() as patch:
        patch.setattr(grow.Archives, "add", interrupted)
        run(grow, corpora, patch, "--candidates", "96")
    continued = archives(run(grow, corpora, monkeypatch, "--candidates", "96"))
    assert whole.keys() == continued.keys()
    for name, values in whole.items():
        assert np.array_equal(values, continued[name]), name


def test_searches_with_other_seeds_are_read_together_and_can_be_written_again(grow, corpora, monkeypatch):
    first = run(grow, corpora, monkeypatch, "--candidates", "64", output="grown/1")
    run(grow, corpora, monkeypatch, "--candidates", "64", "--seed", "2", output="grown/2")
    both = open_source("shards", first.parent, "train")
    monkeypatch.setattr(grow, "WRITTEN", 0.6)  # fewer clips: none of the others may stay
    run(grow, corpora, monkeypatch, "--candidates", "64", output="grown/1")
    assert 0 < len(open_source("shards", first, "train")) < len(both)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seed", "2"], "--seed 1; now: .*--seed 2"),
        (["--keep", "0"], "--keep is 0; at least 1"),
        (["--teacher", "nothing"], "nothing"),
        (["--below", "0"], "--below is 0"),
    ],
)
def test_options_that_do_not_fit(grow, corpora, monkeypatch, options, message):
    run(grow, corpora, monkeypatch, "--candidates", "16")
    with pytest.raises(SystemExit, match=message):
        run(grow, corpora, monkeypatch, "--candidates", "16", *options)


def test_corpora_that_cannot_be_used(grow, corpora, monkeypatch):
    with pytest.raises(SystemExit, match="would be read as training clips"):
        run(grow, corpora, monkeypatch, output="corpora/grown")
    rows = (corpora / "index.csv").read_text(encoding="utf-8")
    (corpora / "index.csv").unlink()
    with pytest.raises(SystemExit, match="no splits"):
        run(grow, corpora, monkeypatch)
    (corpora / "index.csv").write_text(f"{rows}broken,b.tar,train\n", encoding="utf-8")
    layouts.write_shard(corpora / "b.tar", {"broken.flac": b"fLaC", "broken.json": b'{"labels": []}'})
    with pytest.raises(SystemExit, match=r"1 clips cannot be read \(broken: .*exclude\.csv"):
        run(grow, corpora, monkeypatch)


def clip(grow, score, spread, origin):
    """A clip with this probability of class 0, whose other logits are `spread`."""
    logits = np.full(9, spread, np.float32)
    logits[0] = grow.to_logits(score)
    return logits, np.array([score, spread], np.float16), (origin,)


def test_an_archive_keeps_the_best_that_differ(grow):
    found = grow.Archives(np.array([0]), keep=4)

    def scores():
        return [round(kept.score, 3) for kept in found.clips[0]]

    assert found.add(*clip(grow, 0.5, -5.0, "1"))
    assert not found.add(*clip(grow, 0.4, -5.1, "2"))  # nearly the same logits, and a lower score
    assert found.add(*clip(grow, 0.6, -5.1, "3"))  # takes its place
    assert scores() == [0.6]
    for i, score in enumerate((0.2, 0.3, 0.4)):
        assert found.add(*clip(grow, score, -8.0 - 2 * i, "9"))
    assert not found.add(*clip(grow, 0.1, -20.0, "9"))  # full
    assert found.add(*clip(grow, 0.7, -20.0, "9"))  # a fourth of this origin, in place of its lowest
    assert scores() == [0.7, 0.6, 0.4, 0.3]
    assert found.add(*clip(grow, 0.35, -30.0, "5"))
    assert scores() == [0.7, 0.6, 0.4, 0.35]
    assert found.add(*clip(grow, 0.5, -30.0, "9"))  # near the last, and a third of its origin
    assert scores() == [0.7, 0.6, 0.5, 0.4]
    assert found.add(*clip(grow, 0.8, -5.1, "9"))  # near a clip of another origin, and a fourth of its own
    assert scores() == [0.8, 0.7, 0.5]
    assert found.unique(0.6)[0].score > 0.6 and len(found.unique(0.6)) == 2


def test_candidates_are_sounds_that_depend_on_the_seed_alone(grow):
    pool = np.zeros((3, grow.N), np.float16)
    pool[1:] = np.random.default_rng(1).standard_normal((2, grow.N))

    def candidates(seed):
        breeder = grow.Breeder(pool, list("abc"), np.zeros((3, 4), np.float32), grow.Archives(np.arange(4), 5), seed)
        return breeder.candidates()

    waves, origins = candidates(1)
    assert waves.shape == (grow.BATCH, grow.N) and np.isfinite(waves).all() and np.abs(waves).max() <= 0.9001
    assert all(names and set(names) <= set("abc") for names in origins)
    assert np.array_equal(candidates(1)[0], waves) and not np.array_equal(candidates(2)[0], waves)


def test_every_shape_keeps_the_length(grow):
    rng = np.random.default_rng(0)
    wave = grow.noise(rng)
    for shape in (*grow.SHAPES, grow.crowd):
        for _ in range(20):
            shaped = shape(wave, rng)
            assert shaped.shape == wave.shape and shaped.dtype == np.float32 and np.isfinite(shaped).all()
    assert 0.05 <= np.abs(grow.levelled(wave * np.float32(1e-4))).max() <= 0.99
