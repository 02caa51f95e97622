"""Every dataset in a tiny instance of its published layout."""

import os
import pickle
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from dymn.commands.evaluate import as_table
from dymn.config import ModelCard
from dymn.data import TASKS, BadClip, Clip, Loader, PlainSampler, open_source, select
from dymn.data.stores import inside
from dymn.errors import ConfigError, DataError
from dymn.evaluation.assess import assess
from dymn.models.mobilenet import create_model
from dymn.weights import audioset_labels
from layouts import (
    OPENMIC_KEYS,
    RATE,
    encoded,
    write_audio,
    write_corpus,
    write_esc50,
    write_fsd50k,
    write_hdf5,
    write_openmic,
    write_shard,
    write_table,
    write_tau,
)


def good(item: Clip | BadClip) -> Clip:
    assert isinstance(item, Clip), item
    assert item.waveform.dtype == item.target.dtype == item.mask.dtype == np.float32
    return item


def test_folder_per_class(tmp_path):
    for name in ("dog", "cat", "owl"):
        for i in range(5):
            write_audio(tmp_path / name / f"{i}.wav", rate=16_000)
    source = open_source("folder", tmp_path)
    assert source.labels == ("cat", "dog", "owl") and len(source) == 15
    clip = good(source[source.keys.index("dog/3.wav")])
    assert clip.target.tolist() == [0, 1, 0] and len(clip.waveform) == pytest.approx(0.2 * RATE, abs=2)
    train, val = open_source("folder", tmp_path, "train"), open_source("folder", tmp_path, "val")
    assert (
        val.targets.sum(0).tolist() == [1, 1, 1] and not set(train.keys) & set(val.keys) and len(train) + len(val) == 15
    )
    assert open_source("folder", tmp_path, "val").keys == val.keys
    with pytest.raises(DataError, match="no clips for the split 'test'"):
        open_source("folder", tmp_path, "test")


def test_folder_by_a_relative_path(tmp_path, monkeypatch):
    write_audio(tmp_path / "data" / "a" / "x.wav")
    monkeypatch.chdir(tmp_path)
    source = open_source("folder", "data")
    assert source.keys == ["a/x.wav"] and good(source[0])


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux alone")
def test_names_that_are_no_text(tmp_path):
    write_audio(tmp_path / "a" / "x.wav")
    os.rename(tmp_path / "a" / "x.wav", os.fsencode(tmp_path / "a") + b"/\xff.wav")
    with pytest.raises(DataError, match=r"udcff.*not valid UTF-8"):
        open_source("folder", tmp_path)


def test_folder_with_splits(tmp_path):
    for split in ("train", "val", "test"):
        for name in ("a", "b"):
            write_audio(tmp_path / split / name / "x.wav")
    assert open_source("folder", tmp_path, "test").keys == ["test/a/x.wav", "test/b/x.wav"]
    assert open_source("folder", tmp_path).labels == ("a", "b")


def test_folder_refuses_files_without_class(tmp_path):
    with pytest.raises(DataError, match="contains no folders"):
        open_source("folder", tmp_path)
    write_audio(tmp_path / "train" / "x.wav")
    with pytest.raises(DataError, match="is not in the folder of a class"):
        open_source("folder", tmp_path)


@pytest.mark.parametrize("sign", [";", ","])
def test_csv_manifest(tmp_path, sign):
    for name in "abcd":
        write_audio(tmp_path / "clips" / f"{name}.wav")
    rows = [["path", "labels", "split", "fold"]]
    rows += [
        ["clips/a.wav", f"rain{sign}wind", "train", 1],
        ["clips/b.wav", "wind", "valid", 2],
        ["clips/c.wav", "", "eval", 1],
    ]
    write_table(tmp_path / "list.csv", rows)
    source = open_source("csv", tmp_path / "list.csv")
    assert source.labels == ("rain", "wind") and source.targets.tolist() == [[1, 1], [0, 1], [0, 0]]
    assert source.catalog.splits == ("train", "val", "test") and source.catalog.folds == (1, 2, 1)
    good(source[2])
    assert open_source("csv", tmp_path / "list.csv", "test", fold=2).keys == ["clips/b.wav"]
    assert open_source("csv", tmp_path / "list.csv", labels=["wind", "rain"]).labels == ("wind", "rain")


