"""Classifiers of one's own: from labelled recordings to a checkpoint that everything reads."""

import dataclasses
import json
import logging
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from dymn import Tagger
from dymn.audio.stored import passage
from dymn.cli import app
from dymn.commands import recordings
from dymn.commands.fit import _advise
from dymn.config import ModelCard
from dymn.data import Catalog, open_dataset
from dymn.errors import AudioError, ConfigError, DataError, WeightsError
from dymn.evaluation.assess import without_background
from dymn.evaluation.calibration import fit_affine, reliability
from dymn.fitting.background import KINDS, made_background
from dymn.fitting.calibrate import calibrate
from dymn.fitting.checkpoint import head_inputs, logits_of
from dymn.fitting.examples import LabelledWindows, Place, embed_labelled
from dymn.fitting.fit import fit_checkpoint
from dymn.fitting.general import GeneralBackground, general_background, with_general, write_general_background
from dymn.fitting.heads import fit_head
from dymn.fitting.labelled import read_answers, read_background, read_labelled
from dymn.fitting.review import doubts
from dymn.fitting.thresholds import BackgroundHours, FalseAlarms, class_thresholds
from dymn.inference.embedding import Embedder
from dymn.inference.selection import TagSettings
from dymn.plots import review_page
from dymn.runtime.opening import open_backend
from dymn.runtime.scores import thresholds_of
from dymn.weights import open_checkpoint
from dymn.weights.format import save

