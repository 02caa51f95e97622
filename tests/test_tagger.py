import io
import itertools
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
import torch

import dymn
from dymn import Embedder, Tag, Tagger, create_model
from dymn.audio import reading
from dymn.config import ModelCard
from dymn.errors import AudioError, ConfigError, ResourceError
from dymn.inference.files import Recording
from dymn.inference.selection import TagSettings, matching
from dymn.runtime.backend import CPU_BATCH_SIZE
from stubs import StubBackend

RATE = 32_000
LABELS = ("Dog", "Cat", "Speech, near", "Music")


@pytest.fixture(scope="module")
def tagger():
    model = create_model("mn01", num_classes=len(LABELS), generator=torch.Generator().manual_seed(0))
    model.card = ModelCard(name="tiny", labels=LABELS)
    return Tagger(model, "cpu")


class Loudness(StubBackend):
    """Scores that can be foreseen: each label is as probable as the loudest sample of a quarter of the values."""

    card = ModelCard(name="loudness", labels=LABELS)

    def __init__(self):
        self.batches = []

    def scores(self, waveforms):
        self.batches.append(waveforms.shape)
        loudest = np.abs(waveforms).max(axis=1)
        return np.stack([loudest, loudest / 2, loudest / 4, 1 - loudest], axis=1).astype(np.float32)


@pytest.fixture
def loudness():
    return Tagger(Loudness())


def steps(*levels, seconds=10.0):
    return np.concatenate([np.full(round(seconds * RATE), level, np.float32) for level in levels])


def test_a_clip_gets_its_best_labels(loudness):
    tags = loudness.tag(steps(0.5, seconds=3), RATE, top_k=3)
    assert tags == [Tag("Dog", 0.5, 0.0, 3.0), Tag("Music", 0.5, 0.0, 3.0), Tag("Cat", 0.25, 0.0, 3.0)]
    assert len(loudness.tag(steps(0.5, seconds=3), RATE, top_k=0)) == 4
    assert loudness.tag(steps(0.5, seconds=3), RATE, threshold=0.6) == []


def test_windows_combine_to_the_maximum_or_to_the_mean_over_time(loudness):
    recording = steps(0.2, 0.8), RATE
    highest = {tag.label: tag.score for tag in loudness.tag(*recording)}
    assert highest == pytest.approx({"Dog": 0.8, "Cat": 0.4, "Speech, near": 0.2, "Music": 0.8})
    mean = {tag.label: tag.score for tag in loudness.tag(*recording, combine="mean")}
    assert mean == pytest.approx({"Dog": 0.5, "Cat": 0.25, "Speech, near": 0.125, "Music": 0.5})
    longer = np.concatenate([steps(0.2), steps(0.8, seconds=2)])
    assert loudness.tag(longer, RATE, labels=["Dog"], combine="mean")[0].score == pytest.approx(
        (0.2 * 10 + 0.8 * 2) / 12
    )


def test_a_timeline_has_the_places_of_the_windows(loudness):
    timeline = loudness.timeline(steps(0.2, 0.8, 0.6)[: 24 * RATE], RATE, labels=("Dog",))
    expected = [("Dog", 0.2, 0, 10), ("Dog", 0.8, 10, 20), ("Dog", 0.6, 20, 24)]
    assert timeline == [(label, pytest.approx(score), start, end) for label, score, start, end in expected]
    overlapping = loudness.timeline(steps(0.2, 0.8), RATE, top_k=1, window=4, hop=2)
    assert [tag.start for tag in overlapping] == list(range(0, 18, 2))
    assert overlapping[-1].end == 20
    sparse = loudness.timeline(steps(0.2, 0.8, 0.6), RATE, top_k=1, window=2, hop=10)
    assert [(tag.start, tag.end) for tag in sparse] == [(0, 2), (10, 12), (20, 22)]


def test_the_recording_is_as_long_as_it_is_also_where_windows_pass_over_its_end(loudness):
    (recording,) = loudness.tag_files([steps(0.2, 0.8)], TagSettings(window=2, hop=9), sample_rate=RATE)
    assert recording.seconds == 20
    assert recording.tags[0].end == 20


@pytest.mark.parametrize("how", ["repeat", "pad", "bare"])
def test_short_clips_are_filled(loudness, how):
    loudness.tag(steps(0.5, seconds=4), RATE, fill=how)
    assert loudness.backend.batches == [(1, 4 * RATE if how == "bare" else 10 * RATE)]


