import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest

from dymn.errors import AudioError
from dymn.inference.events import Event, EventRecording
from dymn.inference.files import Recording
from dymn.inference.formats.events import text as event_text
from dymn.inference.formats.origin import Origin
from dymn.inference.formats.tags import TAGS, joined
from dymn.inference.formats.text import clock
from dymn.inference.formats.writers import TEXT
from dymn.inference.selection import Tag, WindowTags

ORIGIN = Origin("1.2.3", "tiny", "abc", {"top_k": 2, "window": 10.0})
TIMELINE = [
    WindowTags(0.0, 10.0, [Tag("Dog", 0.9, 0.0, 10.0), Tag("Speech, near", 0.25, 0.0, 10.0)]),
    WindowTags(10.0, 20.0, [Tag("Dog", 0.95, 10.0, 20.0)]),
    WindowTags(20.0, 25.0, []),
]
GOOD = Recording(
    "a/ü.wav",
    25.0,
    [Tag("Dog", 0.95, 0.0, 25.0), Tag("Speech, near", 0.25, 0.0, 25.0)],
    TIMELINE,
    np.zeros(2, np.float32),
)
BAD = Recording("bad.wav", error=AudioError('bad.wav is "no" audio.'))


def written(name, recordings=(GOOD, BAD), **changes):
    return "".join(TEXT[name](iter(recordings), TAGS, replace(ORIGIN, **changes)))


def test_json_is_one_document_with_its_origin():
    document = json.loads(written("json"))
    assert {key: document[key] for key in ("version", "model", "digest")} == {
        "version": "1.2.3",
        "model": "tiny",
        "digest": "abc",
    }
    assert document["parameters"] == {"top_k": 2, "window": 10.0, "per_window": False}
    good, bad = document["recordings"]
    assert good == {
        "file": "a/ü.wav",
        "seconds": 25.0,
        "tags": [
            {"label": "Dog", "score": 0.95, "start": 0.0, "end": 25.0},
            {"label": "Speech, near", "score": 0.25, "start": 0.0, "end": 25.0},
        ],
    }
    assert bad == {"file": "bad.wav", "error": 'bad.wav is "no" audio.'}
    assert json.loads(written("json", []))["recordings"] == []


def test_json_has_the_windows_when_asked():
    good = json.loads(written("json", per_window=True))["recordings"][0]
    assert [(window["start"], window["end"], len(window["tags"])) for window in good["windows"]] == [
        (0, 10, 2),
        (10, 20, 1),
        (20, 25, 0),
    ]
    assert good["windows"][0]["tags"][0] == {"label": "Dog", "score": 0.9}


@pytest.mark.parametrize("per_window", [False, True])
def test_json_lines_stand_alone_and_agree_with_json(per_window):
    lines = [json.loads(line) for line in written("jsonl", per_window=per_window).splitlines()]
    document = json.loads(written("json", per_window=per_window))
    origin = {key: document[key] for key in ("version", "model", "digest", "parameters")}
    assert lines == [recording | origin for recording in document["recordings"]]


def test_csv_has_a_row_a_label():
    rows = list(csv.DictReader(io.StringIO(written("csv"))))
    assert [(row["file"], row["label"], row["start"], row["end"], row["score"], row["error"]) for row in rows] == [
        ("a/ü.wav", "Dog", "0.000", "25.000", "0.950000", ""),
        ("a/ü.wav", "Speech, near", "0.000", "25.000", "0.250000", ""),
        ("bad.wav", "", "", "", "", 'bad.wav is "no" audio.'),
    ]
    rows = list(csv.DictReader(io.StringIO(written("csv", per_window=True))))
    assert [(row["label"], row["start"]) for row in rows] == [
        ("Dog", "0.000"),
        ("Speech, near", "0.000"),
        ("Dog", "10.000"),
        ("", ""),
    ]


def test_audacity_labels_join_windows_that_touch():
    assert written("audacity") == "0.000000\t20.000000\tDog\n0.000000\t10.000000\tSpeech, near\n"


def test_stretches_are_joined_only_where_they_touch():
    apart = [WindowTags(t, t + 2.0, [Tag("Dog", t / 20, t, t + 2.0)]) for t in (0.0, 1.0, 10.0, 12.0, 15.0)]
    assert joined(apart) == [Tag("Dog", 0.05, 0.0, 3.0), Tag("Dog", 0.6, 10.0, 14.0), Tag("Dog", 0.75, 15.0, 17.0)]


def test_table():
    assert written("table", plain=True) == (
        "a/ü.wav  (0:25.0)\n"
        "  0.950  ###################   Dog\n"
        "  0.250  #####                 Speech, near\n"
        "\n"
    )  # fmt: skip
    timeline = written("table", per_window=True).splitlines()
    assert timeline[1] == "  0.950  ███████████████████   Dog"
    assert timeline[3:6] == [
        "  0:00.0 – 0:10.0  Dog 0.90, Speech, near 0.25",
        "  0:10.0 – 0:20.0  Dog 0.95",
        "  0:20.0 – 0:25.0  –",
    ]


def test_table_of_nothing_says_so_and_shows_no_control_characters():
    text = written("table", [Recording("evil\x1b[2J\n.wav", 1.0)])
    assert "No label reaches the threshold." in text
    assert text.startswith("evil\\x1b[2J\\n.wav")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00.0"),
        (5.04, "0:05.0"),
        (59.96, "1:00.0"),
        (65.5, "1:05.5"),
        (3725.25, "1:02:05.2"),
        (43200, "12:00:00.0"),
    ],
)
def test_clock(seconds, text):
    assert clock(seconds) == text


def test_short_events_have_a_start_and_an_end():
    def lines(*events):
        found = EventRecording("a.wav", 70.0, events=[Event("Dog", *times, 0.5) for times in events])
        return list(event_text(found, Origin("1", "m", "", {}, False, plain=True)))[1:-1]

    assert lines((7.08, 7.12), (59.994, 61.0)) == [
        "  0:07.08 - 0:07.12  0.50  Dog\n",
        "  0:59.99 - 1:01.00  0.50  Dog\n",
    ]
    assert lines((7.0, 8.5)) == ["  0:07.00 - 0:08.50  0.50  Dog\n"]
