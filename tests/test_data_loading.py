"""Samplers, batches, the loader and the decoded cache."""

import os
import pickle
import sys
from multiprocessing import get_context

import numpy as np
import pytest
import soundfile
import torch

from dymn.data import (
    BadClip,
    BalancedSampler,
    Catalog,
    Clip,
    Loader,
    PlainSampler,
    Resident,
    Source,
    class_counts,
    clip_weights,
    collate,
    fit,
    open_source,
)
from dymn.data.batch import read_bad, write_bad
from dymn.data.cache import DecodedCache, cached
from dymn.data.samplers import Batches
from dymn.data.stores import Store
from dymn.errors import AudioError, ConfigError, DataError
from tiny_runs import RATE as CLIP_RATE
from tiny_runs import write_clips

RATE = 32_000


class Nothing(Store):
    def __init__(self, n: int) -> None:
        self.n = n

    def sizes(self):
        return [0] * self.n

    def read(self, i):
        return b""

    def stamps(self):
        return []


def annotated(targets, masks=None) -> Source:
    targets = np.asarray(targets, dtype=np.float32)
    keys = tuple(f"clip {i}" for i in range(len(targets)))
    labels = tuple(f"class {c}" for c in range(targets.shape[1]))
    return Source(Catalog(keys, labels, targets, None if masks is None else np.asarray(masks)), Nothing(len(keys)))


@pytest.fixture
def folder(tmp_path):
    """Twelve clips of two classes; clip i is a ramp that starts at i / 100, so that a crop tells where it was taken."""
    for i in range(12):
        path = tmp_path / "data" / "ab"[i % 2] / f"{i:02d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        ramp = np.linspace(0.01 * i, 0.01 * i + 0.5, RATE // 4, dtype=np.float32)
        soundfile.write(path, ramp, RATE, subtype="FLOAT")
    return tmp_path / "data"


def test_fit():
    ramp = np.arange(10, dtype=np.float32)
    assert fit(ramp, 4).tolist() == [0, 1, 2, 3]
    assert fit(ramp[:3], 5).tolist() == [0, 1, 2, 0, 0] and fit(ramp[:3], 7, fill="repeat").tolist() == [
        0,
        1,
        2,
        0,
        1,
        2,
        0,
    ]
    assert fit(ramp, 10) is ramp
    starts = {int(fit(ramp, 8, np.random.default_rng(seed))[0]) for seed in range(40)}
    assert starts == {0, 1, 2}
    with pytest.raises(ConfigError, match="fill is 'mirror'"):
        fit(ramp, 12, fill="mirror")
    with pytest.raises(ConfigError, match="samples is 0"):
        fit(ramp, 0)


def test_collate_leaves_bad_clips_out():
    one, two = (np.full(n, n, dtype=np.float32) for n in (3, 5))
    target, mask = np.array([1, 0], dtype=np.float32), np.array([1, 1], dtype=np.float32)
    clips = [Clip("a", one, target, mask, 7), BadClip("b", "broken"), Clip("c", two, target, mask, 9)]
    batch, bad, fingerprints, *_ = collate(clips, teachers=[None, None, np.array([2, -2], dtype=np.float32)])
    assert (
        batch.waveform.tolist() == [[3, 3, 3, 0, 0], [5, 5, 5, 5, 5]]
        and batch.keys == ["a", "c"]
        and fingerprints == [7, 9]
    )
    assert batch.has_teacher.tolist() == [False, True] and batch.teacher.tolist() == [[0, 0], [2, -2]]
    assert {tensor.dtype for tensor in (batch.waveform, batch.target, batch.teacher, batch.mask)} == {torch.float32}
    assert bad == [BadClip("b", "broken")] and batch.to("cpu").keys == ["a", "c"]
    assert collate([BadClip("b", "broken")]).batch is None
    assert collate(clips, samples=2).batch.waveform.shape == (2, 2)


def test_plain_sampler():
    sampler = PlainSampler(10, seed=3)
    assert (
        sorted(sampler.order(0)) == list(range(10))
        and sampler.order(0).tolist() == PlainSampler(10, seed=3).order(0).tolist()
    )
    assert sampler.order(0).tolist() != sampler.order(1).tolist() != PlainSampler(10, seed=4).order(1).tolist()
    assert PlainSampler(4, shuffle=False).order(5).tolist() == [0, 1, 2, 3]
    many = PlainSampler(4, seed=1, draws=10).order(0)
    assert sorted(many[:4]) == sorted(many[4:8]) == [0, 1, 2, 3] and len(many) == 10
    assert len(PlainSampler(10, draws=3).order(0)) == 3
    with pytest.raises(ConfigError, match="at least 1"):
        PlainSampler(0)