@pytest.mark.parametrize(
    "name",
    ["../secret.wav", "/etc/passwd", "a/../../secret.wav", "C:\\secret.wav", "..\\secret.wav", "link/secret.wav"],
)
def test_csv_paths_stay_inside(tmp_path, name):
    write_audio(tmp_path / "secret.wav")
    data = tmp_path / "data"
    data.mkdir()
    os.symlink(tmp_path, data / "link")
    if ":" in name and os.name != "nt":
        assert inside(data, name).is_relative_to(data)
        return
    write_table(data / "list.csv", [["path", "label"], [name, "x"]])
    with pytest.raises(DataError, match=r"root|folder"):
        open_source("csv", data / "list.csv")


@pytest.mark.parametrize(
    ("splits", "split", "message"),
    [
        (["train", "val", "val"], "test", "it has 1 for 'train', 2 for 'val'. Choose one of these, or all clips."),
        (
            ["train", "test", "test"],
            "val",
            "1 for 'train', 2 for 'test'. Choose one of these, or all clips, or set hold",
        ),
        (["", "", ""], "test", "it has no splits. Choose all clips."),
    ],
)
def test_a_split_without_clips_names_the_others(tmp_path, splits, split, message):
    rows = [[f"{i}.wav", "x", name] for i, name in enumerate(splits)]
    for name, *_ in rows:
        write_audio(tmp_path / name)
    write_table(tmp_path / "list.csv", [["path", "label", "split"], *rows])
    with pytest.raises(DataError, match=re.escape(message)) as failed:
        open_source("csv", tmp_path / "list.csv", split)
    assert f"csv has no clips for the split '{split}'" in str(failed.value)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["path"], ["a.wav"]], "needs a column labels"),
        ([["path", "label"]], "empty"),
        ([["path", "label"], ["a.wav"]], "row 2"),
        ([["path", "label", "split"], ["a.wav", "x", "later"]], "later"),
        ([["path", "label"], ["a.wav", "x"], ["a.wav", "x"]], "twice"),
        ([["path", "label", "fold"], ["a.wav", "x", "one"]], "whole number"),
    ],
)
def test_bad_manifests(tmp_path, rows, message):
    write_table(tmp_path / "list.csv", rows)
    with pytest.raises(DataError, match=message):
        open_source("csv", tmp_path / "list.csv")


def test_esc50_and_esc10_folds(tmp_path):
    write_esc50(tmp_path)
    train, test = (open_source("esc50", tmp_path, split, fold=3) for split in ("train", "test"))
    assert (len(train), len(test)) == (12, 3) and test.labels == ("dog", "rooster", "pig")
    assert all(key.startswith("3-") for key in test.keys) and good(test[1]).target.tolist() == [0, 1, 0]
    assert open_source("esc10", tmp_path, "test", fold=1).labels == ("dog", "rooster")
    with pytest.raises(ConfigError, match=r"fold=…"):
        open_source("esc50", tmp_path, "test")
    with pytest.raises(ConfigError, match="fold is 9"):
        open_source("esc50", tmp_path, "test", fold=9)
    val = open_source("esc50", tmp_path, "val", fold=3, holdout=0.25)
    assert len(val) == 3 and not set(val.keys) & set(test.keys)


