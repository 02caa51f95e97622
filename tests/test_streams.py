"""Shards are read from front to back, each clip once an epoch, and an epoch goes on from any batch."""

import itertools
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dymn.data import (
    BalancedSampler,
    Catalog,
    Loader,
    PackSettings,
    PlainSampler,
    Source,
    Streamed,
    open_source,
    pack,
    streams,
)
from dymn.data.samplers import Batches
from dymn.data.stores import TarStore
from dymn.errors import ConfigError
from layouts import write_audio

SHARDS = st.lists(st.integers(1, 40), min_size=1, max_size=8)


def parts_of(shards):
    return np.repeat(np.arange(len(shards)), shards)


def shares_of(sampler, batch, world, workers, drop_last, epoch, first=0):
    """Return what each worker of each process is to present, in the order in which torch's loader takes from workers in
    turn.
    """
    every = []
    for rank in range(world):
        batches = Batches(sampler, batch, rank=rank, world=world, drop_last=drop_last)
        lanes = [list(batches.shares(epoch, first + worker, workers)) for worker in range(workers)]
        every.append([share for turn in itertools.zip_longest(*lanes) for share in turn if share is not None])
    return every


@settings(max_examples=150, deadline=None)
@given(
    shards=SHARDS, per_rank=st.integers(1, 9), world=st.integers(1, 5), workers=st.integers(1, 5),
    drop_last=st.booleans(), draws=st.integers(1, 300), seed=st.integers(0, 3), epoch=st.integers(0, 3), data=st.data(),
)  # fmt: skip
def test_each_clip_once_and_from_any_batch(shards, per_rank, world, workers, drop_last, draws, seed, epoch, data):
    n, batch = sum(shards), per_rank * world
    base = PlainSampler(n, seed, draws=data.draw(st.sampled_from([n, draws])))
    sampler = Streamed(base, parts_of(shards), batch, seed)
    every = shares_of(sampler, batch, world, workers, drop_last, epoch)
    drawn = [draw for shares in every for share in shares for draw in share]
    whole = len(base) // batch * batch if drop_last else len(base)
    assert sorted(draw.place for draw in drawn) == list(range(whole)), (
        "each place of the epoch once, in one process and worker"
    )
    if not drop_last:
        assert sorted(draw.clip for draw in drawn) == sorted(base.order(epoch).tolist()), (
            "the clips of the sampler, as often as there"
        )
    if whole == len(base) // batch * batch:
        assert {len(shares) for shares in every} == {whole // batch} and {sum(map(len, s)) for s in every} == {
            whole // world
        }
    assert every == shares_of(sampler, batch, world, 1, drop_last, epoch), "whatever the number of workers"
    first, again = data.draw(st.integers(0, len(every[0]))), data.draw(st.integers(1, 5))
    assert [s[first:] for s in every] == shares_of(sampler, batch, world, again, drop_last, epoch, first)


@settings(max_examples=50, deadline=None)
@given(shards=SHARDS, batch=st.sampled_from([4, 8, 12]), seed=st.integers(0, 3))
def test_one_process_or_four_give_the_same_batches(shards, batch, seed):
    sampler = Streamed(PlainSampler(sum(shards), seed), parts_of(shards), batch, seed)
    (one,) = shares_of(sampler, batch, 1, 2, False, 1)
    four = shares_of(sampler, batch, 4, 3, False, 1)
    for number, share in enumerate(one):
        assert sorted(share) == sorted(
            draw for shares in four for draw in (shares[number] if number < len(shares) else ())
        )


def pieces(clips):
    """Return in how many pieces clips lie, by their numbers."""
    return 1 + int((np.diff(np.sort(clips)) > 1).sum())


def test_processes_and_workers_read_slices_of_their_own():
    parts = parts_of([400] * 32)
    sampler = Streamed(PlainSampler(len(parts), 1), parts, 64, seed=1)
    assert sampler.order(0).tolist() != sampler.order(1).tolist()
    for world, workers in ((1, 1), (1, 8), (4, 2), (16, 8)):
        lanes = [
            [
                draw.clip
                for share in Batches(sampler, 64, rank=rank, world=world).shares(0, worker, workers)
                for draw in share
            ]
            for rank in range(world)
            for worker in range(workers)
        ]
        slices = streams.SLICES * streams.GROUPS
        assert sum(map(pieces, lanes)) <= 32 + slices, (world, workers)  # 12,800 if each clip lay by itself
    batches = [[draw.clip for draw in share] for share in Batches(sampler, 64).shares(0)]
    assert np.mean([len(set(parts[batch])) for batch in batches]) > 20, "a batch has clips of many shards"
    neighbours = [len(set(a) & {clip + 1 for clip in b}) for a, b in itertools.pairwise(batches)]
    assert np.mean(neighbours) < 4, "neighbours in a shard do not follow each other"


