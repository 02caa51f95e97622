"""`dymn shards`: what is packed comes out as it went in, a kill loses nothing, damage is noticed."""

import dataclasses
import json
import os
import shutil
import signal
import sys
import tarfile
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from dymn.cli import app
from dymn.data import TASKS, BadClip, PackSettings, Source, TeacherTable, open_source, pack, task_facts, task_of
from dymn.data.catalog import Catalog
from dymn.data.detect import detect
from dymn.data.packed import COLUMNS_FILE, INDEX_FILE, WORK_FOLDER
from dymn.data.stores import FileStore
from dymn.data.tar import tar_members
from dymn.data.teacher import write_table
from dymn.errors import ConfigError, DataError, ResourceError
from dymn.system.files import atomic_write
from dymn.training.recipe import load_recipe
from dymn.training.resolve import resolve
from layouts import (
    encoded,
    write_audio,
    write_audioset,
    write_corpus,
    write_esc50,
    write_fsd50k,
    write_openmic,
    write_tau,
)
from layouts import write_table as write_csv


def write_folder(root: Path, n: int = 10) -> None:
    for i in range(n):
        write_audio(root / ("train", "val")[i % 5 == 4] / "ab"[i % 2] / f"{i:02d}.wav", 200.0 + 40 * i)


def write_odd(root: Path) -> None:
    """A table whose names are hard on tar files: in other scripts, with several dots, very long."""
    names = ["ü/日本 語.v2.wav", "a..b.wav", f"{'x' * 150}.wav"]
    for name in names:
        write_audio(root / name)
    write_csv(
        root / "clips.csv",
        [["path", "labels", "fold"], *([name, "a;b" if i else "", i % 2] for i, name in enumerate(names))],
    )


LAYOUTS = {
    "folder": write_folder,
    "csv": write_odd,
    "esc50": write_esc50,
    "fsd50k": write_fsd50k,
    "openmic": write_openmic,
    "audioset_hdf5": write_audioset,
    "shards": write_corpus,
    "tau": write_tau,
}


def clips_of(source: Source) -> dict[str, tuple]:
    catalog = source.catalog
    return {
        key: (source[i], *(column[i] for column in (catalog.splits, catalog.folds, catalog.groups) if column))
        for i, key in enumerate(source.keys)
    }


def assert_same(source: Source, packed: Source, tolerance: float = 0.0) -> None:
    expected, found = clips_of(source), clips_of(packed)
    assert expected.keys() == found.keys() and source.labels == packed.labels
    for key, (clip, *place) in expected.items():
        other, *other_place = found[key]
        assert place == other_place and not isinstance(clip, BadClip) and not isinstance(other, BadClip)
        assert len(clip.waveform) == len(other.waveform) and np.abs(clip.waveform - other.waveform).max() <= tolerance
        assert np.array_equal(clip.target, other.target) and np.array_equal(clip.mask, other.mask)
        assert clip.fingerprint == other.fingerprint


@pytest.mark.parametrize("kind", LAYOUTS)
def test_what_is_packed_comes_out_as_it_went_in(kind, tmp_path):
    if kind == "audioset_hdf5":
        pytest.importorskip("h5py")
    LAYOUTS[kind](tmp_path / "data")
    layout = detect(tmp_path / "data")
    assert layout.kind == kind
    source = open_source(kind, layout.path)
    made = pack(source, tmp_path / "out", PackSettings(clips=3), task=task_facts(kind, layout.path))
    assert detect(tmp_path / "out") == ("packed", tmp_path / "out")
    packed = open_source("packed", tmp_path / "out")
    assert_same(source, packed)
    task = task_of("packed", tmp_path / "out")
    assert dataclasses.replace(task, reader=TASKS[kind].reader, classes=TASKS[kind].classes) == TASKS[kind]
    assert (
        sum(shard["clips"] for shard in made.index.shards) == len(source)
        and max(s["clips"] for s in made.index.shards) <= 3
    )
    for shard in made.index.shards:  # a tar file that others read: names that are safe, audio and JSON side by side
        names = list(tar_members(tmp_path / "out" / shard["name"]))
        assert len(names) == 2 * shard["clips"] and all(
            name.replace(".", "").isalnum() and name.isascii() for name in names
        )
        with tarfile.open(tmp_path / "out" / shard["name"]) as archive:
            about = [json.load(archive.extractfile(name)) for name in names if name.endswith(".json")]
        assert {clip["key"] for clip in about} <= set(source.keys)
        assert len({clip.get("split") for clip in about}) == 1, "each split has shards of its own"


