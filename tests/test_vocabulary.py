"""Labels that say what one wants: AudioSet's ontology, the most specific labels, levels and groups."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from dymn import Tagger
from dymn.cli import app
from dymn.commands.label_options import vocabulary
from dymn.config import ModelCard
from dymn.errors import ConfigError
from dymn.inference.events import Event, most_specific
from dymn.inference.selection import SPECIFIC_SHARE, Selection, TagSettings
from dymn.runtime.backend import Backend, BackendOutput
from dymn.runtime.scores import thresholds_of
from dymn.runtime.vocabulary import LEAST, grouped, kinds, levels, read_groups, relabel
from dymn.weights.labels import audioset_labels
from dymn.weights.ontology import DEEPEST, ancestors, at_level, paths

LABELS = audioset_labels()
CARD = ModelCard(labels=LABELS)
RATE = 32_000


def run(*words: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.output


@pytest.fixture(scope="module")
def tagger() -> Tagger:
    return Tagger.from_pretrained("dymn04_open", "cpu", threads=1)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "a.wav"
    rng = np.random.default_rng(0)
    soundfile.write(path, (0.1 * rng.standard_normal(2 * RATE)).astype(np.float32), RATE)
    return path


def test_the_ontology_is_whole():
    known = paths()
    assert len(known) == 632 and set(LABELS) <= set(known)
    assert sum(len({path[:-1][-1] for path in ways if len(path) > 1}) for ways in known.values()) == 670
    assert {way[0] for ways in known.values() for way in ways} == {
        "Human sounds", "Animal", "Music", "Natural sounds", "Sounds of things", "Source-ambiguous sounds",
        "Channel, environment and background",
    }  # fmt: skip
    for ways in known.values():
        assert len(ways) == len(set(ways)) and all(len(set(way)) == len(way) for way in ways)


@pytest.mark.parametrize(
    ("label", "above"),
    [
        ("Bark", {"Dog", "Domestic animals, pets", "Animal"}),
        ("Growling", {"Dog", "Cat", "Roaring cats (lions, tigers)", "Canidae, dogs, wolves", "Wild animals"}),
        ("Toot", {"Vehicle horn, car horn, honking", "Car", "Motor vehicle (road)", "Vehicle", "Alarm"}),
        ("Ding-dong", {"Doorbell", "Door", "Alarm", "Domestic sounds, home sounds", "Sounds of things"}),
        ("Choir", {"Singing", "Human voice", "Human sounds", "Musical instrument", "Music"}),
        ("Thunk", {"Thump, thud", "Arrow", "Generic impact sounds", "Source-ambiguous sounds"}),
        ("Hiss", {"Cat", "Snake", "Steam", "Water", "Natural sounds", "Onomatopoeia"}),
        ("Silence", {"Source-ambiguous sounds"}),
        ("Animal", set()),
    ],
)
def test_what_labels_are_kinds_of(label, above):
    assert above <= ancestors(label) if above else ancestors(label) == above


def test_the_deepest_level_is_the_longest_way_down():
    assert max(len(path) for ways in paths().values() for path in ways) == DEEPEST
    assert vocabulary(DEEPEST, None).level == DEEPEST
    with pytest.raises(ConfigError, match="--level is 7; the deepest level of AudioSet's ontology is 6"):
        vocabulary(DEEPEST + 1, None)


def test_levels():
    assert at_level("Bark", 1) == {"Animal"} and at_level("Bark", 3) == {"Dog"} and at_level("Bark", 9) == {"Bark"}
    assert at_level("Choir", 1) == {"Human sounds", "Music"} and at_level("no such", 2) == {"no such"}
    top = levels(LABELS, 1)
    assert len(top) == 7 and set().union(*top.values()) == set(range(len(LABELS)))
    assert list(levels(LABELS, 99)) and set(levels(LABELS, 99)) == set(LABELS)
    with pytest.raises(ConfigError, match="level is 0"):
        levels(LABELS, 0)
    with pytest.raises(ConfigError, match=r"--level follows AudioSet's ontology, and 2 of the model's 2 labels"):
        levels(("Wren", "Robin"), 1)


@given(seed=st.integers(0, 2**32 - 1), threshold=st.sampled_from([0.0, 0.2, 0.5]), top_k=st.integers(0, 12))
@settings(max_examples=25, deadline=None)
def test_the_most_specific_labels(seed, threshold, top_k):
    scores = np.random.default_rng(seed).random(len(LABELS)).astype(np.float32) ** 3
    plain = Selection(CARD, TagSettings(0, threshold)).best(scores).tolist()
    found = Selection(CARD, TagSettings(top_k, threshold, specific=True)).best(scores).tolist()
    known = kinds(LABELS)
    expected = [i for i in plain if not any(known[i, j] and scores[j] >= SPECIFIC_SHARE * scores[i] for j in plain)]
    assert found == expected[: top_k or None]


def test_a_faint_specific_label_hides_nothing():
    scores = np.zeros(len(LABELS), np.float32)
    for label, score in (("Animal", 0.9), ("Dog", 0.8), ("Bark", 0.1), ("Speech", 0.5)):
        scores[LABELS.index(label)] = score
    best = Selection(CARD, TagSettings(0, 0.05, specific=True)).best(scores)
    assert [LABELS[i] for i in best] == ["Dog", "Speech", "Bark"]


def test_the_most_specific_events():
    labels = ("Animal", "Dog", "Bark", "Speech")
    events = [
        Event("Animal", 0, 10, 0.9), Event("Dog", 0, 4, 0.8), Event("Dog", 5, 8, 0.5), Event("Bark", 1, 2, 0.7),
        Event("Animal", 20, 40, 0.9), Event("Dog", 21, 24, 0.9), Event("Speech", 0, 10, 0.3), Event("Bark", 5, 8, 0.2),
    ]  # fmt: skip
    kept = most_specific(events, labels, kinds(labels))
    assert kept == [events[1], events[2], events[3], *events[4:]]


def test_groups(tmp_path):
    file = tmp_path / "groups.toml"
    file.write_text('people = ["Human voice", "Clapping"]\nmusic = ["*music*"]\nvehicle = ["vehicle"]\n')
    found = grouped(LABELS, read_groups(file))
    assert {LABELS[i] for i in found["people"]} >= {"Speech", "Groan", "Chant", "Clapping"}
    assert {LABELS[i] for i in found["vehicle"]} >= {"Vehicle", "Toot", "Bicycle bell"}
    assert LABELS.index("Music") in found["music"] and LABELS.index("Guitar") not in found["music"]
    with pytest.raises(ConfigError, match=r"group 'x' contains 'Dgo'.*Did you mean: Dog"):
        grouped(LABELS, {"x": ["Dgo"]})
    assert grouped(("Wren", "Robin"), {"birds": ["*"]}) == {"birds": [0, 1]}
    for text, why in (("x = 1", "list of labels"), ("", "no group"), ("x = [", "not TOML"), ("x = []", "list of")):
        file.write_text(text)
        with pytest.raises(ConfigError, match=why):
            read_groups(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_groups(tmp_path / "none.toml")


def test_new_labels_have_the_highest_probability_of_their_own(tagger, clip):
    names = {"a": ["Bark", "Meow"], "b": ["Silence"]}
    other = Tagger(relabel(tagger.backend, groups=names))
    waveforms = np.random.default_rng(1).standard_normal((2, RATE)).astype(np.float32)
    before, after = tagger.probabilities(waveforms), other.probabilities(waveforms)
    pair = [LABELS.index("Bark"), LABELS.index("Meow")]
    np.testing.assert_array_equal(after[:, 0], before[:, pair].max(axis=1))
    np.testing.assert_array_equal(after[:, 1], before[:, LABELS.index("Silence")])
    np.testing.assert_array_equal(other.embed(clip).vector, tagger.embed(clip).vector)
    assert other.labels == ("a", "b") and {event.label for event in other.events(clip, threshold=0.001)} <= {"a", "b"}
    with pytest.raises(ConfigError, match="Give either"):
        relabel(tagger.backend, 1, names)


def test_options_of_labels(tmp_path, clip):
    words = (clip, "--model", "dymn04_open", "--quiet", "-f", "json")
    document = json.loads(run("tag", *words, "--level", 1, "-k", 0))
    assert len(document["recordings"][0]["tags"]) == 7 and document["parameters"]["level"] == 1
    (tmp_path / "g.toml").write_text('noise = ["Noise", "White noise"]\nlife = ["Animal", "Human sounds"]\n')
    document = json.loads(run("events", *words, "--groups", tmp_path / "g.toml", "--threshold", 0.01))
    assert {event["label"] for event in document["recordings"][0]["events"]} <= {"noise", "life"}
    assert document["parameters"]["groups"]["noise"] == ["Noise", "White noise"]
    labels = [tag["label"] for tag in json.loads(run("tag", *words, "--specific"))["recordings"][0]["tags"]]
    assert len(labels) == 10 and not any(one in ancestors(other) for one in labels[:1] for other in labels[:1])
    alone = json.loads(run("tag", *words, "--threshold", "auto", "-k", 0))["recordings"][0]["tags"]
    passing = {name for tag in alone for name in at_level(tag["label"], 1)}
    for command in ("tag", "events"):
        document = json.loads(run(command, *words, "--level", 1, "--threshold", "auto"))
        found = document["recordings"][0]["tags" if command == "tag" else "events"]
        assert "threshold" in document["parameters"] and all(one["score"] >= 0.5 for one in found)
        assert command == "events" or {one["label"] for one in found} == passing
    assert "only in English" in run("tag", *words, "--language", "de", code=2)
    assert "Give either --level or --groups" in run(
        "tag", *words, "--level", 1, "--groups", tmp_path / "g.toml", code=2
    )


class Known(Backend):
    """A backend whose windows are their probabilities."""

    def __init__(self, thresholds: list[float], exclusive: bool = False) -> None:
        labels = tuple(f"l{i}" for i in range(len(thresholds)))
        self.card = ModelCard(labels=labels, provenance={"thresholds": {"auto": thresholds}}, exclusive=exclusive)
        self.embedding_size, self.is_cpu, self.precision = 1, True, "float32"

    def run(self, features):
        return BackendOutput(features, np.zeros((len(features), 1), np.float32))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.floats(0, 1, width=32), st.floats(0, 1, width=32)), min_size=2, max_size=6), st.booleans())
def test_a_group_passes_when_one_of_its_labels_passes_its_own_threshold(pairs, exclusive):
    scores, limits = np.array([[p for p, _ in pairs]], np.float32), [float(t) for _, t in pairs]
    groups = {"first": ["l0"], "all": ["l*"]}
    backend = relabel(Known(limits, exclusive), groups=groups, threshold="auto")
    found = backend.run(scores).probabilities[0]
    near = 2 * LEAST  # what is this close to 0 or 1 is not told apart
    clear = [abs(p - t) > 1e-5 or (p == t and near < t < 1 - near) for p, t in zip(scores[0], limits, strict=True)]
    passes = [p >= t for p, t in zip(scores[0], limits, strict=True)]
    for score, members in zip(found, (slice(1), slice(None)), strict=True):
        if all(clear[members]):
            assert (score >= thresholds_of(backend.card, "auto")[0] - 1e-6) == any(passes[members])
    same = backend.at("auto"), backend.at(0.3).at("auto").labels, backend.at(0.3) is backend.at(0.7)
    assert same == (backend, backend.labels, True)
    with pytest.raises(ConfigError, match="relabel"):
        thresholds_of(backend.at(0.3).card, "auto")
    with pytest.raises(ConfigError, match="contains no thresholds"):
        backend.at("precise")


def test_the_service_has_labels_and_channels(tagger, tmp_path):
    pytest.importorskip("fastapi")
    from starlette.testclient import TestClient

    from dymn.serve.app import create_app

    rng = np.random.default_rng(2)
    samples = (0.1 * rng.standard_normal((RATE, 2))).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    body = (tmp_path / "a.wav").read_bytes()
    with TestClient(create_app({"top": Tagger(relabel(tagger.backend, 1)), "own": tagger})) as client:
        found = client.post("/v1/tag", params={"top_k": 0}, content=body).json()
        assert len(found["tags"]) == 7 and found["parameters"]["level"] == 1
        found = client.post("/v1/tag", params={"top_k": 0, "threshold": "auto"}, content=body).json()
        passing = {
            name for tag in tagger.tag(samples, RATE, top_k=0, threshold="auto") for name in at_level(tag.label, 1)
        }
        assert {tag["label"] for tag in found["tags"]} == passing and found["parameters"]["threshold"] == "auto"
        how = {"embedding": True, "layers": "last,mels", "threshold": "auto"}
        found = client.post("/v1/tag", params=how, content=body).json()
        assert {tag["label"] for tag in found["tags"]} <= passing and found["embedding"]["layers"] == ["last", "mels"]
        opened = client.app._app.state.service._with_layers
        assert [backend.threshold for backend, _ in opened] == ["auto"]  # opened once, for the check and the answer
        how = {"channel": "2", "gain": "-3", "band": "20-", "specific": True, "threshold": 0.001}
        answer = client.post("/v1/tag", params={"model": "own", **how}, content=body).json()
        tags = tagger.tag(samples[:, 1], RATE, **{**how, "channel": 1})
        assert [tag["label"] for tag in answer["tags"]] == [tag.label for tag in tags]
        for wrong in ({"channel": "each"}, {"channel": "middle"}, {"gain": "loud"}, {"band": "x"}):
            assert client.post("/v1/tag", params={"model": "own", **wrong}, content=body).status_code == 400
        with client.websocket_connect("/v1/live") as live:
            live.send_json({"sample_rate": RATE, "channel": "each"})
            assert "For live sound" in live.receive_json()["error"]["message"]