def test_weights_by_hand():
    targets = np.zeros((150, 2))
    targets[:, 0], targets[:50, 1], targets[149] = 1, 1, 0
    source = annotated(targets)
    assert class_counts(source).tolist() == [149, 50]
    weights = clip_weights(source, rows=40)
    assert weights[[0, 60, 149]].tolist() == pytest.approx([1000 / 249 + 1000 / 150, 1000 / 249, 0])
    masked = annotated([[1, 1], [0.4, 0.6]], [[1, 0], [1, 1]])
    assert class_counts(masked).tolist() == [1, 1]


def test_balanced_sampler_draws_without_replacement():
    source = annotated(np.eye(3)[np.random.default_rng(0).integers(0, 3, 500)])
    sampler = BalancedSampler(source, seed=1, draws=200)
    order = sampler.order(0)
    assert len(sampler) == len(order) == len(set(order.tolist())) == 200
    assert order.tolist() == BalancedSampler(source, seed=1, draws=200).order(0).tolist() != sampler.order(1).tolist()
    with pytest.raises(DataError, match="No clip has a label"):
        BalancedSampler(annotated(np.zeros((4, 2))), draws=4)


@pytest.mark.parametrize(("draws", "expected"), [(15, 5), (30, 10), (60, 20)])
def test_balanced_sampler_repeats_rare_classes_of_small_data(draws, expected):
    """20 clips of one class, 6 and 4 of the others, and one without a class."""
    classes = np.repeat([0, 1, 2], [20, 6, 4])
    sampler = BalancedSampler(annotated(np.concatenate([np.eye(3)[classes], np.zeros((1, 3))])), seed=1, draws=draws)
    orders = [sampler.order(epoch) for epoch in range(3)]
    assert [np.bincount(classes[order]).tolist() for order in orders] == [[expected] * 3] * 3
    assert all(max(order) < 30 and len(order) == len(sampler) == 3 * expected for order in orders)
    assert orders[0].tolist() != orders[1].tolist() and set(np.concatenate(orders).tolist()) > set(range(20, 30))
    times = np.bincount(orders[0], minlength=30)[26:]  # of the 4 clips of the rarest class
    assert set(times.tolist()) <= {expected // 4, -(-expected // 4)}


def test_balanced_sampler_follows_the_weights():
    targets = np.zeros((1001, 2))
    targets[:1000, 0], targets[1000, 1] = 1, 1  # weights 1000 / 1100 each, and 1000 / 101
    sampler = BalancedSampler(annotated(targets), draws=20)
    hits = sum(1000 in sampler.order(epoch) for epoch in range(4000))
    rare, rest = 1000 / 101, 1000 * 1000 / 1100
    missed = np.prod([1 - rare / (rest + rare - drawn * 1000 / 1100) for drawn in range(20)])
    assert hits / 4000 == pytest.approx(1 - missed, abs=0.02)


@pytest.mark.parametrize("drop_last", [False, True])
def test_processes_share_the_same_global_batches(drop_last):
    sampler = PlainSampler(22, seed=5)
    whole = list(Batches(sampler, 8, drop_last=drop_last).shares(0))
    shares = [Batches(sampler, 8, rank=rank, world=4, drop_last=drop_last) for rank in range(4)]
    assert [len(share) for share in shares] == [len(list(share.shares(0))) for share in shares]
    for i, batch in enumerate(whole):
        parts = [batches[i] for batches in (list(share.shares(0)) for share in shares) if i < len(batches)]
        assert sorted(draw for part in parts for draw in part) == sorted(batch)
    assert len(whole) == (2 if drop_last else 3)
    with pytest.raises(ConfigError, match="multiple of world"):
        Batches(sampler, 6, world=4)


def batches_of(source, **options):
    loader = Loader(source, PlainSampler(len(source), seed=1), 4, seconds=0.1, seed=2, **options)
    return [(batch.keys, batch.waveform) for epoch in range(2) for batch in loader.epoch(epoch)]


@pytest.mark.parametrize(("workers", "context"), [(2, None), (1, "spawn")])
def test_an_epoch_is_the_same_whatever_the_number_of_workers(folder, workers, context):
    source = open_source("folder", folder)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    expected, found = batches_of(source), batches_of(source, workers=workers, context=context)
    assert torch.equal(state, torch.get_rng_state()), "the global generator was used"
    assert [keys for keys, _ in expected] == [keys for keys, _ in found] and len(found) == 6
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(expected, found, strict=True))


