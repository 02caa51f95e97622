"""Recordings at a glance: what is drawn is what is there, nothing overlaps, hostile names stay text."""

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

from dymn import Tagger, create_model
from dymn.audio import reading
from dymn.cli import app
from dymn.config import FrontEndConfig, ModelCard
from dymn.errors import AudioError
from dymn.inference.selection import TagSettings
from dymn.models import pretrained
from dymn.plots.overview import MAX_COLUMNS, Overview, Thinned, overview, tag_with_overview
from dymn.plots.style import MAX_TICKS, time_ticks, time_unit
from dymn.plots.timeline_page import audio_uri, page, save_page

RATE = 32_000
HOSTILE = "</script><img src=x onerror=alert(1)>"
LABELS = ("Dog", HOSTILE, "$x_1$ {{recording}}", "A label that is far too long for the margin of any picture there is")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    network = create_model("mn01", num_classes=len(LABELS), generator=torch.Generator().manual_seed(0))
    network.card = ModelCard(name="tiny", labels=LABELS)
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    pretrained.save(network, path)
    return path


@pytest.fixture(scope="module")
def tagger(model):
    return Tagger.from_pretrained(model, "cpu")


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "<b>clip & co.wav"
    sound = np.random.default_rng(0).normal(0, 0.1, RATE * 3)
    sound[RATE : 2 * RATE] = 0
    soundfile.write(path, sound, RATE)
    return path


@pytest.fixture(scope="module")
def seen():
    random = np.random.default_rng(0)
    log_mel, scores = random.normal(size=(128, 300)).astype("f4"), random.uniform(size=(4, 60)).astype("f4")
    return Overview("clip.wav", "tiny", 75.0, FrontEndConfig(), log_mel, LABELS, scores, 1.6)


def run(*arguments):
    return CliRunner().invoke(app, ["tag", *map(str, arguments)])


def test_what_is_seen_is_what_is_there(tagger, clip):
    seen = overview(tagger, clip, top_k=3)
    frames = tagger.frames(clip)
    assert seen.seconds == pytest.approx(3)
    assert seen.log_mel.shape == (128, 300)
    assert seen.log_mel[:, 120:180].mean() < seen.log_mel[:, :90].mean() - 1
    best = np.argsort(-frames.scores.max(axis=0))[:3]
    assert seen.labels == tuple(frames.labels[i] for i in best)
    np.testing.assert_array_equal(seen.peaks, frames.scores.max(axis=0)[best])
    assert seen.scores.shape == (3, 60)
    # thinned or not, no value is lost or made up
    assert set(np.unique(seen.scores[0])) == set(np.unique(frames.scores[:, best[0]]))
    assert overview(tagger, clip, labels=["Dog"]).labels == ("Dog",)


def test_a_recording_is_read_once_for_its_picture(tagger, clip):
    content = clip.read_bytes()
    expected, seen = overview(tagger, clip), overview(tagger, io.BytesIO(content))
    np.testing.assert_array_equal(seen.log_mel, expected.log_mel)
    np.testing.assert_array_equal(seen.scores, expected.scores)
    opened = []
    with pytest.MonkeyPatch.context() as patch:
        stream = reading.stream
        patch.setattr(reading, "stream", lambda *given, **named: opened.append(given) or stream(*given, **named))
        overview(tagger, clip)
    assert len(opened) == 1
    clip.write_bytes(content[: len(content) // 2])
    with pytest.raises(AudioError, match="is truncated"):
        overview(tagger, clip)
    assert overview(tagger, clip, partial=True).seconds == pytest.approx(1.5, abs=0.01)


def test_what_is_long_is_thinned():
    random = np.random.default_rng(0)
    columns = random.normal(size=(3, 50_001)).astype("f4")
    thinned = Thinned(1000)
    for part in np.split(columns, [1, 7, 10_000, 10_001, 30_000], axis=1):
        thinned.append(part)
    result = thinned.columns()
    assert 1000 <= result.shape[1] <= 2000
    each = -(-50_001 // result.shape[1])
    size = 2 ** int(np.ceil(np.log2(each)))
    whole = 50_001 // size
    np.testing.assert_allclose(
        result[:, :whole], columns[:, : whole * size].reshape(3, whole, size).mean(axis=2), atol=1e-5
    )
    np.testing.assert_allclose(result[:, -1], columns[:, whole * size :].mean(axis=1), atol=1e-5)
    assert MAX_COLUMNS < 10_000


@pytest.mark.parametrize(
    ("seconds", "last", "unit"),
    [
        (0.7, "0.7", "seconds"),
        (7.1, "7", "seconds"),
        (75, "1:10", "minutes and seconds"),
        (43_200, "12:00", "hours and minutes"),
    ],
)
def test_times_are_round_and_few(seconds, last, unit):
    ticks = time_ticks(seconds)
    assert 3 <= len(ticks) <= MAX_TICKS
    assert ticks[0][0] == 0
    assert ticks[-1][1] == last
    assert len({text for _, text in ticks}) == len(ticks)
    assert time_unit(seconds) == unit


@pytest.mark.parametrize("seconds", [0.05, 59.9, 3599, 90_000])
def test_nothing_in_a_picture_overlaps(seen, seconds):
    matplotlib = pytest.importorskip("matplotlib")
    import dataclasses

    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from dymn.plots.timeline import draw

    figure = draw(dataclasses.replace(seen, seconds=seconds, name="x" * 300))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    texts = [text for text in figure.findobj(matplotlib.text.Text) if text.get_text() and text.get_visible()]
    assert any("{{recording}}" in text.get_text() for text in texts)
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts]
    inside = figure.bbox
    for i, (name, box) in enumerate(boxes):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= inside.x1 and box.y1 <= inside.y1, name
        assert not [
            other for other, there in boxes[i + 1 :] if box.shrunk(0.98, 0.9).overlaps(there.shrunk(0.98, 0.9))
        ], name


class Parts(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)


def test_hostile_names_stay_text(seen):
    import dataclasses

    text = page(dataclasses.replace(seen, name=HOSTILE), "")
    parts = Parts()
    parts.feed(text)
    assert "img" not in parts.tags
    assert parts.tags.count("script") == 2
    data = json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.S)[1])
    assert data["name"] == HOSTILE
    assert tuple(data["labels"]) == LABELS
    assert "innerHTML" not in text
    assert "http:" not in text and "https:" not in text