def test_rare_classes_are_drawn_as_often_as_without_shards():
    targets = np.eye(3, dtype=np.float32)[np.r_[np.zeros(300, int), np.ones(60, int), np.full(12, 2)]]
    catalog = Catalog(tuple(map(str, range(372))), ("a", "b", "c"), targets)
    source = Source(catalog, TarStore([], np.zeros((372, 3), dtype=np.int64), streams=True))
    base = BalancedSampler(source, seed=3, draws=80)
    streamed = Streamed(base, parts_of([93] * 4), 8, seed=3)
    for epoch in range(3):
        assert sorted(streamed.order(epoch)) == sorted(base.order(epoch)) and len(streamed) == 80


@pytest.fixture
def packed(tmp_path):
    """Forty clips in shards of six; number i has the frequency 200 + 20 i."""
    for i in range(40):
        write_audio(tmp_path / "data" / "ab"[i % 2] / f"{i:02d}.wav", 200.0 + 20 * i)
    (tmp_path / "data" / "a" / "00.wav").write_bytes(b"")
    (tmp_path / "data" / "a" / "02.wav").write_bytes(b"RIFF")
    pack(open_source("folder", tmp_path / "data"), tmp_path / "out", PackSettings(clips=6))
    return open_source("packed", tmp_path / "out")


def loader_of(source, batch=5, **options):
    sampler = Streamed(PlainSampler(len(source), seed=1), source.parts, batch, seed=1)
    return Loader(source, sampler, batch, seconds=0.1, seed=2, **options)


def presented(loader, number):
    return [(batch.keys, batch.waveform) for batch in loader.epoch(number)]


def assert_equal(found, expected):
    assert [keys for keys, _ in found] == [keys for keys, _ in expected]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(found, expected, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_goes_on_where_it_was(packed, workers, monkeypatch):
    monkeypatch.setattr(streams, "AHEAD", 50_000)  # a few clips
    whole = loader_of(packed)
    expected = [presented(whole, epoch) for epoch in range(3)]
    assert (
        all(sorted(key for keys, _ in epoch for key in keys) == sorted(packed.keys) for epoch in expected)
        and len(packed) == 38
    )
    begun = loader_of(packed, workers=workers)
    assert_equal(presented(begun, 0), expected[0])
    assert_equal([(b.keys, b.waveform) for b in itertools.islice(begun.epoch(1), 3)], expected[1][:3])
    state = begun.state_dict()
    assert (state["epoch"], state["batch"]) == (1, 3)
    again = loader_of(packed, workers=1 if workers else 2)
    again.load_state_dict(state)
    assert again.state_dict() == state
    assert_equal(presented(again, 1), expected[1][3:])
    assert_equal(presented(again, 2), expected[2])
    begun.load_state_dict(state)
    assert_equal(presented(begun, 1), expected[1][3:])
    with pytest.raises(ConfigError, match="another batch_size"):
        loader_of(packed, batch=4).load_state_dict(state)


def test_neighbours_are_read_at_once(packed, monkeypatch):
    reads = []
    from dymn.data import stores

    real = stores.read_member
    monkeypatch.setattr(stores, "read_member", lambda member, files: reads.append(member) or real(member, files))
    contents = dict(packed.store.read_many(range(38)))
    assert len(reads) == 7 and [contents[i] for i in range(38)] == [packed.store.read(i) for i in range(38)]
    reads.clear()
    monkeypatch.setattr(stores, "MAX_GAP", 0)
    assert len(dict(packed.store.read_many([3, 4, 4, 20]))) == 3 and len(reads) == 3
    packed.store.paths[0].unlink()
    elsewhere = pickle.loads(pickle.dumps(packed))
    assert {type(found) for i, found in elsewhere.store.read_many(range(38)) if packed.parts[i] == 0} == {
        FileNotFoundError
    }
    assert sum(len(collated.bad) for collated in loader_of(elsewhere, max_bad=0.5).collated(0)) == 6


def test_files_are_not_all_kept_open(packed, monkeypatch):
    from dymn.data import stores

    monkeypatch.setattr(stores, "MAX_OPEN", 2)
    assert all(isinstance(packed.store.read(i), bytes) for i in range(38))
    handles = packed.store._files._handles
    assert list(handles) == packed.store.paths[-2:] and not any(handle.closed for handle in handles.values())