def test_an_epoch_is_the_same_whatever_the_number_of_processes(folder):
    source = open_source("folder", folder)
    shares = [batches_of(source, rank=rank, world=2) for rank in range(2)]
    for (keys, waveform), *parts in zip(batches_of(source), *shares, strict=True):
        rows = dict(zip(keys, waveform, strict=True))
        assert sorted(keys) == sorted(key for part, _ in parts for key in part)
        assert all(torch.equal(rows[key], row) for part, block in parts for key, row in zip(part, block, strict=True))


def test_crops_change_with_the_epoch(folder):
    source = open_source("folder", folder)
    loader = Loader(source, PlainSampler(12, shuffle=False), 12, seconds=0.1)
    first, second = (next(loader.epoch(epoch)).waveform for epoch in range(2))
    assert not torch.equal(first, second) and first.shape == (12, RATE // 10)
    start = Loader(source, PlainSampler(12, shuffle=False), 12, seconds=0.1, crop="start")
    assert next(start.epoch(0)).waveform[:, 0].tolist() == pytest.approx([c.waveform[0] for c in source])


def test_bad_clips_are_skipped_counted_and_listed(folder, tmp_path, caplog):
    (folder / "a" / "02.wav").write_bytes(b"broken")
    source = open_source("folder", folder)
    loader = Loader(source, PlainSampler(12, shuffle=False), 4, seconds=0.1, max_bad=0.1)
    for epoch in range(2):
        assert [len(batch.keys) for batch in loader.epoch(epoch)] == [3, 4, 4]
    assert list(loader.bad) == ["a/02.wav"] and caplog.text.count("Skipping a/02.wav") == 1
    write_bad(tmp_path / "bad.csv", loader.bad)
    assert (tmp_path / "bad.csv").read_text().splitlines()[1].startswith("a/02.wav,")
    assert read_bad(tmp_path / "bad.csv") == loader.bad
    (folder / "b" / "03.wav").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"2 bad clips in epoch 1, more than 10.0% of its 12 clips: .*max_bad"):
        list(Loader(source, PlainSampler(12), 4, max_bad=0.1).epoch(0))


def test_the_count_of_bad_clips_continues_in_a_resumed_epoch(folder):
    for name in ("00", "10"):
        (folder / "a" / f"{name}.wav").write_bytes(b"broken")
    source = open_source("folder", folder)

    def new():
        return Loader(source, PlainSampler(12, shuffle=False), 4, seconds=0.1, max_bad=0.1)

    begun, again = new(), new()
    next(begun.epoch(0))
    again.load_state_dict(begun.state_dict())
    with pytest.raises(DataError, match="2 bad clips in epoch 1"):
        list(again.epoch(0))


def test_a_batch_without_good_clips(folder):
    for name in ("00", "02"):
        (folder / "a" / f"{name}.wav").write_bytes(b"broken")
    source = open_source("folder", folder)
    loader = Loader(source, PlainSampler(12, shuffle=False), 2, max_bad=0.5)
    assert [len(batch.keys) for batch in loader.epoch(0)] == [2, 2, 2, 2, 2]
    with pytest.raises(DataError, match="All clips of a batch are bad"):
        list(Loader(source, PlainSampler(12, shuffle=False), 2, rank=0, world=2, max_bad=0.5).epoch(0))


@pytest.mark.parametrize(
    "options", [{"crop": "end"}, {"fill": "mirror"}, {"seconds": 0}, {"max_bad": 2}, {"workers": -1}]
)
def test_loader_refuses(folder, options):
    with pytest.raises(ConfigError):
        Loader(open_source("folder", folder), PlainSampler(12), 4, **options)


