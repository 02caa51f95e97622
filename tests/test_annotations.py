"""Selection tables of Raven and label tracks of Audacity as data."""

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from dymn.audio.annotations import Annotation, read_annotations
from dymn.data import open_dataset
from dymn.data.detect import detect
from dymn.errors import DataError

RAVEN = "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)\t"


def record(path, seconds=4.0, rate=8000):
    """Write a recording whose samples tell their second: 0.1 in the first, 0.2 in the second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    times = np.arange(round(seconds * rate)) // rate
    soundfile.write(path, 0.1 * (times + 1), rate)
    return path


def test_label_tracks_belong_to_the_recording_of_their_name(tmp_path):
    street = record(tmp_path / "street.wav")
    (tmp_path / "street.labels.txt").write_bytes(
        '\ufeff1.500000\t3.000000\tChild speech, kid speaking\r\n\\\t100.0\t900.0\r\n0\t1\t"Dog"\r\n\r\n'.encode()
    )
    (tmp_path / "README.txt").write_text("These are my recordings.\n")
    found = [Annotation(street, 0, 1, '"Dog"'), Annotation(street, 1.5, 3, "Child speech, kid speaking")]
    assert read_annotations(tmp_path / "street.labels.txt") == found
    assert read_annotations(tmp_path) == found


def test_times_may_have_decimal_commas(tmp_path):
    street, wood = record(tmp_path / "street.wav"), record(tmp_path / "wood.wav")
    (tmp_path / "street.txt").write_text("1,5\t2,25\tdog, barking\n3\t3,5\tcar\n")
    (tmp_path / "wood.txt").write_text("Begin Time (s)\tEnd Time (s)\tSpecies\n0,5\t1.25\tjay\n")
    assert detect(tmp_path).kind == "annotations"
    dog, car = Annotation(street, 1.5, 2.25, "dog, barking"), Annotation(street, 3, 3.5, "car")
    assert read_annotations(tmp_path) == [dog, car, Annotation(wood, 0.5, 1.25, "jay")]
    (tmp_path / "wood.txt").write_text("0\t1\tjay\n1,234.5\t1,240.5\tjay\n")
    with pytest.raises(DataError, match=r"wood.txt, row 2: '1,234.5' is not a time"):
        read_annotations(tmp_path)


def test_a_selection_with_two_views_is_one_annotation(tmp_path):
    wood = record(tmp_path / "Wood.WAV")
    rows = [
        "1\tWaveform 1\t1\t0.5\t1.25\t0\t4000\tjay",
        "1\tSpectrogram 1\t1\t0.5\t1.25\t500\t4000\tjay",
        "2\tSpectrogram 1\t1\t2\t3\t500\t4000\towl",
    ]
    (tmp_path / "wood.Table.1.selections.txt").write_text("\n".join([RAVEN + "Species", *rows]))
    assert read_annotations(tmp_path) == [Annotation(wood, 0.5, 1.25, "jay"), Annotation(wood, 2, 3, "owl")]


def test_a_combined_table_gives_places_in_each_recording(tmp_path):
    first, second = record(tmp_path / "a" / "one.wav"), record(tmp_path / "a" / "two.wav")
    header = f"{RAVEN}Begin Path\tFile Offset (s)\tCommon Name\tConfidence"
    rows = [
        f"1\tSpectrogram 1\t1\t1.0\t2.0\t0\t4000\t{first}\t1.0\tjay\t0.9",
        "2\tSpectrogram 1\t1\t5.5\t6.0\t0\t4000\tC:\\field\\a\\two.wav\t1.5\tjay\t0.8",
        "3\tSpectrogram 1\t1\t6.5\t7.0\t0\t4000\ta/two.wav\t2.5\towl\t0.7",
    ]
    table = tmp_path / "all.txt"
    table.write_text("\n".join([header, *rows]))
    with pytest.raises(DataError, match=r"row 3: the recording 'C:\\\\field.*data.options.root=FOLDER"):
        read_annotations(table)
    rows[1] = rows[1].replace("C:\\field\\", "")
    table.write_text("\n".join([header, *rows]))
    expected = [Annotation(first, 1, 2, "jay"), Annotation(second, 1.5, 2, "jay"), Annotation(second, 2.5, 3, "owl")]
    assert read_annotations(table) == expected
    in_folder = [one._replace(start=one.start) for one in read_annotations(table, root=tmp_path / "a")]
    assert in_folder == expected  # found by their names alone
    table.write_text("\n".join(line.replace("\tFile Offset (s)", "\tOffset") for line in [header, *rows]))
    with pytest.raises(DataError, match=r"no column File Offset \(s\)"):
        read_annotations(table)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1\t2\tdog\n2\t2\tcat\n", "row 2: 'cat' is from 2 to 2 s"),
        ("1\t2\tdog\n\n3\t4\t\n", "row 3: it has no label"),
        ("1\t2\tdog\n2\tnan\tcat\n", "row 2: 'nan' is not a time"),
        ("1\t2\tdog\n-1\t1\tcat\n", "row 2: '-1' is not a time"),
        (f"{RAVEN}Notes\n1\tS\t1\t0\t1\t0\t1\tdog\n", "needs a column Annotation, Species or Common Name"),
        ("Begin Time (s)\tSpecies\n1\tdog\n", r"needs a column End Time \(s\)"),
        (f"{RAVEN}Species\n1\tS\t1\t0\t1\t0\t1\tdog\tmore\n", "row 2: 9 values where the header has 8"),
        (f"{RAVEN}Species\n", "contains no annotation"),
    ],
)
def test_what_is_wrong_in_a_table_is_named_with_its_row(tmp_path, text, said):
    record(tmp_path / "street.wav")
    (tmp_path / "street.txt").write_text(text)
    with pytest.raises(DataError, match=said):
        read_annotations(tmp_path / "street.txt")


def test_missing_and_ambiguous_recordings_are_named(tmp_path):
    table = tmp_path / "street.txt"
    table.write_text("0\t1\tdog\n")
    with pytest.raises(DataError, match=r"has none of the same name, such as street\.wav"):
        read_annotations(table)
    record(tmp_path / "street.wav")
    record(tmp_path / "street.flac")
    with pytest.raises(DataError, match=r"could belong to street\.flac or street\.wav"):
        read_annotations(table)
    (tmp_path / "street.flac").unlink()
    table.write_text("a note that is no table\n")
    with pytest.raises(DataError, match="a recording of the same name"):
        read_annotations(tmp_path)
    with pytest.raises(DataError, match="neither a table nor a folder"):
        read_annotations(tmp_path / "nowhere")


def test_annotated_stretches_are_clips_with_the_labels_heard_in_them(tmp_path):
    record(tmp_path / "in" / "street.wav")
    (tmp_path / "in" / "street.txt").write_text("0\t2\tdog\n1.5\t1.9\tbell\n1.8\t4\tcar\n3000.001\t3000.002\tcar\n")
    assert detect(tmp_path / "in").kind == detect(tmp_path / "in" / "street.txt").kind == "annotations"
    source = open_dataset("annotations", tmp_path / "in", sample_rate=8000).source
    assert source.labels == ("bell", "car", "dog")
    assert source.keys[:2] == ["street.wav#0-2", "street.wav#1.5-1.9"]
    # The bell lies in the dog's clip; the car overlaps a tenth of it, and a quarter of the bell's.
    np.testing.assert_array_equal(source.catalog.targets, [[1, 0, 1], [1, 0, 1], [0, 1, 0], [0, 1, 0]])
    waveform = source[1].waveform
    assert len(waveform) == 3200
    np.testing.assert_allclose(waveform, 0.2, atol=1e-4)


def test_a_folder_per_class_with_a_text_file_stays_one(tmp_path):
    record(tmp_path / "dog" / "1.wav")
    (tmp_path / "README.txt").write_text("Recorded in 2024.\n")
    assert detect(tmp_path).kind == "folder"


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 10**9),
            st.integers(1, 10**8),
            st.text(st.characters(codec="utf-8", exclude_characters="\r\n")),
        ),
        min_size=1,
    )
)
def test_any_label_track_is_read_as_it_was_written(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("tracks")
    record(folder / "a.wav", 0.1)
    rows = [(start / 1e6, (start + length) / 1e6, label.strip()) for start, length, label in rows if label.strip()]
    if rows:
        text = "".join(f"{start:.6f}\t{end:.6f}\t{label}\n" for start, end, label in rows)
        (folder / "a.txt").write_text(text, encoding="utf-8", newline="")
        assert {one[1:] for one in read_annotations(folder / "a.txt")} == set(rows)
