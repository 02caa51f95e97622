"""Validation and evaluation hear recordings from beginning to end."""

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

from dymn import Tagger, create_model
from dymn.config import FrontEndConfig, ModelCard, from_dict
from dymn.data import TASKS, Loader, PlainSampler, Resident, cached, open_source
from dymn.data.source import Source
from dymn.errors import ConfigError
from dymn.evaluation.assess import assess
from dymn.evaluation.metrics import divergence
from dymn.evaluation.score import evaluation_loader, score
from dymn.models.frontend import LogMel
from dymn.models.mobilenet import Output
from dymn.training import train
from dymn.weights import load_model
from tiny_runs import FRONT_END, NETWORK, RATE, run

LABELS = ("high", "low")
HEARD = from_dict(FrontEndConfig, FRONT_END)
TASK = TASKS["folder"]


def write_late(folder, n=4, quiet=2.0):
    """Write tones of half a second that begin after two seconds of quiet."""
    rng = np.random.default_rng(0)
    for i in range(n):
        tone = 0.3 * np.sin(2 * np.pi * (300 if i % 2 else 1800) * np.arange(RATE // 2) / RATE)
        sound = np.concatenate([np.zeros(int(quiet * RATE)), tone]) + 1e-4 * rng.standard_normal(
            int((quiet + 0.5) * RATE)
        )
        path = folder / LABELS[i % 2] / f"{i}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, sound.astype(np.float32), RATE, subtype="FLOAT")
    return folder


class Loudest(nn.Module):
    """Says the class in whose half of the bands there is more; says nothing where it is quiet."""

    def forward(self, log_mel):
        low, high = log_mel[:, 0, :16].amax(dim=(1, 2)), log_mel[:, 0, 16:].amax(dim=(1, 2))
        loud = (torch.maximum(low, high) > -0.5).float()
        return Output(torch.stack([(high - low) * loud, (low - high) * loud], dim=1), low[:, None])


def judged(source, seconds=0.5, **options):
    loader = evaluation_loader(source, TASK, seconds, "pad", 3, **options)
    return score(Loudest(), LogMel(HEARD), loader, "ce")


def test_a_sound_that_comes_late_is_heard(tmp_path):
    source = open_source("folder", write_late(tmp_path), sample_rate=RATE)
    found = judged(source)
    assert found.keys == source.keys and (found.probabilities.argmax(1) == found.targets.argmax(1)).all()
    assert found.probabilities.max(axis=1) == pytest.approx(found.probabilities.max(axis=1)[0], abs=0.2)
    # four of five windows are quiet: a mean, not the loudest window
    assert np.abs(found.probabilities - 0.5).max() < 0.15
    assert np.array_equal(judged(source, workers=2).probabilities, found.probabilities)


def test_a_clip_no_longer_than_a_window_gives_what_it_gave(tmp_path):
    source = open_source("folder", write_late(tmp_path, quiet=0.0), sample_rate=RATE)
    loader = Loader(source, PlainSampler(len(source), shuffle=False), 4, seconds=0.8, crop="start")
    (batch,) = loader.epoch(0)
    expected = torch.softmax(Loudest()(LogMel(HEARD)(batch.waveform)).logits.double(), dim=1).numpy()
    assert np.array_equal(judged(source, seconds=0.8).probabilities, expected.astype(np.float32))


@pytest.mark.parametrize("kind", ["folder", "csv"])
@pytest.mark.parametrize("exclusive", [True, False])
def test_evaluation_says_what_tagging_says(tmp_path, kind, exclusive):
    """The same windows, filled up alike, with the same weights; and probabilities of the model's kind, not the data's.

    The model has a class that the data do not have.
    """
    labels = (*LABELS, "other")
    network = create_model("mn04", 3, generator=torch.Generator().manual_seed(0), **NETWORK)
    network.card = ModelCard(labels=labels, front_end=HEARD, exclusive=exclusive)
    for i, seconds in enumerate((0.2, 0.5, 0.54, 0.9, 1.3, 2.0)):
        path = tmp_path / LABELS[i % 2] / f"{i}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(
            path, 0.1 * np.random.default_rng(i).standard_normal(int(seconds * RATE)), RATE, subtype="FLOAT"
        )
    paths = [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*.wav"))]
    table = tmp_path / "clips.csv"
    table.write_text("\n".join(["path,label", *(f"{path},{path.split('/')[0]}" for path in paths)]))
    found = assess(network, table if kind == "csv" else tmp_path, kind=kind, seconds=0.5)
    assert ("accuracy" in found.figures) == (kind == "folder")
    tagger = Tagger(network)
    for key, said in zip(found.scores.keys, found.scores.probabilities, strict=True):
        tags = {tag.label: tag.score for tag in tagger.tag(tmp_path / key, top_k=3, window=0.5, fill="pad")}
        assert said == pytest.approx([tags[label] for label in LABELS], abs=2e-6)


def test_recordings_of_more_than_ten_minutes_are_not_cut(tmp_path):
    source = open_source("folder", write_late(tmp_path, n=2), sample_rate=RATE, max_seconds=1.0)
    for heard in (source, cached(source, tmp_path / "cache")):
        found = judged(heard)
        assert (found.probabilities.argmax(1) == found.targets.argmax(1)).all()


def test_whole_clips_are_one_window_of_at_least_the_training_length(tmp_path):
    source = open_source("folder", write_late(tmp_path, n=2), sample_rate=RATE)
    lengths = lambda seconds, **options: [  # noqa: E731
        batch.waveform.shape for batch in evaluation_loader(source, TASK, seconds, "pad", 3, **options).epoch(0)
    ]
    assert lengths(0.5, whole=True) == [(2, int(2.5 * RATE))]
    assert lengths(4.0, whole=True) == [(2, 4 * RATE)]
    assert [rows for rows, _ in lengths(0.5)] == [3, 3, 3, 1]
    with pytest.raises(ConfigError, match="longest"):
        Loader(source, PlainSampler(2), 1, seconds=2.0, longest=1.0, crop="windows")


def test_damage_in_the_middle_makes_a_clip_bad(tmp_path, monkeypatch):
    source = open_source("folder", write_late(tmp_path), sample_rate=RATE)
    whole = Source.whole

    def damaged(self, i, content=None):
        blocks, mark = whole(self, i, content)
        if i != 1:
            return blocks, mark

        def until():
            yield np.concatenate(list(blocks))[:RATE]
            raise OSError("the disk is gone")

        return until(), mark

    monkeypatch.setattr(Source, "whole", damaged)
    found = judged(source, max_bad=0.5)
    assert (
        found.bad == {source.keys[1]: "the disk is gone"} and source.keys[1] not in found.keys and len(found.keys) == 3
    )


def test_validation_of_a_run_hears_all(tmp_path):
    for part in ("train", "val"):
        write_late(tmp_path / "data" / part, 8, quiet=0.0 if part == "train" else 1.0)
    result = train(
        run(
            tmp_path / "data",
            tmp_path / "run",
            data={"holdout": 0.0, "whole": False},
            schedule={"epochs": 1, "warm_up": 0},
        )
    )
    assert result["val_clips"] == 8
    found = assess(load_model(tmp_path / "run" / "best.safetensors"), tmp_path / "data", split="val")
    assert found.figures["accuracy"] == result["val_accuracy"]


def test_divergence_is_the_loss_above_the_entropy():
    rng = np.random.default_rng(0)
    said, taught = (rng.dirichlet(np.ones(4), 3) for _ in range(2))
    cross, entropy = -(taught * np.log(said)).sum(1).mean(), -(taught * np.log(taught)).sum(1).mean()
    assert divergence(said, taught, "ce") == pytest.approx(cross - entropy)
    both = taught * np.log(taught / said) + (1 - taught) * np.log((1 - taught) / (1 - said))
    assert divergence(said, taught, "bce") == pytest.approx(both.mean())
    assert divergence(taught, taught, "bce") == 0.0 and divergence(np.eye(2), np.eye(2), "ce") == 0.0


@pytest.mark.parametrize("fill", ["pad", "repeat"])
def test_resident_recordings_are_heard_as_others(tmp_path, fill):
    source = cached(open_source("folder", write_late(tmp_path / "data"), sample_rate=RATE), tmp_path / "cache")
    options = {"fill": fill, "seconds": 0.6, "crop": "windows"}
    plain = Loader(source, PlainSampler(4, shuffle=False), 3, **options)
    there = Loader(source, PlainSampler(4, shuffle=False), 3, **options, resident=Resident(source, torch.device("cpu")))
    for one, other in zip(plain.collated(0), there.collated(0), strict=True):
        assert torch.equal(one.batch.waveform, other.batch.waveform) and one.batch.keys == other.batch.keys
        assert list(one.clips) == list(other.clips) and list(one.weights) == list(other.weights)
        assert one.fingerprints == other.fingerprints