def test_batches_span_recordings_of_one_length(loudness, tmp_path):
    paths = [tmp_path / f"{i}.wav" for i in range(5)]
    for i, path in enumerate(paths):
        soundfile.write(path, np.full(RATE * (i + 1), (i + 1) / 10), RATE, subtype="FLOAT")
    recordings = list(loudness.tag_files(paths, batch_size=4))
    assert loudness.backend.batches == [(4, 10 * RATE), (1, 10 * RATE)]
    assert [recording.name for recording in recordings] == [str(path) for path in paths]
    assert [float(recording.scores[0]) for recording in recordings] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    loudness.backend.batches.clear()
    list(loudness.tag_files(paths, TagSettings(fill="bare"), batch_size=4))
    assert loudness.backend.batches == [(1, RATE * (i + 1)) for i in range(5)]


def test_a_batch_gives_what_each_clip_gives_alone(tagger):
    random = np.random.default_rng(0)
    clips = [random.normal(0, 0.1, RATE * n).astype(np.float32) for n in (1, 2, 12)]
    together = [recording.scores for recording in tagger.tag_files(clips, sample_rate=RATE)]
    for clip, scores in zip(clips, together, strict=True):
        (alone,) = tagger.tag_files([clip], sample_rate=RATE, batch_size=1)
        np.testing.assert_allclose(scores, alone.scores, atol=1e-6)


def test_one_bad_recording_leaves_the_others(loudness, tmp_path):
    good, bad, empty, missing = (tmp_path / name for name in ("good.wav", "bad.wav", "empty.wav", "missing.wav"))
    soundfile.write(good, steps(0.5, seconds=1), RATE)
    bad.write_text("this is no audio")
    empty.touch()
    recordings = list(loudness.tag_files([bad, good, empty, missing, good]))
    assert [recording.error is None for recording in recordings] == [False, True, False, False, True]
    for recording, path in zip(recordings, (bad, good, empty, missing, good), strict=True):
        assert recording.name == str(path)
        if recording.error is not None:
            assert isinstance(recording.error, AudioError)
            assert path.name in str(recording.error)
            assert len(recording.tags) == len(recording.timeline) == len(recording.scores) == 0
    with pytest.raises(AudioError, match=r"missing\.wav"):
        loudness.tag(missing)


def test_recordings_come_as_soon_as_they_are_done(loudness):
    taken = []

    def endless():
        for i in itertools.count():
            taken.append(i)
            yield steps(0.5, seconds=1)

    recordings = loudness.tag_files(endless(), sample_rate=RATE, batch_size=2)
    assert next(recordings).tags
    assert len(taken) <= 3


def test_progress_tells_name_and_seconds(loudness, tmp_path):
    path = tmp_path / "clip.wav"
    soundfile.write(path, steps(0.1, 0.2)[: 15 * RATE], RATE)
    calls = []
    list(loudness.tag_files([path], progress=lambda *call: calls.append(call)))
    assert calls == [(str(path), 10.0), (str(path), 15.0)]


def test_sources_of_every_kind_agree(tagger, tmp_path):
    path = tmp_path / "clip.wav"
    clip = np.random.default_rng(0).normal(0, 0.1, (2, RATE)).astype(np.float32)
    soundfile.write(path, clip.T, RATE, subtype="FLOAT")
    expected = tagger.tag(path)
    for source in (str(path), io.BytesIO(path.read_bytes())):
        assert tagger.tag(source) == expected
    for array in (clip, clip.T, torch.from_numpy(clip), clip.mean(axis=0)):
        assert tagger.tag(array, RATE) == expected


@pytest.mark.parametrize("n", [1, 2, 32, 300, 513])
def test_clips_of_a_few_milliseconds(tagger, n):
    for how in ("repeat", "pad", "bare"):
        tags = tagger.tag(np.full(n, 0.1, np.float32), RATE, fill=how)
        assert len(tags) == 4
        assert all(0 <= tag.score <= 1 for tag in tags)


def test_silence(tagger):
    assert all(np.isfinite(tag.score) for tag in tagger.tag(np.zeros(RATE, np.float32), RATE))


def test_an_array_needs_its_rate(tagger):
    with pytest.raises(ConfigError, match="sample_rate"):
        tagger.tag(np.zeros(100, np.float32))


