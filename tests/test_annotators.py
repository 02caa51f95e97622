"""What `tag` and `events` write for Raven and Label Studio, on real recordings."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from dymn.audio.annotations import read_annotations
from dymn.cli import app

EXAMPLES = Path(__file__).parents[1] / "examples" / "audio"
CHOSEN = ("--model", "dymn04_open", "--labels", "Dog,Speech,Piano", "--threshold", 0.3)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A dog at 44.1 kHz with an odd number of samples, a file that is not one, and speech at 8 kHz."""
    folder = tmp_path_factory.mktemp("two words")
    dog, rate = soundfile.read(EXAMPLES / "dog.ogg")
    soundfile.write(folder / "a dog.wav", dog[: 5 * rate + 7], 44_100)
    (folder / "bad.wav").write_text("this is no audio")
    speech, _ = soundfile.read(EXAMPLES / "speech.ogg")
    soundfile.write(folder / "speech.wav", speech[:: rate // 8000][: 8000 * 6], 8000)
    return folder


def selections(path):
    return list(csv.DictReader(path.open(newline="", encoding="utf-8"), delimiter="\t", quoting=csv.QUOTE_NONE))


def test_one_selection_table_of_several_recordings(clips, tmp_path):
    table, events = tmp_path / "all.txt", tmp_path / "events.json"
    assert run("events", clips, *CHOSEN, "--format", "raven", "--output", table).exit_code == 1
    assert run("events", clips, *CHOSEN, "--output", events).exit_code == 1
    rows = selections(table)
    assert [row["Selection"] for row in rows] == [str(i + 1) for i in range(len(rows))]
    found = {Path(one["file"]).name: one.get("events", []) for one in json.loads(events.read_text())["recordings"]}
    dog, speech = ([row for row in rows if row["Begin Path"].endswith(name)] for name in ("a dog.wav", "speech.wav"))
    assert len(dog) == len(found["a dog.wav"]) > 0 and len(speech) == len(found["speech.wav"]) > 0
    before = soundfile.info(clips / "a dog.wav").frames / 44_100  # what cannot be read is not in a sequence
    for rows, offset, high, events in (
        (dog, 0, 16_000, found["a dog.wav"]),
        (speech, before, 4000, found["speech.wav"]),
    ):
        for row, event in zip(rows, events, strict=True):
            assert float(row["Begin Time (s)"]) == pytest.approx(offset + event["start"], abs=1.1e-3)
            assert float(row["Begin Time (s)"]) - float(row["File Offset (s)"]) == pytest.approx(offset, abs=2e-6)
            length = float(row["End Time (s)"]) - float(row["Begin Time (s)"])
            assert length == pytest.approx(event["end"] - event["start"], abs=1.1e-3)
            assert (float(row["High Freq (Hz)"]), row["Annotation"]) == (high, event["label"])
            assert float(row["Score"]) == pytest.approx(event["score"], abs=1e-4)
    again = read_annotations(table)
    assert len(again) == len(selections(table))
    assert {one.recording.name for one in again} == {"a dog.wav", "speech.wav"}


def test_a_selection_table_of_each_recording(clips, tmp_path):
    folder = tmp_path / "tables"
    assert run("tag", clips, *CHOSEN, "--format", "raven", "--output", folder).exit_code == 1
    assert sorted(path.name for path in folder.iterdir()) == ["a dog.selections.txt", "speech.selections.txt"]
    moved = tmp_path / "moved"
    shutil.copytree(clips, moved)
    for path in folder.iterdir():
        rows = selections(path)
        assert rows and all(row["Begin Time (s)"] == row["File Offset (s)"] for row in rows)
        path.write_text(path.read_text().replace(str(clips), "D:\\elsewhere"))
        shutil.copy(path, moved)
    assert {one.recording for one in read_annotations(moved)} == {moved / "a dog.wav", moved / "speech.wav"}
    printed = run("tag", clips / "a dog.wav", *CHOSEN, "--format", "raven").stdout
    assert printed.splitlines()[0].split("\t")[:2] == ["Selection", "View"] and "Dog" in printed


def test_the_channel_that_was_read(tmp_path):
    dog, rate = soundfile.read(EXAMPLES / "dog.ogg")
    soundfile.write(tmp_path / "stereo.wav", np.stack([np.zeros_like(dog), dog], 1), rate)
    for channel, number in (("right", "2"), ("2", "2"), ("loudest", "2"), ("mix", "1")):
        words = ("tag", tmp_path / "stereo.wav", *CHOSEN, "--channel", channel)
        table = tmp_path / "table.txt"
        assert run(*words, "--format", "raven", "--output", table).exit_code == 0
        assert {row["Channel"] for row in selections(table)} == {number}
        (task,) = json.loads(run(*words, "--format", "label-studio").stdout)
        wanted = {None} if channel == "mix" else {int(number) - 1}
        assert {one["value"].get("channel") for one in task["predictions"][0]["result"]} == wanted
        lines = run("events", *words[1:], "--format", "rttm").stdout.splitlines()
        assert lines and {line.split()[2] for line in lines} == {number}


def test_every_label_that_reaches_the_threshold_is_a_selection(clips):
    words = ("tag", clips / "a dog.wav", "--model", "dymn04_open", "--threshold", 0.005)
    some, every = (run(*words, *more, "--format", "raven").stdout.splitlines()[1:] for more in (("-k", 10), ()))
    assert len(some) == 10 < len(every)
    refused = run("tag", clips / "a dog.wav", "--model", "dymn04_open", "--format", "audacity")
    assert refused.exit_code == 2 and "Give a threshold" in refused.stderr
    assert len(run(*words[:-2], "-k", 1, "--format", "audacity").stdout.splitlines()) == 1


def test_label_tracks_of_recordings_with_the_same_name(clips, tmp_path):
    for site in ("a", "b"):
        (tmp_path / "sites" / site).mkdir(parents=True)
        shutil.copy(clips / "a dog.wav", tmp_path / "sites" / site / "night.wav")
    words = ("tag", tmp_path / "sites", *CHOSEN, "--format", "audacity", "--output")
    assert run(*words, tmp_path / "sites").exit_code == 0  # next to their recordings
    found = {one.recording for one in read_annotations(tmp_path / "sites")}
    assert found == {tmp_path / "sites" / site / "night.wav" for site in ("a", "b")}


def test_one_label_track_in_a_folder(clips, tmp_path):
    (tmp_path / "old").mkdir()
    for folder in (tmp_path / "new", tmp_path / "old"):
        done = run("tag", clips / "a dog.wav", *CHOSEN, "--format", "audacity", "--output", folder)
        assert done.exit_code == 0 and [path.name for path in folder.iterdir()] == ["a dog.txt"], done.output


def test_label_tracks_are_read_as_they_were_written(clips, tmp_path):
    track = tmp_path / "a dog.txt"
    assert run("events", clips / "a dog.wav", *CHOSEN, "--format", "audacity", "--output", track).exit_code == 0
    read = read_annotations(track, root=clips)
    lines = track.read_text().splitlines()
    assert sorted(f"{one.start:.6f}\t{one.end:.6f}\t{one.label}" for one in read) == sorted(lines)


def test_predictions_for_label_studio(clips, tmp_path):
    out, plain = tmp_path / "tasks.json", tmp_path / "plain.json"
    assert run("events", clips, *CHOSEN, "--format", "label-studio", "--output", out).exit_code == 1
    assert run("events", clips, *CHOSEN, "--output", plain).exit_code == 1
    tasks = json.loads(out.read_text())
    expected = [one for one in json.loads(plain.read_text())["recordings"] if "events" in one]
    assert [task["data"]["audio"].rpartition("/")[2] for task in tasks] == ["a%20dog.wav", "speech.wav"]
    assert tasks[0]["data"]["audio"].startswith("/data/local-files/?d=")
    for task, recording in zip(tasks, expected, strict=True):
        (prediction,) = task["predictions"]
        assert prediction["model_version"] == "dymn04_open"
        assert prediction["score"] == max(event["score"] for event in recording["events"])
        for region, event in zip(prediction["result"], recording["events"], strict=True):
            assert (region["from_name"], region["to_name"], region["type"]) == ("label", "audio", "labels")
            assert region["value"]["labels"] == [event["label"]] and region["score"] == event["score"]
            assert np.allclose(
                [region["value"]["start"], region["value"]["end"]], [event["start"], event["end"]], atol=1e-3
            )
        assert len({region["id"] for region in prediction["result"]}) == len(prediction["result"])
    assert run("tag", clips / "bad.wav", *CHOSEN, "--format", "label-studio").stdout == "[]\n"