def test_clips_are_mixed_by_the_seed(tmp_path):
    write_folder(tmp_path / "data", 20)
    source = open_source("folder", tmp_path / "data")
    keys = {}
    for name, seed in (("one", 1), ("again", 1), ("two", 2), ("order", None)):
        pack(source, tmp_path / name, PackSettings(clips=4, seed=seed))
        keys[name] = open_source("packed", tmp_path / name).keys
    assert keys["one"] == keys["again"] != keys["two"] and keys["order"] == source.keys
    assert contents(tmp_path / "one") == contents(tmp_path / "again")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".npz"}


def test_audio_is_encoded_anew_and_the_teacher_still_knows_it(tmp_path):
    write_folder(tmp_path / "data")
    source = open_source("folder", tmp_path / "data")
    marks = np.array([clip.fingerprint for clip in source], dtype=np.int64)
    write_table(
        tmp_path / "t.safetensors", source.keys, source.labels, np.zeros((len(source), 2), dtype=np.float16), marks
    )
    for encoding in ("flac", "wav"):
        pack(source, tmp_path / encoding, PackSettings(encoding, clips=4))
        packed = open_source("packed", tmp_path / encoding)
        assert_same(source, packed, tolerance=0.51 / 32_768)
        rows = TeacherTable.open(tmp_path / "t.safetensors").match(packed)
        assert [int(marks[row]) for row in rows] == [clip.fingerprint for clip in packed]
        content = packed.store.read(0)
        with open(tmp_path / "x", "wb") as file:
            file.write(content)
        found = soundfile.info(tmp_path / "x")
        assert (found.samplerate, found.subtype, found.format) == (32_000, "PCM_16", encoding.upper())


def test_opus(tmp_path):
    write_folder(tmp_path / "data", 3)
    source = open_source("folder", tmp_path / "data")
    pack(source, tmp_path / "out", PackSettings("opus"))
    for key, (clip, *_) in clips_of(open_source("packed", tmp_path / "out")).items():
        original = source[source.keys.index(key)].waveform
        assert abs(len(clip.waveform) - len(original)) <= 640 and clip.waveform.std() == pytest.approx(
            original.std(), rel=0.1
        )


def test_size_decides_how_many(tmp_path):
    write_folder(tmp_path / "data", 30)
    source = open_source("folder", tmp_path / "data")
    size = sum(source.store.sizes()) / 2**20
    made = pack(source, tmp_path / "out", PackSettings(megabytes=size / 5))
    sizes = [shard["bytes"] / 2**20 for shard in made.index.shards if shard["name"].startswith("train")]
    assert max(sizes) <= size / 5 * 1.6 and len(sizes) >= 4


def pack_and_die(source: Source, out: Path, writes: int) -> None:
    """Pack, but for a SIGKILL instead of the n-th write: of the plan, a shard, its report, a table, the index."""
    left = writes

    def dying(path):
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return atomic_write(path)

    for name in ("data.packing", "data.packed", "system.files"):
        sys.modules[f"dymn.{name}"].atomic_write = dying
    pack(source, out, PackSettings(clips=4))


@pytest.mark.skipif(os.name != "posix", reason="no fork")
def test_a_killed_run_goes_on_and_the_result_is_the_same(tmp_path):
    write_folder(tmp_path / "data")
    (tmp_path / "data" / "train" / "a" / "bad.wav").write_bytes(b"no audio")
    source = open_source("folder", tmp_path / "data")
    whole = pack(source, tmp_path / "whole", PackSettings(clips=4))
    assert list(whole.bad) == ["train/a/bad.wav"]
    out = tmp_path / "out"
    for writes in (3, 4, 5, 3, 3):
        process = get_context("fork").Process(target=pack_and_die, args=(source, out, writes))
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        with pytest.raises(DataError, match="is incomplete"):
            open_source(*detect(out))
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert before
    again = pack(source, out, PackSettings(clips=4))
    assert again.bad == whole.bad and contents(out) == contents(tmp_path / "whole")
    assert all(path.stat().st_mtime_ns == changed for path, changed in before.items()), (
        "complete shards are not made again"
    )
    assert_same(open_source("packed", tmp_path / "whole"), open_source("packed", out))
    started = time.time_ns()
    pack(source, out, PackSettings(clips=4))
    assert (out / INDEX_FILE).stat().st_mtime_ns < started and not (out / WORK_FOLDER).exists()


