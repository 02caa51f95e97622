"""Events on annotated recordings: tables of events, labels of both sides, figures, and `dymn evaluate --events`."""

import csv
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from dymn.audio.annotations import Annotation
from dymn.cli import app
from dymn.data.manifest import read_events
from dymn.errors import DataError
from dymn.evaluation.events import annotated_events, drawn, event_figures, known_labels, stepped, truth_of
from dymn.inference.events import Event
from dymn.inference.frames import Frames

EXAMPLES = Path(__file__).parents[1] / "examples"
MODEL = ("evaluate", "dymn04_open", "--events", "--data")


def run(*words):
    return CliRunner().invoke(app, [*map(str, words)])


# Annotations


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "path,start,end,label\na.wav,1,2,Dog\na.wav,1.5,3,Bark;Growl\nb.wav,,,\n"),
        ("a.csv", "file,start,end,label,score,error\na.wav,1,2,Dog,0.5,\na.wav,1.5,3,Bark;Growl,0.4,\nb.wav,,,,,\n"),
        ("a.tsv", "filename\tonset\toffset\tevent_label\na.wav\t1\t2\tDog\na.wav\t1.5\t3\tBark;Growl\nb.wav\t\t\t\n"),
        ("a.csv", "path;start;end;label;confidence\na.wav;1;2;Dog;1\na.wav;1.5;3;'Bark;Growl';1\nb.wav;;;;\n"),
    ],
)
def test_tables_of_events(tmp_path, name, text):
    for recording in "ab":
        soundfile.write(tmp_path / f"{recording}.wav", np.zeros(100), 8000)
    table = tmp_path / name
    table.write_text(text.replace("'", '"'))
    a, b = (tmp_path / f"{recording}.wav" for recording in "ab")
    expected = [Annotation(a, 1, 2, "Dog"), Annotation(a, 1.5, 3, "Bark"), Annotation(a, 1.5, 3, "Growl")]
    assert read_events(table) == {a: expected, b: []}
    assert annotated_events(table) == annotated_events(tmp_path) == read_events(table)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("path,start,label\na.wav,1,Dog", "needs a column end or offset"),
        ("path,end,label\na.wav,1,Dog", "needs a column start or onset"),
        ("path,start,end,label\na.wav,1,2,", "needs a label"),
        ("path,start,end,label\na.wav,2,2,Dog", "an end after its start"),
        ("path,start,end,label\na.wav,,2,Dog", "an end after its start"),
        ("path,start,end,label\na.wav,-1,2,Dog", "not a time in seconds of at least 0"),
        ("path,start,end,label\nb.wav,1,2,Dog", "the recording 'b.wav' does not exist"),
        ("path,start,end,label\n../a.wav,1,2,Dog", "folder"),
    ],
)
def test_wrong_tables_of_events(tmp_path, rows, message):
    soundfile.write(tmp_path / "a.wav", np.zeros(100), 8000)
    (tmp_path / "a.csv").write_text(rows)
    with pytest.raises(DataError, match=message):
        read_events(tmp_path / "a.csv")


def test_labels_are_matched_whatever_their_case_unless_the_model_has_both():
    known, unknown = known_labels(["Dog", "Bark", "bark"], ["dog", "DOG", "Bark", "bark", "BARK", "Owl", "Owl"])
    assert known == {"dog": "Dog", "DOG": "Dog", "Bark": "Bark", "bark": "bark"}
    assert unknown == {"BARK": 1, "Owl": 2}


SPANS = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 10), st.sampled_from("ab")), max_size=12)


