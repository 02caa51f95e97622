"""Manifests as people and programs write them, and folders by splits."""

import numpy as np
import pytest
import soundfile

from dymn.data import TASKS, Clip, Loader, PackSettings, PlainSampler, cached, open_source, pack
from dymn.data.detect import detect
from dymn.errors import DataError
from dymn.evaluation.score import evaluation_loader
from layouts import RATE, write_audio, write_table


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b", "c"):
        write_audio(tmp_path / f"{name}.wav", seconds=0.1)
    return tmp_path


def manifest(folder, rows, delimiter=",", name="list.csv", **options):
    write_table(folder / name, rows, delimiter)
    return open_source("csv", folder / name, **options)


@pytest.mark.parametrize(
    "column", ["path", "filename", "file_name", "filepath", "Path", "File Name", "fname", "audio_path"]
)
@pytest.mark.parametrize("label", ["label", "Labels", "category", "Class", "tags"])
def test_columns_by_their_usual_names(folder, column, label):
    source = manifest(folder, [["id", label, column], [1, "dog", "a.wav"], [2, "cat", "b.wav"]])
    assert source.keys == ["a.wav", "b.wav"] and source.labels == ("cat", "dog") and isinstance(source[0], Clip)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("name", ["list.csv", "list.tsv"])
def test_delimiters(folder, delimiter, name):
    source = manifest(folder, [["path", "label"], ["a.wav", "dog"], ["b.wav", "cat"]], delimiter, name)
    assert source.targets.tolist() == [[0, 1], [1, 0]] and detect(folder) == ("csv", folder / name)


def test_byte_order_mark_and_line_ends_of_windows(folder):
    (folder / "list.csv").write_bytes("\ufeffpath;label\r\na.wav;chien\r\n\r\nb.wav;épagneul, brun\r\n".encode())
    source = open_source("csv", folder / "list.csv", separator="/")
    assert source.keys == ["a.wav", "b.wav"] and source.labels == ("chien", "épagneul, brun")


def test_a_label_that_contains_a_comma_stays_one_label(folder):
    speech = "Child speech, kid speaking"
    source = manifest(
        folder, [["path", "labels"], ["a.wav", speech], ["b.wav", f"{speech},Music"], ["c.wav", "Music,Dog"]]
    )
    assert source.labels == (speech, "Dog", "Music") and source.targets.tolist() == [[1, 0, 0], [1, 0, 1], [0, 1, 1]]
    own = [["path", "label"], ["a.wav", "knock, on wood"], ["b.wav", "wind"], ["c.wav", ""]]
    with pytest.raises(DataError, match="one label or 2"):
        manifest(folder, own)
    assert manifest(folder, own, separator=";").labels == ("knock, on wood", "wind")
    assert manifest(folder, own, separator=",").labels == ("knock", "on wood", "wind")
    assert manifest(folder, own, labels=["knock, on wood", "wind"]).targets.tolist() == [[1, 0], [0, 1], [0, 0]]
    assert manifest(folder, [*own[:1], ["a.wav", "wind, rain"], *own[2:]]).labels == ("rain", "wind")


def test_a_row_for_each_label(folder):
    rows = [["path", "label", "split"], ["a.wav", "dog", "train"], ["a.wav", "wind", "train"], ["b.wav", "dog", "val"]]
    source = manifest(folder, rows)
    assert source.keys == ["a.wav", "b.wav"] and source.targets.tolist() == [[1, 1], [1, 0]]
    assert source.catalog.splits == ("train", "val")
    with pytest.raises(DataError, match="two splits"):
        manifest(folder, [*rows, ["b.wav", "wind", "test"]])
    with pytest.raises(DataError, match="twice"):
        manifest(folder, [*rows, ["b.wav", "dog", "val"]])


@pytest.mark.parametrize("other", ["./a.wav", ".//a.wav", ".\\a.wav"])
def test_spellings_of_a_path_are_one_clip(folder, other):
    """Otherwise, a clip could be trained on and validated with."""
    source = manifest(folder, [["path", "label"], ["a.wav", "dog"], [other, "rain"]])
    assert source.keys == ["a.wav"] and source.targets.tolist() == [[1, 1]]
    with pytest.raises(DataError, match="in two splits"):
        manifest(folder, [["path", "label", "split"], ["a.wav", "dog", "train"], [other, "rain", "val"]])
    with pytest.raises(DataError, match="twice"):
        manifest(folder, [["path", "label", "split"], ["a.wav", "dog", "train"], [other, "dog", "val"]])


def test_clips_without_a_split_are_counted(folder, caplog):
    rows = [["path", "label", "split"], ["a.wav", "dog", "train"], ["b.wav", "dog", ""], ["c.wav", "cat", " "]]
    assert len(manifest(folder, rows, split="train")) == 1
    assert "2 of 3 clips have no split; no split contains them." in caplog.text


def test_soft_labels(folder):
    source = manifest(folder, [["path", "labels"], ["a.wav", "dog:0.7;cat:0.25"], ["b.wav", "dog:1"], ["c.wav", ""]])
    assert source.labels == ("cat", "dog") and source.targets == pytest.approx(np.array([[0.25, 0.7], [0, 1], [0, 0]]))
    with pytest.raises(DataError, match=r"such as 'dog:0\.7', and labels without, such as 'cat'"):
        manifest(folder, [["path", "labels"], ["a.wav", "dog:0.7"], ["b.wav", "cat"]])
    with pytest.raises(DataError, match="above 1"):
        manifest(folder, [["path", "labels"], ["a.wav", "dog:1.7"]])