def test_cache_gives_the_same_clips(folder, tmp_path):
    (folder / "a" / "02.wav").write_bytes(b"broken")
    seen = []
    plain = open_source("folder", folder)
    source = cached(plain, tmp_path / "cache", workers=1, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (12, 12)
    for i in range(12):
        expected, found = plain[i], source[i]
        if isinstance(expected, BadClip):
            assert found == expected
        else:
            assert (
                np.abs(expected.waveform - found.waveform).max() <= 0.51 / 32_767 and found.waveform.dtype == np.float32
            )
            assert found[2:] == (pytest.approx(expected.target), pytest.approx(expected.mask), expected.fingerprint)
    for path in sorted(folder.rglob("*.wav")):
        os.utime(path, ns=(os.stat(path).st_atime_ns, os.stat(path).st_mtime_ns))
    again = open_source("folder", folder, "val", cache=tmp_path / "cache")
    clip = again[0]
    assert (
        not isinstance(clip, BadClip) and clip.key == again.keys[0] and len(list((tmp_path / "cache").glob("*/"))) == 1
    )
    copy = pickle.loads(pickle.dumps(source))[3]
    assert isinstance(copy, Clip) and (copy.waveform == source[3].waveform).all()


def test_cache_keeps_peaks_above_one(tmp_path):
    (tmp_path / "data" / "a").mkdir(parents=True)
    soundfile.write(
        tmp_path / "data" / "a" / "x.wav", np.array([0.5, -1.5, 1.0], dtype=np.float32), RATE, subtype="FLOAT"
    )
    clip = open_source("folder", tmp_path / "data", cache=tmp_path / "cache")[0]
    assert isinstance(clip, Clip) and clip.waveform.tolist() == pytest.approx([0.5, -1.5, 1.0], abs=1e-4)


def test_cache_is_made_anew_when_a_file_changes(folder, tmp_path):
    open_source("folder", folder, cache=tmp_path / "cache")
    soundfile.write(folder / "a" / "00.wav", np.zeros(RATE // 4, dtype=np.float32), RATE, subtype="FLOAT")
    clip = open_source("folder", folder, cache=tmp_path / "cache")[0]
    assert isinstance(clip, Clip) and clip.waveform.max() == 0


def test_a_damaged_cache_is_rejected(folder, tmp_path):
    open_source("folder", folder, cache=tmp_path / "cache")
    (store,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    (store / "audio.i16").write_bytes(b"\0" * 100)
    with pytest.raises(DataError, match="Delete the folder"):
        open_source("folder", folder, cache=tmp_path / "cache")
    (store / "meta.json").unlink()
    with pytest.raises(DataError, match="Delete the folder"):
        DecodedCache(store)


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_processes_build_a_cache_once(folder, tmp_path):
    runs = [
        get_context("fork").Process(target=open_source, args=("folder", folder), kwargs={"cache": tmp_path / "cache"})
        for _ in range(3)
    ]
    for run in runs:
        run.start()
    for run in runs:
        run.join(60)
    assert [run.exitcode for run in runs] == [0, 0, 0]
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 1


def test_missing_decoder_does_not_stop_other_clips(folder, monkeypatch):
    from dymn.audio import reading

    def refuse(*_, **__):
        raise AudioError("no decoder for this")
        yield

    monkeypatch.setattr(reading, "stream", refuse)
    assert open_source("folder", folder)[0] == BadClip("a/00.wav", "no decoder for this")


@pytest.mark.parametrize("fill", ["pad", "repeat"])
@pytest.mark.parametrize("seconds", [0.3, 0.7, None])
def test_batches_of_resident_clips_are_those_that_are_decoded(tmp_path, fill, seconds):
    write_clips(tmp_path / "clips", 7, bad=1)
    for split, crop in (("train", "random"), ("val", "start")):
        source = open_source("folder", tmp_path / "clips", split, holdout=0.3, sample_rate=CLIP_RATE)
        resident = Resident(source, torch.device("cpu"))
        loaders = [
            Loader(
                source,
                PlainSampler(len(source), seed=3),
                4,
                seconds=seconds,
                crop=crop,
                fill=fill,
                seed=5,
                max_bad=1,
                resident=where,
            )
            for where in (None, resident)
        ]
        for epoch in (0, 1):
            decoded, cut = (list(loader.epoch(epoch)) for loader in loaders)
            assert len(decoded) == len(cut) > 0
            for one, other in zip(decoded, cut, strict=True):
                assert one.keys == other.keys
                torch.testing.assert_close(one.waveform, other.waveform, atol=2**-15, rtol=0)
                for a, b in zip(one[1:5], other[1:5], strict=True):
                    assert torch.equal(a, b)
        assert loaders[0].bad == loaders[1].bad