def test_esc10_as_shared(shared):
    source = open_source("esc10", shared / "esc10", "test", fold=2)
    assert len(source) == 80 and len(source.labels) == 10 and source.targets.sum(0).tolist() == [8] * 10
    assert len(good(source[0]).waveform) == pytest.approx(5 * RATE, abs=RATE // 10)


def test_fsd50k(tmp_path):
    write_fsd50k(tmp_path)
    assert [open_source("fsd50k", tmp_path, split).keys for split in ("train", "val", "test")] == [
        ["64760"],
        ["16399"],
        ["37199"],
    ]
    assert open_source("fsd50k", tmp_path).targets.tolist() == [[1, 1], [0, 1], [1, 0]]
    good(open_source("fsd50k", tmp_path)[2])


@pytest.mark.parametrize("kind", ["U", "O"])
def test_openmic_with_masks(tmp_path, kind):
    write_openmic(tmp_path, np.array(OPENMIC_KEYS, dtype=kind))
    source = open_source("openmic", tmp_path)
    assert source.labels == ("accordion", "banjo") and source.keys == OPENMIC_KEYS
    assert source.masks.tolist() == [[1, 0], [1, 1], [0, 1]] and source.targets.tolist() == [[1, 0], [0, 1], [0, 0]]
    clip = good(open_source("openmic", tmp_path, "test")[0])
    assert clip.key == "000139_119040" and clip.mask.tolist() == [0, 1]
    assert open_source("openmic", tmp_path, "train").keys == OPENMIC_KEYS[:2]


class Exploit:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_openmic_executes_no_pickle(tmp_path):
    evil = np.empty(3, dtype=object)
    evil[:] = [Exploit(tmp_path / "executed"), "b", "c"]
    write_openmic(tmp_path / "data", evil)
    with pytest.raises(DataError, match="was not executed"):
        open_source("openmic", tmp_path / "data")
    assert not (tmp_path / "executed").exists()


def test_tau(tmp_path):
    write_tau(tmp_path)
    source = open_source("tau", tmp_path)
    assert source.labels == ("bus", "park") and source.catalog.splits == ("train", "test", "")
    assert good(open_source("tau", tmp_path, "test")[0]).target.tolist() == [0, 1]


def test_audioset_hdf5(tmp_path):
    multi_hot = np.zeros((3, 527), dtype=np.uint8)
    multi_hot[[0, 1, 1, 2], [0, 5, 526, 300]] = 1
    packed = np.packbits(multi_hot, axis=1)
    write_hdf5(tmp_path / "balanced_train_segments_mp3.hdf", ["Y--aaaaaaaaa.mp3"], packed[:1])
    write_hdf5(tmp_path / "unbalanced_train_segments_mp3.hdf", ["YYbbbbbbbbbb.mp3"], packed[1:2])
    write_hdf5(tmp_path / "eval_segments_mp3.hdf", ["Yccccccccccc.mp3"], packed[2:])
    train = open_source("audioset_hdf5", tmp_path, "train")
    assert train.keys == ["--aaaaaaaaa", "Ybbbbbbbbbb"] and train.labels == audioset_labels()
    assert train.targets.dtype == np.float32 and (train.targets == multi_hot[:2]).all()
    test = open_source("audioset_hdf5", tmp_path, "test")
    assert good(test[0]).target.argmax() == 300 and len(good(test[0]).waveform) >= 0.2 * RATE
    assert open_source("audioset_hdf5", tmp_path / "eval_segments_mp3.hdf").keys == ["ccccccccccc"]


def test_fsd50k_hdf5(tmp_path):
    multi_hot = np.eye(2, 200, dtype=np.uint8)
    write_hdf5(tmp_path / "FSD50K.val_mp3.hdf", ["1.mp3", "2.mp3"], np.packbits(multi_hot, axis=1))
    source = open_source("fsd50k_hdf5", tmp_path, "val")
    assert source.keys == ["1", "2"] and (source.targets == multi_hot).all()
    names = [f"Class_{c:03d}" for c in range(200)]

    def vocabulary(names, start=0):
        rows = "".join(f"{i},{name},/m/{i}\n" for i, name in enumerate(names, start))
        (tmp_path / "vocabulary.csv").write_text(rows)

    vocabulary(names)
    assert open_source("fsd50k_hdf5", tmp_path, "val").labels == tuple(names)
    # the columns are in alphabetical order: any other table would give them wrong names
    for other, start in ((names[::-1], 0), (names[:193], 0), (names, 1), ([*names[:199], names[0]], 0)):
        vocabulary(other, start)
        with pytest.raises(DataError, match=r"vocabulary\.csv is not FSD50K's vocabulary: 200 names in alphabetical"):
            open_source("fsd50k_hdf5", tmp_path, "val")
    (tmp_path / "vocabulary.csv").unlink()
    write_hdf5(tmp_path / "FSD50K.eval_mp3.hdf", ["3.mp3"], np.zeros((1, 7), dtype=np.uint8))
    with pytest.raises(DataError, match="25 columns"):
        open_source("fsd50k_hdf5", tmp_path)


def test_openmic_hdf5(tmp_path):
    values = np.full((2, 40), 0.5)
    values[:, 20:] = 0
    values[0, [0, 20]] = 1
    values[1, [1, 2, 21, 22]] = [0.4, 0.6, 1, 1]
    write_hdf5(tmp_path / "openmic_test.csv_mp3.hdf", ["000046_3840.mp3", "000135_483840.mp3"], values)
    source = open_source("openmic_hdf5", tmp_path, "test")
    assert source.keys == ["000046_3840", "000135_483840"] and source.labels[:2] == ("accordion", "banjo")
    assert source.masks.sum(1).tolist() == [1, 2] and source.targets[:, :3].tolist() == [[1, 0, 0], [0, 0, 1]]
    good(source[1])


def test_hdf5_of_more_classes(tmp_path):
    write_hdf5(
        tmp_path / "eval_segments_mp3.hdf", ["Yccccccccccc.mp3"], np.packbits(np.eye(528, dtype=np.uint8)[527:], axis=1)
    )
    with pytest.raises(DataError, match="target has more classes than the 527"):
        open_source("audioset_hdf5", tmp_path)


def test_hdf5_of_another_form(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "eval_segments_mp3.hdf", "w") as file:
        file["target"] = np.zeros(3)
    with pytest.raises(DataError, match="no dataset audio_name, mp3"):
        open_source("audioset_hdf5", tmp_path)
    (tmp_path / "eval_segments_mp3.hdf").write_bytes(b"not hdf5")
    with pytest.raises(DataError, match="not a readable HDF5"):
        open_source("audioset_hdf5", tmp_path)


def test_hdf5_reads_no_other_files(tmp_path):
    h5py = pytest.importorskip("h5py")
    secret, path = tmp_path / "secret", tmp_path / "eval_segments_mp3.hdf"
    secret.write_bytes(b"x" * 66)
    with h5py.File(path, "w") as file:
        file["audio_name"] = np.array([b"Yaaaaaaaaaaa.mp3"])
        file["mp3"] = h5py.ExternalLink(str(secret), "mp3")
        file.create_dataset("target", (1, 66), dtype=np.uint8, external=[(str(secret), 0, 66)])
    with pytest.raises(DataError, match="no dataset mp3, target; it contains"):
        open_source("audioset_hdf5", tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_hdf5_files_are_opened_again_after_a_fork(tmp_path):
    write_hdf5(
        tmp_path / "eval_segments_mp3.hdf", [f"Y{i:011d}.mp3" for i in range(4)], np.zeros((4, 66), dtype=np.uint8)
    )
    source = open_source("audioset_hdf5", tmp_path)
    expected = [good(source[i]).waveform for i in range(4)]
    loader = Loader(source, PlainSampler(4, shuffle=False), 1, workers=2, context="fork")
    for batch, waveform in zip(loader.epoch(0), expected, strict=True):
        assert (batch.waveform[0].numpy() == waveform).all()


def test_shards(tmp_path):
    write_corpus(tmp_path)
    source = open_source("shards", tmp_path, "train")
    assert source.keys == ["000000", "000001", "000002", "000003", "000005"] and len(source.labels) == 527
    clip = good(source[4])
    assert clip.mask.sum() == 0 and clip.target.sum() == 0 and len(clip.waveform) == pytest.approx(0.2 * RATE, abs=20)
    spectrum = np.abs(np.fft.rfft(clip.waveform))
    assert spectrum.argmax() * RATE / len(clip.waveform) == pytest.approx(450, abs=10)


def test_shards_with_labels_and_without_index(tmp_path):
    members = {
        "b/1.flac": encoded(300, "FLAC"),
        "b/1.json": b'{"labels": ["Speech", "Music"]}',
        "b/2.flac": encoded(400, "FLAC"),
    }
    write_shard(tmp_path / "x.tar", members)
    source = open_source("shards", tmp_path / "x.tar", labels=["Music", "Speech"])
    assert (
        source.keys == ["b/1", "b/2"]
        and source.targets.tolist() == [[1, 1], [0, 0]]
        and source.masks.tolist() == [[1, 1], [0, 0]]
    )


def test_several_folders_of_shards_without_what_they_exclude(tmp_path):
    write_corpus(tmp_path / "a")
    write_shard(tmp_path / "b" / "more.tar", {"more.flac": encoded(300, "FLAC")})
    (tmp_path / "notes").mkdir()
    with pytest.raises(DataError, match="Add one to each"):
        open_source("shards", tmp_path)
    (tmp_path / "b" / "index.csv").write_text("key,shard,split\nmore,more.tar,train\n")
    (tmp_path / "a" / "exclude.csv").write_text("key,reason\n000001,in a benchmark\n")
    assert open_source("shards", tmp_path, "train").keys == ["000000", "000002", "000003", "000005", "more"]
    good(open_source("shards", tmp_path)[-1])


def test_shards_that_do_not_fit_their_index(tmp_path):
    write_corpus(tmp_path)
    lines = (tmp_path / "index.csv").read_text().splitlines()
    (tmp_path / "index.csv").write_text("\n".join([lines[0], lines[2], lines[1], *lines[3:]]))
    with pytest.raises(DataError, match="differ from row 0"):
        open_source("shards", tmp_path)
    (tmp_path / "index.csv").write_text("\n".join(lines[:-1]))
    with pytest.raises(DataError, match="lists 5 clips, but the shards contain 6"):
        open_source("shards", tmp_path)


def test_damaged_shards(tmp_path):
    write_corpus(tmp_path)
    path = tmp_path / "shards" / "kd-0001.tar"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError):
        open_source("shards", tmp_path)
    path.write_bytes(b"x" * 3000)
    with pytest.raises(DataError, match="not an uncompressed tar"):
        open_source("shards", tmp_path)


def test_kd_corpus(shared):
    source = open_source("shards", shared / "kd_corpus")
    train, val = select(source, "train"), select(source, "val")
    assert (len(train), len(val)) == (7418, 405)  # without those that exclude.csv lists
    clip = good(val[0])
    assert clip.key == val.keys[0] and 0 < len(clip.waveform) <= 10 * RATE + 64


def test_bad_clips_say_why(tmp_path):
    write_audio(tmp_path / "a" / "good.wav")
    (tmp_path / "a" / "broken.wav").write_bytes(b"RIFF" + b"\0" * 40)
    (tmp_path / "a" / "empty.wav").write_bytes(b"")
    source = open_source("folder", tmp_path)
    bad = {item.key: item.reason for item in (source[i] for i in range(3)) if isinstance(item, BadClip)}
    assert set(bad) == {"a/broken.wav", "a/empty.wav"} and all(bad.values())
    (tmp_path / "a" / "good.wav").unlink()
    assert isinstance(source[source.keys.index("a/good.wav")], BadClip)


def test_long_recordings_are_cut_and_named_once(tmp_path, caplog):
    write_audio(tmp_path / "a" / "long.wav", seconds=2)
    source = open_source("folder", tmp_path, max_seconds=0.5)
    assert [len(good(source[0]).waveform) for _ in range(2)] == [RATE // 2] * 2
    assert caplog.messages == ["a/long.wav: it is longer than 0.5 s; only its beginning is used. Cut it into clips."]


def test_notes_name_the_clip_and_no_option_of_other_commands(tmp_path, caplog):
    (tmp_path / "a").mkdir()
    for number in range(12):
        soundfile.write(tmp_path / "a" / f"{number:02}.wav", np.full(RATE, 0.0005 * (-1) ** np.arange(RATE)), RATE)
    source = open_source("folder", tmp_path)
    for index in [*range(12), 0, 11]:
        good(source[index])
    assert caplog.messages[0] == "a/00.wav: it is quiet: its largest sample is at -66 dBFS."
    assert [message.partition(":")[0] for message in caplog.messages[:-1]] == [f"a/{i:02}.wav" for i in range(10)]
    assert caplog.messages[-1] == "Notes on further clips are not shown."


def test_digest_tells_datasets_apart(tmp_path):
    write_esc50(tmp_path)
    first = open_source("esc50", tmp_path)
    assert (
        first.digest == open_source("esc50", tmp_path).digest != open_source("esc50", tmp_path, "test", fold=1).digest
    )
    stamp = first.stamp()
    write_audio(tmp_path / "audio" / first.keys[0], seconds=0.3)
    again = open_source("esc50", tmp_path)
    assert again.digest != first.digest and again.stamp() != stamp


def test_sources_can_be_sent_to_other_processes(tmp_path):
    write_corpus(tmp_path)
    source = open_source("shards", tmp_path)
    before = good(source[1])
    after = good(pickle.loads(pickle.dumps(source))[1])
    assert (before.waveform == after.waveform).all() and before.fingerprint == after.fingerprint


def test_errors_of_open_source(tmp_path):
    with pytest.raises(ConfigError, match="audioset_hdf5"):
        open_source("imagenet", tmp_path)
    with pytest.raises(DataError, match="There is no dataset"):
        open_source("folder", tmp_path / "nowhere")
    write_audio(tmp_path / "a" / "x.wav")
    with pytest.raises(ConfigError, match="colour"):
        open_source("folder", tmp_path, colour="red")
    with pytest.raises(ConfigError, match="split is 'later'"):
        open_source("folder", tmp_path, "later")
    with pytest.raises(IndexError):
        open_source("folder", tmp_path)[1]


def test_folders_without_recordings_are_named(tmp_path, caplog):
    for split in ("train", "test"):
        write_audio(tmp_path / "split" / split / "dog" / "1.wav")
    write_audio(tmp_path / "plain" / "dog" / "deep" / "1.wav")
    assert open_source("folder", tmp_path / "plain").labels == open_source("folder", tmp_path / "split").labels
    assert not caplog.text
    for name in ("plain/bell", "plain/.hidden", "split/test/bell", "split/val"):
        (tmp_path / name).mkdir()
    (tmp_path / "plain" / "bell" / "notes.txt").touch()
    for root, named in (("plain", "bell"), ("split", "test/bell, val")):
        caplog.clear()
        open_source("folder", tmp_path / root)
        assert f"folders without recordings, which are not used: {named}." in caplog.text


def test_tasks_are_complete():
    for name, task in TASKS.items():
        assert task.loss in ("bce", "ce") and task.metric in ("mAP", "accuracy") and task.seconds > 0, name


def test_accuracy_by_device(tmp_path):
    """TAU: every device for itself, from the source_label of meta.csv."""
    write_tau(tmp_path)
    meta = (tmp_path / "meta.csv").read_text().splitlines()
    rows = [line.rsplit("\t", 1)[0] + f"\t{device}" for line, device in zip(meta[1:], ("a", "b", "s1"), strict=True)]
    (tmp_path / "meta.csv").write_text("\n".join([meta[0], *rows]) + "\n")
    assert open_source("tau", tmp_path, "test").catalog.groups == ("b",)
    model = create_model("mn01", 2).eval()
    model.card = ModelCard(labels=("bus", "park"), exclusive=True)
    torch.nn.init.constant_(model.head.classifier.bias, 0.0)
    with torch.no_grad():
        model.head.classifier.bias[1] = 50.0  # always says park
    found = assess(model, tmp_path, kind="tau", split="all", seconds=0.2)
    assert found.figures["accuracy_by_device"] == {"a": 0.0, "b": 1.0, "s1": 1.0}
    assert "  device s1  100.00 %" in as_table(found)