@settings(deadline=None)
@given(SPANS)
def test_annotations_that_touch_are_one(spans):
    given = [Annotation(Path("x.wav"), float(start), float(start + length), label) for start, length, label in spans]
    found = truth_of(given, 25.0)
    for label in "ab":
        own = [(start, end) for start, end, name in found if name == label]
        assert all(first[1] < second[0] for first, second in itertools.pairwise(own))
        seconds = np.arange(25) + 0.5
        expected = [any(one.label == label and one.start < t < one.end for one in given) for t in seconds]
        assert [any(start < t < end for start, end in own) for t in seconds] == expected
    assert found == sorted(found) and all(end <= 25 for _, end, _ in found)


# Figures


def test_events_are_drawn_between_their_bounds():
    edges, rows = drawn([Event("b", 0.5, 2, 1.0), Event("a", 1, 3, 1.0)], ("a", "b"), 4.0)
    assert edges.tolist() == [0, 0.5, 1, 2, 3, 4]
    assert rows.T.tolist() == [[0, 0, 1, 1, 0], [0, 1, 1, 0, 0]]
    edges, rows = drawn([], ("a",), 4.0)
    assert edges.tolist() == [0, 4] and rows.tolist() == [[0]]


def test_figures_of_known_errors():
    pytest.importorskip("sed_scores_eval")
    truth = {"x": [(1.0, 2.0, "a"), (5.0, 9.0, "b"), (12.0, 14.0, "a")], "y": []}
    found, events = {}, {}
    for name, seconds in (("x", 20.0), ("y", 10.0)):
        times = np.arange(0.05, seconds, 0.1)
        inside = [[any(s <= t < e and c == label for s, e, label in truth[name]) for c in "ab"] for t in times]
        found[name] = Frames(("a", "b"), times, np.where(inside, 0.8, 0.1).astype(np.float32), seconds)
        events[name] = [Event(label, start, end, 0.8) for start, end, label in truth[name]]
    right = event_figures(truth, found, events)
    assert [(one.label, *one[1:]) for one in right] == [("a", 2, 2, 1, 1, 1, 1, 1), ("b", 1, 1, 1, 1, 1, 1, 1)]
    # one of two is half a second late, which is still right; the other one 0.7 s; and one more is invented
    events["x"] = [Event("a", 1.5, 2.4, 0.8), Event("a", 12.7, 14.0, 0.8), Event("b", 5.0, 10.9, 0.8)]
    events["y"] = [Event("a", 3.0, 4.0, 0.8)]
    a, b = event_figures(truth, found, events)
    assert (a.annotated, a.found, a.precision, a.recall) == (2, 3, pytest.approx(1 / 3), 0.5)
    assert a.f1 == pytest.approx(0.4) and b.f1 == 1  # an end may be wrong by half of four seconds
    assert b.segment_f1 == pytest.approx(2 * 4 / (4 + 6))
    a, b = event_figures(truth, found, events, collar=0.3)
    assert (a.f1, b.f1) == (0, 1) and (a.psds, b.psds) == (1, 1)


def test_psds_of_stepped_probabilities_is_that_of_all(tmp_path):
    pytest.importorskip("sed_scores_eval")
    rng = np.random.default_rng(0)
    times = np.arange(0.05, 200, 0.1)
    truth = {"x": [(float(start), start + 2.0, "a") for start in range(3, 190, 12)]}
    is_on = np.array([any(s <= t < e for s, e, _ in truth["x"]) for t in times])
    noise = np.convolve(rng.normal(size=len(times)), np.ones(15) / 4, "same")
    scores = (1 / (1 + np.exp(-(noise + 1.5 * is_on - 2)))).astype(np.float32)[:, None]
    assert np.abs(stepped(scores, 20) / scores - 1).max() < 0.026
    found, events = {"x": Frames(("a",), times, scores, 200.0)}, {"x": []}
    (fast,), (exact,) = (event_figures(truth, found, events, steps=steps) for steps in (20, None))
    assert 0.1 < exact.psds < 0.95
    assert fast.psds == pytest.approx(exact.psds, abs=0.02)


# The command


