"""Live sound: chunking changes nothing, lag is bounded, devices explain themselves, the command from end to end."""

import io
import json
import signal
import subprocess
import sys
import threading
import time
import types
from itertools import pairwise

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from dymn import Tagger, create_model
from dymn.audio.microphone import BLOCK_SECONDS, BoundedQueue, Chunk, devices, microphone
from dymn.audio.pcm import PCM_FORMATS, PcmReader, encoded_kind
from dymn.cli import app
from dymn.commands import listen, live_sources, live_table
from dymn.config import ModelCard
from dymn.errors import AudioError, ConfigError, MissingExtraError
from dymn.inference.selection import TagSettings
from dymn.inference.stream import follow
from dymn.models import pretrained
from stubs import StubBackend

RATE = 32_000
LABELS = ("Dog", "Cat")


class Sums(StubBackend):
    """Answers in which each sample shows."""

    def __init__(self):
        self.card = ModelCard(name="sums", labels=LABELS)

    def scores(self, waveforms):
        total = np.abs(np.asarray(waveforms, np.float64)).mean(axis=1)
        return np.stack([total, np.asarray(waveforms)[:, -1] ** 2], axis=1).astype(np.float32)


SUMS = Tagger(Sums())


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    network = create_model("mn01", num_classes=2, generator=torch.Generator().manual_seed(0))
    network.card = ModelCard(name="tiny", labels=LABELS)
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    pretrained.save(network, path)
    return path


@pytest.fixture(scope="module")
def tagger(model):
    return Tagger.from_pretrained(model, "cpu")


def fed(stream, samples, cuts):
    """Feed samples in pieces that end at `cuts`."""
    answers = []
    for piece in np.split(samples, sorted(cuts)):
        answers += stream.feed(piece)
    return answers + stream.finish()


@settings(deadline=None, max_examples=60)
@given(
    rate=st.sampled_from([8_000, 16_000, 22_050, 32_000, 44_100, 48_000]),
    dtype=st.sampled_from(["int16", "float32"]),
    channels=st.sampled_from([0, 1, 2, 6]),
    seconds=st.floats(0.01, 2),
    window=st.sampled_from([0.25, 0.5]),
    hop=st.sampled_from([0.1, 0.5, 0.7]),
    fill=st.sampled_from(["repeat", "pad", "bare"]),
    data=st.data(),
)
def test_chunking_never_changes_a_result(rate, dtype, channels, seconds, window, hop, fill, data):
    n = max(1, round(seconds * rate))
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (n, channels) if channels else n)
    samples = (noise * 32767).astype(dtype) if dtype == "int16" else noise.astype(dtype)
    wanted = {"top_k": 0, "window": window, "hop": hop, "fill": fill}
    cuts = data.draw(st.lists(st.integers(0, n), max_size=12))
    whole = fed(SUMS.stream(rate, **wanted), samples, [])
    assert fed(SUMS.stream(rate, **wanted), samples, cuts) == whole
    if channels in (0, 1):
        (recording,) = SUMS.tag_files([samples], TagSettings(**wanted), sample_rate=rate)
        assert list(recording.timeline) == whole


@pytest.mark.parametrize(("window", "hop"), [(2.0, 0.5), (10.0, None), (1.0, 1.0)])
def test_a_stream_says_what_a_file_gets(tagger, tmp_path, window, hop):
    path = tmp_path / "clip.wav"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, (16_000 * 7, 2)), 16_000, subtype="PCM_16")
    samples, rate = soundfile.read(path, dtype="int16")
    wanted = TagSettings(top_k=0, window=window, hop=hop)
    (recording,) = tagger.tag_files([path], wanted)
    answers = fed(tagger.stream(rate, top_k=0, window=window, hop=hop), samples, range(0, len(samples), 1234))
    assert [(window.start, window.end) for window in answers] == [
        (window.start, window.end) for window in recording.timeline
    ]
    for answer, expected in zip(answers, recording.timeline, strict=True):
        live, file = ({tag.label: tag.score for tag in window.tags} for window in (answer, expected))
        assert live == pytest.approx(file, abs=1e-6)


def test_answers_come_as_soon_as_they_can():
    stream = SUMS.stream(RATE, window=1.0, hop=0.5)
    came = [
        (round(i * 0.1 + 0.1, 1), window.end) for i in range(30) for window in stream.feed(np.zeros(3200, np.float32))
    ]
    assert [end for _, end in came] == [1.0, 1.5, 2.0, 2.5]
    assert all(now - end <= 0.21 for now, end in came)


