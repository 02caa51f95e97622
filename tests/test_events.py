"""From frames to events: decisions against slow ones, frames where the sound is, the command from end to end."""

import csv
import importlib
import io
import json
import tracemalloc
import types
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from dymn import Tagger, create_model
from dymn.cli import app
from dymn.config import ModelCard
from dymn.errors import AudioError, ConfigError
from dymn.inference.events import Decider, Event, EventSettings, decide, event_files
from dymn.inference.frames import Frames, FrameSettings, frame_parts
from dymn.inference.makers import between
from dymn.inference.methods import Nearby
from dymn.models import pretrained
from dymn.runtime.backend import Backend, FrameOutput
from dymn.weights.labels import audioset_labels
from stubs import StubBackend

RATE = 32_000
STEP = 10_240
LABELS = ("Loud", "Quiet")


class Loudness(StubBackend):
    """Loud is as probable as the loudest sample of a frame, or of the window; Quiet is the rest."""

    def __init__(self):
        self.card = ModelCard(name="loudness", labels=LABELS)
        self.lengths = []

    def scores(self, waveforms):
        loud = np.abs(np.asarray(waveforms)).max(axis=1)
        return np.stack([loud, 1 - loud], axis=1).astype(np.float32)

    @property
    def frame_samples(self):
        return STEP

    def frame_run(self, waveforms, smoothing=1):
        self.lengths.append(waveforms.shape[1])
        middles = range(0, waveforms.shape[1], STEP)
        around = [
            np.abs(waveforms[:, max(0, middle - STEP // 2) : middle + STEP // 2]).max(axis=1) for middle in middles
        ]
        loud = np.stack(around, axis=1)
        return FrameOutput(np.stack([loud, 1 - loud], axis=2).astype(np.float32), *self.run(waveforms))


@pytest.fixture
def loudness():
    return Tagger(Loudness())


def burst(seconds, *stretches):
    samples = np.zeros(round(seconds * RATE), np.float32)
    for start, end in stretches:
        samples[round(start * RATE) : round(end * RATE)] = 0.9
    return samples


def slowly(frames, wanted):
    """Decide frame by frame and stretch by stretch, with all frames at hand."""
    n = len(frames.times)
    half = max(0, round((wanted.median / frames.hop - 1) / 2)) if n > 1 else 0
    near = round(5 / frames.hop) if n > 1 and wanted.off_threshold is None else 0
    found = []
    for column, label in enumerate(frames.labels):
        reflected = np.pad(frames.scores[:, column], 100, mode="symmetric")
        values = [np.median(reflected[100 + i - half : 101 + i + half]) for i in range(n)]
        off = [np.float32(0.3 * wanted.threshold if wanted.off_threshold is None else wanted.off_threshold)] * n
        for i in range(n) if near else ():
            nearby = sorted(reflected[100 + i - near : 101 + i + near])
            fall = nearby[-1] ** np.float32(0.4) * nearby[round(0.2 * 2 * near)] ** np.float32(0.6)
            off[i] = min(max(fall, np.float32(0.003) * np.float32(wanted.threshold)), off[i])
        stretches, start = [], None
        for i, (value, lowest) in enumerate(zip([*values, np.float32(-1)], [*off, np.float32(0)], strict=True)):
            if value >= lowest and start is None:
                start = i
            elif value < lowest and start is not None:
                if max(values[start:i]) >= np.float32(wanted.threshold):
                    stretches.append((frames.edges[start], frames.edges[i], max(values[start:i])))
                start = None
        joined = []
        for begin, end, score in stretches:
            if joined and begin - joined[-1][1] <= wanted.min_gap + 1e-9:
                begin, _, before = joined.pop()
                score = max(before, score)
            joined.append((begin, end, score))
        found += [Event(label, b, e, float(score)) for b, e, score in joined if e - b >= wanted.min_duration]
    return sorted(found, key=lambda event: (event.start, -event.score, event.label))


@st.composite
def drawn_frames(draw):
    n = draw(st.integers(1, 60))
    levels = st.sampled_from([0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9])
    scores = np.array(draw(st.lists(st.lists(levels, min_size=2, max_size=2), min_size=n, max_size=n)), np.float32)
    times = np.arange(n) * 0.32 + draw(st.sampled_from([0.0, 0.8]))
    return Frames(LABELS, times, scores, draw(st.sampled_from([0.01, 0.1, 3.0])) + float(times[-1]))


wanted_events = st.builds(
    EventSettings,
    method=st.just("combined"),
    threshold=st.sampled_from([0.1, 0.3, 0.5, 1.0]),
    off_threshold=st.sampled_from([None, None, 0.05]),
    median=st.sampled_from([0.0, 1.0, 2.0, 30.0]),
    min_gap=st.sampled_from([0.0, 0.32, 0.64, 2.0]),
    min_duration=st.sampled_from([0.0, 0.5, 2.0]),
)


@settings(deadline=None, max_examples=200)
@given(drawn_frames(), wanted_events, st.lists(st.integers(0, 60)))
def test_frames_in_parts_give_the_events_of_a_slow_decision(frames, wanted, cuts):
    expected = slowly(frames, wanted)
    assert decide(frames, wanted) == expected
    decider = Decider(LABELS, wanted)
    for times, scores in zip(np.split(frames.times, sorted(cuts)), np.split(frames.scores, sorted(cuts)), strict=True):
        decider.feed(times, scores)
    assert decider.finish(frames.seconds) == expected


@settings(deadline=None)
@given(st.data())
def test_events_keep_their_promises(data):
    n = data.draw(st.integers(1, 40))
    scores = np.array(
        data.draw(st.lists(st.lists(st.floats(0, 1, width=32), min_size=2, max_size=2), min_size=n, max_size=n)),
        np.float32,
    )
    wanted = EventSettings(
        threshold=data.draw(st.floats(0.05, 1)),
        median=data.draw(st.sampled_from([0.0, 1.0, 2.0])),
        min_gap=data.draw(st.sampled_from([0.0, 0.4, 1.0])),
        min_duration=data.draw(st.sampled_from([0.0, 0.5, 2.0])),
    )
    frames = Frames(LABELS, np.arange(n) * 0.32, scores, n * 0.32)
    events = decide(frames, wanted)
    assert [event.start for event in events] == sorted(event.start for event in events)
    for label in LABELS:
        mine = [event for event in events if event.label == label]
        assert all(0 <= event.start < event.end <= frames.seconds for event in mine)
        assert all(event.end - event.start >= wanted.min_duration for event in mine)
        assert all(later.start - before.end > wanted.min_gap for before, later in pairwise(mine))
        assert all(event.score >= np.float32(wanted.threshold) for event in mine)


@pytest.mark.parametrize("method", ["activation", "windows", "combined"])
def test_parts_of_frames_are_the_frames(loudness, method, monkeypatch):
    sound = np.random.default_rng(0).uniform(-1, 1, RATE * 70).astype(np.float32)
    wanted = EventSettings(method=method, threshold=0.5, median=1.0, clip=0)
    frames = loudness.frames(sound, RATE, method=method, clip=0)
    assert np.all(np.diff(frames.times) > 0) and len(frames.times) == len(frames.scores)
    expected = decide(frames, wanted)
    for size in (1, 7, 512):
        monkeypatch.setattr("dymn.inference.frames.PART_FRAMES", size)
        parts = list(frame_parts(loudness.backend, [sound, "nowhere.wav", sound], wanted, sample_rate=RATE))
        assert [(part.seconds, part.error is None) for part in parts if part.is_last] == [
            (70, True),
            (None, False),
            (70, True),
        ]
        mine = parts[: len(parts) // 2]
        np.testing.assert_array_equal(np.concatenate([part.times for part in mine]), frames.times)
        np.testing.assert_array_equal(np.concatenate([part.scores for part in mine]), frames.scores)
        first, failed, last = event_files(
            loudness.backend, [sound, "nowhere.wav", sound], wanted, sample_rate=RATE, workers=2
        )
        assert (first.events, first.seconds, last.events) == (expected, 70, expected)
        assert isinstance(failed.error, AudioError) and not failed.events


@pytest.mark.parametrize("method", ["activation", "windows", "combined"])
def test_a_long_recording_takes_no_more_memory_than_a_short_one(loudness, method):
    def sound(seconds):
        rng = np.random.default_rng(0)
        return (rng.uniform(-1, 1, RATE).astype(np.float32) for _ in range(seconds))

    def peak(seconds, monkeypatch):
        monkeypatch.setattr("dymn.inference.windows.blocks", lambda source, rate, sample_rate, **options: sound(source))
        tracemalloc.start()
        (found,) = event_files(loudness.backend, [seconds], EventSettings(method=method, threshold=0.99))
        assert found.seconds == seconds
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    with pytest.MonkeyPatch.context() as monkeypatch:
        loudness.backend.card = ModelCard(labels=tuple(f"label {i}" for i in range(527)))
        loudness.backend.lengths = types.SimpleNamespace(append=lambda length: None)
        loudness.backend.scores = lambda samples: np.zeros((len(samples), 527), np.float32)
        loudness.backend.frame_run = lambda samples, smoothing: FrameOutput(
            np.zeros((len(samples), -(-samples.shape[1] // STEP), 527), np.float32), *loudness.backend.run(samples)
        )
        short, long = peak(400, monkeypatch), peak(2400, monkeypatch)
    assert long < 1.1 * short


@pytest.mark.parametrize("method", ["activation", "windows", "combined"])
def test_a_sound_is_found_where_it_is(loudness, method):
    sound = burst(33, (3, 5), (17.2, 21.9))
    events = loudness.events(sound, RATE, labels=["Loud"], method=method, threshold=0.5, clip=0)
    # half a window: the loudest sample anywhere in it counts
    tolerance = 0.32 if method == "activation" else 0.48 + 0.08
    assert [event.label for event in events] == ["Loud", "Loud"]
    for event, (start, end) in zip(events, [(3, 5), (17.2, 21.9)], strict=True):
        assert (event.start, event.end) == (pytest.approx(start, abs=tolerance), pytest.approx(end, abs=tolerance))
        assert event.score == pytest.approx(0.9)


@pytest.mark.parametrize("seconds", [0.05, 0.3, 3.3, 9.99, 10.3, 25.0, 61.7])
@pytest.mark.parametrize("method", ["activation", "windows", "combined"])
def test_frames_cover_the_recording(loudness, method, seconds):
    frames = loudness.frames(burst(seconds, (0, seconds)), RATE, method=method)
    assert frames.labels == LABELS
    assert frames.scores.shape == (len(frames.times), 2)
    assert frames.edges[0] == 0
    assert frames.edges[-1] == pytest.approx(seconds)
    assert np.all(np.diff(frames.edges) > 0)
    np.testing.assert_allclose(frames.scores[:, 0], 0.9, rtol=1e-6)


def test_frames_of_overlapping_windows_fall_together(loudness):
    sound = np.random.default_rng(0).uniform(-1, 1, RATE * 30).astype(np.float32) * np.linspace(
        0, 1, RATE * 30, dtype=np.float32
    )
    whole = loudness.frames(sound, RATE, method="activation", clip=0, window=40.0, hop=40.0)
    parts = loudness.frames(sound, RATE, method="activation", clip=0, window=10.0, hop=5.0)
    np.testing.assert_array_equal(whole.times, parts.times)
    # a window's first frame hears half of what it hears elsewhere
    np.testing.assert_allclose(parts.scores, whole.scores, atol=0.02)
    assert max(loudness.backend.lengths) >= RATE * 30


def test_the_clip_counts_as_much_as_asked(loudness):
    sound = burst(9, (0, 4))
    alone, both, clip = (
        loudness.frames(sound, RATE, method="activation", labels=["Loud"], clip=weight).scores[:, 0]
        for weight in (0, 0.5, 1)
    )
    np.testing.assert_allclose(clip, 0.9, rtol=1e-6)
    np.testing.assert_allclose(both, np.sqrt(alone * np.float32(0.9)), rtol=1e-6)


def test_combined_frames_are_those_of_short_windows_and_of_long_ones(loudness):
    sound = np.random.default_rng(0).uniform(-1, 1, RATE * 31).astype(np.float32)
    short, when, what, both = (
        loudness.frames(sound, RATE, labels=["Loud"], **how)
        for how in (
            {"method": "windows"},
            {"method": "combined", "clip": 0},
            {"method": "combined", "clip": 1},
            {"method": "combined", "clip": 0.5},
        )
    )
    n = len(when.times)  # the last short window is not whole
    assert len(short.times) - 1 <= n <= len(short.times)
    np.testing.assert_allclose(when.times[:-1], short.times[: n - 1])
    np.testing.assert_array_equal(when.scores[:-1], short.scores[: n - 1])
    np.testing.assert_allclose(both.scores, np.sqrt(when.scores * what.scores), rtol=1e-6)
    one = np.array([[[0.1], [0.4]]], np.float32)
    np.testing.assert_allclose(between(one, np.array([0.0, 0.5, 1.0, 7.0]))[0, :, 0], [0.1, 0.2, 0.4, 0.4], rtol=1e-6)


def test_what_cannot_score_frames_scores_short_windows(loudness):
    class Whole(Loudness):
        frame_samples = Backend.frame_samples

    assert FrameSettings().of(loudness.backend).method == "combined"
    assert FrameSettings().of(Whole()).method == "windows"
    sound = burst(9, (2, 4))
    assert Tagger(Whole()).events(sound, RATE) == Tagger(Whole()).events(sound, RATE, method="windows")


def test_a_probability_may_fall_as_far_as_those_nearby_say():
    nearby = Nearby(5.0, background=0.25, weight=0.5, least=0.01)
    scores = np.array([[0.9, 0.0001, 0.0001, 0.0001, 0.9], [0.2, 0.2, 0.2, 0.2, 0.2]], np.float32)
    np.testing.assert_allclose(nearby.lowest(scores), [(0.9 * 0.0001) ** 0.5, 0.2], rtol=1e-5)
    clear, dull = np.full(100, 1e-5, np.float32), np.full(100, 0.02, np.float32)
    for values in (clear, dull):
        values[40:50] = [0.005, 0.02, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.02, 0.005]
    frames = Frames(LABELS, np.arange(100) * 0.32, np.stack([clear, dull], axis=1), 32.0)
    found = {event.label: (event.start, event.end) for event in decide(frames)}
    assert found["Loud"] == (pytest.approx(39.5 * 0.32), pytest.approx(49.5 * 0.32))  # 0.005 is far above silence
    assert found["Quiet"] == (pytest.approx(41.5 * 0.32), pytest.approx(47.5 * 0.32))  # 0.02 is what was there before
    fixed = decide(frames, EventSettings(off_threshold=0.01))
    assert [event.start for event in fixed] == pytest.approx([40.5 * 0.32] * 2)


def correct(events, truth, labels):
    """Count events whose bounds are within half a second of the truth, or half of its length for the end."""
    return sum(
        any(
            event.label in labels[true.label]
            and abs(event.start - true.start) <= 0.5
            and abs(event.end - true.end) <= max(0.5, (true.end - true.start) / 2)
            for event in events
        )
        for true in truth
    )


def test_the_defaults_find_more_than_those_before(shared, monkeypatch):
    if not (shared / "esc10").is_dir():
        pytest.skip("the clips of ESC-10 are not here")
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    mixtures = importlib.import_module("mixtures")
    names = audioset_labels()
    labels = {name: {names[i] for i in indices} for name, indices in mixtures.class_indices(shared / "esc10").items()}
    every = sorted(set().union(*labels.values()))
    tagger = Tagger.from_pretrained("dymn04_open")
    before = {"method": "windows", "window": 1.6, "hop": 0.32, "off_threshold": 0.03}
    found = {}
    for name, how in (("now", {}), ("before", before)):
        hits = given = 0
        for mixture in mixtures.mixtures(shared / "esc10", (1, 2, 3), 6, seed=7):
            events = tagger.events(mixture.waveform, mixture.sample_rate, labels=every, **how)
            hits, given = hits + correct(events, mixture.events, labels), given + len(events)
        found[name] = hits, given
    assert found["now"][0] > 1.3 * found["before"][0]
    assert found["now"][1] < 1.2 * found["before"][1]  # and not by reporting more


def test_the_head_hears_frames_as_it_hears_clips():
    log_mel = torch.randn(2, 1, 128, 200, generator=torch.Generator().manual_seed(0))
    for head in ("mlp", "fully_convolutional"):
        model = create_model("mn01", num_classes=5, head=head, generator=torch.Generator().manual_seed(1)).eval()
        with torch.inference_mode():
            features, whole = model.features(log_mel), model(log_mel).logits
            frames = model.frame_logits(features)
            everywhere = model.frame_logits(features, 2 * features.shape[3] + 1)
            alone = model.head(features[..., 2:3], features[..., 2].mean(dim=2))
        assert frames.shape == (2, -(-200 // model.time_stride), 5)
        torch.testing.assert_close(frames[:, 2], alone)
        torch.testing.assert_close(everywhere, whole[:, None].expand_as(everywhere))


def test_a_backend_without_frames_says_so(loudness):
    class Whole(Loudness):
        frame_samples = Backend.frame_samples

    with pytest.raises(ConfigError, match="method windows"):
        Tagger(Whole()).frames(burst(1), RATE, method="activation")


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "guess"},
        {"threshold": 0},
        {"threshold": 0.5, "off_threshold": 0.9},
        {"median": -1},
        {"min_gap": -1},
        {"hop": 11.0},
        {"labels": ["Cow"]},
        {"clip": 2},
    ],
)
def test_settings_that_cannot_be(loudness, wrong):
    with pytest.raises(ConfigError):
        loudness.events(burst(1), RATE, **wrong)
    with pytest.raises(ConfigError, match="sample_rate"):
        loudness.events(burst(1))
    with pytest.raises(AudioError):
        loudness.frames("nowhere.wav")


def test_settings_rebuild_themselves():
    assert FrameSettings("windows").cutting() == FrameSettings().cutting() == (0.96, 0.16)
    assert FrameSettings("windows", window=0.1).cutting() == (0.1, 0.1)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    network = create_model("mn01", num_classes=2, generator=torch.Generator().manual_seed(0))
    network.card = ModelCard(name="tiny", labels=("Dog", "=Cat, near\u202e"[:10]))
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    pretrained.save(network, path)
    return path


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "a clip.wav"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, RATE * 2), RATE)
    return path


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_in_every_format(model, clip, tmp_path):
    # tiny's probabilities are about a half
    arguments = ["events", clip, "--model", model, "--threshold", 0.3, "--off-threshold", 0.01]
    tagger = Tagger.from_pretrained(model, "cpu")
    expected = tagger.events(clip, threshold=0.3, off_threshold=0.01)
    assert len(expected) == 2
    rows = list(csv.DictReader(io.StringIO(run(*arguments, "--format", "csv").stdout)))
    assert [(row["label"], float(row["start"]), float(row["end"])) for row in rows] == [
        (e.label, e.start, e.end) for e in expected
    ]
    document = json.loads(run(*arguments, "--format", "json").stdout)
    assert document["parameters"]["threshold"] == 0.3
    assert document["parameters"]["window"] == 0.96
    assert [event["label"] for event in document["recordings"][0]["events"]] == [event.label for event in expected]
    tracks = [line.split("\t") for line in run(*arguments, "--format", "audacity").stdout.splitlines()]
    assert tracks == [[f"{e.start:.6f}", f"{e.end:.6f}", e.label] for e in expected]
    fields = [line.split(" ") for line in run(*arguments, "--format", "rttm").stdout.splitlines()]
    assert {len(line) for line in fields} == {10}
    assert [(line[0], line[3]) for line in fields] == [("SPEAKER", "0.000")] * 2
    text = run(*arguments).stdout
    assert all(event.label in text for event in expected)
    out = tmp_path / "events.csv"
    assert run(*arguments, "--output", out, "--method", "activation", "--quiet").exit_code == 0
    assert len(list(csv.DictReader(out.open(newline="", encoding="utf-8")))) == 2


def test_one_bad_recording_leaves_the_others(model, clip, tmp_path):
    bad = tmp_path / "bad.wav"
    bad.write_text("this is no audio")
    done = run("events", bad, tmp_path / "none.wav", clip, "--model", model, "--format", "json")
    assert done.exit_code == 1
    recordings = {r["file"]: r for r in json.loads(done.stdout)["recordings"]}
    assert {"error" in recordings[str(path)] for path in (bad, tmp_path / "none.wav")} == {True}
    assert "events" in recordings[str(clip)]
    assert "bad.wav" in done.stderr
    assert run("events", clip, "--model", model, "--labels", "Cow").exit_code == 2
    assert run("events", clip, "--model", model, "--threshold", 0).exit_code == 2


def test_label_tracks_of_several_recordings(model, clip, tmp_path):
    other = clip.rename(tmp_path / "one.wav")
    soundfile.write(tmp_path / "two.wav", np.full(RATE, 0.1), RATE)
    paths = [other, tmp_path / "two.wav"]
    assert run("events", *paths, "--model", model, "--format", "audacity").exit_code == 2
    folder = tmp_path / "tracks"
    assert run("events", *paths, "--model", model, "--format", "audacity", "--output", folder).exit_code == 0
    assert sorted(path.name for path in folder.iterdir()) == ["one.txt", "two.txt"]