def test_the_example_of_the_documentation(tmp_path):
    pytest.importorskip("sed_scores_eval")
    done = run(*MODEL, EXAMPLES / "events.csv", "--per-class", tmp_path / "classes.csv")
    assert done.exit_code == 0, done.output
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["recordings", "4,", "0:27.5"] in lines and ["events", "8", "annotated,", "4", "found"] in lines
    rows = {row["class"]: row for row in csv.DictReader((tmp_path / "classes.csv").open())}
    assert set(rows) == {"Speech", "Bark", "Frog", "Piano"}
    assert (rows["Frog"]["annotated"], rows["Frog"]["f1"], rows["Piano"]["f1"]) == ("1", "1", "1")
    assert rows["Bark"]["annotated"] == "3" and float(rows["Bark"]["segment_f1"]) > 0.8


def test_a_folder_of_recordings_with_tables(tmp_path, caplog):
    pytest.importorskip("sed_scores_eval")
    for name in ("dog", "speech"):
        (tmp_path / f"{name}.ogg").write_bytes((EXAMPLES / "audio" / f"{name}.ogg").read_bytes())
    (tmp_path / "dog.txt").write_text("0.2\t6.9\tbark\n1.0\t2.0\tBark\n3.0\t4.0\tGrowl of Rex\n90\t91\tBark\n")
    (tmp_path / "speech.Table.1.selections.txt").write_text(
        "Selection\tView\tBegin Time (s)\tEnd Time (s)\tAnnotation\n1\tWaveform 1\t0\t5.9\tSpeech\n"
    )
    (tmp_path / "bad.wav").write_text("no audio")
    (tmp_path / "bad.txt").write_text("0\t1\tSpeech\n")
    done = run(*MODEL, tmp_path, "--format", "json", "--method", "windows", "--threshold", 0.3, "--min-gap", 3)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert {one["label"]: one["annotated"] for one in found["classes"]} == {"Speech": 1, "Bark": 1}
    assert all(one["found"] == 1 for one in found["classes"])
    assert found["unknown"] == {"Growl of Rex": 1} and found["beyond"] == 1 and found["recordings"] == 2
    assert [Path(path).name for path in found["bad"]] == ["bad.wav"]
    assert "bad.wav is left out: " in done.stderr
    assert "dog.ogg ends after 7.14 s: 1 of its annotations begin after the end" in caplog.text
    assert found["f1"] == pytest.approx(np.mean([one["f1"] for one in found["classes"]]))


def test_annotations_that_cannot_be_compared(tmp_path):
    pytest.importorskip("sed_scores_eval")
    soundfile.write(tmp_path / "a.wav", np.zeros(16_000), 16_000)
    (tmp_path / "a.txt").write_text("0\t1\tGrowl of Rex\n")
    done = run(*MODEL, tmp_path)
    assert done.exit_code == 1 and "has none of the annotated labels: Growl of Rex" in done.stderr
    (tmp_path / "a.txt").write_text("5\t6\tDog\n")
    done = run(*MODEL, tmp_path)
    assert done.exit_code == 1 and "No recording that can be read has an annotation of a known label" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--split", "test"), "--split applies to clips"),
        (("--confusion", "a.csv"), "--confusion applies to clips"),
        (("--threshold", 0.1, "--off-threshold", 0.5), "at most threshold, which is 0.1"),
    ],
)
def test_options_of_clips_and_of_events_are_told_apart(words, message):
    done = run(*MODEL, EXAMPLES / "events.csv", *words)
    assert done.exit_code == 2 and message in done.stderr
    done = run("evaluate", "dymn04_open", "--data", EXAMPLES / "events.csv", "--collar", 0.2)
    assert done.exit_code == 2 and "--collar applies to events. Add --events" in done.stderr


def test_the_extra_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "sed_scores_eval", None)
    done = run(*MODEL, EXAMPLES / "events.csv")
    assert done.exit_code == 1 and "dymn[sed]" in done.stderr and "Traceback" not in done.stderr