def test_other_settings_or_data_are_refused(tmp_path):
    write_folder(tmp_path / "data")
    source = open_source("folder", tmp_path / "data")
    pack(source, tmp_path / "out", PackSettings(clips=4))
    with pytest.raises(ConfigError, match="clips was 4, now 5"):
        pack(source, tmp_path / "out", PackSettings(clips=5))
    write_audio(tmp_path / "data" / "train" / "a" / "new.wav")
    with pytest.raises(ConfigError, match="source was"):
        pack(open_source("folder", tmp_path / "data"), tmp_path / "out", PackSettings(clips=4))
    with pytest.raises(ConfigError, match="is not empty"):
        pack(source, tmp_path / "data")
    for wrong in ({"encoding": "mp3"}, {"clips": -1}, {"megabytes": 0}, {"seed": -1}):
        with pytest.raises(ConfigError):
            PackSettings(**wrong)


def test_a_clip_that_cannot_be_encoded_is_bad(tmp_path, monkeypatch):
    write_folder(tmp_path / "data")
    rare, real = 5000, soundfile.write  # as many samples as no other clip has
    write_audio(tmp_path / "data" / "train" / "a" / "odd.wav", seconds=rare / 32_000)

    def write(file, samples, rate, **how):
        real(file, samples, 10**6 if len(samples) == rare else rate, **how)

    source = open_source("folder", tmp_path / "data")
    monkeypatch.setattr(soundfile, "write", write)
    for workers in (0, 2):
        made = pack(source, tmp_path / f"out{workers}", PackSettings("flac", clips=4), workers=workers)
        assert list(made.bad) == ["train/a/odd.wav"] and "cannot be written as flac" in made.bad["train/a/odd.wav"]
        assert made.index.values["clips"] == 10


def test_other_errors_of_packing_are_what_they_are(tmp_path, monkeypatch):
    write_folder(tmp_path / "data")
    source = open_source("folder", tmp_path / "data")
    for error, expected in ((RuntimeError("a fault of ours"), RuntimeError), (MemoryError(), ResourceError)):
        with monkeypatch.context() as patch:
            patch.setattr(sys.modules["dymn.data.packing"], "encode", raising(error))
            with pytest.raises(expected) as caught:
                pack(source, tmp_path / "out", PackSettings("flac", clips=4))
        assert type(caught.value) is expected
    assert pack(source, tmp_path / "out", PackSettings("flac", clips=4)).index.values["clips"] == 10, "it goes on"


def raising(error):
    def call(*_):
        raise error

    return call


def test_two_processes_make_the_same(tmp_path):
    write_folder(tmp_path / "data")
    source = open_source("folder", tmp_path / "data")
    seen = []
    pack(source, tmp_path / "two", PackSettings(clips=4), workers=2, progress=lambda *done: seen.append(done))
    pack(source, tmp_path / "one", PackSettings(clips=4))
    assert contents(tmp_path / "one") == contents(tmp_path / "two") and seen[-1] == (10, 10)


@pytest.fixture
def packed(tmp_path):
    write_folder(tmp_path / "data")
    pack(open_source("folder", tmp_path / "data"), tmp_path / "out", PackSettings(clips=4))
    return tmp_path / "out"


def change_index(folder, change):
    values = json.loads((folder / INDEX_FILE).read_text())
    change(values)
    (folder / INDEX_FILE).write_text(json.dumps(values))


def test_damage_is_noticed(packed):
    shard = packed / "train-000000.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    with pytest.raises(DataError, match="The copy is incomplete"):
        open_source("packed", packed)
    shard.unlink()
    with pytest.raises(DataError, match="has -1 bytes"):
        open_source("packed", packed)
    shard.write_bytes(whole)
    columns = (packed / COLUMNS_FILE).read_bytes()
    (packed / COLUMNS_FILE).write_bytes(columns[:-5] + b"abcde")
    with pytest.raises(DataError, match="same release"):
        open_source("packed", packed)
    (packed / COLUMNS_FILE).write_bytes(columns)
    assert len(open_source("packed", packed)) == 10