@pytest.mark.parametrize(
    "settings",
    [
        {"top_k": -1}, {"top_k": 2.5}, {"threshold": 1.5}, {"window": 0}, {"window": 1e9}, {"hop": 0},
        {"fill": "mirror"}, {"combine": "median"}, {"labels": "Dog"}, {"colour": "red"}, {"labels": ["Dgo"]},
        {"exclude": ["*"]}, {"window": float("nan")},
    ],
)  # fmt: skip
def test_settings_that_are_not_allowed(tagger, settings):
    with pytest.raises(ConfigError):
        tagger.tag(np.zeros(100, np.float32), RATE, **settings)


def test_labels_are_chosen_by_name_pattern_and_list():
    assert matching(LABELS, ["dog"]) == {0}
    assert matching(LABELS, ["*O*"]) == {0}
    assert matching(LABELS, ["Speech, near"]) == {2}
    assert matching(LABELS, ["Dog,cat"]) == {0, 1}
    assert matching(LABELS, ["Dog", "Mus??"]) == {0, 3}
    with pytest.raises(ConfigError, match="Did you mean: Dog"):
        matching(LABELS, ["Dogg"])
    with pytest.raises(ConfigError, match="Speech, near"):
        matching(LABELS, ["speech"])


def test_labels_with_brackets_match_themselves():
    assert matching(("Siren [civil]", "Siren c"), ["siren [civil]"]) == {0}


def test_labels_and_exclude(loudness):
    clip = steps(0.5, seconds=1)
    assert [tag.label for tag in loudness.tag(clip, RATE, labels=["Cat", "Dog"])] == ["Dog", "Cat"]
    assert [tag.label for tag in loudness.tag(clip, RATE, exclude=["Dog", "M*"])] == ["Cat", "Speech, near"]
    with pytest.raises(ConfigError, match="No label is left"):
        loudness.tag(clip, RATE, labels=["Cat"], exclude=["C*"])


def test_threads_are_set_only_when_asked(tagger):
    before = torch.get_num_threads()
    try:
        Tagger(tagger.model)
        assert torch.get_num_threads() == before
        Tagger(tagger.model, threads=before + 1)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
    with pytest.raises(ConfigError, match="threads is 0"):
        Tagger(tagger.model, threads=0)


def test_a_batch_that_does_not_fit_names_the_remedy(tagger, monkeypatch):
    def full(log_mel):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(tagger.backend, "_network", full)
    with pytest.raises(ResourceError, match="smaller batch size"):
        tagger.tag(np.zeros(100, np.float32), RATE)
    with pytest.raises(ConfigError, match="batch_size is 0"):
        tagger.tag_files([], batch_size=0)


class Loudest(StubBackend):
    """Two labels, as probable as the loudest sample and the rest."""

    card = ModelCard(name="loudest", labels=("Loud", "Quiet"))

    def scores(self, waveforms):
        loudest = np.abs(waveforms).max(axis=1)
        return np.stack([loudest, 1 - loudest], axis=1).astype(np.float32)


def test_any_backend_can_be_behind_a_tagger():
    tagger = Tagger(Loudest())
    assert (tagger.labels, tagger.sample_rate, tagger.card.name) == (("Loud", "Quiet"), RATE, "loudest")
    assert tagger.tag(steps(0.75, seconds=1), RATE) == [Tag("Loud", 0.75, 0.0, 1.0), Tag("Quiet", 0.25, 0.0, 1.0)]
    with pytest.raises(ConfigError, match="no PyTorch network"):
        assert tagger.model
    assert tagger.backend.batch_size == CPU_BATCH_SIZE