AUDIO = Path(__file__).parents[1] / "examples" / "audio"
SOUNDS = {"dog": "dog.ogg", "rain": "rain.ogg", "background": "speech.ogg"}
SECONDS = 1.2
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def cut(name: str, folder: Path, count: int = 4) -> None:
    """Write the first seconds of an example recording as clips."""
    folder.mkdir(parents=True)
    samples, rate = soundfile.read(AUDIO / name)
    size = round(SECONDS * rate)
    for i in range(count):
        piece = samples[i * size * 3 // 4 :][:size]
        soundfile.write(folder / f"{i}.wav", piece, rate)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for label, name in SOUNDS.items():
        cut(name, folder / label)
    return folder


@pytest.fixture(scope="module")
def base():
    return open_checkpoint("dymn04_open")


@pytest.fixture(scope="module")
def mine(clips, base, tmp_path_factory):
    """A fitted classifier: its file."""
    path = tmp_path_factory.mktemp("mine") / "mine.safetensors"
    save(fit_checkpoint(base, read_labelled(clips), name="mine").stored, path)
    return path


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def scores(path, source, **options):
    return {tag.label: tag.score for tag in Tagger.from_pretrained(path, **options).tag(source, top_k=0)}


def test_a_fitted_classifier_is_a_checkpoint_like_any_other(clips, tmp_path):
    path = tmp_path / "mine.safetensors"
    done = run("fit", clips, "--model", "dymn04_open", "--output", path, "--format", "json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["labels"] == ["dog", "rain"] and [one["recordings"] for one in report["classes"]] == [4, 4]
    assert all(one["average_precision"] > 0.9 for one in report["classes"])
    card = open_checkpoint(path).card
    assert card.name == "mine" and card.provenance["base"] == "dymn04_open" and not card.exclusive
    assert card.metrics["mAP (cross-validated)"] > 0.9
    for label in ("dog", "rain"):
        found = scores(path, AUDIO / SOUNDS[label])
        assert max(found, key=found.get) == label and found[label] > 0.6
    assert max(scores(path, AUDIO / "piano.ogg").values()) < 0.5
    compiled, torch = (scores(path, AUDIO / "dog.ogg", backend=kind) for kind in ("compiled", "torch"))
    assert compiled == pytest.approx(torch, abs=1e-4)
    tagged = run("tag", AUDIO / "dog.ogg", "--model", path, "--threshold", "auto", "--format", "json")
    assert [tag["label"] for tag in json.loads(tagged.stdout)["recordings"][0]["tags"]] == ["dog"]
    events = run("events", AUDIO / "rain.ogg", "--model", path, "--threshold", "precise", "--format", "csv")
    assert events.exit_code == 0 and "dog" not in events.stdout


def test_fitting_and_tagging_need_no_pytorch(clips, tmp_path):
    program = (
        "import sys\n"
        "class Blocked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'torch': raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Blocked())\n"
        "from dymn.cli import main\n"
        "sys.argv = ['dymn', *sys.argv[1:]]\n"
        "main()\n"
    )
    path = tmp_path / "mine.safetensors"
    for words in (
        ["fit", clips, "--model", "dymn04_open", "--output", path, "--quiet"],
        ["tag", AUDIO / "dog.ogg", "--model", path, "--threshold", "auto"],
    ):
        done = subprocess.run([sys.executable, "-c", program, *map(str, words)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert "dog" in done.stdout


@pytest.mark.parametrize("layer", ["hidden", "last"])
def test_the_checkpoint_computes_what_was_fitted(clips, base, layer):
    found = fit_checkpoint(base, read_labelled(clips), layer=layer, made=False)
    backend = open_backend(found.stored)
    waveform = np.random.default_rng(0).standard_normal((1, 32_000)).astype(np.float32) * 0.1
    said = backend.run_waveforms(waveform).probabilities[0]
    embedding = open_backend(base).run_waveforms(waveform).embedding
    logits = found.fitted.head.logits(head_inputs(base, embedding, layer))[0]
    np.testing.assert_allclose(said, 1 / (1 + np.exp(-logits)), atol=1e-5)
    assert found.stored.config.head == ("mlp" if layer == "hidden" else "fully_convolutional")


def test_one_class_and_background_are_enough(clips, base, tmp_path):
    shutil.copytree(clips / "dog", tmp_path / "dog")
    with pytest.raises(DataError, match="only the class 'dog'"):
        fit_checkpoint(base, read_labelled(tmp_path), made=False, general=False)
    shutil.copytree(clips / "background", tmp_path / "Noise")
    found = fit_checkpoint(base, read_labelled(tmp_path), made=False)
    assert found.stored.card.labels == ("dog",) and found.classes[0].average_precision == pytest.approx(1)


def test_a_softmax_has_background_as_a_class(clips, base):
    card = fit_checkpoint(base, read_labelled(clips), exclusive=True).stored.card
    assert card.exclusive and card.labels == ("dog", "rain", "background")


def test_a_softmax_may_have_background_that_is_made_alone(clips, tmp_path):
    for label in ("dog", "rain"):
        shutil.copytree(clips / label, tmp_path / "clips" / label)
    path = tmp_path / "m.safetensors"
    done = run("fit", tmp_path / "clips", "-m", "dymn04_open", "-o", path, "--softmax", "--quiet")
    assert done.exit_code == 0, done.stderr
    assert open_checkpoint(path).card.labels == ("dog", "rain", "background")
    assert max(scores(path, clips / "dog" / "0.wav").items(), key=lambda item: item[1])[0] == "dog"


def test_the_report_of_a_softmax_counts_its_background(clips, tmp_path):
    words = ["fit", clips, "-m", "dymn04_open", "-o", tmp_path / "m.safetensors", "--softmax"]
    done = run(*words, "--background", AUDIO / "frogs.ogg", "--format", "json")
    assert [(one["label"], one["recordings"]) for one in json.loads(done.stdout)["classes"]][-1] == ("background", 5)
    assert re.search(r"background is 0\.[1-9] minutes long", done.stderr)
    assert "background: --threshold precise" not in done.stderr


@pytest.mark.parametrize("softmax", [False, True])
def test_evaluate_takes_background_as_fit_does(clips, base, tmp_path, softmax):
    shutil.copytree(clips, tmp_path / "clips")
    shutil.copytree(clips / "background", tmp_path / "clips" / "Noise" / "more")
    for clip in (tmp_path / "clips" / "Noise").rglob("*.wav"):
        clip.write_bytes(clip.read_bytes() + b"\0")  # another file
    path = tmp_path / "m.safetensors"
    save(fit_checkpoint(base, read_labelled(tmp_path / "clips"), exclusive=softmax, name="m").stored, path)
    done = run("evaluate", path, "--data", tmp_path / "clips", "--format", "json")
    assert done.exit_code == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["clips"] == 16 and ("accuracy" in figures) == softmax
    assert figures["accuracy" if softmax else "mAP"] > 0.9
    (tmp_path / "clips" / "cat").mkdir()
    shutil.copy(clips / "dog" / "0.wav", tmp_path / "clips" / "cat")
    refused = run("evaluate", path, "--data", tmp_path / "clips")
    assert refused.exit_code == 2 and "'cat'" in refused.stderr


def test_data_without_background_are_not_unpacked(clips, monkeypatch):
    """The targets of a dataset as large as AudioSet take gigabytes."""
    task, source = open_dataset("folder", clips)
    monkeypatch.setattr(Catalog, "target_rows", None)
    assert without_background(task, source, ModelCard(labels=("background", "dog", "rain"))) == (task, source)


def test_the_background_of_dymn_belongs_to_the_weights_of_dymn(base):
    """If this fails, the weights are new: run benchmarks/general_background.py."""
    found = general_background(base.digest)
    assert found is not None and found.vectors.shape == (800, 384) and 1 < found.seconds.sum() / 3600 < 2
    heard = 1 / (1 + np.exp(-logits_of(base, found.vectors)))
    assert {"Speech", "Music", "Vehicle"} <= {base.card.labels[i] for i in np.flatnonzero((heard > 0.3).any(axis=0))}
    assert general_background("another") is None


def test_background_of_dymn_is_kept_in_four_bits(tmp_path):
    vectors = np.random.default_rng(0).gamma(0.3, size=(500, 6)).astype(np.float32)
    path = tmp_path / "b.npz"
    write_general_background(path, GeneralBackground(vectors, np.full(500, 2.5, np.float32)), "abc")
    found = general_background("abc", path)
    assert found.seconds.tolist() == [2.5] * 500 and general_background("abd", path) is None
    step = (np.quantile(vectors, 0.998, axis=0) - np.quantile(vectors, 0.002, axis=0)) / 15
    inside = vectors <= np.quantile(vectors, 0.998, axis=0)
    assert (np.abs(found.vectors - vectors) <= step * 0.51)[inside].all()


def test_background_of_dymn_that_may_hold_a_class_says_nothing_of_it(clips, base):
    examples, _ = embed_labelled(Embedder(open_backend(base)), read_labelled(clips))
    more = with_general(examples, base)
    assert more.general.sum() == 800 and not more.targets[more.general].any() and not more.made[more.general].any()
    heard = 1 / (1 + np.exp(-logits_of(base, more.vectors[more.general])))
    for label, own, other in (("dog", "Bark", "Music"), ("rain", "Rain", "Music")):
        known = more.known[more.general, more.labels.index(label)]
        likeliest = int(heard[:, base.card.labels.index(own)].argmax())
        assert heard[likeliest, base.card.labels.index(own)] < 0.1 or not known[likeliest]
        assert known.mean() > 0.9 and known[heard[:, base.card.labels.index(other)] > 0.8].mean() > 0.9
    assert more.background_of().hours == examples.background_of().hours and more.background_of(general=True).hours > 1
    assert with_general(examples, base._replace(digest="another")) is examples


def test_background_of_dymn_makes_fewer_false_alarms(clips, base):
    """The other recordings of the project's own are none of the classes."""
    vectors = np.stack([Embedder(open_backend(base)).embed(path).vector for path in sorted(AUDIO.glob("*.ogg"))])
    names = [path.stem for path in sorted(AUDIO.glob("*.ogg"))]
    others = [i for i, name in enumerate(names) if name not in ("dog", "rain", "speech")]
    said = []
    for general in (False, True):
        found = fit_checkpoint(base, read_labelled(clips), general=general)
        said.append(1 / (1 + np.exp(-logits_of(found.stored, vectors))))
        assert (found.counted_hours > 1) == general and found.stored.card.provenance["background_hours"] < 0.01
        assert said[-1][names.index("dog"), 0] > 0.5 and said[-1][names.index("rain"), 1] > 0.5
    assert said[1][others].max() < said[0][others].max() and said[1][others].max() < 0.5


def test_silence_and_noise_are_none_of_the_classes(mine):
    tagger = Tagger.from_pretrained(mine)
    for kind, sound in zip(KINDS, made_background(32_000), strict=False):
        assert max(tag.score for tag in tagger.tag(sound, 32_000)) < 0.5, kind


def test_a_bad_recording_is_named_and_left_out(clips, tmp_path):
    shutil.copytree(clips, tmp_path / "clips")
    (tmp_path / "clips" / "dog" / "bad.wav").write_bytes(b"no audio")
    done = run("fit", tmp_path / "clips", "-m", "dymn04_open", "-o", tmp_path / "m.safetensors", "--no-made-background")
    assert done.exit_code == 1 and "bad.wav" in done.stderr and (tmp_path / "m.safetensors").is_file()


def damage_one_clip(root):
    for path in sorted((root / "dog").iterdir())[1:]:
        path.unlink()


def damage_empty(root):
    (root / "cat").mkdir()


def damage_duplicate(root):
    shutil.copy(root / "dog" / "0.wav", root / "rain" / "again.wav")


def damage_no_class(root):
    shutil.rmtree(root / "dog")
    shutil.rmtree(root / "rain")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_one_clip, ["'dog' has 1 recording;", "at least 2", "split a long one into several files"]),
        (damage_empty, ["cat", "contains no recording", "remove the folder"]),
        (damage_duplicate, ["0.wav (dog)", "again.wav (rain)", "the same recording"]),
        (damage_no_class, ["no class", "background"]),
    ],
)
def test_data_that_cannot_be_learned_from_get_a_clear_word(clips, tmp_path, damage, words):
    shutil.copytree(clips, tmp_path / "clips")
    damage(tmp_path / "clips")
    done = run("fit", tmp_path / "clips", "-m", "dymn04_open", "-o", tmp_path / "m.safetensors", "--quiet")
    assert done.exit_code == 1 and all(word in done.stderr for word in words), done.stderr
    assert not (tmp_path / "m.safetensors").exists()


def test_labels_with_commas_are_asked_about(clips, tmp_path):
    table = tmp_path / "clips.csv"
    rows = [f'{clips}/dog/{i}.wav,"Dog, barking"' for i in range(3)] + [f"{clips}/rain/{i}.wav,Rain" for i in range(3)]
    table.write_text("path,label\n" + "\n".join(rows) + "\n")
    words = ["fit", table, "-m", "dymn04_open", "-o", tmp_path / "m.safetensors"]
    done = run(*words)
    assert done.exit_code == 1 and "--separator" in done.stderr, done.output
    assert run(*words, "--separator", ";").exit_code == 0
    assert open_checkpoint(tmp_path / "m.safetensors").card.labels == ("Dog, barking", "Rain")


def test_wrong_use_is_refused_before_anything_is_computed(clips, tmp_path):
    for words, expected in (
        (["--layer", "blocks"], "allowed: hidden, last"),
        (["--output", tmp_path / "m.onnx"], ".safetensors"),
        (["--model", "nothing"], "nothing"),
    ):
        model = [] if "--model" in words else ["-m", "dymn04_open"]
        done = run("fit", clips, *model, "-o", tmp_path / "m.safetensors", *words)
        assert done.exit_code == 2 and expected in done.stderr, done.stderr
    assert run("fit", tmp_path / "nowhere", "-o", tmp_path / "m.safetensors").exit_code == 2


def test_windows_of_annotated_recordings_have_the_labels_that_fill_them(base, tmp_path):
    shutil.copy(AUDIO / "dog.ogg", tmp_path / "yard.ogg")
    (tmp_path / "yard.txt").write_text("0.5\t2.8\tbark\n4.0\t4.2\tyelp\n")
    labelled = read_labelled(tmp_path)
    assert labelled.labels == ("bark", "yelp")
    examples, bad = embed_labelled(Embedder(open_backend(base)), labelled, made=False, track_window=2.0)
    assert not bad
    found = {
        (place.start, place.end): (tuple(target), tuple(known))
        for place, target, known in zip(examples.places, examples.targets, examples.known, strict=True)
    }
    assert found[0.0, 2.0] == ((True, False), (True, True))
    assert found[2.0, 4.0] == ((False, False), (False, True))  # touched by the first: not known
    assert found[4.0, 6.0] == ((False, True), (True, True))  # a short sound lies in it


def test_annotations_after_the_end_of_a_recording_are_told(base, tmp_path, caplog):
    for name in ("yard", "street"):
        shutil.copy(AUDIO / "dog.ogg", tmp_path / f"{name}.ogg")
    (tmp_path / "yard.txt").write_text("0.5\t2.8\tbark\n100\t900\tbark\n7.1\t9\tyelp\n")
    (tmp_path / "street.selections.txt").write_text("Selection\tBegin Time (s)\tEnd Time (s)\tAnnotation\n")
    examples, _ = embed_labelled(Embedder(open_backend(base)), read_labelled(tmp_path), made=False)
    (told,) = [record.getMessage() for record in caplog.records]
    assert "yard.ogg ends after 7.14 s: 1 of its annotations begin after the end" in told
    assert "such as 'bark' at 100 s" in told
    empty = [target for place, target in zip(examples.places, examples.targets, strict=True) if "street" in place.path]
    assert empty and not np.any(empty)
    quiet = 7.142 + 3.0  # all of one, and 3 to 6 s of the other; overlapping windows count once
    found = examples.background_of()
    assert np.isclose(3600 * found.hours, quiet, atol=0.001)
    assert np.isclose(found.overlap, (3 + 3 + 3 + 2.642 + 3) / quiet, atol=0.001)


def test_notes_propose_no_options_that_fit_lacks(clips, base, tmp_path, caplog):
    shutil.copytree(clips, tmp_path / "clips")
    fit_checkpoint(base, read_labelled(tmp_path / "clips"), general=False)  # those of rain have an offset
    notes = [line for line in caplog.messages if "have an offset" in line]
    assert len(notes) == 4 and not any("--band" in line for line in notes)


def test_a_recording_whose_table_is_empty_has_none_of_the_classes(tmp_path):
    """As `dymn events --format raven` writes it where nothing was found."""
    header = "Selection\tBegin Time (s)\tEnd Time (s)\tAnnotation\n"
    for name, rows in (("yard", "1\t0.5\t2.8\tbark\n"), ("street", "")):
        shutil.copy(AUDIO / "dog.ogg", tmp_path / f"{name}.ogg")
        (tmp_path / f"{name}.selections.txt").write_text(header + rows)
    tracks = {track.path.name: [one.label for one in track.annotations] for track in read_labelled(tmp_path).tracks}
    assert tracks == {"yard.ogg": ["bark"], "street.ogg": []}
    (tmp_path / "yard.selections.txt").unlink()
    with pytest.raises(DataError, match="contains no annotation"):
        read_labelled(tmp_path)


@pytest.mark.parametrize("option", ["--background", "--add"])
def test_what_was_named_and_is_missing_stops_before_any_work(clips, tmp_path, option):
    done = run("fit", clips, "-o", tmp_path / "m.safetensors", option, tmp_path / "nothere")
    assert done.exit_code == 2 and "nothere" in done.stderr and option in done.stderr
    assert not (tmp_path / "m.safetensors").exists()


def test_answers_teach_only_what_was_answered(clips, tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text(
        "path,start,end,label,heard\n"
        f"{clips}/dog/0.wav,0,1.2,dog,yes\n{clips}/dog/0.wav,0,1.2,rain,no\n{clips}/rain/0.wav,,,background,yes\n"
    )
    first, second = read_answers(table, ["dog", "rain"])
    assert (first.heard, first.absent, first.end) == ({"dog"}, {"rain"}, 1.2)
    assert second.absent is None and second.end == np.inf
    for row, word in (
        ("x.wav,0,1,cat,yes", "'cat'"),
        ("x.wav,0,1,dog,maybe", "maybe"),
        ("x.wav,a,1,dog,yes", "'a'"),
        ("x.wav,5,2,dog,yes", "5 to 2 s is empty"),
        ("x.wav,inf,,dog,yes", "inf to inf s is empty"),
    ):
        table.write_text(f"path,start,end,label,heard\n{row}\n")
        with pytest.raises(DataError, match=word):
            read_answers(table, ["dog", "rain"])


def test_answers_change_the_classifier(clips, tmp_path):
    words = ["fit", clips, "-m", "dymn04_open", "-o", tmp_path / "m.safetensors", "--quiet", "--no-made-background"]
    assert run(*words).exit_code == 0
    before = scores(tmp_path / "m.safetensors", AUDIO / "frogs.ogg")["rain"]
    (tmp_path / "labels.csv").write_text(f"path,start,end,label,heard\n{AUDIO}/frogs.ogg,0,4,rain,no\n")
    assert run(*words, "--add", tmp_path / "labels.csv").exit_code == 0
    assert scores(tmp_path / "m.safetensors", AUDIO / "frogs.ogg")["rain"] < before
    (tmp_path / "labels.csv").write_text(f"path,start,end,label,heard\n{AUDIO}/frogs.ogg,900,904,rain,no\n")
    done = run(*words, "--add", tmp_path / "labels.csv")
    assert done.exit_code == 1 and "frogs.ogg, 900 to 904 s: The array" in done.stderr


def test_two_bad_stretches_of_a_recording_get_a_message_each(clips, tmp_path):
    (tmp_path / "labels.csv").write_text(
        f"path,start,end,label,heard\n{AUDIO}/frogs.ogg,900,904,rain,no\n{AUDIO}/frogs.ogg,950,954,rain,no\n"
    )
    save(fit_checkpoint(open_checkpoint("dymn04_open"), read_labelled(clips)).stored, tmp_path / "m.safetensors")
    more = ["--add", tmp_path / "labels.csv", "-o", tmp_path / "n.safetensors", "--quiet", "--format", "json"]
    for words in (["fit", clips, "-m", "dymn04_open"], ["calibrate", tmp_path / "m.safetensors", "--data", clips]):
        done = run(*words, *more)
        assert done.exit_code == 1 and len(json.loads(done.stdout)["bad"]) == 2
        assert all(f"frogs.ogg, {at} s: " in done.stderr for at in ("900 to 904", "950 to 954"))


def test_answers_about_a_recording_stay_in_its_fold(tmp_path):
    for fold, name in enumerate(("dog", "rain"), start=1):
        cut(f"{name}.ogg", tmp_path / "esc" / "audio" / str(fold))
    rows = [(f"{fold}/{i}.wav", fold, name) for i in range(4) for fold, name in enumerate(("dog", "rain"), start=1)]
    (tmp_path / "esc" / "meta").mkdir()
    lines = [f"{name},{fold},{fold},{label},True,x,A" for name, fold, label in rows]
    header = "filename,fold,target,category,esc10,src_file,take"
    (tmp_path / "esc" / "meta" / "esc50.csv").write_text("\n".join([header, *lines]) + "\n")
    (tmp_path / "labels.csv").write_text(
        f"path,start,end,label,heard\nesc/audio/2/1.wav,0,1,dog,no\n{AUDIO}/frogs.ogg,0,4,dog,no\n"
    )
    labelled = read_labelled(tmp_path / "esc")
    added = labelled.adding(read_answers(tmp_path / "labels.csv", labelled.labels)).clips[8:]
    assert added[0].group == "fold 2" and not added[1].group.startswith("fold")
    with pytest.raises(DataError, match=r"1.wav is background, and .*\(rain\) is the same recording"):
        labelled.adding(read_background(tmp_path / "esc" / "audio" / "2" / "1.wav"))


def test_a_table_without_a_recording_names_no_option_that_fit_lacks(tmp_path):
    (tmp_path / "bad.txt").write_text("0.5\t2.8\tbark\n")
    done = run("fit", tmp_path / "bad.txt", "-o", tmp_path / "m.safetensors")
    assert done.exit_code == 1 and "into one folder" in done.stderr and "dymn train" in done.stderr


def test_calibrating_needs_no_scikit_learn(mine, clips, tmp_path):
    program = (
        "import sys; sys.modules['sklearn'] = None\n"
        "from dymn.cli import main\n"
        "sys.argv = ['dymn', *sys.argv[1:]]\n"
        "main()\n"
    )
    words = ["calibrate", mine, "--data", clips, "--output", tmp_path / "c.safetensors", "--quiet"]
    done = subprocess.run([sys.executable, "-c", program, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("recorded", "shipped", "is_short"), [(0.2, 0.2, True), (0.2, 0.3, False), (0.3, 0.0, False)])
def test_backgrounds_that_are_short_each_are_noted(recorded, shipped, is_short, capsys):
    found = SimpleNamespace(background_hours=recorded, counted_hours=recorded + shipped, classes=[])
    _advise(found, quiet=False)
    assert ("The recorded background is 12.0 minutes long" in capsys.readouterr().err) == is_short


def test_quiet_ends_with_the_command(clips, tmp_path):
    logger = logging.getLogger("dymn")
    before = logger.level
    assert run("fit", clips, "-o", tmp_path / "m.onnx", "--quiet").exit_code == 2
    assert run("models", "--quiet").exit_code == 0
    assert logger.level == before


def examples_of(rng, n=60, size=6):
    targets = np.zeros((n, 2), bool)
    targets[: n // 3, 0] = targets[n // 4 : n // 2, 1] = True
    vectors = rng.normal(3, 2, (n, size)) + 4 * targets @ rng.normal(size=(2, size))
    groups = tuple(str(i) for i in range(n))
    known = np.ones_like(targets)
    return LabelledWindows(("a", "b"), vectors, targets, known, np.ones(n), groups, [Place("x", 0, 1)] * n)


def test_standardisation_and_calibration_are_in_the_head():
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    examples = examples_of(np.random.default_rng(0))
    found = fit_head(examples.vectors, examples)
    scaled = StandardScaler().fit_transform(examples.vectors)
    for k in range(2):
        plain = LogisticRegression(C=found.c, max_iter=5000).fit(scaled, examples.targets[:, k])
        logits, expected = found.head.logits(examples.vectors)[:, k], plain.decision_function(scaled)
        slope, offset = np.polyfit(expected, logits, 1)
        np.testing.assert_allclose(logits, slope * expected + offset, atol=1e-6)
        assert slope > 0


def test_groups_stay_on_one_side_of_a_validation():
    rng = np.random.default_rng(1)
    examples = examples_of(rng)
    twice = LabelledWindows(
        examples.labels,
        *(np.concatenate([getattr(examples, name)] * 2) for name in ("vectors", "targets", "known", "weights")),
        groups=examples.groups * 2,
        places=[*examples.places] * 2,
    )
    noise = rng.normal(size=twice.vectors[:60].shape)
    found = fit_head(np.concatenate([noise, noise]), twice)  # a copy on the other side would tell the answer
    assert reliability(found.held_out, twice.targets).error < 0.2
    area = np.mean(found.held_out[twice.targets]) - np.mean(found.held_out[~twice.targets])
    assert area < 0.15


def test_thresholds_part_the_scores():
    values = np.array([0.9, 0.8, 0.7, 0.6, 0.3, 0.2, 0.1])
    positive = np.array([1, 1, 1, 0, 1, 0, 0], bool)

    def found(times, hours, n_classes=1):
        scores, hits = np.tile(values, times), np.tile(positive, times)
        return class_thresholds(scores, hits, FalseAlarms([BackgroundHours(~hits, hours)], n_classes))

    enough = found(3, 5.0)
    assert enough.best == pytest.approx(0.25) and enough.f1 == pytest.approx(8 / 9)
    assert enough.precise == pytest.approx(0.7) and enough.recall == pytest.approx(0.75)
    for times, hours in ((3, 0.0), (1, 2.0)):  # too little background, too few windows of the class
        blind = found(times, hours)
        assert blind.precise == pytest.approx(0.75) and blind.recall == pytest.approx(0.5)


def test_windows_that_overlap_hardly_change_a_threshold():
    """Twice as many windows of the same hours, of which each sound is in two, bring the same threshold."""
    rng = np.random.default_rng(0)
    logits = rng.logistic(-8, 1, 4000)
    own = np.linspace(-6, 6, 200)

    def limit(windows, overlap):
        scores, positive = np.append(windows, own), np.append(np.zeros(len(windows), bool), np.ones(len(own), bool))
        alarms = FalseAlarms([BackgroundHours(~positive, 4.0, overlap)])
        found = class_thresholds(1 / (1 + np.exp(-scores)), positive, alarms).precise
        return np.log(found / (1 - found))

    once, twice, blind = limit(logits, 1.0), limit(np.repeat(logits, 2), 2.0), limit(np.repeat(logits, 2), 1.0)
    assert abs(once - twice) < 0.2 < blind - once


@pytest.mark.parametrize(("hours", "n_classes"), [(1.0, 5), (4.0, 5), (4.0, 2)])
def test_precise_thresholds_bring_one_false_alarm_an_hour_of_all_classes_together(hours, n_classes):
    """Background whose logits have a known distribution, so that the alarms of further hours are known."""
    rng, per_hour, found = np.random.default_rng(0), 500, []
    for _ in range(200):
        logits = np.append(rng.logistic(-8, 1, round(per_hour * hours)), np.linspace(-6, 6, 200))
        scores, positive = 1 / (1 + np.exp(-logits)), np.arange(len(logits)) >= len(logits) - 200
        limit = class_thresholds(scores, positive, FalseAlarms([BackgroundHours(~positive, hours)], n_classes)).precise
        found.append(n_classes * per_hour / (1 + np.exp(np.log(limit / (1 - limit)) + 8)))
    assert 0.6 < np.mean(found) < 1.3


def test_hours_of_silence_do_not_lower_a_precise_threshold():
    rng = np.random.default_rng(0)
    logits = np.concatenate([rng.logistic(-8, 1, 500), np.full(5000, -12.0), np.linspace(-6, 6, 200)])
    scores, place = 1 / (1 + np.exp(-logits)), np.arange(len(logits))
    loud, silent, positive = place < 500, (place >= 500) & (place < 5500), place >= 5500
    alone = class_thresholds(scores[~silent], positive[~silent], FalseAlarms([BackgroundHours(loud[~silent], 1.0)], 5))
    both = class_thresholds(
        scores, positive, FalseAlarms([BackgroundHours(loud, 1.0), BackgroundHours(silent, 10.0)], 5)
    )
    mixed = class_thresholds(scores, positive, FalseAlarms([BackgroundHours(loud | silent, 11.0)], 5))
    assert both.precise == alone.precise > mixed.precise


def test_a_checkpoint_without_thresholds_says_so(tmp_path):
    stored = open_checkpoint("dymn04_open")
    provenance = {key: value for key, value in stored.card.provenance.items() if key != "thresholds"}
    bare = tmp_path / "bare.safetensors"
    save(stored._replace(card=dataclasses.replace(stored.card, provenance=provenance)), bare)
    for words in (["tag"], ["events"]):
        done = run(*words, AUDIO / "dog.ogg", "-m", bare, "--threshold", "auto")
        assert done.exit_code == 2 and "contains no thresholds" in done.stderr and "calibrate" in done.stderr
    done = run("tag", AUDIO / "dog.ogg", "-m", "dymn04_open", "--threshold", "most")
    assert done.exit_code == 2 and "auto, precise" in done.stderr
    damaged = ModelCard(labels=("a", "b"), provenance={"thresholds": {"auto": [0.5]}})
    with pytest.raises(WeightsError, match="invalid thresholds"):
        thresholds_of(damaged, "auto")
    with pytest.raises(ConfigError, match="contains no thresholds"):
        thresholds_of(damaged, "precise")


@pytest.mark.parametrize("threshold", ["auto", "precise"])
def test_the_shipped_model_has_thresholds(threshold):
    done = run("tag", AUDIO / "dog.ogg", "-m", "dymn04_open", "--threshold", threshold, "--top-k", "0")
    found = {line.split()[-1] for line in done.stdout.splitlines()[1:] if line.strip()}
    assert done.exit_code == 0 and "Dog" in found and not found & {"Speech", "Music", "Vehicle"}


def test_each_label_has_its_own_threshold(mine):
    tagger = Tagger.from_pretrained(mine)
    auto = dict(zip(tagger.labels, thresholds_of(tagger.card, "auto"), strict=True))
    everything = tagger.tag(AUDIO / "dog.ogg", top_k=0)
    chosen = {tag.label for tag in everything if tag.score >= auto[tag.label]}
    assert {tag.label for tag in tagger.tag(AUDIO / "dog.ogg", threshold="auto")} == chosen
    assert {event.label for event in tagger.events(AUDIO / "dog.ogg", threshold="auto", labels=["rain"])} <= {"rain"}
    stream = tagger.stream(32_000, threshold="auto", window=1.0)
    windows = stream.feed(np.zeros(64_000, np.float32)) + stream.finish()
    assert [window.tags for window in windows] == [[], []]


def test_reliability_is_zero_for_what_is_right():
    rng = np.random.default_rng(0)
    said = rng.random(100_000)
    assert reliability(said, rng.random(100_000) < said).error < 0.01
    assert reliability(np.full(1000, 0.9), np.arange(1000) % 2 == 0).error == pytest.approx(0.4)
    useless = fit_affine(np.array([1.0, -1.0, 1.0, -1.0]), np.array([0.0, 1.0, 0.0, 1.0]))
    assert useless.slope == 0


@pytest.mark.parametrize("layer", ["hidden", "last"])
def test_calibration_is_undone_and_folded_into_the_last_layer(clips, base, layer):
    fitted = fit_checkpoint(base, read_labelled(clips), layer=layer, made=False).stored
    part = "head.classifier" if layer == "hidden" else "head.norm"
    state = dict(fitted.state)
    state[f"{part}.bias"] = state[f"{part}.bias"] + np.float32(8)  # everything is heard everywhere
    found = calibrate(fitted._replace(state=state), read_labelled(clips), name="right")
    assert found.after.error < 0.5 * found.before.error
    assert {one.label: one.positives for one in found.classes} == {"dog": 4, "rain": 4}
    assert found.stored.card.name == "right" and "cross-fitted" in found.stored.card.provenance["calibration"]
    waveform = np.random.default_rng(0).standard_normal((1, 32_000)).astype(np.float32) * 0.1
    before, after = (
        open_backend(stored).run_waveforms(waveform).probabilities[0].astype(np.float64)
        for stored in (fitted._replace(state=state), found.stored)
    )
    slope, offset = found.classes[0].affine  # shared: four windows are too few for a map of their own
    np.testing.assert_allclose(
        np.log(after / (1 - after)), slope * np.log(before / (1 - before)) + offset, atol=1e-3, rtol=1e-3
    )


def test_calibration_that_would_make_probabilities_worse_leaves_them(clips, base, tmp_path):
    """Four clips a class, whose probabilities are right already."""
    fitted = fit_checkpoint(base, read_labelled(clips)).stored
    save(fitted, tmp_path / "m.safetensors")
    found = calibrate(fitted, read_labelled(clips))
    assert found.attempted > found.before.error == found.after.error
    assert [tuple(one.affine) for one in found.classes] == [(1.0, 0.0)] * 2
    assert all(np.array_equal(found.stored.state[name], values) for name, values in fitted.state.items())
    assert "left as before" in found.stored.card.provenance["calibration"]
    assert found.stored.card.provenance["thresholds"]["auto"] != [0.5, 0.5]
    done = run("calibrate", tmp_path / "m.safetensors", "--data", clips, "-o", tmp_path / "c.safetensors")
    assert done.exit_code == 0 and "probabilities are not changed" in done.stderr
    assert f"increase the error from {found.before.error:.4f} to {found.attempted:.4f}" in done.stderr


@pytest.mark.parametrize("shift", [0, 8], ids=["left", "mapped"])
def test_thresholds_of_classes_without_recordings_are_kept(clips, base, tmp_path, shift):
    """Where probabilities change, thresholds change with them: the same windows are above them as before."""
    fitted = fit_checkpoint(base, read_labelled(clips)).stored
    state = dict(fitted.state)
    state["head.classifier.bias"] = state["head.classifier.bias"] + np.float32(shift)
    for name in ("dog", "background"):
        shutil.copytree(clips / name, tmp_path / name)
    found = calibrate(fitted._replace(state=state), read_labelled(tmp_path))
    assert (found.attempted <= found.before.error) == bool(shift)
    column = fitted.card.labels.index("rain")
    before, after = (stored.card.provenance["thresholds"] for stored in (fitted, found.stored))
    slope, offset = found.classes[0].affine  # shared
    for kind in ("auto", "precise"):
        value = before[kind][column]
        expected = 1 / (1 + np.exp(-(slope * np.log(value / (1 - value)) + offset)))
        assert after[kind][column] == pytest.approx(expected, abs=1e-4)
        assert after[kind][0] != before[kind][0]


def test_calibrating_names_the_thresholds_that_it_replaces(mine, clips, base, tmp_path):
    out = tmp_path / "c.safetensors"
    words = ["calibrate", mine, "--data", clips, "-o", out]
    done = run(*words)
    before, after = (open_checkpoint(path).card.provenance["thresholds"] for path in (mine, out))
    pairs = [(kind, one) for kind in ("auto", "precise") for one in zip(before[kind], after[kind], strict=True)]
    kind, (old, new) = max(pairs, key=lambda pair: abs(pair[1][0] - pair[1][1]))
    assert f"{kind} {old:.3f} to {new:.3f}" in done.stderr.partition("Changed most: ")[2].split(", ")[0]
    assert "are replaced" not in run(*words, "--quiet").stderr
    shutil.copytree(clips / "dog", tmp_path / "clips" / "Dog")
    shutil.copytree(clips / "background", tmp_path / "clips" / "background")
    provenance = {key: value for key, value in base.card.provenance.items() if key != "thresholds"}
    save(base._replace(card=dataclasses.replace(base.card, provenance=provenance)), tmp_path / "bare.safetensors")
    save(base, tmp_path / "full.safetensors")
    for model, noted in (("bare.safetensors", False), ("full.safetensors", True)):
        done = run("calibrate", tmp_path / model, "--data", tmp_path / "clips", "-o", out)
        assert done.exit_code == 0 and ("are replaced" in done.stderr) == noted, done.output
    assert {word for word in done.stderr.partition("Changed most: ")[2].split() if word.isalpha()} <= {
        "Dog", "auto", "precise", "to",
    }  # fmt: skip


def test_an_onnx_file_cannot_be_fitted(clips, tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"\x08\x07onnx")
    for words in (["fit", clips, "-m", tmp_path / "m.onnx"], ["calibrate", tmp_path / "m.onnx", "--data", clips]):
        done = run(*words, "-o", tmp_path / "m.safetensors")
        assert done.exit_code and "is an ONNX file" in done.stderr and "exported from" in done.stderr, done.stderr


def test_calibration_takes_background_as_fit_does(clips, base):
    """Folders called background are no class, and their clips have none of the classes."""
    labelled = read_labelled(clips)
    fitted = fit_checkpoint(base, labelled, general=False).stored
    without = labelled._replace(clips=[clip for clip in labelled.clips if clip.heard & set(labelled.labels)])
    found, fewer = (calibrate(fitted, one) for one in (labelled, without))
    assert [one.label for one in found.classes] == list(fitted.card.labels) == ["dog", "rain"]
    assert found.windows == len(labelled.clips) == fewer.windows + 4
    assert found.before.error != fewer.before.error


def test_a_class_of_the_model_called_like_background_is_calibrated(clips, tmp_path):
    for label, name in (("Dog", "dog"), ("Noise", "rain"), ("background", "background")):
        shutil.copytree(clips / name, tmp_path / "data" / label)
    words = ["calibrate", "dymn04_open", "--data", tmp_path / "data", "-o", tmp_path / "c.safetensors", "-f", "json"]
    found = {one["label"]: one["windows"] for one in json.loads(run(*words, "--quiet").stdout)["classes"]}
    assert found == {"Dog": 4, "Noise": 4}
    labelled = read_labelled(tmp_path / "data", known=("Dog", "Noise"))
    with pytest.raises(DataError, match="the same recording"):
        labelled.adding(read_background(tmp_path / "data" / "Noise" / "0.wav"))
    answers = tmp_path / "answers.csv"
    answers.write_text(f"path,start,end,label,heard\n{tmp_path}/data/Noise/0.wav,0,1,Noise,yes\n")
    assert read_answers(answers, labelled.labels)[0].absent == frozenset()  # of Dog, nothing is known


def test_invalid_thresholds_are_replaced_by_calibration(clips, base):
    fitted = fit_checkpoint(base, read_labelled(clips)).stored
    card = dataclasses.replace(fitted.card, provenance=fitted.card.provenance | {"thresholds": {"auto": [2.0]}})
    found = calibrate(fitted._replace(card=card), read_labelled(clips)).stored.card.provenance["thresholds"]
    assert [len(found[name]) for name in ("auto", "precise")] == [2, 2]


def test_background_may_be_given_twice_and_is_no_annotated_recording(clips, tmp_path):
    labelled = read_labelled(clips)
    background = read_background(clips / "background")
    assert len(labelled.adding(background).clips) == len(labelled.clips) + len(background)
    for i in range(2):
        shutil.copy(clips / "dog" / f"{i}.wav", tmp_path / f"{i}.wav")
        (tmp_path / f"{i}.txt").write_text("0.0\t0.5\tbark\n")
    with pytest.raises(DataError, match=r"0.wav is background, and .*0.wav \(bark\) is the same recording"):
        read_labelled(tmp_path).adding(read_background(tmp_path / "0.wav"))


def test_few_windows_leave_doubt_however_well_they_are_told_apart(clips, base):
    fitted = fit_checkpoint(base, read_labelled(clips), made=False).stored
    state = dict(fitted.state)
    state["head.classifier.bias"] = state["head.classifier.bias"] + np.float32(8)
    tagger = Tagger(open_backend(calibrate(fitted._replace(state=state), read_labelled(clips)).stored))
    best = [tagger.tag(clips / label / f"{i}.wav")[0] for label in ("dog", "rain") for i in range(4)]
    assert [tag.label for tag in best] == ["dog"] * 4 + ["rain"] * 4
    assert max(tag.score for tag in best) < 0.99


def test_dymn_calibrate_gives_any_model_thresholds(clips, tmp_path):
    table = tmp_path / "clips.csv"
    rows = [f"{clips}/{name}/{i}.wav,{label}" for name, label in (("dog", "Dog"), ("rain", "Rain")) for i in range(4)]
    table.write_text("path,label\n" + "\n".join(rows) + "\n")
    path, plot = tmp_path / "c.safetensors", tmp_path / "c.png"
    done = run("calibrate", "dymn04_open", "--data", table, "-o", path, "--plot", plot, "--format", "json", "--quiet")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["error_after"] < 0.3 and [one["label"] for one in report["classes"]] == ["Dog", "Rain"]
    assert plot.stat().st_size > 5000
    tagged = run("tag", AUDIO / "dog.ogg", "-m", path, "--threshold", "auto", "--labels", "Dog,Rain", "-f", "json")
    assert [tag["label"] for tag in json.loads(tagged.stdout)["recordings"][0]["tags"]] == ["Dog"]
    refused = run("calibrate", "dymn04_open", "--data", clips, "-o", path)
    assert (
        refused.exit_code == 2
        and "has the label 'dog'" in refused.stderr
        and "similar labels of the model are Dog" in refused.stderr
    )


def page_data(path):
    (text,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', path.read_text(), re.S)
    return json.loads(text)


def test_the_review_page_asks_about_the_least_sure_windows(mine, tmp_path):
    page = tmp_path / "review.html"
    done = run("review", mine, AUDIO, "--output", page, "--count", 4, "--window", 2, "--quiet")
    assert done.exit_code == 0, done.output
    asked = page_data(page)["questions"]
    assert len(asked) == 4 and {one["label"] for one in asked} == {"dog", "rain"}
    assert all(one["audio"].startswith("data:audio/wav;base64,") and Path(one["path"]).is_file() for one in asked)
    backend = Tagger.from_pretrained(mine).backend
    everything, bad = doubts(backend, sorted(AUDIO.glob("*.ogg")), TagSettings(window=2.0), count=100)
    assert not bad and max(Counter(one.path for one in everything).values()) <= 3
    gaps = [
        abs(np.log(one.score / (1 - one.score)) - np.log(one.threshold / (1 - one.threshold))) for one in everything
    ]
    for label in ("dog", "rain"):
        own = [gap for gap, one in zip(gaps, everything, strict=True) if one.label == label]
        assert own == sorted(own)
    assert [one.label for one in doubts(backend, [AUDIO / "dog.ogg"], TagSettings(labels=("rain",)))[0]] == ["rain"]


def test_one_question_is_no_plural(mine, tmp_path):
    done = run("review", mine, AUDIO / "dog.ogg", "--output", tmp_path / "review.html", "--count", 1)
    assert done.exit_code == 0 and "was written: 1 question about 1 recording." in done.stderr


def test_a_recording_that_cannot_be_reviewed_is_named(mine, tmp_path):
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    page = tmp_path / "review.html"
    done = run("review", mine, AUDIO / "dog.ogg", tmp_path / "bad.wav", "--output", page, "--quiet")
    assert done.exit_code == 1 and "bad.wav" in done.stderr and page_data(page)["questions"]
    done = run("review", mine, tmp_path / "bad.wav", "--output", tmp_path / "none.html", "--quiet")
    assert done.exit_code == 1 and not (tmp_path / "none.html").exists()
    assert run("review", mine, AUDIO, "--output", tmp_path / "page.txt").exit_code == 2


def test_a_question_whose_recording_cannot_be_read_again_is_left_out(mine, tmp_path, monkeypatch):
    for name in ("a.ogg", "b.ogg"):
        shutil.copy(AUDIO / "dog.ogg", tmp_path / name)
    page = tmp_path / "review.html"

    def changing(path, *rest):
        if path.endswith(gone):
            raise AudioError(f"{path} is truncated or damaged.")
        return passage(path, *rest)

    monkeypatch.setattr(review_page, "passage", changing)
    gone = "a.ogg"
    done = run("review", mine, tmp_path, "--output", page, "--window", 2)
    assert done.exit_code == 1 and done.stderr.count("a.ogg is truncated") == 1
    assert {Path(one["path"]).name for one in page_data(page)["questions"]} == {"b.ogg"}
    assert "3 questions about 1 recording" in done.stderr
    page.unlink()
    gone = ".ogg"
    done = run("review", mine, tmp_path, "--output", page, "--window", 2, "--quiet")
    assert done.exit_code == 1 and "No recording can be read again: " in done.stderr and not page.exists()


def test_what_cannot_be_reviewed_is_refused_before_anything_is_computed(mine, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder.html").mkdir()
    monkeypatch.setattr(recordings, "load_tagger", None)
    for words, why in (
        (("-", "--output", tmp_path / "x.html"), "can be read again. Give files, not standard input"),
        ((AUDIO, "--output", tmp_path / "folder.html"), "folder.html is a folder"),
        ((AUDIO, "--output", tmp_path / "file" / "x.html"), "x.html: Not a directory"),
    ):
        done = run("review", mine, *words)
        assert done.exit_code in (1, 2) and why in done.stderr, done.stderr
    assert "standard input" not in run("review", "--help").stdout


def test_a_recording_whose_name_no_table_can_contain_is_not_asked_about(mine, misnamed, tmp_path):
    done = run("review", mine, misnamed.parent, AUDIO / "dog.ogg", "--output", tmp_path / "review.html", "--quiet")
    assert done.exit_code == 1 and "has a name that is not UTF-8" in done.stderr
    assert {Path(one["path"]).name for one in page_data(tmp_path / "review.html")["questions"]} == {"dog.ogg"}


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")
def test_the_page_is_answered_by_keyboard_and_its_table_is_learned_from(mine, clips, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    page = tmp_path / "review.html"
    assert run("review", mine, AUDIO, "--output", page, "--count", 3, "--quiet").exit_code == 0
    wrong = []
    with playwright.sync_playwright() as steered:
        browser = steered.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=120_000)
        seen = browser.new_page(viewport={"width": 1000, "height": 760})
        seen.on("pageerror", lambda error: wrong.append(str(error)))
        seen.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        seen.goto(page.as_uri())
        for key in ("y", "n", "u"):
            seen.keyboard.press(key)
        with seen.expect_download() as download:
            seen.keyboard.press("s")
        download.value.save_as(tmp_path / "labels.csv")
        browser.close()
    assert not wrong
    asked = page_data(page)["questions"]
    first, second = read_answers(tmp_path / "labels.csv", ["dog", "rain"])
    assert (first.path, first.heard) == (Path(asked[0]["path"]), {asked[0]["label"]})
    assert (second.start, second.heard, second.absent) == (asked[1]["start"], set(), {asked[1]["label"]})
    words = ["fit", clips, "-m", "dymn04_open", "-o", tmp_path / "better.safetensors", "--quiet"]
    assert run(*words, "--add", tmp_path / "labels.csv").exit_code == 0