@pytest.mark.parametrize("column", ["weight", "confidence", "Sample Weight"])
def test_a_column_that_is_not_used_is_refused_by_name(folder, column):
    rows = [["path", "label", column], ["a.wav", "dog", 0.5], ["b.wav", "cat", 1]]
    with pytest.raises(DataError, match=f"column '{column}'"):
        manifest(folder, rows)
    assert manifest(folder, rows, ignore=[column]).labels == ("cat", "dog")


def test_parts_of_recordings(tmp_path):
    rate = RATE
    sound = np.concatenate([np.full(rate, 0.1), np.full(rate, 0.2), np.full(rate // 2, 0.3)]).astype(np.float32)
    soundfile.write(tmp_path / "long.wav", sound, rate, subtype="FLOAT")
    rows = [
        ["path", "start", "end", "label"],
        ["long.wav", 0, 1, "x"],
        ["long.wav", 1, 2, "y"],
        ["long.wav", 2, "", "x"],
    ]
    source = manifest(tmp_path, rows)
    assert source.keys == ["long.wav#0-1", "long.wav#1-2", "long.wav#2-"]
    for read in (source, cached(source, tmp_path / "cache")):
        found = [(len(read[i].waveform), round(float(read[i].waveform.mean()), 3)) for i in range(3)]
        assert found == [(rate, 0.1), (rate, 0.2), (rate // 2, 0.3)]
        (batch,) = evaluation_loader(read.where([1]), TASKS["csv"], 1.0, "pad", 4).epoch(0)
        assert batch.waveform.numpy() == pytest.approx(np.full((1, rate), 0.2), abs=1e-4)
    beyond = manifest(tmp_path, [*rows, ["long.wav", 7, 9, "x"]], max_seconds=1.0)
    assert "ends after 2.50 s, before the start of the clip at 7 s" in beyond[3].reason
    assert len(beyond[1].waveform) == rate
    ((key, reason),) = heard(beyond).items()
    assert key == "long.wav#7-9" and "before the start of the clip" in reason
    for wrong, message in (
        ([2, 1], "must be after"),
        (["x", 1], "time in seconds"),
        ([-1, 1], "at least 0"),
        (["nan", 1], "seconds"),
    ):
        with pytest.raises(DataError, match=message):
            manifest(tmp_path, [rows[0], ["long.wav", *wrong, "x"]])
    with pytest.raises(DataError, match="cannot be packed"):
        pack(source, tmp_path / "packed", PackSettings())


def heard(source):
    loader = Loader(source, PlainSampler(len(source), shuffle=False), 2, seconds=1.0, crop="windows", max_bad=1.0)
    list(loader.epoch(0))
    return loader.bad


def test_absolute_paths(tmp_path):
    inner, outer = write_audio(tmp_path / "data" / "in.wav"), write_audio(tmp_path / "elsewhere" / "out.wav")
    source = manifest(tmp_path / "data", [["path", "label"], [inner, "x"], [outer, "y"]])
    assert source.keys == ["in.wav", outer.as_posix()] and all(isinstance(source[i], Clip) for i in range(2))
    with pytest.raises(DataError, match="the extension of a recording"):
        manifest(tmp_path / "data", [["path", "label"], ["/etc/passwd", "x"]])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["path", "x"], ["a.wav", "dog"]], "needs a column labels"),
        ([["where", "label"], ["a.wav", "dog"]], "needs a column path"),
        ([["path", "label"], ["a.wav", "dog", "cat"]], "Put values that contain ',' in quotes"),
    ],
)
def test_what_is_missing_is_said(folder, rows, message):
    with pytest.raises(DataError, match=message):
        manifest(folder, rows)


@pytest.mark.parametrize(
    "names",
    [
        ("training", "validation"),
        ("train", "valid", "test"),
        ("Train", "Val", "Test"),
        ("TRAIN", "dev", "eval"),
        ("Training",),
    ],
)
def test_folders_of_splits_by_their_usual_names(tmp_path, names):
    for name in names:
        for label in ("a", "b"):
            (tmp_path / name / label).mkdir(parents=True)
            write_audio(tmp_path / name / label / "x.wav")
    (tmp_path / "notes").mkdir()
    source = open_source("folder", tmp_path)
    assert (
        source.labels == ("a", "b")
        and set(source.catalog.splits) <= {"train", "val", "test"}
        and "train" in source.catalog.splits
    )
    assert len(set(source.catalog.splits)) == len(names)


def test_splits_beside_other_folders(tmp_path):
    for name in ("train", "test", "extra"):
        write_audio(tmp_path / name / "a" / "x.wav")
    with pytest.raises(DataError, match=r"the splits test, train and extra"):
        open_source("folder", tmp_path)
    for name in ("train", "bus", "car"):
        write_audio(tmp_path / "street" / name / "x.wav")
    assert open_source("folder", tmp_path / "street").labels == ("bus", "car", "train")  # the vehicle