def test_tagging_with_another_backend_needs_no_torch(tmp_path):
    path = tmp_path / "clip.wav"
    soundfile.write(path, steps(0.5, seconds=1), RATE)
    code = (
        "import sys\n"
        "import numpy as np\n"
        "from dymn import cli\nfrom dymn.audio import windows\nfrom dymn.inference import selection\n"
        "from dymn.inference.formats import origin, tags, writers\n"
        "from dymn.runtime.backend import Backend, BackendOutput\n"
        "from dymn.config import ModelCard\n"
        "from dymn.inference.tagger import Tagger\n"
        "class Loudest(Backend):\n"
        "    card, embedding_size = ModelCard(labels=('Loud',)), 1\n"
        "    def run(self, windows):\n"
        "        return BackendOutput(*2 * [np.abs(windows).max(axis=1, keepdims=True).astype(np.float32)])\n"
        f"(recording,) = Tagger(Loudest()).tag_files([{str(path)!r}])\n"
        "run = origin.Origin('0', '', '', {})\n"
        "print(*writers.json_lines([recording], tags.TAGS, run), 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert '"label": "Loud", "score": 0.5' in done.stdout
    assert done.stdout.split()[-1] == "False"


def test_from_pretrained_reads_front_end_and_labels(tagger, tmp_path):
    tagger.model.save_pretrained(tmp_path)
    loaded = Tagger.from_pretrained(tmp_path, device="cpu")
    clip = np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)
    assert loaded.labels == LABELS
    assert loaded.tag(clip, RATE) == tagger.tag(clip, RATE)
    with pytest.raises(ConfigError, match="Available here"):
        Tagger.from_pretrained("no_such_model", device="cuda:99")


def small_network(seed=0):
    return create_model("dymn04", width=0.1, num_classes=4, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", [Tagger, Embedder])
def test_the_callers_network_stays_as_it_is_and_reaches_no_tagger_later(kind):
    model = small_network().train()
    model.head.dropout.eval()
    modes = [module.training for module in model.modules()]
    clip = np.random.default_rng(0).normal(0, 0.1, (1, RATE)).astype(np.float32)
    made = kind(model)
    compute = made.probabilities if kind is Tagger else made.vectors
    before = compute(clip)
    assert [module.training for module in model.modules()] == modes
    state = small_network(1).state_dict()
    model.load_state_dict(state | {"head.classifier.bias": state["head.classifier.bias"] + 1})
    np.testing.assert_array_equal(compute(clip), before)
    again = kind(model)
    assert not np.array_equal((again.probabilities if kind is Tagger else again.vectors)(clip), before)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy])
def test_waveforms_that_are_not_finite_are_refused(tagger, value, make):
    clips = np.zeros((2, RATE), np.float32)
    clips[1, 16_000] = value
    for compute in (
        tagger.probabilities,
        tagger.embedder().vectors,
        tagger.embedder("mels").vectors,
        tagger.embedder("last,block3").vectors,
    ):
        with pytest.raises(AudioError, match="Waveform 1 contains the value"):
            compute(make(clips))
        assert np.isfinite(compute(make(clips[:1]))).all()
        with pytest.raises(AudioError, match=r"must be \[B, N\]"):
            compute(make(clips[0]))


@pytest.mark.parametrize("source", [b"RIFF secret", bytearray(b"RIFF secret"), [0.0, 0.1], None, 3])
def test_what_is_no_recording_is_named_by_its_type(loudness, source):
    with pytest.raises(ConfigError, match=f"not {type(source).__name__}") as caught:
        loudness.tag(source)
    assert "secret" not in str(caught.value)
    assert ("BytesIO" in str(caught.value)) == isinstance(source, (bytes, bytearray))