@pytest.mark.parametrize("masked", [False, True])
def test_shards_are_not_read_without_their_index(masked, tmp_path):
    """Soft labels, splits and annotated classes would vanish."""
    catalog = Catalog(("a", "b"), ("Dog", "Rain"), np.float32([[0.2, 0.9], [0, 1]]), splits=("train", "test"))
    if masked:
        catalog = dataclasses.replace(catalog, masks=np.uint8([[1, 1], [0, 0]]))
    paths = [write_audio(tmp_path / f"{key}.wav") for key in catalog.keys]
    made = pack(Source(catalog, FileStore(paths)), tmp_path / "out")
    (tmp_path / "out" / "index.json").unlink()
    for path in (tmp_path / "out", *(tmp_path / "out" / shard["name"] for shard in made.index.shards)):
        with pytest.raises(DataError, match="Give the whole folder"):
            open_source("shards", path, labels=catalog.labels)


def test_an_index_of_another_program_is_left_alone(tmp_path):
    write_folder(tmp_path / "data")
    (tmp_path / "data" / INDEX_FILE).write_text('{"format": "other"}')
    assert detect(tmp_path / "data").kind == "folder"
    run = ["data.kind=folder", f"data.path={tmp_path / 'data'}", "data.seconds=1"]
    assert resolve(load_recipe("esc50:mn04", [*run, f"run.out={tmp_path / 'run'}"])).config.data.kind == "folder"


def test_who_waited_for_the_same_shards_has_them(packed, monkeypatch):
    def first_one_ends(*_):
        shutil.rmtree(packed / WORK_FOLDER)

    monkeypatch.setattr(sys.modules["dymn.data.packing"], "_same", first_one_ends)
    assert (
        pack(open_source("folder", packed.parent / "data"), packed, PackSettings(clips=4)).index.values["clips"] == 10
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.update(format="other"),
        lambda v: v.update(labels="ab"),
        lambda v: v.update(task=[]),
        lambda v: v["task"].update(loss="__import__"),
        *(
            lambda v, wrong=wrong: v["task"].update(seconds=wrong)
            for wrong in ("long", float("nan"), -1, 0, 1e9, True, None)
        ),
        lambda v: v["task"].update(whole=0.5),
        lambda v: v["shards"][0].update(clips=float("inf")),
        lambda v: v.update(columns=[]),
        lambda v: v["columns"].update(names=5),
        lambda v: v["shards"][0].update(name="../data/train/a/00.wav"),
        lambda v: v["shards"].pop(),
        lambda v: v["shards"].reverse(),
        lambda v: v["columns"].update(names=["keys"]),
        lambda v: v.pop("shards"),
    ],
)
def test_an_index_that_lies_is_refused(packed, change):
    task_of("packed", packed)
    change_index(packed, lambda values: values.update(task={}))
    change_index(packed, change)
    with pytest.raises(DataError):
        [reader("packed", packed) for reader in (task_of, open_source)]


def test_command(tmp_path):
    write_folder(tmp_path / "data")

    def run(*words):
        return CliRunner().invoke(app, ["shards", *map(str, words)])

    done = run(tmp_path / "data", tmp_path / "out", "--clips", 3, "--audio", "flac", "--seed", 7)
    assert done.exit_code == 0 and "4 shards, 10 clips" in done.stdout, done.output
    assert run(tmp_path / "data", tmp_path / "out", "--clips", 3, "--audio", "flac", "--seed", 7).exit_code == 0
    refused = run(tmp_path / "data", tmp_path / "out", "--clips", 4)
    assert refused.exit_code == 2 and "clips was 3, now 4" in refused.stderr
    (tmp_path / "data" / "val" / "a" / "04.wav").write_bytes(encoded(300.0)[:100])
    partly = run(tmp_path / "data", tmp_path / "partly", "--in-order", "--size", 0.05)
    assert partly.exit_code == 1 and "1 of 10 clips are left out, such as val/a/04.wav" in partly.stderr
    assert (tmp_path / "partly" / "bad_clips.csv").read_text().splitlines()[1].startswith("val/a/04.wav,")
    assert run(tmp_path / "missing", tmp_path / "x").exit_code == 2
    for path in (tmp_path / "data").rglob("*.wav"):
        path.write_bytes(b"no audio")
    nothing = run(tmp_path / "data", tmp_path / "none")
    assert nothing.exit_code == 1 and "No clip of folder can be read" in nothing.stderr
