"""AudioSet as published: its lists, files in the namings that copies of it have, and what is missing."""

import csv
import logging

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from dymn.data import open_dataset, open_source
from dymn.data.audioset import FILE_NAME
from dymn.data.detect import detect
from dymn.errors import DataError
from dymn.weights import audioset_labels
from layouts import write_audio

HEADER = "# Segments csv created Sun Mar  5 10:56:58 2017\n# num_ytids=2\n# YTID, start_seconds, end_seconds, labels\n"
BALANCED = ["--PJHxphWEs", "YbcdefghijK", "abcdefghij_"]


def write_lists(root):
    root.mkdir(exist_ok=True)
    rows = [(BALANCED[0], '"/m/09x0r,/t/dd00088"'), (BALANCED[1], '"/m/09x0r"'), (BALANCED[2], '"/m/05zppz"')]
    text = "".join(f"{key}, 30.000, 40.000, {mids}\n" for key, mids in rows)
    (root / "balanced_train_segments.csv").write_text(HEADER + text)
    (root / "unbalanced_train_segments.csv").write_text(HEADER + 'zzzzzzzzzzz, 0.000, 10.000, "/m/0ytgt"\n')
    (root / "eval_segments.csv").write_text(HEADER + 'eeeeeeeeee1, 0.000, 8.500, "/m/02zsn"\n')


def test_the_published_layout(tmp_path, caplog):
    write_lists(tmp_path)
    write_audio(tmp_path / "audio/balanced_train/--PJHxphWEs_30.000.wav", 300)
    write_audio(tmp_path / "audio/balanced_train/YYbcdefghijK.flac", 600)
    write_audio(tmp_path / "eval/eeeeeeeeee1_0_8500.ogg", 900)
    write_audio(tmp_path / "notes/theme.wav")
    assert detect(tmp_path).kind == "audioset"
    report = tmp_path / "missing.csv"
    with caplog.at_level(logging.WARNING):
        task, source = open_dataset("audioset", tmp_path, report=str(report))
    assert source.keys == [*BALANCED[:2], "eeeeeeeeee1"] and task.metric == "mAP"
    labels = audioset_labels()
    assert [[labels[c] for c in np.flatnonzero(row)] for row in source.targets] == [
        ["Speech", "Gush"],
        ["Speech"],
        ["Female speech, woman speaking"],
    ]
    assert open_source("audioset", tmp_path, "test").keys == ["eeeeeeeeee1"]
    assert len(open_source("audioset", tmp_path, "train")[0].waveform) == 6400
    assert "balanced_train_segments.csv: 1 of 3 segments have no audio." in caplog.text
    assert "several" not in caplog.text and "longer than" not in caplog.text
    assert list(csv.reader(report.open())) == [
        ["list", "key", "reason"],
        ["balanced_train_segments.csv", BALANCED[2], "no audio"],
        ["unbalanced_train_segments.csv", "zzzzzzzzzzz", "no audio"],
    ]
    alone = tmp_path / "eval_segments.csv"
    assert detect(alone) == ("audioset", alone) and open_source("audioset", alone, "test").keys == ["eeeeeeeeee1"]


def test_files_of_other_segments_are_left_out_and_whole_videos_are_told(tmp_path, caplog):
    """The labels of a segment from 30 to 40 s do not describe another part of the same video."""
    write_lists(tmp_path)
    write_audio(tmp_path / "audio/--PJHxphWEs_500.000.wav")
    write_audio(tmp_path / "audio/YbcdefghijK_29.wav")
    write_audio(tmp_path / "audio/YbcdefghijK_30_40.wav")
    write_audio(tmp_path / "audio/YbcdefghijK_90000_100000.wav")
    write_audio(tmp_path / "audio/YYbcdefghijK.wav")
    soundfile.write(tmp_path / "audio/abcdefghij_.wav", np.zeros(60 * 8000), 8000)
    write_audio(tmp_path / "audio/eeeeeeeeee1_30.wav")  # 30 s, not 30 ms
    report = tmp_path / "missing.csv"
    with caplog.at_level(logging.WARNING):
        source = open_dataset("audioset", tmp_path, report=str(report))[1]
    assert source.keys == BALANCED[1:] and "YbcdefghijK_30_40.wav" in source.store.paths[0].name
    assert "balanced_train_segments.csv: for 1 of 3 segments, only files with another start were found." in caplog.text
    assert "Segments with several files: 1, such as YbcdefghijK" in caplog.text
    assert "1 of the 2 files checked are longer than their segments" in caplog.text and "abcdefghij_.wav" in caplog.text
    (tmp_path / "other").mkdir()
    (tmp_path / "other/balanced_train_segments.csv").write_text(f"{HEADER}abcdefghijk, 30, 40, /m/09x0r\n")
    write_audio(tmp_path / "other/abcdefghijk_70.wav")
    with pytest.raises(
        DataError, match=r"matches the start of any of the 1 segments, such as abcdefghijk_70\.wav for abcdefghijk"
    ):
        open_source("audioset", tmp_path / "other")
    rows = list(csv.reader(report.open()))
    assert rows[1] == ["balanced_train_segments.csv", BALANCED[0], "start differs: --PJHxphWEs_500.000.wav"]


ids = st.text("abzYZ019_-", min_size=11, max_size=11)
places = st.sampled_from(["", "_30", "_30.000", "_30_40", "_30000_40000", "_30.000_40.000", "-30-40"])


@given(key=ids, place=places)
def test_a_name_is_the_id_whatever_follows(key, place):
    assert FILE_NAME.fullmatch(key + place)["id"] == key


def test_what_is_no_copy_of_it_is_refused(tmp_path):
    with pytest.raises(DataError, match="contains none of balanced_train_segments"):
        open_source("audioset", tmp_path)
    write_lists(tmp_path)
    with pytest.raises(DataError, match=r"but no audio\."):
        open_source("audioset", tmp_path)
    write_audio(tmp_path / "a.wav")
    with pytest.raises(DataError, match=r"None of the 5 segments has a file below .*--PJHxphWEs\.wav"):
        open_source("audioset", tmp_path)
    for mids, problem in (("", "no classes"), (', "/m/none"', "the class '/m/none'")):
        (tmp_path / "eval_segments.csv").write_text(f"{HEADER}abcdefghijk, 1, 2{mids}\n")
        with pytest.raises(DataError, match=rf"eval_segments\.csv, row 4: {problem}"):
            open_source("audioset", tmp_path)
    for times in ("nan, 2", ", ", "1, x"):
        (tmp_path / "eval_segments.csv").write_text(f"{HEADER}abcdefghijk, {times}, /m/09x0r\n")
        with pytest.raises(DataError, match=r"eval_segments\.csv, row 4: .* is not a number of seconds"):
            open_source("audioset", tmp_path)