def test_the_sound_is_in_the_page_up_to_a_size(seen, clip, tmp_path):
    assert audio_uri(seen, clip, 2**20).startswith("data:audio/wav;base64,UklGR")
    other = tmp_path / "clip.au"
    soundfile.write(other, np.zeros(RATE), RATE)
    import dataclasses

    short = dataclasses.replace(seen, seconds=1.0)
    assert audio_uri(short, other, 2**20).startswith("data:audio/wav;base64,UklGR")
    assert audio_uri(seen, other, 2**20) == ""
    assert audio_uri(seen, clip, 100) == ""
    with clip.open("rb") as file:  # a file that has been read to its end
        file.read()
        assert audio_uri(seen, file, 2**20) == audio_uri(seen, clip, 2**20)
    save_page(seen, clip, tmp_path / "page.html", max_audio=100)
    assert '"audio":""' in (tmp_path / "page.html").read_text()


def test_the_command_draws(model, clip, tmp_path):
    for ending, begins in ((".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF"), (".html", b"<!doctype")):
        done = run(clip, "--model", model, "--plot", tmp_path / f"out{ending}")
        assert done.exit_code == 0, done.output
        assert (tmp_path / f"out{ending}").read_bytes().startswith(begins)
        assert "Dog" in done.stdout


def test_tags_and_picture_come_from_one_reading(tagger, clip, tmp_path):
    noise = np.random.default_rng(1).normal(0, 0.1, RATE * 77)  # several batches of windows of each kind
    soundfile.write(tmp_path / "long.wav", noise, RATE)
    for path, kept in ((clip, {}), (tmp_path / "long.wav", {"channel": "1", "gain": 6, "labels": ("Dog",)})):
        settings = TagSettings(**kept)
        (expected,), n_read = tagger.tag_files([path], settings), 0

        def heard(block):
            nonlocal n_read
            n_read += len(block)

        with path.open("rb") as file:
            recording, seen = tag_with_overview(tagger, file, settings, heard=heard)
        assert (recording.tags, [*recording.timeline]) == (expected.tags, [*expected.timeline])
        alone = overview(tagger, path, **kept)
        assert (seen.labels, seen.seconds, seen.name) == (alone.labels, alone.seconds, path.name)
        np.testing.assert_array_equal(seen.log_mel, alone.log_mel)
        np.testing.assert_array_equal(seen.scores, alone.scores)
        assert n_read == soundfile.info(path).frames
    content = clip.read_bytes()
    clip.write_bytes(content[: len(content) // 2])
    recording, seen = tag_with_overview(tagger, clip, TagSettings())
    assert "is truncated" in str(recording.error) and seen is None
    recording, seen = tag_with_overview(tagger, clip, TagSettings(partial=True))
    assert recording.partial and recording.seconds == seen.seconds == pytest.approx(1.5, abs=0.01)


def test_standard_input_is_drawn(model, clip, tmp_path):
    for ending in (".png", ".html"):
        done = CliRunner().invoke(
            app, ["tag", "-", "--model", str(model), "--plot", str(tmp_path / f"out{ending}")], input=clip.read_bytes()
        )
        assert done.exit_code == 0, done.output
    assert '"audio":"data:audio/wav;base64,UklGR' in (tmp_path / "out.html").read_text()


@pytest.mark.parametrize("ending", [".png", ".html"])
def test_a_picture_that_cannot_be_written_loses_no_tags(model, clip, tmp_path, ending, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dymn.plots.timeline.save_picture", full)
    monkeypatch.setattr("dymn.plots.timeline_page.save_page", full)
    (tmp_path / "pictures").mkdir()
    plot, output = tmp_path / f"out{ending}", tmp_path / "tags.json"
    done = run(clip, "--model", model, "--plot", plot, "--output", output)
    assert done.exit_code == 1 and not plot.exists()
    assert "Dog" in output.read_text()


def test_a_folder_of_pictures(model, clip, tmp_path):
    (tmp_path / "a").mkdir()
    bad, same = tmp_path / "bad.wav", tmp_path / "a" / clip.name
    bad.write_text("this is no audio")
    soundfile.write(same, np.zeros(RATE), RATE)
    done = run(clip, bad, same, "--model", model, "--plot", tmp_path / "pictures", "--quiet")
    assert done.exit_code == 1
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["<b>clip & co-2.png", "<b>clip & co.png"]
    assert done.stderr.count("bad.wav") == 1


def test_wrong_use(model, clip, tmp_path):
    taken = tmp_path / "taken.txt"
    taken.touch()
    other = Path(soundfile.write(tmp_path / "b.wav", np.zeros(RATE), RATE) or tmp_path / "b.wav")
    page_like = tmp_path / "sound.png"
    page_like.write_bytes(clip.read_bytes())
    for arguments, message in (
        ([clip, "--plot", "out.gif"], "extension"),
        ([clip, other, "--plot", "out.png"], "folder"),
        ([clip, other, "--plot", taken], "folder"),
        ([page_like, "--plot", page_like], "one of the recordings"),
    ):
        done = run(*arguments, "--model", model)
        assert done.exit_code == 2, arguments
        assert message in done.stderr