def test_what_cannot_be_fed_is_left_out():
    stream = SUMS.stream(RATE, window=0.5)
    stream.feed(np.zeros((100, 2), np.float32))
    for wrong in (
        np.full((10, 2), np.nan, np.float32),
        np.zeros((4, 3), np.float32),
        np.zeros((2, 2, 2)),
        np.zeros((4, 2), "c8"),
    ):
        with pytest.raises(AudioError):
            stream.feed(wrong)
    stream.feed(np.zeros((0, 2), np.int16))
    stream.feed(np.zeros((RATE // 2 - 100, 2), np.int16))
    assert stream.seconds == 0.5
    assert [window.end for window in stream.finish()] == [0.5]
    assert stream.finish() == []
    with pytest.raises(ConfigError, match="has ended"):
        stream.feed(np.zeros(10))
    with pytest.raises(ConfigError):
        SUMS.stream(50)
    with pytest.raises(ConfigError):
        SUMS.stream(RATE, windows=3)


def test_after_a_gap_times_are_true():
    loud, quiet = np.full(RATE, 0.5, np.float32), np.zeros(RATE, np.float32)
    heard = list(
        follow(SUMS.backend, [Chunk(loud, 0), Chunk(quiet, 3 * RATE), Chunk(quiet, 0)], RATE, TagSettings(window=0.5))
    )
    assert [(answer.window.start, answer.dropped) for answer in heard] == [
        (0.0, 0.0),
        (4.0, 3.0),
        (4.5, 3.0),
        (5.0, 3.0),
        (5.5, 3.0),
    ]
    assert [answer.window.tags[0].score for answer in heard] == [0.5, 0, 0, 0, 0]


def test_the_queue_is_bounded_and_counts():
    queue = BoundedQueue(100)
    pieces = [np.zeros((60, 1)), np.zeros((60, 1)), np.zeros((40, 1)), np.zeros((1, 1))]
    assert [queue.put(piece) for piece in pieces] == [True, False, True, False]
    assert [(len(chunk.samples), chunk.dropped) for chunk in (queue.get(), queue.get())] == [(60, 0), (40, 60)]
    assert queue.get(0.01) is None
    assert queue.put(np.zeros((1000, 1)))  # larger than the queue, which is empty: better than nothing ever
    assert queue.get().dropped == 1
    queue.close()
    with pytest.raises(EOFError):
        queue.get()
    broken = BoundedQueue(1)
    threading.Timer(0.05, broken.close, [AudioError("gone")]).start()
    with pytest.raises(AudioError, match="gone"):
        broken.get(10)


@settings(deadline=None)
@given(
    st.sampled_from(PCM_FORMATS), st.integers(1, 3), st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=8)
)
def test_pcm_in_pieces(format, channels, data, cuts):
    assume(not encoded_kind(data))  # such bytes are refused by name
    whole = PcmReader(format, channels)
    expected = whole.feed(data)
    reader = PcmReader(format, channels)
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    parts = [reader.feed(data[a:b]) for a, b in pairwise(edges)]
    np.testing.assert_array_equal(np.concatenate(parts), expected)
    assert (
        reader.rest
        == whole.rest
        == len(data) % (channels * max(1, int(format.strip("abcdefghijklmnopqrstuvwxyz")) // 8))
    )


def test_pcm_values():
    assert PcmReader("s24le", 1).feed(b"\x01\x00\x80\xff\xff\x7f").tolist() == [
        [(-(2**23) + 1) * 256],
        [(2**23 - 1) * 256],
    ]
    assert PcmReader("s16be", 2).feed(b"\x01\x02\xff\xfe").tolist() == [[258, -2]]
    assert PcmReader("f32le", 1).feed(np.array([0.25], "<f4").tobytes()).tolist() == [[0.25]]
    with pytest.raises(ConfigError, match="s16le"):
        PcmReader("mp3", 1)
    with pytest.raises(ConfigError, match="channels"):
        PcmReader("s8", 0)


# The command


def run(*arguments, **options):
    return CliRunner().invoke(app, ["listen", *map(str, arguments)], **options)


@pytest.fixture(scope="module")
def pcm():
    return (np.random.default_rng(0).normal(0, 0.1, 16_000 * 5) * 32767).astype("<i2").tobytes()


def test_samples_on_standard_input(model, tagger, pcm):
    done = run("-", "--rate", 16_000, "--model", model, "--json", "--threshold", 0, input=pcm)
    assert done.exit_code == 0, done.output
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    samples = np.frombuffer(pcm, "<i2")
    (recording,) = tagger.tag_files([samples], TagSettings(window=2.0, hop=0.5), sample_rate=16_000)
    assert [(answer["start"], answer["end"], answer["dropped"]) for answer in answers] == [
        (*w[:2], 0) for w in recording.timeline
    ]
    for answer, expected in zip(answers, recording.timeline, strict=True):
        assert {tag["label"]: tag["score"] for tag in answer["tags"]} == pytest.approx(
            {t.label: t.score for t in expected.tags}, abs=2e-6
        )
    text = run("-", "--rate", 16_000, "--model", model, input=pcm + b"\x00")
    assert len(text.stdout.splitlines()) == len(answers)
    assert "within a sample" in text.stderr
    bounded = run("-", "--rate", 16_000, "--model", model, "--max-lag", 60, "--json", "--threshold", 0, input=pcm)
    assert bounded.stdout == done.stdout


def test_a_slow_machine_drops_and_says_so(model, pcm, monkeypatch):
    seen = iter([Chunk(np.zeros((48_000, 1), np.float32), 0), Chunk(np.zeros((48_000, 1), np.float32), 24_000)])
    monkeypatch.setattr(listen, "opened", lambda *_: ("test", 16_000, seen))
    done = run("-", "--rate", 16_000, "--model", model, "--json")
    assert done.exit_code == 0
    assert "1.5 s of audio dropped" in done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["dropped"] == 1.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-"], "--rate"),
        (["street.wav"], "use `dymn tag`"),
        (["street.wav", "--events"], "use `dymn events`"),
        (["street.wav", "--min-gap", 1], "use `dymn events`"),
        (["--rate", 16_000], "has its own"),
        (["-", "--rate", 16_000, "--microphone", "USB"], "not both"),
        (["-", "--rate", 16], "sample_rate is 16"),
    ],
)
def test_wrong_use(model, arguments, message):
    done = run(*arguments, "--model", model)
    assert done.exit_code == 2
    assert message in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_ends_well(model, pcm):
    command = [sys.executable, "-m", "dymn", "listen", "-", "--rate", "16000", "--model", str(model), "--json"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdin.write(pcm)
        process.stdin.flush()
        assert process.stdout.readline().startswith(b'{"start": 0.0')
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert err.decode().splitlines() == ["dymn: Stopped listening."]


def test_the_table_shows_labels_as_they_are(tagger):
    from rich.console import Console

    (answer,) = follow(tagger.backend, [Chunk(np.zeros((RATE, 1), np.float32), 0)], RATE, TagSettings(window=1.0))
    hostile = answer._replace(
        window=answer.window._replace(tags=[answer.window.tags[0]._replace(label="[red]Dog[/nope]")]), dropped=2.0
    )
    out = Console(file=io.StringIO(), width=80)
    out.print(live_table.LiveTable("[bold]title[/x]", 3).table(hostile))
    text = out.file.getvalue()
    assert "[red]Dog[/nope]" in text
    assert "[bold]title[/x]" in text
    assert "2.0 s dropped" in text


# The microphone, with a module in the place of sounddevice


class PortAudioError(Exception):
    pass


class FakeStream:
    blocks = 20
    fails: str | None = None

    def __init__(self, *, samplerate, blocksize, device, channels, dtype, callback, finished_callback):
        self.blocksize, self.callback, self.ended = blocksize, callback, finished_callback
        self.closed = False

    def start(self):
        if self.fails:
            raise PortAudioError(self.fails, -9985)
        for _ in range(self.blocks):
            block = np.full((self.blocksize, 1), 0.1, np.float32)
            self.callback(block, self.blocksize, None, types.SimpleNamespace(input_overflow=False))
            block[:] = 9  # the callback's buffer is only lent

    def abort(self):
        self.closed = True

    close = abort


@pytest.fixture
def sounddevice(monkeypatch):
    found = [
        {"name": "Speakers", "index": 0, "max_input_channels": 0, "default_samplerate": 48_000.0},
        {"name": "USB mic", "index": 1, "max_input_channels": 2, "default_samplerate": 44_100.0},
    ]

    def query_devices(device=None, kind=None):
        if kind is None:
            return found
        if device in (None, 1, "USB"):
            return found[1]
        raise ValueError(f"No input device matching {device!r}")

    default = types.SimpleNamespace(device=[1, 0])
    kind = type("Stream", (FakeStream,), {})
    module = types.SimpleNamespace(
        PortAudioError=PortAudioError, query_devices=query_devices, default=default, InputStream=kind
    )
    module.found = found
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    return module


def test_a_microphone_records(sounddevice):
    with microphone("1", max_lag=2.0) as device:
        assert device[:2] == ("USB mic", 44_100)
        chunks = [device.queue.get(0) for _ in range(20)]
    assert {len(chunk.samples) for chunk in chunks} == {round(BLOCK_SECONDS * 44_100)}
    assert {float(chunk.samples.max()) for chunk in chunks} == {np.float32(0.1)}
    assert [info["name"] for info in devices()] == ["USB mic"]


def test_listening_to_a_microphone(sounddevice, model, monkeypatch):
    sounddevice.InputStream.blocks = 100  # 5 s at once, of which 2 s may wait

    def until_empty(queue):
        while (chunk := queue.get(0)) is not None:
            yield chunk
        queue.put(np.zeros((44_100, 1), np.float32))
        yield queue.get(0)
        raise KeyboardInterrupt

    monkeypatch.setattr(live_sources, "queued", until_empty)
    done = run("--model", model, "--json", "--window", 0.5, "--hop", 0.5)
    assert done.exit_code == 0
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["start"] for answer in answers] == [0.0, 0.5, 1.0, pytest.approx(5.0, abs=0.01)]
    assert [answer["dropped"] for answer in answers] == [0, 0, 0, pytest.approx(3.0, abs=0.06)]
    assert "Listening to USB mic at 44100 Hz" in done.stderr
    assert "Stopped listening" in done.stderr


def test_a_microphone_that_goes_away(sounddevice, model):
    def start(self):
        self.ended()

    sounddevice.InputStream.start = start
    done = run("--model", model)
    assert done.exit_code == 1
    assert "USB mic has stopped recording" in done.stderr


def test_what_is_wrong_with_devices_is_explained(sounddevice, model, monkeypatch):
    done = run("--devices")
    assert done.exit_code == 0
    assert done.stdout.splitlines() == ["*   1  USB mic  (44100 Hz)"]
    done = run("--microphone", "Garage", "--model", model)
    assert done.exit_code == 2
    assert "1 USB mic" in done.stderr
    sounddevice.InputStream.fails = "Device unavailable"
    done = run("--model", model)
    assert done.exit_code == 1
    assert "Device unavailable" in done.stderr and "another program" in done.stderr
    sounddevice.found.clear()
    done = run("--model", model)
    assert done.exit_code == 1
    assert "no microphone" in done.stderr
    assert run("--devices").exit_code == 0


def test_without_sounddevice_or_portaudio(monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(MissingExtraError, match=r"dymn\[mic\]"):
        devices()

    class NoPortAudio:
        def find_spec(self, name, path=None, target=None):
            if name == "sounddevice":
                raise OSError("PortAudio library not found")

    monkeypatch.delitem(sys.modules, "sounddevice")
    monkeypatch.setattr(sys, "meta_path", [NoPortAudio(), *sys.meta_path])
    with pytest.raises(AudioError, match="libportaudio2"):
        devices()


def test_queued_waits_and_ends():
    queue = BoundedQueue(10)
    threading.Thread(target=lambda: (time.sleep(0.3), queue.put(np.zeros((1, 1))), queue.close())).start()
    assert len(list(live_sources.queued(queue))) == 1


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "Ogg", "MP3", "MP4", "AIFF"])
@pytest.mark.parametrize("step", [3, 1000, 100_000])
def test_encoded_sound_is_no_raw_samples(kind, step):
    samples = np.random.default_rng(0).normal(0, 0.1, 32_000).astype(np.float32)
    options = {"Ogg": ("OGG", "VORBIS"), "MP3": ("MP3", "MPEG_LAYER_III")}.get(kind, (kind, "PCM_16"))
    data = b"\0\0\0\x20ftypisom" + bytes(8000)
    if kind != "MP4":
        soundfile.write(file := io.BytesIO(), samples, 32_000, format=options[0], subtype=options[1])
        data = file.getvalue()
    reader = PcmReader("s16le", 1)
    pieces = (data[start : start + step] for start in range(0, len(data), step))
    with pytest.raises(AudioError, match=f"they begin like {kind}"):
        list(map(reader.feed, pieces))


def test_raw_samples_are_no_encoded_sound(caplog):
    generator = np.random.default_rng(0)
    for _ in range(300):
        PcmReader("s16le", 1).feed(generator.integers(-32768, 32768, 4000, np.int16).tobytes())
        PcmReader("f32le", 1).feed(generator.normal(0, 0.1, 4000).astype(np.float32).tobytes())
    for value in (0, -1, -1025, 0x47):
        PcmReader("s16le", 1).feed(np.full(4000, value, np.int16).tobytes())
    assert not caplog.records
    PcmReader("f32le", 1).feed(np.full(4000, 20_000, np.float32).tobytes())
    assert "full scale is 1" in caplog.text