FORKED = """
import multiprocessing, sys
import numpy as np
import dymn
made, layers = sys.argv[1:]
if made == "network":
    tagger = dymn.Tagger(dymn.create_model("mn01"), "cpu", 2)
else:
    tagger = dymn.Tagger.from_pretrained("dymn04_open", "cpu", 2)
clip = np.random.default_rng(0).normal(0, 0.1, 320_000).astype(np.float32)
def work(i):
    return tagger.tag(clip, 32_000, top_k=1)[0].score, float(tagger.embed(clip, 32_000, layers).vector[0])
expected = work(0)
with multiprocessing.get_context("fork").Pool(2) as pool:
    found = pool.map_async(work, range(4)).get(60)
np.testing.assert_allclose(found, [expected] * 4, atol=1e-6)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.parametrize("arguments", [("network", "last"), ("network", "mels,block3"), ("published", "last")])
def test_forked_processes_compute_with_a_tagger_that_was_used_before(arguments):
    subprocess.run(
        [sys.executable, "-c", FORKED, *arguments], check=True, timeout=120, env=os.environ | {"OMP_NUM_THREADS": "2"}
    )


def test_a_failed_recording_can_be_made_by_hand():
    assert list(Recording("x", error=AudioError("no")).timeline) == []


@pytest.mark.parametrize("clip", ["1-100032-A-0.ogg", "1-17367-A-10.ogg", "1-26143-A-21.ogg"])
def test_the_published_model_is_reproduced(shared, clip):
    """Against a computation in the fewest steps: file, channel mean, soxr, log-mel, network, sigmoid."""
    import soxr

    weights, path = shared / "weights" / "mn04_as_mAP_432.pt", shared / "esc10" / "audio" / clip
    if not path.exists():
        pytest.skip(f"{path} is not here")
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    waveform = torch.from_numpy(soxr.resample(samples.mean(axis=1), rate, RATE))
    looped = waveform.repeat(3)[: 10 * RATE]
    model = dymn.weights.import_efficientat(weights)
    tagger = Tagger.from_pretrained(weights, "cpu")
    for how, heard in (("repeat", looped), ("bare", waveform)):
        with torch.inference_mode():
            expected = model(dymn.LogMel()(heard[None])).logits.sigmoid()[0].numpy()
        (recording,) = tagger.tag_files([path], TagSettings(fill=how))
        np.testing.assert_allclose(recording.scores, expected, atol=1e-4)
    assert tagger.labels == dymn.audioset_labels()
    assert recording.seconds == pytest.approx(len(reading.read(path)) / RATE)


def test_decoding_ahead_changes_nothing_but_the_time(tagger, tmp_path):
    """Files of all lengths, some of them bad, one long.

    The same answers in the same order, and this thread's number of threads stays.
    """
    random = np.random.default_rng(0)
    paths = []
    for i, (seconds, rate) in enumerate(
        [(1, 32_000), (35, 32_000), (0, 0), (12, 44_100), (3, 8_000), (0, 0), (4, 48_000), (2, 32_000)]
    ):
        paths.append(tmp_path / f"{i}.wav")
        if rate:
            soundfile.write(paths[-1], random.normal(0, 0.1, (seconds * rate, 1 + i % 2)), rate)
        else:
            paths[-1].write_text("this is no audio")
    settings = TagSettings(window=4, hop=1)
    alone = list(tagger.tag_files(paths, settings, batch_size=3))
    threads = torch.get_num_threads()
    together = list(tagger.tag_files(paths, settings, batch_size=3, workers=2))
    assert torch.get_num_threads() == threads
    assert [recording.name for recording in together] == [str(path) for path in paths]
    for one, other in zip(alone, together, strict=True):
        assert str(one.error) == str(other.error)
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-6)
        assert [window[:2] for window in one.timeline] == [window[:2] for window in other.timeline]
    assert [recording.error is not None for recording in together] == [
        False,
        False,
        True,
        False,
        False,
        True,
        False,
        False,
    ]
    with pytest.raises(ConfigError, match="workers is -1"):
        tagger.tag_files(paths, workers=-1)


def test_overlapping_windows_get_what_each_gets_alone(tagger):
    random = np.random.default_rng(1)
    samples = random.normal(0, 0.1, RATE * 9).astype(np.float32) * np.repeat([1, 0.001, 1], RATE * 3).astype(np.float32)
    timeline = tagger.timeline(samples, RATE, window=3, hop=0.5, top_k=0)
    for start in range(13):
        alone = tagger.tag(samples[start * RATE // 2 : start * RATE // 2 + 3 * RATE], RATE, window=3, top_k=0)
        here = {tag.label: tag.score for tag in timeline if tag.start == start / 2}
        assert here == pytest.approx({tag.label: tag.score for tag in alone}, abs=1e-5)


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
def test_an_interrupt_ends_the_command_at_once(tmp_path):
    paths = [tmp_path / f"{i}.wav" for i in range(4)]
    for path in paths:
        soundfile.write(path, np.zeros(RATE * (600 if path != paths[0] else 1)), RATE)
    answers = tmp_path / "out"
    with answers.open("wb") as out:
        command = [
            sys.executable,
            "-m",
            "dymn",
            "tag",
            *map(str, paths),
            "-m",
            "dymn04_open",
            "--format",
            "jsonl",
            "--workers",
            "2",
        ]
        running = subprocess.Popen([*command, "--window", "1", "--hop", "0.05"], stdout=out, stderr=subprocess.PIPE)
        while answers.stat().st_size == 0 and running.poll() is None:
            time.sleep(0.1)
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=20)
    assert running.returncode == 130, errors
    assert errors.decode().strip().endswith("Interrupted.")
