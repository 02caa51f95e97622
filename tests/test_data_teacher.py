"""Tables of teacher logits: made, resumed, imported, and never paired with the wrong clip."""

import copy
import csv
import dataclasses
import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from dymn.data import TASKS, Catalog, Loader, PlainSampler, Source, TeacherTable, open_source, published
from dymn.data.pickles import read_index
from dymn.data.stores import FileStore
from dymn.data.teacher import write_table
from dymn.errors import ConfigError, DataError, WeightsError
from dymn.evaluation.teachers import OnlineTeachers
from dymn.models.mobilenet import create_model
from dymn.training.inputs import Inputs, check_table
from dymn.training.settings import parse
from dymn.training.start import prior_logits
from dymn.training.teach import Ensemble, teach
from dymn.weights import audioset_labels, registry

RATE = 32_000
LABELS = ["class_0", "class_1", "class_2"]
N = 6


@pytest.fixture
def manifest(tmp_path):
    time = np.arange(RATE // 2) / RATE
    (tmp_path / "data").mkdir()
    for i in range(N):
        soundfile.write(tmp_path / "data" / f"{i}.wav", 0.1 * np.sin(2 * np.pi * 300 * 2**i * time), RATE)
    path = tmp_path / "data" / "list.csv"
    path.write_text("path,label\n" + "".join(f"{i}.wav,{LABELS[i % 3]}\n" for i in range(N)))
    return path


@pytest.fixture(scope="module")
def models():
    """Two networks with statistics of some noise, so that their logits tell clips apart."""
    networks = []
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        network = create_model("mn04", num_classes=3, generator=generator)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
            if isinstance(module, torch.nn.Linear):
                torch.nn.init.normal_(module.weight, std=0.05, generator=generator)
        with torch.random.fork_rng(), torch.no_grad():
            network.train()(torch.randn(4, 1, 128, 50, generator=generator))
        networks.append(network.eval())
    return networks


def source_of(manifest):
    return open_source("csv", manifest, labels=LABELS)


def run(source, models, out, **options):
    return teach(source, models, out, seconds=0.5, batch_size=2, **options)


def first_batch(source, table, **options):
    return next(
        Loader(
            source, PlainSampler(len(source), shuffle=False), len(source), seconds=0.3, teacher=table, **options
        ).epoch(0)
    )


def test_teach_stores_the_mean_of_the_logits(manifest, models, tmp_path):
    source, seen = source_of(manifest), []
    table = run(source, models, tmp_path / "t.safetensors", progress=lambda done, total: seen.append((done, total)))
    assert table.keys == tuple(source.keys) and table.labels == tuple(LABELS) and seen == [(2, 6), (4, 6), (6, 6)]
    assert table.logits.dtype == np.float16 and isinstance(table.logits, np.memmap)
    single = [
        run(source, [model], tmp_path / f"{i}.safetensors").logits.astype(np.float64) for i, model in enumerate(models)
    ]
    assert np.abs(single[0] - single[1]).max() > 0.01
    assert np.asarray(table.logits, dtype=np.float64) == pytest.approx(np.mean(single, axis=0), rel=2e-3, abs=0.01)
    assert table.source_digest == source.digest and len({model["sha256"] for model in table.models}) == 2
    assert not list(tmp_path.glob("*.part"))
    batch = first_batch(source, table)
    assert batch.has_teacher.all() and batch.teacher.numpy() == pytest.approx(
        np.asarray(table.logits, dtype=np.float32)
    )


def test_rows_are_found_by_name(manifest, models, tmp_path):
    source = source_of(manifest)
    table = run(source, models[:1], tmp_path / "t.safetensors")
    some = source.where([4, 1])
    assert table.match(some).tolist() == [4, 1]
    assert (first_batch(some, table).teacher.numpy() == table.logits[[4, 1]].astype(np.float32)).all()
    assert (pickle.loads(pickle.dumps(table)).logits == table.logits).all()


def test_teach_goes_on_after_an_interruption(manifest, models, tmp_path):
    source, out = source_of(manifest), tmp_path / "t.safetensors"
    whole = run(source, models[:1], tmp_path / "whole.safetensors")

    class Killed(Exception):
        pass

    def kill(done, _):
        if done == 4:
            raise Killed

    with pytest.raises(Killed):
        run(source, models[:1], out, progress=kill)
    assert not out.exists()
    with (tmp_path / "t.safetensors.part" / "logits").open("ab") as file:
        file.write(b"torn")
    seen = []
    table = run(source, models[:1], out, progress=lambda done, _: seen.append(done))
    assert seen == [6] and (table.logits == whole.logits).all() and (table.fingerprints == whole.fingerprints).all()


@pytest.mark.parametrize("damage", ["missing", "short", "state"])
def test_teach_starts_anew_if_files_of_an_interrupted_run_are_damaged(manifest, models, tmp_path, caplog, damage):
    def kill(*_):
        raise KeyboardInterrupt

    source, out = source_of(manifest), tmp_path / "t.safetensors"
    with pytest.raises(KeyboardInterrupt):
        run(source, models[:1], out, progress=kill)
    part = tmp_path / "t.safetensors.part"
    if damage == "missing":
        (part / "logits").unlink()
    elif damage == "short":
        (part / "keys").write_bytes(b"\n" * (part / "keys").stat().st_size)
    else:
        (part / "state.json").write_text("[]")
    assert len(run(source, models[:1], out)) == N
    assert "is incomplete; starting over" in caplog.text


def test_teach_starts_anew_for_another_model(manifest, models, tmp_path, caplog):
    source, out = source_of(manifest), tmp_path / "t.safetensors"

    def kill(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(source, models[:1], out, progress=kill)
    table = run(source, models[1:], out)
    assert (
        "starting over" in caplog.text
        and (table.logits == run(source, models[1:], tmp_path / "x.safetensors").logits).all()
    )


def test_bad_clips_are_left_out(manifest, models, tmp_path):
    (manifest.parent / "2.wav").write_bytes(b"broken")
    source = source_of(manifest)
    with pytest.raises(DataError, match="1 of 6 clips are bad"):
        run(source, models[:1], tmp_path / "t.safetensors")
    table = run(source, models[:1], tmp_path / "t.safetensors", max_bad=0.2)
    assert "2.wav" not in table.keys and len(table) == 5 and table.settings["left_out"] == ["2.wav"]
    with pytest.raises(DataError, match=r"5 of the 6 clips; '2.wav' is missing"):
        first_batch(source, table)


def test_partial_tables_are_used_only_when_allowed(manifest, models, tmp_path):
    source = source_of(manifest)
    table = run(source.where([0, 3]), models[:1], tmp_path / "t.safetensors")
    with pytest.raises(DataError, match=r"teacher\.partial=true"):
        first_batch(source, table)
    batch = first_batch(source, table, partial_teacher=True)
    assert batch.has_teacher.tolist() == [True, False, False, True, False, False] and batch.teacher[1].tolist() == [
        0,
        0,
        0,
    ]


def test_foreign_tables_are_refused(manifest, models, tmp_path):
    source = source_of(manifest)
    table = run(source, models[:1], tmp_path / "t.safetensors")
    other = manifest.with_name("other.csv")
    other.write_text("path,label,start\n0.wav,class_0,0.1\n")
    with pytest.raises(DataError, match="belongs to another dataset"):
        first_batch(open_source("csv", other, labels=LABELS), table, partial_teacher=True)
    reversed_labels = first_batch(open_source("csv", manifest, labels=LABELS[::-1]), table)
    assert torch.equal(reversed_labels.teacher.flip(1), first_batch(source, table).teacher)
    with pytest.raises(DataError, match="a teacher that has all"):
        first_batch(open_source("csv", manifest, labels=[*LABELS, "more"]), table)
    for i, name in enumerate(reversed(range(N))):  # the same names for other sounds
        (manifest.parent / f"{i}.wav").rename(manifest.parent / f"old{name}.wav")
    for i in range(N):
        (manifest.parent / f"old{i}.wav").rename(manifest.parent / f"{i}.wav")
    with pytest.raises(DataError, match="differs from that of the teacher's logits"):
        first_batch(source_of(manifest), table)
    with pytest.raises(DataError, match="differs from that of the teacher's logits"):
        first_batch(source_of(manifest), table, workers=1)


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def test_changed_files_are_refused(manifest, models, tmp_path):
    path = tmp_path / "t.safetensors"
    table = run(source_of(manifest), models[:1], path)
    content, rows = path.read_bytes(), table.logits[::-1].copy()
    assert TeacherTable.open(path).keys == table.keys
    for offset in (-1, table.offset, table.offset - 8):
        flip(path, offset)
        with pytest.raises(DataError, match=r"damaged|changed"):
            TeacherTable.open(path)
        path.write_bytes(content)
    path.write_bytes(content[: table.offset] + rows.tobytes() + content[table.offset + rows.nbytes :])
    with pytest.raises(DataError, match="shuffled"):
        TeacherTable.open(path)
    for cut in (0, 5, 100, len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(DataError, match=r"incomplete|damaged"):
            TeacherTable.open(path)
    path.write_bytes(b"\xff" * 8 + content)
    with pytest.raises(DataError, match="incomplete"):
        TeacherTable.open(path)
    with pytest.raises(DataError, match="cannot be read"):
        TeacherTable.open(tmp_path / "none")


def test_other_safetensors_are_refused(tmp_path):
    from safetensors.numpy import load_file, save_file

    save_file({"logits": np.zeros((2, 3), dtype=np.float16)}, tmp_path / "x.safetensors")
    with pytest.raises(DataError, match="not a table of teacher logits"):
        TeacherTable.open(tmp_path / "x.safetensors")
    table = write_table(tmp_path / "t.safetensors", ["ä", "b"], ["x"], np.array([[1.0], [2.0]]), np.array([3, 4]))
    assert table.keys == ("ä", "b") and load_file(tmp_path / "t.safetensors")["logits"].tolist() == [[1], [2]]
    with pytest.raises(DataError, match="not finite"):
        write_table(tmp_path / "u.safetensors", ["a"], ["x"], np.array([[1e6]]), np.array([0]))
    with pytest.raises(DataError, match="do not match"):
        write_table(tmp_path / "u.safetensors", ["a"], ["x"], np.zeros((2, 1)), np.array([0]))
    assert not (tmp_path / "u.safetensors").exists()


def test_columns_of_a_published_table_are_matched_by_name(tmp_path, manifest):
    source, rows = source_of(manifest), np.arange(N * 3, dtype=np.float32).reshape(N, 3)
    np.save(tmp_path / "logits.npy", rows)
    (tmp_path / "index.csv").write_text("\n".join(["key", *source.keys]))
    unnamed = TeacherTable.published(tmp_path / "logits.npy", tmp_path / "index.csv")
    with pytest.raises(DataError, match=r"does not name the classes of its 3 columns.*logits\.labels\.txt"):
        unnamed.match(source)
    order = [2, 0, 1]
    named = TeacherTable.published(tmp_path / "logits.npy", tmp_path / "index.csv", [LABELS[i] for i in order])
    (tmp_path / "logits.labels.txt").write_text("".join(f"{LABELS[i]}\n" for i in order))
    beside = TeacherTable.published(tmp_path / "logits.npy", tmp_path / "index.csv")
    for table in (named, beside):
        assert first_batch(source, table).teacher.tolist() == rows[:, np.argsort(order)].tolist()
        assert prior_logits(source, table, "bce").tolist() == pytest.approx(
            rows.mean(axis=0)[np.argsort(order)].tolist()
        )
    foreign = TeacherTable.published(tmp_path / "logits.npy", tmp_path / "index.csv", ["class_0", "class_1", "dog"])
    with pytest.raises(DataError, match="a teacher that has all"):
        foreign.match(source)


def test_rows_that_are_not_finite_are_left_out_and_counted(tmp_path, manifest):
    source, rows = source_of(manifest), np.arange(N * 3, dtype=np.float32).reshape(N, 3)
    rows[1, 2], rows[3, 0] = np.nan, np.inf
    np.save(tmp_path / "logits.npy", rows)
    (tmp_path / "index.csv").write_text("\n".join(["key", *source.keys]))
    table = TeacherTable.published(tmp_path / "logits.npy", tmp_path / "index.csv", LABELS)
    assert table.skipped == {"rows that are not finite": 2}
    with pytest.raises(DataError, match=rf"contains {N - 2} of the {N} clips; .* is missing \(2 rows are not finite\)"):
        table.match(source)
    np.save(tmp_path / "all.npy", np.full((N, 3), 1e308))  # infinite in float32
    with pytest.raises(DataError, match="no row of a clip that is finite"):
        TeacherTable.published(tmp_path / "all.npy", tmp_path / "index.csv", LABELS)
    found = table.match(source, partial=True)
    assert [i for i, row in enumerate(found) if row < 0] == [1, 3] and all(
        row in (i, -1) for i, row in enumerate(found)
    )


def test_a_table_with_a_class_twice_is_refused(tmp_path, manifest):
    np.save(tmp_path / "logits.npy", np.zeros((N, 3), np.float32))
    (tmp_path / "index.csv").write_text("\n".join(["key", *source_of(manifest).keys]))
    (tmp_path / "logits.labels.txt").write_text("A\nB\nB\n")
    with pytest.raises(DataError, match="several columns for the class 'B'"):
        TeacherTable.published(tmp_path / "logits.npy", tmp_path / "index.csv")


def test_an_array_needs_its_index():
    with pytest.raises(ConfigError, match=r"teacher\.table is x\.npy.*Set teacher\.index"):
        parse({"teacher": {"table": "x.npy"}})


def test_527_columns_are_those_of_audioset(tmp_path):
    labels = audioset_labels()
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", np.zeros(RATE // 10), RATE)
    alphabetic = sorted(labels)
    catalog = Catalog(("a.wav", "b.wav"), tuple(alphabetic), np.eye(2, 527, dtype=np.float32))
    source = Source(catalog, FileStore([tmp_path / "a.wav", tmp_path / "b.wav"]))
    np.save(tmp_path / "logits.npy", np.tile(np.arange(527, dtype=np.float32), (2, 1)))
    (tmp_path / "index.csv").write_text("key\na.wav\nb.wav\n")
    table = TeacherTable.published(tmp_path / "logits.npy", tmp_path / "index.csv")
    taught = first_batch(source, table).teacher[0]
    assert [labels[int(value)] for value in taught] == alphabetic and taught[alphabetic.index("Speech")] == 0


def trained_with(network, **data):
    network = copy.deepcopy(network)
    network.card = dataclasses.replace(network.card, provenance={"config": {"data": data}})
    return network


def test_a_teacher_hears_what_it_was_trained_with(manifest, models, tmp_path):
    source = source_of(manifest)
    learned = [trained_with(model, seconds=0.25, fill="repeat") for model in models]
    made = teach(source, learned[:1], tmp_path / "own.safetensors")
    assert (made.settings["seconds"], made.settings["fill"]) == (0.25, "repeat")
    told = teach(source, learned[:1], tmp_path / "told.safetensors", seconds=0.5, fill="pad")
    assert (told.settings["seconds"], told.settings["fill"]) == (0.5, "pad") and (told.logits != made.logits).any()
    assert (made.settings["longer"], told.settings["longer"]) == (N, 0)  # clips of half a second
    unknown = teach(source, models[:1], tmp_path / "unknown.safetensors")
    assert (unknown.settings["seconds"], unknown.settings["fill"]) == (10.0, "pad")
    both = [learned[0], trained_with(models[1], seconds=0.5, fill="repeat")]
    with pytest.raises(ConfigError, match=r"data\.seconds: 0\.25 \(.*\), 0\.5 \(.*\)\. Set seconds \(--seconds\)"):
        teach(source, both, tmp_path / "both.safetensors")
    assert teach(source, both, tmp_path / "both.safetensors", seconds=0.25).settings["seconds"] == 0.25


def largest_difference(table, source, models, n_clips, seconds):
    """Compute the logits of some clips again, and return by how much those of the table differ at most."""
    ensemble = Ensemble(models)
    rows, columns = table.match(source), table.columns(ensemble.labels)
    drawn = np.random.default_rng(0).permutation(len(source))[:n_clips].tolist()
    loader = Loader(source.where(drawn), PlainSampler(len(drawn), shuffle=False), 1, seconds=seconds, crop="start")
    worst = 0.0
    for i, batch in zip(drawn, loader.epoch(0), strict=True):
        logits = ensemble(batch.waveform)[0].float().numpy()
        worst = max(worst, float(np.abs(table.take(int(rows[i]), columns).astype(np.float32) - logits).max()))
    return worst


def test_published_tables(manifest, models, tmp_path):
    source = source_of(manifest)
    (tmp_path / "logits.labels.txt").write_text("\n".join(LABELS))
    made = run(source, models[:1], tmp_path / "t.safetensors")
    order = [3, 0, 5, 1, 4, 2]
    np.save(tmp_path / "logits.npy", made.logits[order].astype(np.float32))
    (tmp_path / "index.pkl").write_bytes(pickle.dumps({source.keys[i]: row for row, i in enumerate(order)}))
    with (tmp_path / "index.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["key"], *([source.keys[i]] for i in order)])
    for index in ("index.pkl", "index.csv"):
        table = TeacherTable.published(tmp_path / "logits.npy", tmp_path / index)
        assert isinstance(table.logits, np.memmap)
        assert (first_batch(source, table).teacher.numpy() == made.logits.astype(np.float32)).all()
        assert largest_difference(table, source, models[:1], 3, seconds=0.5) < 0.01
    (tmp_path / "index.csv").write_text("\n".join(["key", *source.keys]))
    shuffled = TeacherTable.published(tmp_path / "logits.npy", tmp_path / "index.csv")
    assert largest_difference(shuffled, source, models[:1], N, seconds=0.5) > 0.003
    (tmp_path / "index.csv").write_text("\n".join(["key", *source.keys[:-1]]))
    with pytest.raises(DataError, match="every one of the 6 rows"):
        TeacherTable.published(tmp_path / "logits.npy", tmp_path / "index.csv")


def test_an_index_as_it_is_found(tmp_path, manifest):
    """NumPy's whole numbers, names in AudioSet's spelling, unnamed rows, shared rows, rows of -1: used or counted."""
    source = source_of(manifest)
    np.save(tmp_path / "logits.npy", np.arange((N + 2) * 3, dtype=np.float32).reshape(N + 2, 3))
    (tmp_path / "logits.labels.txt").write_text("\n".join(LABELS))
    rows = {key: np.int64(i + 1) for i, key in enumerate(source.keys[:-1])}
    rows |= {"Yabcdefghijk.mp3": np.int32(N), "another": np.int64(1), "gone": np.int16(-1)}
    for protocol in (2, 4):
        (tmp_path / "index.pkl").write_bytes(pickle.dumps(rows, protocol=protocol))
        table = TeacherTable.published(tmp_path / "logits.npy", tmp_path / "index.pkl")
        assert table.skipped == {"rows without a name": 2, "names that share a row": 1, "names without a row": 1}
        assert "abcdefghijk" in table.keys and "gone" not in table.keys and table.logits.shape == (N + 2, 3)
        assert table.match(source, partial=True).tolist() == [*range(1, N), -1]
        with pytest.raises(DataError, match="is missing"):
            table.match(source)
    inputs = Inputs(TASKS["csv"], source, None, None, table, 0.5)
    notes = check_table(inputs, "pad", 0.1)
    assert f"1 of {N} training clips have no logits; only their labels are used, whose loss counts 0.1" in notes[0]
    assert any(note.endswith("logits.npy has 2 rows without a name.") for note in notes)
    (tmp_path / "index.pkl").write_bytes(pickle.dumps(rows | {"far": N + 2}))
    with pytest.raises(
        DataError, match=f"'far' in row {N + 2}, but the array has {N + 2} rows.*do not belong together"
    ):
        TeacherTable.published(tmp_path / "logits.npy", tmp_path / "index.pkl")
    for value in (np.float64(1.0), np.bool_(True)):
        (tmp_path / "index.pkl").write_bytes(pickle.dumps({"a": value}))
        with pytest.raises(DataError, match="was not executed"):
            read_index(tmp_path / "index.pkl")


def test_published_files_are_fetched_verified_and_named_where_absent(tmp_path, monkeypatch):
    monkeypatch.setenv("DYMN_CACHE", str(tmp_path / "cache"))
    sent = {}

    def send(remote, file, progress=None):
        if remote.name not in sent:
            raise WeightsError(f"{remote.url} does not answer.")
        file.write(sent[remote.name])

    monkeypatch.setattr("dymn.weights.transfer.transfer", send)
    array, index = registry.TEACHER_FILES
    with pytest.raises(
        DataError, match=f"v0.0.1/{array} does not answer.*download {array} from https.*into the dataset's folder"
    ):
        published.find(array, tmp_path)
    sent[array] = b"<html>"
    with pytest.raises(DataError, match="was not executed"):
        published.find(array, tmp_path)
    content = io.BytesIO()
    np.save(content, np.zeros((2, 527), np.float16))
    sent |= {array: content.getvalue(), index: pickle.dumps({"a": 0, "b": 1})}
    paths = [published.find(name, tmp_path) for name in (array, index)]
    assert paths == [tmp_path / "cache" / array, tmp_path / "cache" / index]
    assert TeacherTable.published(*paths).keys == ("a", "b")
    (tmp_path / array).write_bytes(b"own")
    assert published.find(array, tmp_path) == tmp_path / array  # what lies beside the data comes first
    with pytest.raises(DataError, match=r"neither a teacher's file other\.npy.*dymn teach.*fname_to_index\.pkl"):
        published.find("other.npy", tmp_path)


class Exploit:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.mkdir, (self.path,)


@pytest.mark.parametrize("content", [[1], {"a": 1.0}, {1: 2}, {"a": True}])
def test_an_index_is_a_dict_of_rows(tmp_path, content):
    (tmp_path / "index.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match="dict of names to row numbers"):
        read_index(tmp_path / "index.pkl")


def test_pickles_are_not_executed(tmp_path):
    (tmp_path / "index.pkl").write_bytes(pickle.dumps({"a": Exploit(tmp_path / "executed")}))
    with pytest.raises(DataError, match="was not executed"):
        read_index(tmp_path / "index.pkl")
    np.save(tmp_path / "logits.npy", np.array([Exploit(tmp_path / "executed")]), allow_pickle=True)
    with pytest.raises(DataError, match=r"must be an \.npy file of logits"):
        TeacherTable.published(tmp_path / "logits.npy", tmp_path / "index.pkl")
    for content in (b"", b"\x80\x04junk", b"cposix\nsystem\n(S'x'\ntR."):
        (tmp_path / "index.pkl").write_bytes(content)
        with pytest.raises(DataError):
            read_index(tmp_path / "index.pkl")
    assert not (tmp_path / "executed").exists()


def test_models_of_an_ensemble_must_agree(manifest, models, tmp_path):
    with pytest.raises(ConfigError, match="at least one"):
        run(source_of(manifest), [], tmp_path / "t.safetensors")
    with pytest.raises(ConfigError, match="differ in their classes"):
        run(source_of(manifest), [models[0], create_model("mn04", num_classes=4)], tmp_path / "t.safetensors")
    softmax = create_model("mn04", num_classes=3)
    softmax.card = dataclasses.replace(softmax.card, exclusive=True)
    for teach_with in (
        lambda pair: run(source_of(manifest), pair, tmp_path / "t.safetensors"),
        lambda pair: OnlineTeachers(pair, models[1], torch.device("cpu")),
    ):
        with pytest.raises(ConfigError, match=r"exclusive (classes )?\(a softmax\)"):
            teach_with([models[0], softmax])
    with pytest.raises(ConfigError, match="16000 Hz"):
        run(open_source("csv", manifest, labels=LABELS, sample_rate=16_000), models, tmp_path / "t.safetensors")


def test_the_table_of_kd_corpus(shared):
    corpus = shared / "kd_corpus"
    source = open_source("shards", corpus, "val")
    table = TeacherTable.published(corpus / "teacher_logits_mn04_as.npy", corpus / "index.csv", source.labels)
    assert len(table) == 7846 and (table.match(source) >= 0).all()
    assert largest_difference(table, source, [shared / "weights" / "mn04_as_mAP_432.pt"], 2, seconds=10.0) < 0.02


def test_metadata_is_readable_by_others(manifest, models, tmp_path):
    from safetensors import safe_open

    run(source_of(manifest), models[:1], tmp_path / "t.safetensors")
    with safe_open(tmp_path / "t.safetensors", "np") as file:
        metadata = file.metadata()
    assert json.loads(metadata["labels"]) == LABELS and json.loads(metadata["settings"])["seconds"] == 0.5
